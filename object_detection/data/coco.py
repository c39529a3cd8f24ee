"""Annotation files in the format of COCO, with their images in a folder."""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

from object_detection.data.examples import DetectionExamples, elements_in_memory
from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.data.images import decode_image, image_size
from sact_tf.domains import AT_LEAST_0, Domain, brief

BOX = reading.numbers(4, "x, y, width, height")
"""A box in COCO's format."""


def _side() -> reading.Field:
    """A side of an image; what is not known is -1, null, or not there."""
    domain = Domain(1, is_integer=True)

    def convert(value):
        return None if value == -1 else domain.convert(value)

    return reading.Field(convert, f"{domain}, or -1 or null: not known", None)


_FIELDS = {
    "images": {
        "id": reading.identity(),
        "file_name": reading.text(),
        "width": _side(),
        "height": _side(),
    },
    "annotations": {
        "id": reading.identity(),
        "image_id": reading.identity(),
        "category_id": reading.identity(),
        "bbox": BOX,
        "area": reading.number(AT_LEAST_0, default=None),
        "iscrowd": reading.truth(),
    },
    "categories": {"id": reading.identity(), "name": reading.text()},
}


def load(annotations: str, images: str, **options) -> DetectionExamples:
    """Opens a COCO annotation file and the folder of its images.

    Boxes are clipped to their image. Boxes without area and crowds are left out in
    training; evaluation has pycocotools treat crowds as COCO defines. All of these are
    counted in `notes`.

    Boxes refer to images that are upright, as their EXIF data say. Sizes that the file
    does not have (-1 or null, as some tools write) are those of the pictures.

    Args:
        annotations: JSON file.
        images: Folder that the files' names are relative to.
        **options: Of `DetectionExamples`: `short_side` and so on.

    Raises:
        FileNotFoundError: File, folder or images are missing.
        DataError: The file is no COCO file, has no images, uses an id twice, or one
            that is not defined; or a picture is of another size than it says.
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
    ground_truth["images"] = _with_sizes(ground_truth["images"], paths, annotations)
    boxes, classes, notes = training_boxes(ground_truth)
    ids = [image["id"] for image in ground_truth["images"]]
    numbers, image_ids = ids, None
    if any(isinstance(image_id, str) for image_id in ids):
        numbers = range(1, len(ids) + 1)
        image_ids = dict(zip(numbers, ids))

    def decode(image_id, path, boxes, classes):
        image = decode_image(tf.io.read_file(path), path)
        return dict(id=image_id, image=image, boxes=boxes, classes=classes)

    return DetectionExamples(
        elements_in_memory(numbers, paths, boxes, classes),
        decode,
        len(paths),
        sorted_categories(ground_truth),
        max(1, *map(len, boxes)),
        lambda: ground_truth,
        str(annotations),
        sum(map(len, boxes)),
        notes,
        name_of=lambda image_id, path, boxes, classes: path,
        image_ids=image_ids,
        **options,
    )


def _with_sizes(images, paths, annotations):
    """Returns the images with the sizes of their pictures, which must be as given."""
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(image_size, paths))
    for k, (image, path, (height, width)) in enumerate(zip(images, paths, sizes)):
        given = image["width"] or width, image["height"] or height
        if given != (width, height):
            raise DataError(
                f"{annotations}: images[{k}] has width x height {given[0]}x{given[1]}, "
                f"but {path}, upright, is {width}x{height}"
            )
    return [
        {**image, "height": height, "width": width}
        for image, (height, width) in zip(images, sizes)
    ]


def read_annotations(path: str) -> dict:
    """Reads and checks a COCO annotation file.

    Returns:
        What `checked` returns.

    Raises:
        FileNotFoundError: There is none.
        DataError: It is no COCO file, has no images, uses an id twice, or one that is
            not defined.
    """
    return checked(reading.read_json(path), path)


def checked(content: object, name: str) -> dict:
    """Returns a COCO dictionary with all fields in their usual form.

    Sizes of images that are not known are None, areas that are not given those of the
    boxes, and `iscrowd` is 0 or 1. Further fields are kept.

    Args:
        content: What a file holds.
        name: What an error calls it.

    Raises:
        DataError: As `read_annotations`.
    """
    if not isinstance(content, dict):
        raise DataError(f"{name}: is no COCO annotation file: no JSON object")
    result = dict(content)
    for key, fields in _FIELDS.items():
        if not isinstance(content.get(key), (list, tuple)):
            raise DataError(f"{name}: is no COCO annotation file: no list {key!r}")
        result[key] = reading.checked_rows(content[key], fields, f"{name}: {key}")
        counts = collections.Counter(row["id"] for row in result[key])
        twice = [row_id for row_id, count in counts.items() if count > 1]
        if twice:
            raise DataError(
                f"{name}: {len(twice)} ids of {key} are used more than once, such as "
                f"{brief(twice[0])}"
            )
    if not result["images"]:
        raise DataError(f"{name}: the split has no images")
    if not result["categories"]:
        raise DataError(f"{name}: has no categories")
    for key, rows in (("image_id", "images"), ("category_id", "categories")):
        known = {row["id"] for row in result[rows]}
        for k, annotation in enumerate(result["annotations"]):
            if annotation[key] not in known:
                raise DataError(
                    f"{name}: annotations[{k}] has {key} {brief(annotation[key])}, "
                    f"which is not in {rows}"
                )
    for annotation in result["annotations"]:
        if annotation["area"] is None:
            _, _, width, height = annotation["bbox"]
            annotation["area"] = width * height
    return result


def by_id(rows: Sequence[Mapping]) -> list[Mapping]:
    """Returns rows in the order of their ids, numbers before strings."""
    return sorted(rows, key=lambda row: (isinstance(row["id"], str), row["id"]))


def sorted_categories(ground_truth: Mapping) -> list[Mapping]:
    """Returns the categories of class 1, class 2, and so on: by their ids."""
    return by_id(ground_truth["categories"])


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
