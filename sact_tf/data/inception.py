"""Inception v3's image preprocessing, which the original trains and evaluates with."""

from __future__ import annotations

import tensorflow as tf

CENTRAL_FRACTION = 0.875
"""Part of each side that evaluation keeps."""

_WHOLE_IMAGE = [[[0.0, 0.0, 1.0, 1.0]]]
_MIN_OBJECT_COVERED = 0.1
_ASPECT_RATIO_RANGE = (0.75, 1.33)
_AREA_RANGE = (0.05, 1.0)
_MAX_ATTEMPTS = 100
_RESIZE_METHODS = ("bilinear", "nearest", "bicubic", "area")


def for_evaluation(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Crops the centre and resizes it; the aspect ratio is not kept.

    Args:
        image: uint8 [any height, any width, 3].
        height: Of the result.
        width: Of the result.

    Returns:
        float32 [height, width, 3] in [-1, 1].
    """
    image = tf.image.convert_image_dtype(image, tf.float32)
    image = tf.image.central_crop(image, CENTRAL_FRACTION)
    return _to_symmetric(_resize(image, height, width, "bilinear"))


def for_training(
    image: tf.Tensor,
    height: int,
    width: int,
    boxes: tf.Tensor | None = None,
    seed: int | None = None,
) -> tf.Tensor:
    """Crops a random part that shows an object, resizes, flips and distorts colours.

    Args:
        image: uint8 [any height, any width, 3].
        height: Of the result.
        width: Of the result.
        boxes: float32 [n, 4] of objects (ymin, xmin, ymax, xmax, in [0, 1]), of one of
            which the crop holds at least a tenth; None or none: the whole image.
        seed: Of what is drawn.

    Returns:
        float32 [height, width, 3] in [-1, 1].
    """
    image = tf.image.convert_image_dtype(image, tf.float32)
    boxes = tf.zeros([0, 4]) if boxes is None else boxes
    boxes = tf.cond(
        tf.size(boxes) > 0,
        lambda: tf.clip_by_value(boxes, 0.0, 1.0)[tf.newaxis],
        lambda: tf.constant(_WHOLE_IMAGE),
    )
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        boxes,
        seed=seed or 0,
        min_object_covered=_MIN_OBJECT_COVERED,
        aspect_ratio_range=_ASPECT_RATIO_RANGE,
        area_range=_AREA_RANGE,
        max_attempts=_MAX_ATTEMPTS,
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.slice(image, begin, size)
    image = _one_of(
        [
            lambda method=method: _resize(image, height, width, method)
            for method in _RESIZE_METHODS
        ],
        seed,
    )
    image = tf.image.random_flip_left_right(image, seed)
    image = tf.clip_by_value(_distort_colours(image, seed), 0.0, 1.0)
    return _to_symmetric(image)


def _to_symmetric(image):
    return (image - 0.5) * 2.0


def _resize(image, height, width, method):
    """Resizes as TensorFlow 1 does: no half-pixel centres, no antialiasing."""
    image = tf.compat.v1.image.resize_images(image, [height, width], method)
    return tf.ensure_shape(image, [height, width, 3])


def _one_of(functions, seed):
    choice = tf.random.uniform([], 0, len(functions), tf.int32, seed)
    return tf.switch_case(choice, functions)


def _distort_colours(image, seed):
    """Distorts brightness, saturation, hue and contrast, in one of four orders."""
    brightness, saturation, hue, contrast = (
        lambda image: tf.image.random_brightness(image, 32.0 / 255.0, seed),
        lambda image: tf.image.random_saturation(image, 0.5, 1.5, seed),
        lambda image: tf.image.random_hue(image, 0.2, seed),
        lambda image: tf.image.random_contrast(image, 0.5, 1.5, seed),
    )
    orders = (
        (brightness, saturation, hue, contrast),
        (saturation, brightness, contrast, hue),
        (contrast, hue, brightness, saturation),
        (hue, saturation, contrast, brightness),
    )

    def distort(order):
        distorted = image
        for step in order:
            distorted = step(distorted)
        return distorted

    return _one_of([lambda order=order: distort(order) for order in orders], seed)


def longer_edge(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes an image such that its longer edge is `size`; keeps the aspect ratio.

    Args:
        image: uint8 [height, width, 3].
        size: Of the longer edge; 0: the image keeps its size.

    Returns:
        float32 [new height, new width, 3], about in [0, 1]: bicubic interpolation, as
        the original's, overshoots at edges.
    """
    image = tf.image.convert_image_dtype(image, tf.float32)
    if not size:
        return image
    height, width = image.shape[:2]
    scale = size / max(height, width)
    sides = [max(int(height * scale), 1), max(int(width * scale), 1)]
    return tf.compat.v1.image.resize_bicubic(image[tf.newaxis], sides)[0]
