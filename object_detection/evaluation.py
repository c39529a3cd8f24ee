"""Evaluation by pycocotools: average precision, and what the features cost."""

from __future__ import annotations

import collections
import contextlib
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from object_detection.data import coco
from object_detection.data.examples import DetectionExamples
from object_detection.faster_rcnn import FasterRCNN
from object_detection.feature_extractor import NUM_BLOCKS
from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.domains import brief
from sact_tf.end_points import metric_values
from sact_tf.evaluation import (
    Moments,
    batch_seed,
    in_all_modes,
    used_units,
)
from sact_tf.networks.imagenet_resnet import ImagenetResNet
from sact_tf.optional import lazy

pycoco = lazy("pycocotools.coco")
pycocoeval = lazy("pycocotools.cocoeval")

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
    image_id: int | str, detections: Detections, categories: Sequence[Mapping]
) -> list[dict]:
    """Returns the detections of an image in COCO's format of results.

    Args:
        image_id: Id of the image.
        detections: In pixels of the original image.
        categories: Of class 1, class 2, and so on.
    """
    return [
        {
            "image_id": image_id if isinstance(image_id, str) else int(image_id),
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

    Ids are integers or strings, and rows may have further fields.

    Args:
        ground_truth: COCO dictionary.
        results: Detections in COCO's format of results.

    Returns:
        The numbers of `METRICS`, and `AP/<category>` and `AP50/<category>`; -1 where
        there is nothing to find, as by pycocotools. Of categories of the same name, the
        id is added to it.

    Raises:
        DataError: The annotations are not right, or the detections are not those of
            these images and categories.
    """
    ground_truth = coco.checked(ground_truth, "annotations")
    results = checked_results(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = pycoco.COCO()
        truth.dataset, found = _numbered(ground_truth, results)
        truth.createIndex()
        found = truth.loadRes(found) if results else pycoco.COCO()
        evaluation = pycocoeval.COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = dict(zip(METRICS, map(float, evaluation.stats)))
    # [IoU thresholds, recalls, categories, areas, numbers of detections]
    precision = evaluation.eval["precision"][..., 0, -1]
    for k, category in enumerate(_names(ground_truth)):
        for key, values in (("AP", precision[..., k]), ("AP50", precision[0, :, k])):
            values = values[values > -1]
            metrics[f"{key}/{category}"] = float(values.mean()) if values.size else -1.0
    return metrics


def _names(ground_truth):
    """Names of the categories by their ids, made different where they are not."""
    categories = coco.sorted_categories(ground_truth)
    counts = collections.Counter(category["name"] for category in categories)
    return [
        c["name"] if counts[c["name"]] == 1 else f"{c['name']} ({c['id']})"
        for c in categories
    ]


_RESULT = {
    "image_id": reading.identity(),
    "category_id": reading.identity(),
    "bbox": coco.BOX,
    "score": reading.number(),
}


def checked_results(ground_truth: Mapping, results: Sequence[Mapping]) -> list[dict]:
    """Returns detections with all fields in their usual form.

    Raises:
        DataError: They are not, or are not of images and categories of this data set.
    """
    known = {
        "image_id": {image["id"] for image in ground_truth["images"]},
        "category_id": {category["id"] for category in ground_truth["categories"]},
    }
    if not isinstance(results, (list, tuple)):
        raise DataError("detections: no JSON list of COCO results")
    rows = reading.checked_rows(results, _RESULT, "detections")
    for k, row in enumerate(rows):
        for key, ids in known.items():
            if row[key] not in ids:
                raise DataError(
                    f"detections[{k}] has {key} {brief(row[key])}, which the "
                    "annotations do not have; they are of another data set"
                )
    return rows


def _numbered(ground_truth, results):
    """Returns annotations and detections with numbers from 1 as ids.

    pycocotools takes an annotation of id 0 for none, sorts ids of images, and looks for
    further fields of detections. Numbers in the order of ids change nothing else.
    """
    images = {
        image["id"]: k for k, image in enumerate(coco.by_id(ground_truth["images"]), 1)
    }
    categories = {
        c["id"]: k for k, c in enumerate(coco.sorted_categories(ground_truth), 1)
    }

    def numbered(row, fields):
        return {
            "image_id": images[row["image_id"]],
            "category_id": categories[row["category_id"]],
            **{field: row[field] for field in fields},
        }

    truth = {
        "images": [{"id": number} for number in images.values()],
        "categories": [{"id": number} for number in categories.values()],
        "annotations": [
            {"id": k, **numbered(row, ("bbox", "area", "iscrowd"))}
            for k, row in enumerate(ground_truth["annotations"], 1)
        ],
    }
    return truth, [numbered(row, ("bbox", "score")) for row in results]


def evaluate(
    model: FasterRCNN,
    examples: DetectionExamples,
    batch_size: int = 1,
    progress: Callable[[int], None] | None = None,
    reference: ImagenetResNet | None = None,
    seed: int = 0,
    sample: int = 0,
    watch: Callable[[Mapping[str, object]], None] | None = None,
) -> tuple[dict[str, float], list[dict]]:
    """Runs a detector on a data set and scores it.

    Args:
        model: The detector.
        examples: Images with boxes.
        batch_size: Images per step.
        progress: Called with the number of images done after each step.
        reference: Network whose stem and blocks 1 to 3, all of their units, relative
            operations are divided by; None: the ordinary network of the detector's
            depth.
        seed: Of networks that stop by chance.
        sample: Tells several evaluations of the same seed apart.
        watch: Called with the end points of each step.

    Returns:
        What `average_precision` returns, with `Total Flops/mean` and `/std` (of the
        feature extractor, per image), `Relative Flops/mean` and `/std` (divided by
        those of the reference on the same image: SACT, table 1), the mean and
        deviation of `<block>/{flops,ponder_cost,num_units}`, what `used_units` tells,
        and of networks that count them multiply-accumulates of the feature extractor,
        `Total Macs/{mean,std,min,max}`, and the same of an image's regions, `Region
        Macs`; and all detections in COCO's format.
    """
    run = model.compiled()
    moments: dict[str, Moments] = {}
    results: list[dict] = []
    done = 0
    with examples.explained_errors():
        for k, batch in enumerate(examples.evaluation_batches(batch_size)):
            drawn = batch_seed(seed, sample, k)
            detections = run(batch["image"], batch["size"], drawn)
            end_points = detections["end_points"]
            values = _inside_images({**metric_values(end_points), **_of(end_points)})
            if watch is not None:
                watch(end_points)
            dense_flops = end_points["dense_flops"]
            if reference is not None:
                dense_flops = reference.dense_flops_of_blocks(
                    batch["image"], batch["size"], NUM_BLOCKS
                )
            values["Relative Flops"] = end_points["flops"] / dense_flops
            for name, value in values.items():
                moments.setdefault(name, Moments()).add(value.numpy())
            originals = to_original(detections, batch["scale"].numpy())
            for number, original in zip(batch["id"].numpy(), originals):
                image_id = examples.image_id(number)
                results += to_coco(image_id, original, examples.categories)
            done += len(originals)
            if progress is not None:
                progress(done)
    metrics = average_precision(examples.ground_truth(), results)
    for name, value in moments.items():
        separator = "/" if name.endswith(("Flops", "Macs")) else "_"
        metrics[f"{name}{separator}mean"] = value.mean
        metrics[f"{name}{separator}std"] = value.std
        if name.endswith("Macs"):
            metrics[f"{name}/min"] = value.smallest
            metrics[f"{name}/max"] = value.largest
    return {**metrics, **used_units(moments, model.blocks)}, results


def evaluate_modes(
    model: FasterRCNN,
    examples: DetectionExamples,
    batch_size: int = 1,
    num_samples: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """Evaluates a detector in every way to stop that its halting rule has.

    Args:
        model: The detector.
        examples: Images with boxes.
        batch_size: Images per step.
        num_samples: How often the discrete mode is sampled.
        seed: Of all that is drawn.

    Returns:
        As `sact_tf.evaluation.in_all_modes`, for `AP`, `AP50`, `Flops` of the feature
        extractor, and where blocks tell them `Expected Flops`.
    """
    names = {
        "AP": "AP",
        "AP50": "AP50",
        "Flops": "Total Flops/mean",
        "Expected Flops": "Total Expected Flops/mean",
    }

    def run(detector, sample, mode):
        metrics, _ = evaluate(detector, examples, batch_size, seed=seed, sample=sample)
        return {key: metrics[name] for key, name in names.items() if name in metrics}

    return in_all_modes(model, model.network.options.make_rule(), run, num_samples)


def objects_of_images(examples: DetectionExamples) -> list[dict[str, object]]:
    """Returns how many objects every image has, and how large they are.

    Returns:
        In the order of the examples: `image_id`, `objects`, and `relative_size`, the
        mean side of the objects (root of width times height) for one of the image; None
        without objects. Crowds do not count.
    """
    truth = examples.ground_truth()
    sides = collections.defaultdict(list)
    for row in truth["annotations"]:
        if not row.get("iscrowd"):
            sides[row["image_id"]].append(np.sqrt(row["bbox"][2] * row["bbox"][3]))
    rows = []
    for image in truth["images"]:
        own = sides[image["id"]]
        whole = np.sqrt(image["width"] * image["height"])
        size = float(np.mean(own) / whole) if own else None
        rows.append(dict(image_id=image["id"], objects=len(own), relative_size=size))
    return rows


def _of(end_points):
    """Returns what is told of regions, by metric."""
    values = {}
    if "box_classifier/num_units" in end_points:
        values["box_classifier/num_units"] = end_points["box_classifier/num_units"]
    if "box_classifier/macs" in end_points:
        values["Region Macs"] = end_points["box_classifier/macs"]
    return values


def _inside_images(values):
    """Leaves out positions of padding, and regions that are none: they run no unit."""
    return {
        name: value[values[name.replace("ponder_cost", "num_units")] > 0]
        if name.endswith(("ponder_cost", "num_units"))
        else value
        for name, value in values.items()
    }
