"""Average precision, against results by hand and the challenge's own printout."""

import json
import os
import pathlib
import re

import numpy as np
import pytest

from object_detection import evaluation
from object_detection.data import coco, scenes
from sact_tf.data.examples import DataError


def result(image_id, category_id, bbox, score):
    return dict(image_id=image_id, category_id=category_id, bbox=bbox, score=score)


RIGHT = [
    result(7, 3, [10, 8, 20, 16], 0.9),
    result(7, 90, [50, 40, 30, 20], 0.8),
    result(9, 90, [4, 6, 10, 20], 0.7),
    result(30, 90, [30, 10, 24, 24], 0.6),
]


@pytest.fixture
def truth(coco_dataset):
    """The small data set, without its box that has no area and the one outside."""
    content = coco_dataset[2]
    content["annotations"] = [
        a for a in content["annotations"] if a["id"] not in (3, 4)
    ]
    return content


def test_perfect_detections(truth):
    metrics = evaluation.average_precision(truth, RIGHT)
    for name in ("AP", "AP50", "AP75", "AR_100", "AP/cell", "AP50/plate"):
        assert metrics[name] == pytest.approx(1.0)
    assert metrics["AP_large"] == -1  # there is no large object


def test_precision_by_hand(truth):
    """One false alarm above two right cells of three: AP 0.5 * (1 + 67 points) / 101.

    Precision is 0, 1/2, 2/3 at recalls 0, 1/3, 2/3, so that interpolated precision is
    2/3 up to recall 2/3, which 67 of 101 points are.
    """
    false_alarm = result(12, 90, [1, 1, 9, 9], 0.95)
    metrics = evaluation.average_precision(truth, [false_alarm, *RIGHT[1:3]])
    assert metrics["AP50/cell"] == pytest.approx(2 / 3 * 67 / 101, abs=1e-6)
    assert metrics["AP50/plate"] == 0.0


def test_what_lies_in_a_crowd_is_no_error(truth):
    in_crowd = result(9, 3, [2, 2, 20, 20], 0.99)
    metrics = evaluation.average_precision(truth, [in_crowd, *RIGHT])
    assert metrics["AP/plate"] == pytest.approx(1.0)


def test_images_without_detections_count(truth):
    metrics = evaluation.average_precision(truth, RIGHT[:2])
    assert metrics["AR_100"] == pytest.approx((1 + 1 / 3) / 2)


def test_nothing_found(truth):
    assert evaluation.average_precision(truth, [])["AP"] == 0.0


def test_files_without_areas_and_crowds(truth):
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    assert evaluation.average_precision(truth, RIGHT)["AP/cell"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "results, message",
    [
        ([result(8, 3, [1, 1, 2, 2], 0.5)], r"detections\[0\] has image_id 8.*another"),
        ([result(7, 4, [1, 1, 2, 2], 0.5)], "has category_id 4"),
        ([{"image_id": 7}], "has no 'category_id'"),
        ([7], "has no 'image_id'"),
        ({}, "no JSON list"),
    ],
)
def test_detections_of_another_data_set(truth, results, message):
    with pytest.raises(DataError, match=message):
        evaluation.average_precision(truth, results)


def test_results_in_original_coordinates():
    detections = dict(
        num_detections=np.array([1]),
        detection_boxes=np.array([[[10.0, 30.0, 30.0, 90.0], [0, 0, 0, 0]]]),
        detection_scores=np.array([[0.75, 0.0]]),
        detection_classes=np.array([[2, 1]]),
    )
    (original,) = evaluation.to_original(detections, np.array([[2.0, 3.0]]))
    rows = evaluation.to_coco(5, original, [dict(id=3), dict(id=90)])
    assert rows == [result(5, 90, [10.0, 5.0, 20.0, 10.0], 0.75)]
    json.dumps(rows)


def test_a_detector_is_evaluated(make_detector):
    examples = scenes.load("validation", 4, image_size=48, short_side=48)
    model = make_detector("sact", num_classes=10)
    done = []
    metrics, results = evaluation.evaluate(model, examples, 2, done.append)
    assert done == [2, 4]
    assert {r["image_id"] for r in results} <= {1, 2, 3, 4} and results
    alone, _ = evaluation.evaluate(model, examples, 1)
    for name, value in metrics.items():
        assert alone[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    assert 0 < metrics["Relative Flops/mean"] < 1
    flops = []
    for batch in examples.evaluation_batches(1):
        end_points = model(batch["image"], batch["size"])["end_points"]
        flops.append(int(end_points["flops"][0]))
    assert metrics["Total Flops/mean"] == pytest.approx(np.mean(flops), rel=1e-9)
    assert metrics["Total Flops/std"] == pytest.approx(np.std(flops, ddof=1), rel=1e-9)
    assert np.std(flops) > 0
    assert 1 <= metrics["block3/num_units_mean"] <= 2


@pytest.fixture
def coco_check():
    """Directory with annotations, detections and the printout of the reference."""
    directory = pathlib.Path(os.environ.get("SACT_COCO_CHECK_DIR", "/nonexistent"))
    if not directory.is_dir():
        pytest.skip("set SACT_COCO_CHECK_DIR to compare with COCO's own printout")
    return directory


def test_coco_printout(coco_check):
    truth = coco.read_annotations(str(coco_check / "instances_val2014_100.json"))
    path = coco_check / "instances_val2014_fakebbox100_results.json"
    metrics = evaluation.average_precision(truth, json.loads(path.read_text()))
    text = (coco_check / "val2014_fake_eval_res.txt").read_text()
    expected = re.findall(r"= (-?[\d.]+)$", text.split("type=bbox")[1], re.M)[:12]
    assert [f"{metrics[name]:.3f}" for name in evaluation.METRICS] == expected
