"""Networks as Keras models: shapes, sizes, losses, options, fitting."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf.networks.residual_network import MODEL_TYPES


def small(family, model_type="sact", **options):
    if family == "cifar":
        return sact_tf.cifar_resnet("2", model_type, base_channels=4, **options)
    return sact_tf.imagenet_resnet(
        "2_1_2_1", model_type, num_classes=7, base_channels=2, **options
    )


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_any_size_and_batch(family, model_type):
    model = small(family, model_type)
    assert isinstance(model, keras.Model)
    spec = tf.TensorSpec([None, None, None, 3])
    run = tf.function(model.with_end_points, input_signature=[spec])
    for shape in ([2, 32, 32, 3], [1, 33, 47, 3], [3, 5, 70, 3]):
        images = tf.random.stateless_normal(shape, [1, 2])
        logits, end_points = run(images)
        eager_logits, eager_end_points = model.with_end_points(images, training=False)
        np.testing.assert_allclose(logits, eager_logits, atol=1e-4)
        assert logits.shape == [shape[0], model.classifier.filters]
        assert end_points["flops"].shape == [shape[0]]
        assert end_points["flops"].dtype == tf.int64
        np.testing.assert_array_equal(end_points["flops"], eager_end_points["flops"])
        for block, units in zip(model.block_scopes, end_points["block_num_units"]):
            output = end_points[block]
            if model_type == "sact":
                positions = output.shape[:3]
                assert end_points[f"{block}/ponder_cost"].shape == positions
                assert end_points[f"{block}/num_units"].shape == positions
                distribution = end_points[f"{block}/halting_distribution"]
                assert distribution.shape == [*positions, units]


def test_end_points_have_the_originals_keys():
    model = small("cifar", tau=0.1)
    _, end_points = model.with_end_points(tf.zeros([2, 32, 32, 3]))
    assert end_points["block_scopes"] == ["block_1", "block_2", "block_3"]
    assert end_points["block_num_units"] == [2, 2, 2]
    assert end_points["inputs"].shape == [2, 32, 32, 3]
    keys = {"ponder_cost", "num_units", "halting_distribution", "flops"}
    assert {f"block_2/{key}" for key in keys} | {"block_2", "flops"} <= set(end_points)


def test_predictions_are_float32_probabilities():
    for dtype in ("float32", "mixed_bfloat16", "float64"):
        model = small("imagenet", dtype=dtype)
        images = tf.random.stateless_normal([2, 32, 32, 3], [1, 2])
        logits, end_points = model.with_end_points(images)
        predictions = end_points["predictions"]
        assert predictions.dtype == tf.float32 and predictions.shape == [2, 7]
        powers = np.exp(np.asarray(logits, np.float64))
        expected = powers / powers.sum(1, keepdims=True)
        np.testing.assert_allclose(predictions, expected, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["act", "sact"])
def test_halting_bias(model_type):
    """Heads start from it, and files keep it."""
    model = small("cifar", model_type, halting_bias=-1.5)
    biases = [
        value.numpy().item()
        for name, value in sact_tf.slim_variables(model).items()
        if "halting_proba" in name and name.endswith("biases")
    ]
    assert biases == [-1.5] * 3  # one head in each block of two units
    copy = type(model).from_config(model.get_config())
    assert copy.options.halting_bias == -1.5
    assert copy.blocks[0].get_config()["head"]["config"]["bias"] == -1.5


@pytest.mark.parametrize("family, decay", [("cifar", 2e-4), ("imagenet", 1e-4)])
def test_losses_are_weight_decay_and_ponder_cost(family, decay):
    model = small(family, tau=0.3)
    _, end_points = model.with_end_points(
        tf.random.stateless_normal([2, 64, 64, 3], [1, 2])
    )
    expected = sum(
        decay / 2 * np.square(v.numpy()).sum()
        for name, v in sact_tf.slim_variables(model).items()
        if name.endswith("/weights")
    )
    expected += 0.3 * sum(
        end_points[f"{b}/ponder_cost"].numpy().mean() for b in model.block_scopes
    )
    np.testing.assert_allclose(tf.add_n(model.losses), expected, rtol=1e-5)


def test_weight_decay_of_units_that_early_stopping_skips():
    model = sact_tf.cifar_resnet(
        "1_3_1", "act_early_stopping", base_channels=2, tau=0.3
    )
    images = tf.random.stateless_normal([2, 8, 8, 3], [1, 2])
    model(images)
    weights = {}
    for name, variable in sact_tf.slim_variables(model).items():
        if name.endswith("halting_proba/global_conv/biases"):
            variable.assign([50.0])
        if name.endswith("/weights"):
            weights[name] = variable

    @tf.function
    def run(images):
        with tf.GradientTape() as tape:
            model(images, training=True)
            losses = tf.stack(model.losses)
            total = tf.reduce_sum(losses)
        return losses, tape.gradient(total, list(weights.values()))

    losses, gradients = run(images)
    decays = [1e-4 * np.square(v.numpy()).sum() for v in weights.values()]
    ponder_costs = [0.3 * 2.0] * 3  # every block halts at its first unit
    expected = np.sort([*decays, *ponder_costs])
    np.testing.assert_allclose(np.sort(losses), expected, rtol=1e-5)
    for (name, variable), gradient in zip(weights.items(), gradients):
        if "halting_proba" not in name:
            np.testing.assert_allclose(
                gradient, 2e-4 * variable, rtol=1e-4, atol=1e-9, err_msg=name
            )


def test_initial_weights():
    model = sact_tf.cifar_resnet("3", "sact")
    variables = sact_tf.slim_variables(model)
    weights = variables["resnet_residual/block_3/unit_2/residual/conv1/weights"].numpy()
    # A normal truncated at two parameters has 0.8796 of the parameter as its deviation.
    parameter = np.sqrt(1.3 * 2 / (9 * 64))
    assert np.abs(weights).max() <= 2 * parameter
    np.testing.assert_allclose(weights.std(), 0.8796 * parameter, rtol=0.02)
    for name, variable in variables.items():
        if name.endswith("/biases"):
            expected = -3.0 if "halting_proba" in name else 0.0
            np.testing.assert_array_equal(variable, np.full(variable.shape, expected))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_fit_reports_units_and_flops(model_type, tiny_examples):
    model = small("cifar", model_type, num_classes=3, tau=0.01)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"])
    history = model.fit(
        tiny_examples.training_batches(8, seed=0), steps_per_epoch=2, verbose=0
    ).history
    # PonderNet halts in the last block alone.
    halting = {"vanilla": (), "pondernet": (3,)}.get(model_type, (1, 2, 3))
    units = [f"block_{b}/units" for b in halting]
    assert {"loss", "accuracy", "flops", *units} <= set(history)
    evaluated = model.evaluate(
        tiny_examples.evaluation_batches(8), verbose=0, return_dict=True
    )
    assert all(1 <= evaluated[name] <= 2 for name in units)
    (images, _), *_ = tiny_examples.evaluation_batches(20)
    _, end_points = model.with_end_points(images, training=False)
    flops = end_points["flops"].numpy().mean()
    np.testing.assert_allclose(evaluated["flops"], flops, rtol=1e-6)
    for name in units:
        expected = end_points[name.replace("units", "num_units")].numpy().mean()
        np.testing.assert_allclose(evaluated[name], expected, rtol=1e-6)


def test_keras_saving(tmp_path):
    model = small("cifar", tau=0.2)
    images = tf.random.stateless_normal([2, 32, 32, 3], [1, 2])
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert loaded.get_config() == model.get_config()
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-5)


def test_float64_gradients():
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float64")
    try:
        model = sact_tf.cifar_resnet("2", "vanilla", base_channels=2)
    finally:
        keras.mixed_precision.set_global_policy(policy)
    images = tf.random.stateless_normal([2, 8, 8, 3], [1, 2], dtype=tf.float64)

    def loss(kernel):
        model.stem.kernel.assign(kernel)
        return tf.reduce_sum(model(images, training=True) ** 2)

    kernel = model.stem.kernel
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(model(images, training=True) ** 2)
    gradient = tape.gradient(value, kernel).numpy()
    start, direction = (
        kernel.numpy(),
        np.random.default_rng(0).normal(size=kernel.shape),
    )
    up, down = (float(loss(start + s * 1e-6 * direction)) for s in (1, -1))
    np.testing.assert_allclose(
        (up - down) / 2e-6, (gradient * direction).sum(), rtol=1e-3
    )


@pytest.mark.parametrize(
    "policy, tolerance", [("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)]
)
def test_mixed_precision_is_close_to_float32(policy, tolerance):
    previous = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = small("cifar")
    finally:
        keras.mixed_precision.set_global_policy(previous)
    images = 100 * tf.random.stateless_normal([2, 40, 40, 3], [1, 2])
    logits, end_points = model.with_end_points(images, training=True)
    assert logits.dtype == end_points["block_1/ponder_cost"].dtype == tf.float32
    full = small("cifar")
    full(images)
    full.set_weights(model.get_weights())
    expected_logits, expected = full.with_end_points(images, training=True)
    scale = np.abs(expected_logits).max()
    np.testing.assert_allclose(logits, expected_logits, atol=tolerance * scale)
    for block in model.block_scopes:
        key = f"{block}/ponder_cost"
        np.testing.assert_allclose(end_points[key], expected[key], atol=tolerance)


@pytest.mark.parametrize("build", [sact_tf.cifar_resnet, sact_tf.imagenet_resnet])
@pytest.mark.parametrize(
    "options, message",
    [
        (dict(model_type="sct"), "model_type must be one of .*'sct'"),
        (dict(model="3_x_4"), "model must be .*'3_x_4'"),
        (dict(model="5_5"), "model must be .*'5_5'"),
        (dict(model="0"), "model must be .*0"),
        (dict(model=""), "model must be .*''"),
        (dict(model=[3, 4, 0, 2]), "model must be .*0"),
        (dict(tau=-0.1), "tau must be .*-0.1"),
        (dict(tau=float("nan")), "tau must be .*nan"),
        (dict(execution="fast"), "execution must be one of .*'fast'"),
        (dict(tile_size=4), "tile_size must be 1 unless .*'sact'.*; got 4"),
        (dict(num_classes=-1), "num_classes must be .*-1"),
        (dict(base_channels=-4), "base_channels must be .*-4"),
        (dict(halting_bias=float("inf")), "halting_bias must be .*inf"),
    ],
)
def test_bad_options(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
