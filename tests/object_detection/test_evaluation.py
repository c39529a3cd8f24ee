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


IMAGE = dict(id=1, file_name="a.jpg", width=64, height=48)
BOXES = ([5, 5, 20, 20], [40, 20, 12, 16])


def perfect(ids=(1, 2), image_id=1, category_id=1, **extra):
    """Two annotations and detections that are the same."""
    rows = [
        dict(image_id=image_id, category_id=category_id, bbox=list(box))
        for box in BOXES
    ]
    truth = dict(
        images=[{**IMAGE, "id": image_id}],
        annotations=[{**row, "id": k, **extra} for k, row in zip(ids, rows)],
        categories=[dict(id=category_id, name="x")],
    )
    return truth, [{**row, "score": 0.9} for row in rows]


@pytest.mark.parametrize("ids", [(0, 1), (1, 0), (-3, 0), ("a", "b"), ("0", 0)])
def test_identity_is_no_position_and_no_sentinel(ids):
    assert evaluation.average_precision(*perfect(ids))["AP"] == pytest.approx(1)


@pytest.mark.parametrize("image_id, category_id", [(0, 0), ("i", "c"), (2**62, -1)])
def test_ids_of_any_kind(image_id, category_id):
    metrics = evaluation.average_precision(*perfect((1, 2), image_id, category_id))
    assert metrics["AP"] == metrics["AP/x"] == pytest.approx(1)


@pytest.mark.parametrize(
    "extra",
    [
        dict(area=None),
        dict(iscrowd=None),
        dict(iscrowd="0", area=400),
        dict(caption="c"),
    ],
)
def test_annotations_that_lack_something(extra):
    assert evaluation.average_precision(*perfect(**extra))["AP"] == pytest.approx(1)


def test_detections_of_numpy_and_with_further_fields():
    truth, found = perfect()
    rows = [
        dict(
            image_id=np.int64(1),
            category_id=np.int32(1),
            bbox=np.array(row["bbox"], np.float32),
            score=np.float32(0.9),
            caption="what pycocotools would take for the kind of result",
            id=7,
        )
        for row in found
    ]
    assert evaluation.average_precision(truth, rows)["AP"] == pytest.approx(1)
    assert rows[0]["id"] == 7  # and they are as before


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            dict(bbox=[np.nan, 5, 20, 20]),
            r"detections\[1\] has bbox \[nan, 5, 20, 20\]",
        ),
        (
            dict(score=np.nan),
            r"detections\[1\] has score nan; expected a finite number",
        ),
        (dict(score=np.float32(np.inf)), "has score inf"),
        (dict(score="0.9"), "has score '0.9'"),
        (dict(score=None), "has score null"),
        (
            dict(bbox=[1, 2, 3]),
            r"has bbox \[1, 2, 3\]; expected x, y, width, height: 4",
        ),
        (dict(image_id=1.5), "has image_id 1.5"),
        (dict(image_id="1"), "has image_id '1', which the annotations do not have"),
        (dict(category_id=[]), r"has category_id \[\]"),
    ],
)
def test_detections_that_are_not_right(changed, message):
    truth, found = perfect()
    found[1].update(changed)
    with pytest.raises(DataError, match=message):
        evaluation.average_precision(truth, found)


def test_annotations_that_are_not_right():
    truth, found = perfect(bbox=[0, 0, np.nan, 4])
    with pytest.raises(DataError, match=r"annotations: annotations\[0\] has bbox"):
        evaluation.average_precision(truth, found)


def test_categories_of_one_name_stay_apart():
    truth, found = perfect()
    truth["categories"].append(dict(id=5, name="x"))
    truth["annotations"].append(
        dict(id=9, image_id=1, category_id=5, bbox=[1, 1, 9, 9])
    )
    metrics = evaluation.average_precision(truth, found)
    assert metrics["AP/x (1)"] == pytest.approx(1) and metrics["AP/x (5)"] == 0


def test_equal_scores_count_in_the_order_of_ids():
    """As of pycocotools itself, which sorts images by their ids."""
    truth, found = perfect()
    truth["images"] = [{**IMAGE, "id": 10}, {**IMAGE, "id": 9}, {**IMAGE, "id": 1}]
    found += [{**found[0], "image_id": k, "bbox": [30, 1, 5, 5]} for k in (9, 10)]
    expected = evaluation.average_precision(truth, found)["AP"]
    assert expected == pytest.approx(1)  # the two of image 1 come first
    for row in (*truth["annotations"], *found):
        row["image_id"] = {1: 11, 9: 9, 10: 10}[row["image_id"]]
    truth["images"][2]["id"] = 11
    assert evaluation.average_precision(truth, found)["AP"] == pytest.approx(
        0.5, abs=0.01
    )
