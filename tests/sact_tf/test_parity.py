"""Equality with the original network's own outputs."""

import json
import pathlib
import runpy

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import visualization
from sact_tf.optimization import Momentum

# One case ships with the tests, so that a fresh clone checks parity too.
BUNDLED = pathlib.Path(__file__).parent.parent / "golden"
CASES = [
    "cifar_n5_vanilla",
    "cifar_n5_act",
    "cifar_n5_act_early_stopping",
    "cifar_n5_sact",
    "imagenet_101_bc4_vanilla",
    "imagenet_101_bc4_act",
    "imagenet_101_bc4_sact",
]


def assert_golden(actual, expected, name):
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, name
    if expected.dtype.kind == "i":
        assert actual.dtype == expected.dtype, name
        np.testing.assert_array_equal(actual, expected, err_msg=name)
    else:
        np.testing.assert_allclose(actual, expected, 2e-4, 2e-4, err_msg=name)


def check_inference(directory, load_golden):
    model, _ = load_golden(directory)
    shapes = {n: v.shape.as_list() for n, v in sact_tf.slim_variables(model).items()}
    assert shapes == json.loads((directory / "variables.json").read_text())
    files = sorted(directory.glob("golden*.npz"))
    assert files
    for file in files:
        golden = np.load(file)
        logits, end_points = model.with_end_points(golden["images"], training=False)
        decay = tf.add_n(
            [
                layer.losses[0]
                for layer in model.submodules
                if isinstance(layer, keras.layers.Conv2D)
            ]
        )
        actual = {
            **end_points,
            "logits": logits,
            "predictions": tf.nn.softmax(logits),
            "total_ponder_loss_tau0.005": tf.add_n(model.losses) - decay,
        }
        for block in model.block_scopes:
            actual[f"{block}/output"] = end_points[block]
        if visualization.has_maps(end_points):
            for key in ("ponder_cost", "num_units"):
                actual[f"{key}_map"] = visualization.sact_map(end_points, key)
        compared = set()
        for name in golden.files:
            if name in actual and name != "images":
                assert_golden(actual[name], golden[name], f"{file.name}: {name}")
                compared.add(name)
        assert {"logits", "flops"} <= compared
        per_block = ["flops", "output"]
        if model.get_config()["model_type"] != "vanilla":
            per_block += ["ponder_cost", "num_units", "halting_distribution"]
        assert {f"{b}/{k}" for b in model.block_scopes for k in per_block} <= compared


def test_bundled_case(load_golden):
    check_inference(BUNDLED / "imagenet_101_bc4_sact", load_golden)


@pytest.mark.parametrize("case", CASES)
def test_inference(case, golden_dir, load_golden):
    check_inference(golden_dir / case, load_golden)


def test_early_stopping_in_a_graph(golden_dir, load_golden):
    directory = golden_dir / "cifar_n5_act_early_stopping"
    model, _ = load_golden(directory)
    golden = np.load(directory / "golden_32x32.npz")
    logits, _ = tf.function(model.with_end_points)(golden["images"])
    assert_golden(logits, golden["logits"], "logits")


def training_gradients(model, variables, images, labels):
    """Returns both losses, gradients of variables, and end points that are tensors."""
    with tf.GradientTape() as tape:
        logits, end_points = model.with_end_points(images, training=True)
        cross_entropy = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        )
        total = cross_entropy + tf.add_n(model.losses)
    gradients = tape.gradient(total, variables)
    end_points = {k: v for k, v in end_points.items() if tf.is_tensor(v)}
    return total, cross_entropy, gradients, {**end_points, "logits": logits}


def test_training_step(golden_dir, load_golden):
    directory = golden_dir / "cifar_n2_sact_train"
    model, info = load_golden(directory)
    golden = np.load(directory / "golden.npz")
    variables = sact_tf.slim_variables(model)
    trainable = {n: v for n, v in variables.items() if v.trainable}

    @tf.function
    def run(images, labels):
        return training_gradients(model, list(trainable.values()), images, labels)

    total, cross_entropy, gradients, end_points = run(
        tf.constant(golden["images"]), tf.constant(golden["labels"])
    )
    np.testing.assert_allclose(total, golden["loss/total"], rtol=1e-4)
    np.testing.assert_allclose(cross_entropy, golden["loss/cross_entropy"], rtol=1e-4)
    for name in golden.files:
        if name in end_points and name != "images":
            assert_golden(end_points[name], golden[name], name)

    key = "gradients_that_are_mathematically_zero_rounding_noise"
    noise = set(info["goldens"][0][key])
    compared = 0
    for name, gradient in zip(trainable, gradients):
        expected = golden[f"grad/{name}"]
        gradient = tf.convert_to_tensor(gradient).numpy()
        if name in noise:
            np.testing.assert_allclose(gradient, expected, atol=1e-5, err_msg=name)
        else:
            error = np.linalg.norm(gradient - expected)
            assert error <= 1e-3 * np.linalg.norm(expected), name
        compared += 1
    assert compared == sum(n.startswith("grad/") for n in golden.files)
    for name in golden.files:
        if name.startswith("updated/"):
            actual = variables[name.removeprefix("updated/")]
            np.testing.assert_allclose(actual, golden[name], atol=1e-5, err_msg=name)

    # One step of the optimizer gives the original's next checkpoint.
    optimizer = Momentum(info["learning_rate"], info["momentum"])
    optimizer.apply_gradients(zip(gradients, trainable.values()))
    after = tf.train.load_checkpoint(
        str(directory / "ckpt_after_step" / "model.ckpt-1")
    )
    for name, variable in variables.items():
        expected = after.get_tensor(name)
        np.testing.assert_allclose(variable, expected, 1e-4, 2e-5, err_msg=name)


def test_bundled_training_step():
    """The same from what a fresh clone has of it."""
    derive = runpy.run_path(str(BUNDLED / "derive.py"))
    golden = np.load(BUNDLED / "cifar_n2_sact_train.npz")
    names, trained = golden["names"].tolist(), golden["trained"].tolist()
    model = sact_tf.cifar_resnet("2", "sact", tau=0.005)
    model(golden["images"])
    variables = sact_tf.slim_variables(model)
    assert sorted(variables) == names
    assert {n for n, v in variables.items() if v.trainable} == set(trained)
    sizes = [variables[name].shape.num_elements() for name in names]
    weights = np.split(derive["unpack"](golden["weights"]), np.cumsum(sizes)[:-1])
    for name, values in zip(names, weights):
        variables[name].assign(values.reshape(variables[name].shape))

    total, cross_entropy, gradients, end_points = training_gradients(
        model, [variables[n] for n in trained], golden["images"], golden["labels"]
    )
    np.testing.assert_allclose(total, golden["loss/total"], rtol=1e-4)
    np.testing.assert_allclose(cross_entropy, golden["loss/cross_entropy"], rtol=1e-4)
    for name in ["logits", "flops"] + [
        f"{block}/{key}"
        for block in model.block_scopes
        for key in ("flops", "num_units")
    ]:
        assert_golden(end_points[name], golden[name], name)

    zero = set(golden["zero_gradients"].tolist())
    for name, gradient, expected in zip(trained, gradients, golden["gradients"]):
        # The projection differs by more than the norm where values change places.
        error = np.abs(derive["summary"](tf.convert_to_tensor(gradient)) - expected)
        assert error.max() <= (1e-4 if name in zero else 1e-3 * expected[0]), name

    optimizer = Momentum(golden["learning_rate"], golden["momentum"])
    optimizer.apply_gradients(zip(gradients, [variables[n] for n in trained]))
    for name, expected in zip(names, golden["after"]):
        actual = derive["summary"](variables[name])
        np.testing.assert_allclose(actual, expected, 1e-4, 5e-5, err_msg=name)


def test_bundled_heatmaps(load_golden):
    """Exact values of what a fresh clone has of them."""
    step = runpy.run_path(str(BUNDLED / "derive.py"))["ROW_STEP"]
    golden = np.load(BUNDLED / "heatmaps.npz")
    model, _ = load_golden(BUNDLED / "imagenet_101_bc4_sact")
    _, end_points = model.with_end_points(golden["images"], training=False)
    options = dict(alpha=float(golden["alpha"]), border=int(golden["border"]))
    cost, units = (
        visualization.heatmap(end_points, key, num_images=1, **options)[:, ::step]
        for key in ("ponder_cost", "num_units")
    )
    assert_golden(cost, golden["heatmap_ponder_cost"], "ponder_cost")
    assert_golden(units[..., 0], golden["heatmap_num_units_red"], "num_units")
    np.testing.assert_array_equal(units[..., 1:], cost[..., 1:])


@pytest.mark.parametrize("case", ["cifar_n5_sact", "imagenet_101_bc4_sact"])
def test_heatmaps(case, golden_dir, load_golden):
    model, _ = load_golden(golden_dir / case)
    golden = np.load(golden_dir / "heatmaps" / f"{case}.npz")
    _, end_points = model.with_end_points(golden["images"], training=False)
    for key in ("ponder_cost", "num_units"):
        actual = visualization.heatmap(
            end_points,
            key,
            num_images=int(golden["num_images"]),
            alpha=float(golden["alpha"]),
            border=int(golden["border"]),
        )
        assert_golden(actual, golden[f"heatmap_{key}"], key)


def flops_function(model, size):
    """Returns a function that counts, in all and by block, in a graph made once."""
    run = tf.function(lambda x: model.with_end_points(x)[1])

    def count():
        end_points = run(tf.zeros([1, *size, 3]))
        return end_points["flops"].numpy().tolist(), {
            b: int(end_points[f"{b}/flops"][0]) for b in model.block_scopes
        }

    return count


def test_flops_of_resnet_101():
    total, _ = flops_function(sact_tf.imagenet_resnet("101"), [224, 224])()
    assert total == [15602814976]


def test_flops_of_resnet_110():
    model = sact_tf.cifar_resnet("18")
    _, end_points = model.with_end_points(tf.zeros([1, 32, 32, 3]))
    assert end_points["flops"].numpy().tolist() == [505775360]


@pytest.mark.parametrize(
    "network, size",
    [
        ("imagenet_sact_101_1001", "224x224"),
        ("imagenet_act_101_1001", "224x224"),
        ("imagenet_vanilla_50_1001", "224x224"),
        ("imagenet_vanilla_101_1001", "352x352"),
        ("imagenet_vanilla_101_1001", "600x1000"),
        ("cifar_vanilla_n5_10", "32x32"),
        ("cifar_vanilla_n18_10", "32x32"),
    ],
)
def test_flops_at_real_size(network, size, golden_dir):
    table = json.loads((golden_dir / "flops_real_size.json").read_text())
    family, model_type, units, classes = network.split("_")
    if family == "cifar":
        model = sact_tf.cifar_resnet(units.removeprefix("n"), model_type)
    else:
        model = sact_tf.imagenet_resnet(units, model_type, int(classes))
    count = flops_function(model, [int(side) for side in size.split("x")])
    biases = {"": 0.0}
    if model_type != "vanilla":
        biases = {"_nothing_halts": -1e6, "_all_halt_at_unit_1": 1e6}
    for case, bias in biases.items():
        for name, variable in sact_tf.slim_variables(model).items():
            if "halting_proba" in name and name.endswith("biases"):
                variable.assign([bias])
        total, blocks = count()
        expected = table[f"{network}_{size}{case}"]
        assert total == [expected["total"]]
        assert blocks == {b: expected[b] for b in model.block_scopes}
