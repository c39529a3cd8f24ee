"""Detectors of iterative networks."""

import numpy as np
import pytest
import tensorflow as tf

from object_detection import evaluation
from object_detection.data import scenes
from object_detection.faster_rcnn import FasterRCNN, Options

OPTIONS = Options(
    anchor_sizes=(16, 32), num_proposals=12, crop_size=14, score_threshold=0.0
)


def make(variant="iterative", limits=(1, 2, 1, 3), **options):
    return FasterRCNN(
        10,
        model_type=variant,
        base_channels=4,
        tau=0.1,
        max_iterations=limits,
        options=OPTIONS,
        **options,
    )


@pytest.fixture(scope="module")
def detector():
    """One whose gates tell images, and regions, apart."""
    model = make()
    rng = np.random.default_rng(2)
    for layer in (model.rpn.score, model.rpn.box):
        layer.kernel.assign(rng.normal(0, 0.3, layer.kernel.shape))
    for block in model.blocks:
        for head in block.heads[:1]:
            head.score.kernel.assign(rng.normal(0, 9, head.score.kernel.shape))
            head.score.bias.assign([0.5])
    return model


def images():
    x = tf.random.stateless_uniform([2, 64, 64, 3], [1, 2], -1, 1)
    sizes = tf.constant([[64, 64], [48, 40]])
    inside = (
        tf.sequence_mask(sizes[:, 0], 64)[:, :, None]
        & tf.sequence_mask(sizes[:, 1], 64)[:, None]
    )
    return tf.where(inside[..., None], x, 0.0), sizes


def test_regions_decide_on_the_iterations_of_stage_4(detector):
    x, sizes = images()
    end_points = detector(x, sizes)["end_points"]
    assert end_points["block_scopes"] == ["block_1", "block_2", "block_3"]
    units = end_points["box_classifier/num_units"].numpy()
    assert units.shape == (2, 12) and set(np.unique(units)) <= {0, 1, 2, 3}
    assert len(np.unique(units)) > 1
    stage = detector.blocks[-1]
    one = stage.units[0].flops(tf.zeros([1, 7, 7, 1])).numpy()[0] // 2
    gates = np.minimum(units, 2).sum(1) * stage.heads[0].macs()
    entry = 49 * 16 * 32 * (units > 0).sum(1)
    expected = units.sum(1) * one + gates + entry
    np.testing.assert_array_equal(end_points["box_classifier/macs"], expected)


def test_images_get_in_a_batch_what_they_get_alone(detector):
    x, sizes = images()
    boxes = tf.constant([[[4.0, 4, 30, 36], [0, 8, 40, 39]]] * 2)
    features, end_points = detector.extract(x, sizes)
    logits, _, told = detector.classify(features, end_points["valid"], boxes)
    for k, (height, width) in enumerate(sizes.numpy()):
        image = x[k : k + 1, :height, :width]
        alone, own = detector.extract(image, sizes[k : k + 1])
        for key in ("macs", "flops", "block_2/num_units"):
            np.testing.assert_array_equal(end_points[key][k], own[key][0])
        rows, columns = alone.shape[1:3]
        np.testing.assert_allclose(
            features[k, :rows, :columns], alone[0], rtol=1e-4, atol=1e-4
        )
        result = detector.classify(alone, own["valid"], boxes[k : k + 1])
        np.testing.assert_allclose(logits[k], result[0][0], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(told["num_units"][k], result[2]["num_units"][0])


def test_perforated_detectors_detect_the_same(detector):
    x, _ = images()
    expected = detector(x[:1])
    actual = detector.with_execution("perforated")(x[:1])
    np.testing.assert_allclose(
        actual["detection_scores"], expected["detection_scores"], atol=1e-4
    )


@pytest.mark.parametrize("variant", ["iterative", "iamnn"])
def test_stages_may_have_two_blocks(variant):
    model = make(variant, (1, 1, 1, 1), double=True)
    assert [block.name for block in model.blocks][-2:] == ["block_4_1", "block_4_2"]
    assert len(model.feature_extractor.blocks) == 6
    assert [block.tau for block in model.blocks] == [0.1] * 6 + [0.0] * 2
    assert [block.strides for block in model.blocks[-2:]] == [1, 1]
    copy = FasterRCNN.from_config(model.get_config())
    assert len(copy.get_weights()) == len(model.get_weights())


def test_evaluation_tells_iterations(detector):
    examples = scenes.load("validation", 2, image_size=48, short_side=48)
    seen = []
    metrics, _ = evaluation.evaluate(
        detector,
        examples,
        1,
        watch=lambda end_points: seen.append(end_points["macs"].numpy()),
    )
    for name in ("Total Macs", "Region Macs"):
        values = [metrics[f"{name}/{key}"] for key in ("min", "mean", "max")]
        assert values == sorted(values) and values[0] > 0
    assert metrics["Total Macs/mean"] == pytest.approx(np.mean(seen))
    assert 1 <= metrics["box_classifier/num_units_mean"] <= 3


def test_objects_of_images():
    examples = scenes.load("validation", 3, image_size=48, short_side=48)
    rows = evaluation.objects_of_images(examples)
    truth = examples.ground_truth()
    assert [row["image_id"] for row in rows] == [i["id"] for i in truth["images"]]
    assert sum(row["objects"] for row in rows) == len(truth["annotations"])
    assert all(0 < row["relative_size"] < 1 for row in rows if row["objects"])


@pytest.mark.long
def test_exports_answer_the_same(detector, tmp_path):
    x, _ = images()
    path = str(tmp_path / "exported")
    detector.export_saved_model(path, execution="perforated")
    serve = tf.saved_model.load(path).serve
    perforated = detector.with_execution("perforated")
    for image in tf.split(x, 2):
        expected, served = perforated(image), serve(image)
        for key in ("detection_scores", "detection_boxes"):
            np.testing.assert_allclose(served[key], expected[key], atol=1e-3)
        np.testing.assert_array_equal(served["macs"], expected["end_points"]["macs"])
