"""SavedModels of detectors, against the detectors themselves."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import custom_ops
from object_detection.data.examples import resized_input
from object_detection.evaluation import to_original
from object_detection.faster_rcnn import FasterRCNN
from sact_tf import visualization

SIDES = dict(short_side=48, long_side=64)


@functools.cache
def photographs():
    """Two photographs of different sizes."""
    rng = np.random.default_rng(0)
    shapes = [(60, 80, 3), (90, 40, 3)]
    return [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]


def encoded():
    return tf.stack([tf.io.encode_png(image) for image in photographs()])


def detect(model, image, **limits):
    """Returns what a detector makes of a photograph alone."""
    inputs, scale = resized_input(image, **SIDES)
    detections = model(inputs[tf.newaxis], **limits)
    return to_original(detections, scale[tf.newaxis])[0], detections["end_points"]


def check(outputs, k, model, image, **limits):
    """Checks that image k of what was served is what the detector makes of it alone."""
    (boxes, scores, classes), end_points = detect(model, image, **limits)
    count = int(outputs["num_detections"][k])
    assert count == len(boxes)
    for name, expected in dict(boxes=boxes, scores=scores, classes=classes).items():
        served = outputs[f"detection_{name}"][k].numpy()
        np.testing.assert_allclose(served[:count], expected, atol=2e-3)
        assert not served[count:].any()
    for name in ("flops", "dense_flops"):
        assert int(outputs[name][k]) == int(end_points[name][0])
    height, width = outputs["sizes"][k].numpy()
    assert end_points["inputs"].shape == [1, height, width, 3]
    np.testing.assert_allclose(
        outputs["ponder_cost_map"][k, :height, :width],
        visualization.sact_map(end_points)[0],
        atol=1e-4,
    )
    for block in end_points["block_scopes"]:
        expected = end_points[f"{block}/num_units"][0].numpy()
        rows, columns = expected.shape
        served = outputs[f"{block}_num_units"][k, :rows, :columns]
        np.testing.assert_array_equal(served, expected)


@pytest.fixture(scope="module")
def served(make_detector, tmp_path_factory):
    """A detector, and its SavedModel, masked."""
    keras.utils.set_random_seed(1)
    model = make_detector("sact", "1_2_1_1", max_detections=20)
    path = tmp_path_factory.mktemp("saved") / "detector"
    assert model.export_saved_model(path, **SIDES) == str(path)
    return model, tf.saved_model.load(str(path))


def test_photographs_of_several_sizes(served):
    model, loaded = served
    serve = loaded.signatures["serving_bytes"]

    def request(**limits):
        options = {name: tf.constant(value) for name, value in limits.items()}
        return serve(image_bytes=encoded(), **options)

    outputs = request(score_threshold=0.0, max_detections=20)
    assert outputs["detection_boxes"].shape == [2, 20, 4]
    assert set(np.unique(outputs["block2_num_units"])) >= {1, 2}
    for k, image in enumerate(photographs()):
        check(outputs, k, model, image)
        height, width = outputs["sizes"][k].numpy()
        assert not np.any(outputs["ponder_cost_map"][k, height:])
        assert not np.any(outputs["ponder_cost_map"][k, :, width:])
    threshold = float(np.sort(outputs["detection_scores"][0])[-5:-3].mean())
    limits = dict(score_threshold=threshold, max_detections=6)
    outputs = request(**limits)
    assert outputs["detection_boxes"].shape == [2, 6, 4]
    assert int(outputs["num_detections"][0]) == 4
    for k, image in enumerate(photographs()):
        check(outputs, k, model, image, **limits)
    files = tf.concat([encoded()[:1], [b"nothing"]], 0)
    limits = dict(score_threshold=tf.constant(0.0), max_detections=tf.constant(6))
    with pytest.raises(tf.errors.InvalidArgumentError, match="image 1"):
        serve(image_bytes=files, **limits)


def test_images(served):
    model, loaded = served
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, [2, 64, 48, 3]).astype(np.float32)
    sizes = tf.constant([[64, 48], [40, 33]])
    limits = dict(score_threshold=0.0, max_detections=6)
    signature = loaded.signatures["serving_default"]
    options = {name: tf.constant(value) for name, value in limits.items()}
    outputs = signature(images=tf.constant(images), sizes=sizes, **options)
    expected = model(images, sizes, **limits)
    assert outputs["num_detections"].numpy().tolist() == [6, 6]
    for name in ("boxes", "scores", "classes"):
        name = f"detection_{name}"
        np.testing.assert_allclose(outputs[name], expected[name], atol=2e-3)
    np.testing.assert_array_equal(outputs["sizes"], sizes)
    # Without sizes there is no padding.
    nothing = tf.zeros([0, 2], tf.int32)
    whole = signature(images=tf.constant(images), sizes=nothing, **options)
    np.testing.assert_array_equal(whole["sizes"], [[64, 48]] * 2)
    for name in ("detection_scores", "flops"):
        np.testing.assert_allclose(whole[name][0], outputs[name][0], atol=1e-4)
    assert int(whole["flops"][1]) > int(outputs["flops"][1])


@pytest.mark.long
def test_defaults(served):
    model, loaded = served
    outputs = loaded.serve_bytes(encoded())
    assert outputs["detection_boxes"].shape == [2, 20, 4]
    for k, image in enumerate(photographs()):
        check(outputs, k, model, image)
    images = np.random.default_rng(1).uniform(-1, 1, [2, 64, 48, 3]).astype(np.float32)
    outputs, expected = loaded.serve(images), model(images)
    for name in ("detection_scores", "num_detections"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-4)
    np.testing.assert_array_equal(outputs["sizes"], [[64, 48]] * 2)


@pytest.mark.long
@pytest.mark.parametrize(
    "execution, implementation",
    [("perforated", "tensorflow"), ("perforated", "native"), ("tiled", "tensorflow")],
)
def test_other_executions(make_detector, tmp_path, execution, implementation):
    if implementation == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    model = make_detector("sact")
    if execution == "tiled":
        weights = model.get_weights()
        model = FasterRCNN.from_config({**model.get_config(), "tile_size": 2})
        model.set_weights(weights)
    path = model.export_saved_model(
        tmp_path / "saved", execution=execution, implementation=implementation, **SIDES
    )
    loaded = tf.saved_model.load(path)
    for k, image in enumerate(photographs()):
        check(loaded.serve_bytes(encoded()[k : k + 1]), 0, model, image)
    with pytest.raises(tf.errors.InvalidArgumentError, match="need execution='masked'"):
        loaded.serve_bytes(encoded())


def test_an_execution_the_detector_cannot_have(make_detector, tmp_path):
    with pytest.raises(ValueError, match="tile_size must be an integer >= 2"):
        make_detector("sact").export_saved_model(tmp_path / "x", execution="tiled")
    assert not (tmp_path / "x").exists()
