"""What every zoo of networks has: preprocessing, classes, features, freezing."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from PIL import Image

import sact_tf
from sact_tf import exporting
from sact_tf.data.examples import DataError


def small(model_type="sact", **options):
    options = {"num_classes": 3, "base_channels": 2, "tau": 0.1, **options}
    return sact_tf.imagenet_resnet("1_2_2_1", model_type, **options)


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, [*shape, 3]).astype(np.uint8)


@pytest.mark.parametrize("shape", [(40, 36), (2, 40, 36)])
def test_preprocess_input(shape):
    images = pixels(*shape)
    expected = images / np.float32(127.5) - 1
    for given in (images, images.astype(np.float32), images.astype(np.int64)):
        actual = sact_tf.preprocess_input(given)
        assert isinstance(actual, np.ndarray) and actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    tensor = sact_tf.preprocess_input(tf.constant(images))
    assert tf.is_tensor(tensor)
    np.testing.assert_allclose(tensor, expected, atol=1e-6)
    # The same as the sources of weights do.
    theirs = keras.applications.resnet_v2.preprocess_input(images.astype(np.float32))
    np.testing.assert_allclose(theirs, expected, atol=1e-6)
    cifar = sact_tf.cifar_resnet("1", base_channels=2)
    actual = sact_tf.preprocess_input(images, cifar)
    standardized = tf.image.per_image_standardization(tf.cast(images, tf.float32))
    np.testing.assert_allclose(actual, standardized, atol=1e-6)


def test_preprocess_input_in_a_pipeline():
    dataset = tf.data.Dataset.from_tensor_slices(pixels(4, 8, 8))
    images = next(iter(dataset.map(sact_tf.preprocess_input).batch(4)))
    expected = sact_tf.preprocess_input(pixels(4, 8, 8))
    np.testing.assert_allclose(images, expected, atol=1e-6)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros([4, 4], np.uint8), r"\[height, width, 3\] or .*got \[4, 4\]"),
        (np.zeros([4, 4, 4], np.uint8), r"got \[4, 4, 4\]"),
        (np.full([4, 4, 3], 256.0), r"must lie in \[0, 255\]; got 256 to 256"),
        (np.full([4, 4, 3], -1), r"must lie in \[0, 255\]; got -1"),
        (np.full([4, 4, 3], 0.5), r"looks like \[0, 1\]: multiply by 255"),
        (np.full([4, 4, 3], np.nan), "NaN or infinite"),
    ],
)
def test_images_that_are_no_pixels(images, message):
    with pytest.raises(ValueError, match=message):
        sact_tf.preprocess_input(images)


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_networks_refuse_integers(dtype):
    model = small("vanilla")
    images = tf.zeros([1, 32, 32, 3], dtype)
    for call in (model, tf.function(model), model.with_end_points):
        with pytest.raises(ValueError, match=f"got {dtype}: .*preprocess_input"):
            call(images)


@pytest.fixture
def class_index(tmp_path):
    """A file like Keras' own."""
    path = tmp_path / "imagenet_class_index.json"
    path.write_text(
        json.dumps({str(k): [f"n{k:08}", f"name_{k}"] for k in range(1000)})
    )
    return str(path)


@pytest.mark.parametrize("background", [0, 1])
def test_decode_predictions(class_index, background):
    logits = np.zeros([2, 1000 + background])
    logits[0, [7 + background, 5 + background]] = 9, 8
    logits[1, 0] = 20
    first, second = sact_tf.decode_predictions(logits, 2, class_index)
    assert [row[:2] for row in first] == [
        ("n00000007", "name_7"),
        ("n00000005", "name_5"),
    ]
    expected = "background" if background else "name_0"
    assert second[0][1] == expected
    probabilities = tf.nn.softmax(logits).numpy()
    assert first[0][2] == pytest.approx(probabilities.max(1)[0])
    again = sact_tf.decode_predictions(probabilities, 2, class_index)
    assert again[0][0][2] == pytest.approx(first[0][2])


def test_classes_that_cannot_be_named(class_index, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"\[batch, 1000\] or .*got \[2, 10\]"):
        sact_tf.decode_predictions(np.zeros([2, 10]), 2, class_index)
    with pytest.raises(ValueError, match="top must be .*0"):
        sact_tf.decode_predictions(np.zeros([2, 1000]), 0, class_index)
    other = tmp_path / "other.json"
    other.write_text('{"0": ["a", "b"]}')
    with pytest.raises(DataError, match="other.json: is no class index of ImageNet"):
        sact_tf.decode_predictions(np.zeros([2, 1000]), 2, str(other))

    def offline(*args, **options):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(
        keras.applications.imagenet_utils, "decode_predictions", offline
    )
    with pytest.raises(OSError, match="imagenet_class_index.json is not cached.*fetch"):
        sact_tf.decode_predictions(np.zeros([2, 1000]))


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
def test_without_classifier(lively, family, tmp_path):
    def build(**options):
        if family == "imagenet":
            return small(**options)
        return sact_tf.cifar_resnet("2", "sact", base_channels=2, tau=0.1, **options)

    model = lively(build())
    images = tf.random.stateless_normal([2, 33, 40, 3], [1, 2])
    outputs = {}
    for pooling in (None, "avg", "max"):
        other = build(include_top=False, pooling=pooling)
        assert other.options.num_classes == 0
        names = sact_tf.slim_variables(other)
        for name, variable in sact_tf.slim_variables(model).items():
            assert (name in names) != ("/logits/" in name)
            if name in names:
                names[name].assign(variable)
        outputs[pooling] = other(images)
    # The classifier takes the averages.
    logits = model.classifier(outputs["avg"][:, tf.newaxis, tf.newaxis])[:, 0, 0]
    np.testing.assert_allclose(logits, model(images), atol=1e-5)
    expected = outputs[None].numpy().max((1, 2))
    np.testing.assert_allclose(outputs["max"], expected, atol=1e-6)
    if family == "imagenet":
        expected = outputs[None].numpy().mean((1, 2))
        np.testing.assert_allclose(outputs["avg"], expected, atol=1e-5)
    if family == "imagenet":
        path = str(tmp_path / "model.keras")
        other.save(path)
        loaded = keras.models.load_model(path)
        np.testing.assert_allclose(loaded(images), outputs["max"], atol=1e-6)
        sact_tf.load_pretrained(model, path, without_classifier=True)
    served = exporting._serving_function(other)(images)
    np.testing.assert_allclose(served["features"], outputs["max"], atol=1e-6)
    assert "logits" not in served


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(pooling="avg"), "pooling must be None with a classifier; got 'avg'"),
        (dict(num_classes=0, pooling="sum"), "pooling must be avg, max or None.*'sum'"),
    ],
)
def test_bad_pooling(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_feature_extractor(lively, tmp_path):
    network = lively(small())
    model = sact_tf.feature_extractor(network, ["block2", "block3"])
    assert isinstance(model, keras.Model) and set(model.output) == {"block2", "block3"}
    images = tf.random.stateless_normal([2, 64, 48, 3], [1, 2])
    features = model(images)
    _, end_points = network.run_blocks(images)
    expected = network.features(end_points)
    for k, name in ((1, "block2"), (2, "block3")):
        np.testing.assert_allclose(features[name], expected[k], atol=1e-5)
    # Blocks that run add their losses: those up to the last one asked for.
    costs = [
        0.1 * np.mean(network.with_end_points(images)[1][f"block{b}/ponder_cost"])
        for b in (1, 2, 3)
    ]
    model(images)
    losses = [float(loss) for loss in model.losses]
    for cost in costs:
        assert any(abs(loss - cost) < 1e-5 for loss in losses)
    model.save(tmp_path / "features.keras")
    loaded = keras.models.load_model(tmp_path / "features.keras")
    np.testing.assert_allclose(loaded(images)["block3"], features["block3"], atol=1e-5)
    with pytest.raises(ValueError, match=r"of block1, .*block4; got \['block5'\]"):
        sact_tf.feature_extractor(network, ["block5"])
    with pytest.raises(ValueError, match=r"got \[\]"):
        sact_tf.feature_extractor(network, [])


def test_freeze_backbone():
    model = sact_tf.cifar_resnet("2", "sact", 3, base_channels=2, tau=0.5)
    before = {n: v.numpy() for n, v in sact_tf.slim_variables(model).items()}
    sact_tf.freeze_backbone(model)
    heads = {
        id(variable)
        for name, variable in sact_tf.slim_variables(model).items()
        if "halting_proba" in name and "/moving_" not in name
    }
    assert {id(variable) for variable in model.trainable_variables} == heads
    model(tf.random.stateless_normal([2, 16, 16, 3], [1, 2]), training=True)
    for name, variable in sact_tf.slim_variables(model).items():
        if "moving_" in name and "halting_proba" not in name:
            np.testing.assert_array_equal(variable, before[name], err_msg=name)
    with pytest.raises(ValueError, match="adaptive network.*'vanilla'"):
        sact_tf.freeze_backbone(sact_tf.cifar_resnet("1", base_channels=2))


@pytest.mark.parametrize("model_type", ["vanilla", "act", "sact"])
def test_ponder(lively, model_type, tmp_path):
    model = lively(small(model_type))
    image = pixels(70, 52)
    Image.fromarray(image).save(tmp_path / "image.png")
    result = sact_tf.ponder(model, str(tmp_path / "image.png"))
    inputs = sact_tf.preprocess_input(image)[np.newaxis]
    logits, end_points = model.with_end_points(inputs)
    np.testing.assert_allclose(result.logits, logits[0], atol=1e-5)
    assert result.flops == int(end_points["flops"][0])
    _, dense = small("vanilla").with_end_points(inputs)
    assert result.dense_flops == int(dense["flops"][0])
    assert set(result.units) == set(model.block_scopes)
    if model_type == "vanilla":
        assert result.units == {"block1": 1, "block2": 2, "block3": 2, "block4": 1}
        assert result.flops == result.dense_flops and result.ponder_cost == 0
    else:
        units = np.mean(end_points["block2/num_units"])
        assert result.units["block2"] == pytest.approx(units)
        assert result.ponder_cost > 0
    assert (result.map is not None) == (model_type == "sact")
    if model_type == "sact":
        assert result.map.shape == (70, 52)
        assert result.overlay.shape == (70, 52, 3)
        assert result.overlay.dtype == np.uint8
        other = sact_tf.ponder(model, image)
        np.testing.assert_array_equal(other.map, result.map)
        with pytest.raises(ValueError, match=r"image must be .*got \[1, 70, 52, 3\]"):
            sact_tf.ponder(model, image[np.newaxis])
        with pytest.raises(DataError, match="none.png: does not exist"):
            sact_tf.ponder(model, tmp_path / "none.png")


@pytest.mark.parametrize("sides", [(32, 32), (33, 50)])
@pytest.mark.parametrize("downsample", ["conv2", "input"])
def test_dense_flops_are_those_of_the_ordinary_network(sides, downsample):
    images = tf.zeros([2, *sides, 3])
    _, end_points = small("vanilla", downsample=downsample).with_end_points(images)
    adaptive = small("sact", downsample=downsample)
    np.testing.assert_array_equal(adaptive.dense_flops(images), end_points["flops"])


def test_keras_3_is_named(tmp_path):
    model = sact_tf.cifar_resnet("1", "sact", 3, base_channels=2, tau=0.1)
    with pytest.raises(TypeError, match="^optimizer: Adam is of Keras 3.*tf_keras"):
        model.compile(tf.keras.optimizers.Adam())
    with pytest.raises(TypeError, match="^loss, metrics: MeanSquaredError is of Keras"):
        model.compile("sgd", tf.keras.losses.MeanSquaredError())
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="^callbacks: EarlyStopping is of Keras 3"):
        model.fit(
            np.zeros([2, 8, 8, 3], np.float32),
            np.zeros([2, 3]),
            callbacks=[tf.keras.callbacks.EarlyStopping()],
        )
    model.save(tmp_path / "model.keras")
    with pytest.raises(TypeError, match="use tf_keras.models.load_model"):
        tf.keras.models.load_model(tmp_path / "model.keras")
