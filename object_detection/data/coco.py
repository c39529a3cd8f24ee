"""Annotation files in the format of COCO, with their images in a folder."""

from __future__ import annotations

import collections
import json
import math
import os
from collections.abc import Mapping, Sequence

import tensorflow as tf

from object_detection.data.examples import DetectionExamples, elements_in_memory
from sact_tf.data.examples import DataError
from sact_tf.data.imagenet import decode_image

_REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def load(annotations: str, images: str, **options) -> DetectionExamples:
    """Opens a COCO annotation file and the folder of its images.

    Boxes are clipped to their image. Boxes without area and crowds are left out in
    training; evaluation has pycocotools treat crowds as COCO defines. All of these are
    counted in `notes`.

    Args:
        annotations: JSON file.
        images: Folder that the files' names are relative to.
        **options: Of `DetectionExamples`: `short_side` and so on.

    Raises:
        FileNotFoundError: File, folder or images are missing.
        DataError: The file is no COCO file, has no images, uses an id twice, or one
            that is not defined.
    """
    ground_truth = read_annotations(annotations)
    folder = os.path.expanduser(images)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"image directory {folder} does not exist")
    names = [image["file_name"] for image in ground_truth["images"]]
    paths = [os.path.join(folder, name) for name in names]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images of {annotations} are missing, such "
            f"as {missing[0]}"
        )
    boxes, classes, notes = training_boxes(ground_truth)

    ids = [image["id"] for image in ground_truth["images"]]

    def decode(image_id, path, boxes, classes):
        image = decode_image(tf.io.read_file(path), path)
        return dict(id=image_id, image=image, boxes=boxes, classes=classes)

    return DetectionExamples(
        elements_in_memory(ids, paths, boxes, classes),
        decode,
        len(paths),
        sorted_categories(ground_truth),
        max(1, *map(len, boxes)),
        lambda: ground_truth,
        str(annotations),
        sum(map(len, boxes)),
        notes,
        **options,
    )


def read_annotations(path: str) -> dict:
    """Reads and checks a COCO annotation file.

    Raises:
        FileNotFoundError: There is none.
        DataError: It is no COCO file, has no images, uses an id twice, or one that is
            not defined.
    """
    try:
        with open(os.path.expanduser(path)) as file:
            content = json.load(file)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: is no JSON file ({error})") from error
    _check(content, path)
    return content


def _check(content, path):
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no COCO annotation file: no JSON object")
    for key, fields in _REQUIRED.items():
        rows = content.get(key)
        if not isinstance(rows, list):
            raise DataError(f"{path}: is no COCO annotation file: no list {key!r}")
        for k, row in enumerate(rows):
            lacking = [f for f in fields if not isinstance(row, dict) or f not in row]
            if lacking:
                raise DataError(f"{path}: {key}[{k}] has no {lacking[0]!r}")
        counts = collections.Counter(row["id"] for row in rows)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise DataError(
                f"{path}: {len(twice)} ids of {key} are used more than once, such as "
                f"{twice[0]}"
            )
    if not content["images"]:
        raise DataError(f"{path}: the split has no images")
    if not content["categories"]:
        raise DataError(f"{path}: has no categories")
    for key, rows in (("image_id", "images"), ("category_id", "categories")):
        known = {row["id"] for row in content[rows]}
        for k, annotation in enumerate(content["annotations"]):
            if annotation[key] not in known:
                raise DataError(
                    f"{path}: annotations[{k}] has {key} {annotation[key]}, which is "
                    f"not in {rows}"
                )
    for k, annotation in enumerate(content["annotations"]):
        box = annotation["bbox"]
        is_box = isinstance(box, list) and len(box) == 4
        if not is_box or not all(
            isinstance(v, (int, float)) and math.isfinite(v) for v in box
        ):
            raise DataError(
                f"{path}: annotations[{k}] has bbox {box!r}; expected x, y, width, "
                "height"
            )


def sorted_categories(ground_truth: Mapping) -> list[Mapping]:
    """Returns the categories of class 1, class 2, and so on: by their ids."""
    return sorted(ground_truth["categories"], key=lambda category: category["id"])


def training_boxes(
    ground_truth: Mapping,
) -> tuple[list[list[list[float]]], list[list[int]], list[str]]:
    """Returns what of the annotations training uses.

    Args:
        ground_truth: COCO dictionary.

    Returns:
        For every image its boxes (ymin, xmin, ymax, xmax in pixels) and their classes;
        and lines that tell what was left out or changed.
    """
    numbers = {c["id"]: k for k, c in enumerate(sorted_categories(ground_truth), 1)}
    places = {image["id"]: k for k, image in enumerate(ground_truth["images"])}
    boxes: list[list[list[float]]] = [[] for _ in places]
    classes: list[list[int]] = [[] for _ in places]
    counts: collections.Counter = collections.Counter()
    for annotation in ground_truth["annotations"]:
        place = places[annotation["image_id"]]
        image = ground_truth["images"][place]
        left, top, width, height = annotation["bbox"]
        box = [top, left, top + height, left + width]
        limits = [image["height"], image["width"]] * 2
        clipped = [min(max(v, 0), limit) for v, limit in zip(box, limits)]
        if annotation.get("iscrowd"):
            counts["crowds"] += 1
        elif width <= 0 or height <= 0:
            counts["boxes without area"] += 1
        elif clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            counts["boxes outside of their image"] += 1
        else:
            counts["clipped"] += clipped != box
            boxes[place].append([float(v) for v in clipped])
            classes[place].append(numbers[annotation["category_id"]])
    used = sum(map(len, boxes))
    notes = [f"{len(boxes)} images, {used} boxes"]
    notes += [f"{sum(not b for b in boxes)} images without boxes"]
    notes += [
        f"{count} boxes clipped to their image"
        if what == "clipped"
        else f"{count} {what} left out"
        for what, count in sorted(counts.items())
    ]
    return boxes, classes, [note for note in notes if not note.startswith("0 ")]


def annotation_dictionary(
    images: Sequence[Mapping], annotations: Sequence[Mapping], categories: Sequence
) -> dict:
    """Makes a COCO dictionary, numbering annotations from 1 and computing areas.

    Args:
        images: With `id`, `file_name`, `width`, `height`.
        annotations: With `image_id`, `category_id`, `bbox` (x, y, width, height) and,
            if not 0, `iscrowd`.
        categories: With `id` and `name`.
    """
    rows = []
    for k, annotation in enumerate(annotations, 1):
        _, _, width, height = annotation["bbox"]
        rows.append({"id": k, "iscrowd": 0, "area": width * height, **annotation})
    return {
        "images": list(images),
        "annotations": rows,
        "categories": list(categories),
    }
