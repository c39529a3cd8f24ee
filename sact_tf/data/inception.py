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
    seed: tf.Tensor,
    boxes: tf.Tensor | None = None,
) -> tf.Tensor:
    """Crops a random part that shows an object, resizes, flips and distorts colours.

    Args:
        image: uint8 [any height, any width, 3].
        height: Of the result.
        width: Of the result.
        seed: Int [2], of what is drawn.
        boxes: float32 [n, 4] of objects (ymin, xmin, ymax, xmax, in [0, 1]), of one of
            which the crop holds at least a tenth; None or none: the whole image.

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
    box_seed, method_seed, flip_seed, colour_seed = _split(seed, 4)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        boxes,
        seed=box_seed,
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
        method_seed,
    )
    image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    image = tf.clip_by_value(_distort_colours(image, colour_seed), 0.0, 1.0)
    return _to_symmetric(image)


def _to_symmetric(image):
    return (image - 0.5) * 2.0


def _resize(image, height, width, method):
    """Resizes as TensorFlow 1 does: no half-pixel centres, no antialiasing."""
    image = tf.compat.v1.image.resize_images(image, [height, width], method)
    return tf.ensure_shape(image, [height, width, 3])


def _split(seed, count):
    """Returns independent seeds of stateless operations."""
    return tf.unstack(tf.random.split(seed, count))


def _one_of(functions, seed):
    choice = tf.random.stateless_uniform([], seed, 0, len(functions), tf.int32)
    return tf.switch_case(choice, functions)


def _distort_colours(image, seed):
    """Distorts brightness, saturation, hue and contrast, in one of four orders."""
    order_seed, *seeds = _split(seed, 5)
    brightness, saturation, hue, contrast = (
        lambda image: tf.image.stateless_random_brightness(image, 32 / 255, seeds[0]),
        lambda image: tf.image.stateless_random_saturation(image, 0.5, 1.5, seeds[1]),
        lambda image: tf.image.stateless_random_hue(image, 0.2, seeds[2]),
        lambda image: tf.image.stateless_random_contrast(image, 0.5, 1.5, seeds[3]),
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

    return _one_of([lambda order=order: distort(order) for order in orders], order_seed)


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
