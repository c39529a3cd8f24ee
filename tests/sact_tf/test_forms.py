"""Forms of ImageNet networks that weights from elsewhere ask for."""

import numpy as np
import pytest
import tensorflow as tf

import sact_tf
from sact_tf import exporting, keras_files
from sact_tf.networks.options import DOWNSAMPLES, STEM_POOLS

UNITS = "2_3_1_1"
every_pool = pytest.mark.parametrize("stem_pool", STEM_POOLS)


def build(model_type="sact", **options):
    return sact_tf.imagenet_resnet(UNITS, model_type, 7, base_channels=2, **options)


def images(height=70, width=53, batch=2):
    return tf.random.stateless_normal([batch, height, width, 3], [1, 2])


@every_pool
@pytest.mark.parametrize("sides", [(64, 64), (37, 50)])
def test_stem_pool_is_what_it_says(lively, stem_pool, sides):
    model = lively(build("vanilla", stem_pool=stem_pool))
    x = model.stem(tf.pad(images(*sides), [[0, 0], [3, 3], [3, 3], [0, 0]])).numpy()
    height, width = x.shape[1:3]
    outside = 0.0 if stem_pool == "zeros" else -np.inf
    padded = np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)], constant_values=outside)
    # The first row that the first window reads: SAME reads none before even sides.
    starts = [-1 if stem_pool != "same" or n % 2 else 0 for n in (height, width)]
    expected = np.empty([2, -(-height // 2), -(-width // 2), x.shape[3]])
    for i in range(expected.shape[1]):
        for j in range(expected.shape[2]):
            top, left = 2 * i + starts[0] + 2, 2 * j + starts[1] + 2
            expected[:, i, j] = padded[:, top : top + 3, left : left + 3].max((1, 2))
    actual, _, _ = model._run_stem(images(*sides), None, False)
    np.testing.assert_array_equal(actual, expected.astype(np.float32))


def test_downsample_input_is_a_strided_last_unit(lively):
    """As in the networks it is for: the last unit of a block has the stride."""
    model = lively(build("vanilla", downsample="input"))
    block = model.blocks[0]
    x = tf.random.stateless_normal([2, 13, 12, 64], [3, 4])
    *others, last = block.units
    for unit in others:
        x = unit(x)
    preact = last.preact(x)
    residual = last.conv1_bn(last.conv1(preact))
    residual = tf.pad(residual, [[0, 0], [1, 1], [1, 1], [0, 0]])
    residual = last.conv2_bn(tf.nn.conv2d(residual, last.conv2.kernel, 2, "VALID"))
    strided = x[:, ::2, ::2] + last.conv3(residual)
    first = model.blocks[1].units[0]
    np.testing.assert_allclose(last(x)[:, ::2, ::2], strided, atol=1e-5)
    one = build("vanilla", downsample="input", block_strides=[1, 1, 2, 2])
    one.set_weights(model.get_weights())
    expected = one.blocks[1].units[0](strided)
    np.testing.assert_allclose(first(last(x)), expected, atol=1e-4)


def checkered(height, width):
    """From one unit to three, the same in tiles of two by two."""
    rows, columns = np.arange(height)[:, np.newaxis] // 2, np.arange(width) // 2
    return 1 + (rows + columns) % 3


@pytest.mark.parametrize(
    "model_type, stem_pool, downsample, execution, tile_size",
    [
        ("vanilla", "zeros", "input", "perforated", 1),
        ("sact", "symmetric", "conv2", "perforated", 1),
        ("sact", "zeros", "input", "tiled", 2),
    ],
)
def test_executions_agree(
    lively, model_type, stem_pool, downsample, execution, tile_size
):
    masked = lively(
        build(
            model_type,
            stem_pool=stem_pool,
            downsample=downsample,
            tile_size=tile_size,
        )
    )
    other = masked.with_execution(execution)
    if model_type == "sact":
        for block in (*masked.blocks, *other.blocks):
            block.impose_units(checkered)
    logits, end_points = masked.with_end_points(images())
    other_logits, other_end_points = other.with_end_points(images())
    scale = np.abs(logits).max()
    np.testing.assert_allclose(other_logits, logits, atol=1e-4 * scale)
    np.testing.assert_array_equal(other_end_points["flops"], end_points["flops"])
    if model_type == "sact":
        units = [end_points[f"{b}/num_units"] for b in masked.block_scopes]
        assert max(len(np.unique(u)) for u in units) > 1


def test_flops_are_of_what_runs():
    forms = {name: build("vanilla", downsample=name) for name in DOWNSAMPLES}
    flops = {
        name: int(model.with_end_points(images(64, 64))[1]["flops"][0])
        for name, model in forms.items()
    }
    # Only the first convolution of blocks 2 to 4 runs at fewer positions: at a quarter.
    saved = 0
    for b, side in ((1, 16), (2, 8), (3, 4)):
        _, _, channels, filters = forms["input"].blocks[b].units[0].conv1.kernel.shape
        saved += 2 * channels * filters * (side**2 - (side // 2) ** 2)
    assert flops["conv2"] - flops["input"] == saved


@pytest.mark.parametrize(
    "stem_pool, downsample",
    [("same", "input"), ("symmetric", "conv2"), ("zeros", "input")],
)
def test_padded_images_get_what_they_get_alone(lively, stem_pool, downsample):
    model = lively(build(stem_pool=stem_pool, downsample=downsample))
    sizes = [(64, 44), (41, 63)]
    alone = [images(*size, batch=1) for size in sizes]
    padded = tf.concat(
        [
            tf.pad(x, [[0, 0], [0, 70 - h], [0, 65 - w], [0, 0]], constant_values=9.0)
            for x, (h, w) in zip(alone, sizes)
        ],
        0,
    )
    together, end_points = model.run_blocks(padded, False, True, tf.constant(sizes), 3)
    for k, (x, size) in enumerate(zip(alone, sizes)):
        expected, expected_points = model.run_blocks(
            x, False, True, tf.constant([size]), 3
        )
        height, width = expected.shape[1:3]
        np.testing.assert_allclose(together[k, :height, :width], expected[0], atol=1e-4)
        for key in ("flops", "dense_flops"):
            assert end_points[key][k] == expected_points[key][0]
        if stem_pool != "same":  # the pooling does not depend on the size
            plain, plain_points = model.run_blocks(x, False, True, num_blocks=3)
            np.testing.assert_allclose(expected, plain, atol=1e-4)
            assert plain_points["flops"] == expected_points["flops"]


def test_forms_travel(lively, tmp_path):
    model = lively(build(stem_pool="zeros", downsample="input"))
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras_files.load_network(path)
    config = loaded.get_config()
    assert (config["stem_pool"], config["downsample"]) == ("zeros", "input")
    np.testing.assert_allclose(loaded(images()), model(images()), atol=1e-4)


@pytest.mark.long
def test_forms_are_exported(lively, tmp_path):
    model = lively(build(stem_pool="zeros", downsample="input"))
    exporting.export_saved_model(model, str(tmp_path / "saved"), "perforated")
    served = tf.saved_model.load(str(tmp_path / "saved"))
    outputs = served.signatures["serving_default"](images=images())
    logits, end_points = model.with_end_points(images())
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4)
    np.testing.assert_array_equal(outputs["flops"], end_points["flops"])


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(stem_pool="valid"), "stem_pool must be one of same, symm.*'valid'"),
        (dict(downsample="conv3"), "downsample must be one of conv2.*'conv3'"),
    ],
)
def test_bad_forms(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_cifar_networks_have_one_form():
    with pytest.raises(ValueError, match="must be stem_pool='same'.*'zeros'"):
        sact_tf.cifar_resnet("1", stem_pool="zeros")
