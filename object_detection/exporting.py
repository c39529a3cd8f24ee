"""SavedModels of detectors."""

from __future__ import annotations

import os

import tensorflow as tf

from object_detection.data.examples import LONG_SIDE, SHORT_SIDE, resized_input
from object_detection.faster_rcnn import FasterRCNN
from object_detection.feature_extractor import whole_sizes
from sact_tf.exporting import adaptivity, map_images, write_saved_model

_ROWS = tf.RaggedTensorSpec([None, None, 3], tf.float32, ragged_rank=1)


def _padded(encoded: tf.Tensor, short_side: int, long_side: int):
    """Decodes and resizes images [batch].

    Returns:
        All of them, padded to one size; their sizes [batch, 2]; pixels per pixel of the
        originals [batch, 2].
    """

    def prepare(image):
        image, scale = resized_input(image, short_side, long_side)
        rows = tf.RaggedTensor.from_tensor(image, ragged_rank=1)
        return rows, tf.shape(image)[:2], scale

    signature = (_ROWS, tf.TensorSpec([2], tf.int32), tf.TensorSpec([2]))
    images, sizes, scales = map_images(encoded, prepare, signature)
    return tf.ensure_shape(images.to_tensor(), [None, None, None, 3]), sizes, scales


_IMAGES = tf.TensorSpec([None, None, None, 3], name="images")
_IMAGE_BYTES = tf.TensorSpec([None], tf.string, "image_bytes")
_SIZES = tf.TensorSpec([None, 2], tf.int32, "sizes")
_LIMITS = (
    tf.TensorSpec([], name="score_threshold"),
    tf.TensorSpec([], tf.int32, "max_detections"),
)


def _serving_functions(model: FasterRCNN, short_side: int, long_side: int):
    """Returns what the two signatures do, with their defaults."""
    not_padded = tf.zeros([0, 2], tf.int32)
    threshold = tf.constant(model.options.score_threshold)
    count = tf.constant(model.options.max_detections)

    # Traced once for both. Nothing is for AutoGraph, which takes long.
    @tf.function(input_signature=[_IMAGES, _SIZES, *_LIMITS], autograph=False)
    def detect(images, sizes, score_threshold, max_detections):
        limits = dict(score_threshold=score_threshold, max_detections=max_detections)
        detections = model(images, sizes, **limits)
        end_points = detections.pop("end_points")
        classes, count = detections["detection_classes"], detections["num_detections"]
        is_there = tf.range(max_detections) < count[:, tf.newaxis]
        detections["detection_classes"] = tf.where(is_there, classes, 0)
        return {
            **detections,
            **adaptivity(end_points, sizes),
            "dense_flops": end_points["dense_flops"],
            "sizes": sizes,
        }

    @tf.function(input_signature=[_IMAGES, _SIZES, *_LIMITS], autograph=False)
    def serve(
        images, sizes=not_padded, score_threshold=threshold, max_detections=count
    ):
        is_padded = tf.shape(sizes)[0] > 0
        sizes = tf.cond(is_padded, lambda: sizes, lambda: whole_sizes(images))
        return detect(images, sizes, score_threshold, max_detections)

    @tf.function(input_signature=[_IMAGE_BYTES, *_LIMITS], autograph=False)
    def serve_bytes(image_bytes, score_threshold=threshold, max_detections=count):
        images, sizes, scales = _padded(image_bytes, short_side, long_side)
        outputs = detect(images, sizes, score_threshold, max_detections)
        scales = tf.concat([scales, scales], 1)[:, tf.newaxis]
        return {**outputs, "detection_boxes": outputs["detection_boxes"] / scales}

    return serve, serve_bytes


def export_saved_model(
    model: FasterRCNN,
    path: str,
    execution: str | None = None,
    implementation: str = "tensorflow",
    short_side: int = SHORT_SIDE,
    long_side: int = LONG_SIDE,
    precision: str | None = None,
) -> str:
    """Exports a detector for serving, at any batch and image size.

    The signature `serving_default` takes

    * `images`, float32 [batch, height, width, 3] in [-1, 1], each at the top left of
      its place; what lies outside of it does not count, whatever it is,
    * `sizes`, int32 [batch, 2], the images' heights and widths without that padding;
      int32 [0, 2]: no image is padded,
    * `score_threshold`, float32 []: detections of lower probability are dropped,
    * `max_detections`, int32 []: the largest number of detections in an image.

    `serving_bytes` takes `image_bytes`, strings [batch] of JPEG or PNG files, in place
    of the first two. It turns them upright, resizes them as `coco_detect` does, and
    pads them to one size. Both return

    * `detection_boxes`, float32 [batch, max_detections, 4]: ymin, xmin, ymax, xmax in
      pixels, of `images`, or of the upright photographs before they were resized,
    * `detection_scores`, float32 [batch, max_detections], the highest first, and
      `detection_classes`, int32 [batch, max_detections], from 1,
    * `num_detections`, int32 [batch]; rows after so many are zero,
    * `sizes`, int32 [batch, 2], of the images as the network saw them,
    * `flops` of the features, and `dense_flops`, what they would take of an ordinary
      network, int64 [batch]; of iterative networks `macs` of the features as well,
    * of adaptive networks `<block>_ponder_cost` float32 and `<block>_num_units` int32
      of blocks 1 to 3, [batch], of SACT networks [batch, block height, block width],
    * of SACT networks `ponder_cost_map` float32 [batch, height, width, 1] of those
      images, the sum over blocks 1 to 3, zero in padding.

    All but the images have default values: no padding, and the detector's own options.
    In Python, the attributes `serve` and `serve_bytes` of the loaded SavedModel know
    them; its `signatures` want every input.

    Perforated and tiled execution take batches without padding only, such as of one
    image.

    Args:
        model: The detector.
        path: Directory to write.
        execution: As of a detector; None: the model's own.
        implementation: Of perforated execution: "tensorflow" loads anywhere; "native"
            is faster, and loads after `custom_ops.load()`.
        short_side: Short side that `serving_bytes` resizes images to, unless
        long_side: the long side would become larger than that; 0: than any input.
        precision: As of the export of a network.

    Returns:
        `path`.

    Raises:
        ValueError: On an `execution`, `implementation` or `precision` that the detector
            cannot have.
    """
    model = model.with_execution(execution, precision)
    serve, serve_bytes = _serving_functions(model, short_side, long_side)
    return write_saved_model(model, os.fspath(path), serve, serve_bytes, implementation)
