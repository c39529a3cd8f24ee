"""Networks whose last strides are dilations."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

import custom_ops
import sact_tf
from sact_tf import flops
from sact_tf.networks.options import Dilation, dilated
from tests.sact_tf.test_perforated import check_equal, randomise

IMAGES = tf.random.stateless_normal([2, 70, 96, 3], [1, 2])


def build(model_type="vanilla", rate=1, **options):
    options = {"model": "1_2_3_3", "num_classes": 7, "base_channels": 4, **options}
    return sact_tf.imagenet_resnet(model_type=model_type, rate=rate, **options)


def test_what_strides_become():
    assert dilated((1, 2, 2, 2), 1) == [Dilation(s, 1, 1) for s in (1, 2, 2, 2)]
    assert dilated((1, 2, 2, 2), 4) == [
        *(Dilation(1, 1, 1), Dilation(2, 1, 1)),
        *(Dilation(1, 1, 2), Dilation(1, 2, 4)),
    ]
    # Block 4 of a detector has no stride; it goes on at the rate of block 3.
    assert dilated((1, 2, 2, 1), 2)[2:] == [Dilation(1, 1, 2), Dilation(1, 2, 2)]


@pytest.mark.parametrize("rate", [2, 4, 8])
def test_every_nth_position_is_the_strided_networks(rate):
    strided, dense = build(), build(rate=rate)
    randomise([strided, dense])
    sparse, ends = strided.run_blocks(IMAGES)
    features, dense_ends = dense.run_blocks(IMAGES)
    np.testing.assert_allclose(
        features[:, ::rate, ::rate], sparse, atol=1e-4 * np.abs(sparse).max()
    )
    np.testing.assert_allclose(dense_ends["block1"], ends["block1"], atol=1e-6)
    assert dense.block_specs[-1].stride == 32 // rate


@pytest.mark.parametrize("model_type", ["vanilla", "sact"])
def test_shapes_and_flops(model_type):
    """Of a block at stride 1, those of a network that has no stride there."""
    model = build(model_type, rate=2)
    undilated = build(model_type, block_strides=(1, 2, 2, 1))
    for network in (model, undilated):
        for variable in network.variables:
            if "halting_proba" in variable.name:  # everything runs
                value = -30.0 if "bias" in variable.name else 0.0
                variable.assign(tf.fill(variable.shape, value))
    (logits, ends), (_, others) = (
        network.with_end_points(IMAGES, training=False)
        for network in (model, undilated)
    )
    assert logits.shape == [2, 7]
    for block in model.block_scopes:
        assert ends[block].shape == others[block].shape
        np.testing.assert_array_equal(ends[f"{block}/flops"], others[f"{block}/flops"])
    np.testing.assert_array_equal(ends["flops"], others["flops"])


def test_first_convolutions_are_counted_where_dilated_ones_read():
    mask = np.random.default_rng(0).random([3, 9, 11]) < 0.1
    square = np.zeros([1, 5, 5])
    square[:, ::2, ::2] = 1
    expected = ndimage.binary_dilation(mask, square)
    np.testing.assert_array_equal(flops.dilate(tf.constant(mask), 2), expected)
    unit = build("sact", rate=2).blocks[-1].units[1]
    x = tf.zeros([3, 9, 11, 128])
    kernels = [np.prod(conv.kernel.shape) for conv in (unit.conv1, unit.conv2)]
    kernels.append(np.prod(unit.conv3.kernel.shape))
    count = expected.sum((1, 2)) * kernels[0] + mask.sum((1, 2)) * sum(kernels[1:])
    np.testing.assert_array_equal(unit.flops(x, tf.constant(mask)), 2 * count)


@pytest.mark.parametrize(
    "execution, tile_size, implementation",
    [("perforated", 1, "native"), ("perforated", 1, "tensorflow"), ("tiled", 3, None)],
)
def test_executions_are_equal(execution, tile_size, implementation):
    if implementation == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    options = dict(rate=4, tile_size=tile_size)
    masked = build("sact", **options)
    other = build("sact", execution=execution, **options)
    randomise([masked, other])
    with custom_ops.default_implementation(implementation or "tensorflow"):
        expected = masked.with_end_points(IMAGES, training=False)
        check_equal(expected, other.with_end_points(IMAGES, training=False))
    units = expected[1]["block4/num_units"]
    assert len(np.unique(units)) > 1


def test_padded_images_get_what_they_would_get_alone():
    model = randomised(build("sact", rate=4))
    sizes = tf.constant([[70, 96], [40, 64]])
    together, ends = model.run_blocks(IMAGES, return_end_points=True, sizes=sizes)
    alone, end = model.run_blocks(
        IMAGES[1:, :40, :64], return_end_points=True, sizes=sizes[1:]
    )
    height, width = alone.shape[1:3]
    np.testing.assert_allclose(
        together[1, :height, :width], alone[0], atol=1e-4 * np.abs(alone).max()
    )
    assert ends["flops"][1] == end["flops"][0]


def randomised(model):
    randomise([model])
    return model


def test_trains_and_is_saved(tmp_path):
    model = build("sact", rate=2, model="1_1_1_2", base_channels=2)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(IMAGES[:, :32, :32], training=True) ** 2)
    kernel = model.blocks[-1].units[1].conv2.kernel
    assert kernel.shape[:2] == [3, 3] and np.abs(tape.gradient(loss, kernel)).max() > 0
    assert model.get_config()["rate"] == 2
    copy = type(model).from_config(model.get_config())
    assert copy.blocks[-1].units[1].conv2.dilation_rate == (2, 2)
    sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt-1"))
    sact_tf.load_slim_checkpoint(copy.with_options(rate=1), tmp_path)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: build(rate=3), r"rate must be one of \[1, 2, 4, 8\]; got 3"),
        (
            lambda: build(rate=8, block_strides=(1, 2, 2, 1)),
            r"rate must be one of \[1, 2, 4\]; got 8",
        ),
        (lambda: build(rate=0), "rate must be an integer >= 1 .*; got 0"),
        (
            lambda: sact_tf.cifar_resnet("1", rate=2),
            "rate must be 1 in CifarResNet; got 2",
        ),
        (
            lambda: sact_tf.units.BottleneckUnit(8, 2, 2, None, rate=2),
            "rate must be 1 in a unit of stride 2; got 2",
        ),
    ],
)
def test_rates_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
