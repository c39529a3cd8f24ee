"""`shapes` for detection: generated scenes of several objects, nothing to download."""

from __future__ import annotations

import numpy as np

from object_detection.data import coco
from object_detection.data.examples import DetectionExamples, elements_in_memory
from sact_tf.data import shapes

_STREAM = 1  # of random numbers
IMAGE_SIZE = 128
"""Side of the scenes before they are resized."""
CATEGORIES = [{"id": k, "name": name} for k, name in enumerate(shapes.CLASS_NAMES, 1)]


def load(
    split: str,
    num_examples: int | None = None,
    image_size: int = IMAGE_SIZE,
    **options,
) -> DetectionExamples:
    """Makes scenes; the same arguments always give the same.

    A scene has one to four objects of the ten classes, apart from each other, on the
    cluttered background of `sact_tf.data.shapes`. An object's radius is 9 to 20 % of
    the image's side.

    Args:
        split: "train" or "validation".
        num_examples: How many; by default 1000 and 200. Fewer are the first of more.
        image_size: Side of the square scenes, before they are resized.
        **options: Of `DetectionExamples`: `short_side` and so on.

    Raises:
        ValueError: On another split, or scenes too small.
    """
    scenes = shapes.draw_scenes(split, num_examples, image_size, _STREAM, first=1)
    pixels, images, annotations = [], [], []
    for k, scene in enumerate(scenes, 1):
        pixels.append(scene.image)
        size = dict(width=image_size, height=image_size)
        images.append(dict(id=k, file_name=f"{split}_{k:05d}.png", **size))
        for label, mask in scene.objects:
            top, left, bottom, right = shapes.box_of(mask)
            box = [int(v) for v in (left, top, right - left, bottom - top)]
            annotations.append(dict(image_id=k, category_id=label + 1, bbox=box))
    ground_truth = coco.annotation_dictionary(images, annotations, CATEGORIES)
    boxes, classes, notes = coco.training_boxes(ground_truth)

    ids = [image["id"] for image in images]

    def decode(image_id, image, boxes, classes):
        return dict(id=image_id, image=image, boxes=boxes, classes=classes)

    return DetectionExamples(
        elements_in_memory(ids, np.stack(pixels), boxes, classes),
        decode,
        len(scenes),
        CATEGORIES,
        shapes.MAX_OBJECTS,
        lambda: ground_truth,
        "shapes",
        sum(map(len, boxes)),
        notes,
        **options,
    )
