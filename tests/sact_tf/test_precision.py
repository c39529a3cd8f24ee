"""Networks that multiply bfloat16 in perforated execution."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import custom_ops
import sact_tf


def network(family="imagenet", **options):
    options = {"base_channels": 8, "execution": "perforated", **options}
    if family == "cifar":
        return sact_tf.cifar_resnet("2", "sact", **options)
    return sact_tf.imagenet_resnet("1_2_2_1", "sact", 7, **options)


def images(side=40):
    return tf.random.stateless_normal([2, side, 36, 3], [1, 2])


def run(model, **options):
    logits, end_points = model.with_end_points(images(), training=False, **options)
    units = [v for k, v in end_points.items() if k.endswith("/num_units")]
    return logits.numpy(), [v.numpy() for v in units]


@pytest.mark.parametrize(
    "family, rate", [("imagenet", 1), ("imagenet", 2), ("cifar", 1)]
)
@pytest.mark.parametrize("implementation", ["native", "tensorflow"])
def test_is_near_float32(family, rate, implementation, lively):
    if implementation == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    model = network(family, **({} if rate == 1 else {"rate": rate}))
    lively(model)
    half = model.with_execution(None, "bfloat16")
    assert half.options.precision == "bfloat16" and half.execution == "perforated"
    with custom_ops.default_implementation(implementation):
        (exact, units), (logits, half_units) = run(model), run(half)
    difference = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 1e-6 < difference < 0.1
    for one, other in zip(units, half_units):
        assert one.shape == other.shape and np.mean(one != other) < 0.1


def test_masked_and_tiled_execution_are_float32(lively):
    model = network(execution="masked", tile_size=2)
    lively(model)
    for execution in ("masked", "tiled"):
        exact, _ = run(model.with_execution(execution))
        np.testing.assert_array_equal(
            run(model.with_execution(execution, "bfloat16"))[0], exact
        )


def test_training_is_float32(lively):
    model = network("cifar", precision="bfloat16")
    lively(model)
    exact = model.with_execution("masked", "float32")
    got, expected = (
        m.with_end_points(images(), training=True)[0] for m in (model, exact)
    )
    np.testing.assert_array_equal(got, expected)


def test_is_saved(tmp_path):
    model = network("cifar", precision="bfloat16")
    copy = type(model).from_config(model.get_config())
    assert [block.precision for block in copy.blocks] == ["bfloat16"] * 3
    block = sact_tf.SACTBlock.from_config(model.blocks[0].get_config())
    assert block.precision == "bfloat16"


@pytest.mark.parametrize("implementation", ["native", "tensorflow"])
def test_export(tmp_path, implementation, lively):
    if implementation == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    model = network("cifar")
    lively(model)
    path = model.export_saved_model(
        str(tmp_path / "model"), implementation=implementation, precision="bfloat16"
    )
    served = tf.saved_model.load(path).signatures["serving_default"](images())
    with custom_ops.default_implementation(implementation):
        expected, _ = run(model.with_execution(None, "bfloat16"))
    np.testing.assert_allclose(served["logits"], expected, rtol=0.02, atol=0.02)
    exact, _ = run(model)
    assert np.abs(served["logits"] - exact).max() > 1e-6


def test_refused_values():
    with pytest.raises(ValueError, match="precision must be one of .*; got 'half'"):
        network(precision="half")
    with pytest.raises(ValueError, match="mixed precision policy; got 'bfloat16'"):
        network(precision="bfloat16", dtype="mixed_bfloat16")
    with pytest.raises(ValueError, match="in an iterative network.*; got 'bfloat16'"):
        sact_tf.iterative_net(precision="bfloat16")
    unit = keras.layers.Conv2D(3, 3, padding="same")
    with pytest.raises(ValueError, match="precision must be one of"):
        sact_tf.SACTBlock([unit], precision="int8")


def test_units_of_ones_own_need_not_know_it():
    units = [keras.layers.Conv2D(3, 3, padding="same") for _ in range(2)]
    x = images(8)
    block = sact_tf.SACTBlock(units, execution="perforated", precision="bfloat16")
    other = sact_tf.SACTBlock.from_config(
        {**block.get_config(), "precision": "float32"}
    )
    y = block(x, training=False)
    other.build(x.shape)
    other.set_weights(block.get_weights())
    np.testing.assert_allclose(other(x, training=False), y, atol=1e-6)
