"""Evaluation by pycocotools: average precision, and what the features cost."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from object_detection.data.examples import DetectionExamples
from object_detection.faster_rcnn import FasterRCNN
from sact_tf.data.examples import DataError
from sact_tf.end_points import metric_values
from sact_tf.evaluation import Moments

METRICS = {
    "AP": "Average precision, IoU 0.50:0.95",
    "AP50": "Average precision, IoU 0.50",
    "AP75": "Average precision, IoU 0.75",
    "AP_small": "Average precision, IoU 0.50:0.95, small objects",
    "AP_medium": "Average precision, IoU 0.50:0.95, medium objects",
    "AP_large": "Average precision, IoU 0.50:0.95, large objects",
    "AR_1": "Average recall, IoU 0.50:0.95, 1 detection an image",
    "AR_10": "Average recall, IoU 0.50:0.95, 10 detections an image",
    "AR_100": "Average recall, IoU 0.50:0.95, 100 detections an image",
    "AR_small": "Average recall, IoU 0.50:0.95, small objects",
    "AR_medium": "Average recall, IoU 0.50:0.95, medium objects",
    "AR_large": "Average recall, IoU 0.50:0.95, large objects",
}
"""The twelve numbers of the COCO challenge, by name, in the order of pycocotools."""

Detections = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes [n, 4] (ymin, xmin, ymax, xmax), scores [n] and classes [n] of an image."""


def to_original(
    detections: Mapping[str, tf.Tensor], scales: np.ndarray
) -> list[Detections]:
    """Returns the detections of every image, in the pixels of the original images.

    Args:
        detections: Of a batch, as the detector returns them.
        scales: [batch, 2], pixels per pixel of the original, of rows and columns.
    """
    results = []
    for k, count in enumerate(np.asarray(detections["num_detections"])):
        boxes, scores, classes = (
            np.asarray(detections[f"detection_{key}"][k][:count])
            for key in ("boxes", "scores", "classes")
        )
        results.append((boxes / np.tile(np.asarray(scales[k]), 2), scores, classes))
    return results


def to_coco(
    image_id: int, detections: Detections, categories: Sequence[Mapping]
) -> list[dict]:
    """Returns the detections of an image in COCO's format of results.

    Args:
        image_id: Id of the image.
        detections: In pixels of the original image.
        categories: Of class 1, class 2, and so on.
    """
    return [
        {
            "image_id": int(image_id),
            "category_id": categories[int(label) - 1]["id"],
            "bbox": [
                round(float(v), 3) for v in (xmin, ymin, xmax - xmin, ymax - ymin)
            ],
            "score": round(float(score), 6),
        }
        for (ymin, xmin, ymax, xmax), score, label in zip(*detections)
    ]


def average_precision(
    ground_truth: Mapping, results: Sequence[Mapping]
) -> dict[str, float]:
    """Scores detections as the COCO challenge does, by pycocotools.

    All images count, those without detections too (the Model Garden's evaluator leaves
    them out).

    Args:
        ground_truth: COCO dictionary.
        results: Detections in COCO's format of results.

    Returns:
        The numbers of `METRICS`, and `AP/<category>` and `AP50/<category>`; -1 where
        there is nothing to find, as by pycocotools.

    Raises:
        DataError: The detections are not those of these images and categories.
    """
    check_results(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _complete(ground_truth)
        truth.createIndex()
        # A copy, because it writes into the rows.
        found = truth.loadRes([dict(row) for row in results]) if results else COCO()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = dict(zip(METRICS, map(float, evaluation.stats)))
    # [IoU thresholds, recalls, categories, areas, numbers of detections]
    precision = evaluation.eval["precision"][..., 0, -1]
    names = {
        category["id"]: category["name"] for category in ground_truth["categories"]
    }
    for k, category_id in enumerate(evaluation.params.catIds):
        for key, values in (("AP", precision[..., k]), ("AP50", precision[0, :, k])):
            values = values[values > -1]
            name = f"{key}/{names[category_id]}"
            metrics[name] = float(values.mean()) if values.size else -1.0
    return metrics


def check_results(ground_truth: Mapping, results: Sequence[Mapping]) -> None:
    """Raises DataError unless these are detections in images of this data set."""
    known = {
        "image_id": {image["id"] for image in ground_truth["images"]},
        "category_id": {category["id"] for category in ground_truth["categories"]},
    }
    if not isinstance(results, list):
        raise DataError("detections: no JSON list of COCO results")
    for k, row in enumerate(results):
        for key in ("image_id", "category_id", "bbox", "score"):
            if not isinstance(row, dict) or key not in row:
                raise DataError(f"detections[{k}] has no {key!r}")
        for key, ids in known.items():
            if row[key] not in ids:
                raise DataError(
                    f"detections[{k}] has {key} {row[key]}, which the annotations do "
                    "not have; they are of another data set"
                )


def _complete(ground_truth):
    """Adds what pycocotools needs and annotation files may lack."""
    annotations = []
    for annotation in ground_truth["annotations"]:
        _, _, width, height = annotation["bbox"]
        annotations.append({"iscrowd": 0, "area": width * height, **annotation})
    return {**ground_truth, "annotations": annotations}


def evaluate(
    model: FasterRCNN, examples: DetectionExamples, batch_size: int = 1, progress=None
) -> tuple[dict[str, float], list[dict]]:
    """Runs a detector on a data set and scores it.

    Args:
        model: The detector.
        examples: Images with boxes.
        batch_size: Images per step.
        progress: Called with the number of images done after each step.

    Returns:
        What `average_precision` returns, with `Total Flops/mean` and `/std` (of the
        feature extractor, per image), `Relative Flops/mean` and `/std` (divided by
        those of the ordinary network on the same image: SACT, table 1), the mean and
        deviation of `<block>/{flops,ponder_cost,num_units}`; and all detections in
        COCO's format.
    """
    run = model.compiled()
    moments: dict[str, Moments] = {}
    results: list[dict] = []
    done = 0
    with examples.explained_errors():
        for batch in examples.evaluation_batches(batch_size):
            detections = run(batch["image"], batch["size"])
            end_points = detections["end_points"]
            values = _inside_images(metric_values(end_points))
            values["Relative Flops"] = end_points["flops"] / end_points["dense_flops"]
            for name, value in values.items():
                moments.setdefault(name, Moments()).add(value.numpy())
            originals = to_original(detections, batch["scale"].numpy())
            for image_id, original in zip(batch["id"].numpy(), originals):
                results += to_coco(image_id, original, examples.categories)
            done += len(originals)
            if progress is not None:
                progress(done)
    metrics = average_precision(examples.ground_truth(), results)
    for name, value in moments.items():
        separator = "/" if name.endswith("Flops") else "_"
        metrics[f"{name}{separator}mean"] = value.mean
        metrics[f"{name}{separator}std"] = value.std
    return metrics, results


def _inside_images(values):
    """Leaves out the positions of padding, which run no unit at all."""
    return {
        name: value[values[name.replace("ponder_cost", "num_units")] > 0]
        if name.endswith(("ponder_cost", "num_units"))
        else value
        for name, value in values.items()
    }
