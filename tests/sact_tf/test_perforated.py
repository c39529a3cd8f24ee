"""Perforated execution gives what masked execution gives."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import custom_ops
import sact_tf

GOLDEN_DIR = pathlib.Path(__file__).parents[1] / "golden"
NETWORKS = [("cifar", model_type) for model_type in ("vanilla", "act", "sact")] + [
    ("imagenet", model_type) for model_type in ("vanilla", "act_early_stopping", "sact")
]


def build(family, model_type, execution, tile_size):
    options = dict(base_channels=4, execution=execution, tile_size=tile_size)
    if family == "cifar":
        return sact_tf.cifar_resnet("3", model_type, **options)
    return sact_tf.imagenet_resnet("2_3_3_2", model_type, 7, **options)


def randomise(models):
    """Gives several networks the same weights, such that halting varies."""
    for number, variables in enumerate(zip(*(model.variables for model in models))):
        name, shape = variables[0].name, variables[0].shape
        values = np.random.default_rng(number).normal(size=shape)
        if "moving_variance" in name or "gamma" in name:
            values = 1.0 + 0.2 * np.abs(values)
        elif "halting_proba" in name and "kernel" in name:
            values *= 0.5
        elif "kernel" in name:
            values *= np.sqrt(1.0 / np.prod(shape[:-1]))
        elif "halting_proba" in name and "bias" in name:
            values = np.full(shape, -0.5)
        else:
            values *= 0.1
        for variable in variables:
            variable.assign(values)


def pair(family, model_type, execution="perforated", tile_size=1):
    models = [build(family, model_type, e, tile_size) for e in ("masked", execution)]
    randomise(models)
    return models


def check_scores(end_points, other, key):
    """Scores of unit k are equal where it runs; perforated ones are zero elsewhere."""
    block, unit, _ = key.rsplit("/", 2)
    was_active = np.asarray(end_points[f"{block}/num_units"]) >= int(unit[5:])
    scores, other_scores = (np.asarray(e[key])[..., 0] for e in (end_points, other))
    assert was_active.shape == scores.shape == other_scores.shape, key
    np.testing.assert_allclose(
        other_scores[was_active], scores[was_active], atol=1e-4, rtol=0, err_msg=key
    )
    np.testing.assert_array_equal(other_scores[~was_active], 0, err_msg=key)


def check_equal(masked, perforated):
    (logits, end_points), (other_logits, other) = masked, perforated
    np.testing.assert_allclose(
        other_logits, logits, atol=1e-4 * np.abs(logits).max(), rtol=0
    )
    assert end_points.keys() == other.keys()
    for key, value in end_points.items():
        if not tf.is_tensor(value):
            assert value == other[key]
        elif key.endswith("halting_proba"):
            check_scores(end_points, other, key)
        elif value.dtype.is_integer:
            np.testing.assert_array_equal(other[key], value, err_msg=key)
        else:
            scale = max(np.abs(value).max(), 1e-6)
            np.testing.assert_allclose(
                other[key], value, atol=1e-4 * scale, rtol=0, err_msg=key
            )


@pytest.mark.parametrize(
    "family, model_type, execution, tile_size, implementation",
    [
        (family, model_type, "perforated", 1, implementation)
        for implementation in ("native", "tensorflow")
        for family, model_type in NETWORKS
    ]
    + [("cifar", "sact", "perforated", 3, "native")]
    + [(family, "sact", "tiled", 3, "tensorflow") for family in ("cifar", "imagenet")],
)
def test_equals_masked(family, model_type, execution, tile_size, implementation):
    if implementation == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    masked, perforated = pair(family, model_type, execution, tile_size)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3])])
    def graph(images):
        logits, end_points = perforated.with_end_points(images, training=False)
        return logits, {k: v for k, v in end_points.items() if tf.is_tensor(v)}

    with custom_ops.default_implementation(implementation):
        for batch, side in ((1, 32), (3, 41)):
            images = tf.random.stateless_normal([batch, side, 36, 3], [1, side])
            expected = masked.with_end_points(images, training=False)
            check_equal(expected, perforated.with_end_points(images, training=False))
            tensors = {k: v for k, v in expected[1].items() if tf.is_tensor(v)}
            check_equal((expected[0], tensors), graph(images))
    if model_type == "sact":
        units = [v for k, v in tensors.items() if k.endswith("num_units")]
        # Something was skipped, not all.
        assert any(len(np.unique(block_units)) > 1 for block_units in units)


def test_follows_weights():
    masked, perforated = pair("cifar", "sact")
    images = tf.random.stateless_normal([2, 32, 32, 3], [3, 4])
    run = tf.function(lambda x: perforated(x, training=False))
    before = run(images)
    for a, b in zip(masked.trainable_variables, perforated.trainable_variables):
        a.assign_add(0.05 * tf.ones_like(a))
        b.assign_add(0.05 * tf.ones_like(b))
    expected = masked(images, training=False)
    np.testing.assert_allclose(
        run(images), expected, atol=1e-4 * np.abs(expected).max()
    )
    assert np.abs(before - expected).max() > 1e-3


def test_training_is_masked():
    masked, perforated = pair("cifar", "sact")
    images = tf.random.stateless_normal([2, 32, 32, 3], [3, 4])
    gradients = []
    for model in (masked, perforated):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_sum(logits) + tf.add_n(model.losses)
        gradients.append(tape.gradient(loss, model.trainable_variables))
    for a, b in zip(*gradients):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max() + 1e-7)


@pytest.mark.parametrize("implementation", ["native", "tensorflow"])
def test_exports(tmp_path, implementation):
    """With TensorFlow operations, a SavedModel needs nothing of this package."""
    if implementation == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    _, perforated = pair("imagenet", "sact")
    images = tf.random.stateless_normal([2, 40, 48, 3], [3, 4])
    perforated.export_saved_model(str(tmp_path), implementation=implementation)
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((tmp_path / "saved_model.pb").read_bytes())
    functions = proto.meta_graphs[0].graph_def.library.function
    ops = {node.op for function in functions for node in function.node_def}
    has_native = any("Perforated" in op or "Bottleneck" in op for op in ops)
    assert has_native == (implementation == "native")
    serve = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    expected = perforated(images, training=False)
    np.testing.assert_allclose(serve(images=images)["logits"], expected, atol=1e-4)


@pytest.mark.parametrize("execution", ["perforated", "tiled"])
def test_loaded_checkpoints(load_golden, execution):
    """A checkpoint of the original, loaded after the network has run once."""
    directory = GOLDEN_DIR / "imagenet_101_bc4_sact"
    golden = np.load(next(directory.glob("golden*.npz")))
    tile_size = 2 if execution == "tiled" else 1
    expected, _ = load_golden(directory, tile_size=tile_size)
    model, _ = load_golden(directory, execution=execution, tile_size=tile_size)
    for variable in model.variables:
        variable.assign(variable * 1.5)
    model(golden["images"], training=False)
    (checkpoint,) = (directory / "ckpt").glob("*.index")
    sact_tf.load_slim_checkpoint(model, str(checkpoint.with_suffix("")))
    outputs = model.with_end_points(golden["images"], training=False)
    check_equal(expected.with_end_points(golden["images"], training=False), outputs)
    if execution == "perforated":
        np.testing.assert_array_equal(outputs[1]["flops"], golden["flops"])
        np.testing.assert_allclose(
            outputs[0], golden["logits"], atol=2e-4 * np.abs(golden["logits"]).max()
        )
