"""SavedModels of segmentation networks."""

from __future__ import annotations

import os

import tensorflow as tf

from sact_tf.exporting import adaptivity, map_images, write_saved_model
from sact_tf.segmentation.data import limit, network_input
from sact_tf.segmentation.network import SegmentationNetwork

_IMAGES = tf.TensorSpec([None, None, None, 3], name="images")
_IMAGE_BYTES = tf.TensorSpec([None], tf.string, "image_bytes")
_ROWS = tf.RaggedTensorSpec([None, None, 3], tf.float32, ragged_rank=1)


def _stacked(image_bytes: tf.Tensor, long_side: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes images [batch], which must be of one size.

    Returns:
        What the network sees, [batch, height, width, 3], and the images' own size.
    """

    def prepare(image):
        size = tf.shape(image)[:2]
        image = network_input(limit(image, long_side))
        return tf.RaggedTensor.from_tensor(image, ragged_rank=1), size

    images, sizes = map_images(
        image_bytes, prepare, (_ROWS, tf.TensorSpec([2], tf.int32))
    )
    is_one_size = tf.debugging.Assert(
        tf.reduce_all(sizes == sizes[:1]),
        ["images of a batch must be of one size; their heights and widths are", sizes],
        summarize=20,
    )
    with tf.control_dependencies([is_one_size]):
        sizes = tf.identity(sizes)
    return tf.ensure_shape(images.to_tensor(), [None, None, None, 3]), sizes[0]


def _serving_functions(model: SegmentationNetwork, long_side: int):
    """Returns what the two signatures do."""

    # Traced once for both. Nothing is for AutoGraph, which takes long.
    @tf.function(
        input_signature=[_IMAGES, tf.TensorSpec([2], tf.int32)], autograph=False
    )
    def segment(images, size):
        logits, end_points = model.with_end_points(
            images, training=False, output_size=size
        )
        probabilities = tf.nn.softmax(logits)
        return {
            "classes": tf.argmax(logits, -1, tf.int32),
            "probabilities": probabilities,
            **adaptivity(end_points),
            "head_flops": end_points["head_flops"],
            "dense_flops": end_points["dense_flops"],
        }

    @tf.function(input_signature=[_IMAGES], autograph=False)
    def serve(images):
        return segment(images, tf.shape(images)[1:3])

    @tf.function(input_signature=[_IMAGE_BYTES], autograph=False)
    def serve_bytes(image_bytes):
        return segment(*_stacked(image_bytes, long_side))

    return serve, serve_bytes


def export_saved_model(
    model: SegmentationNetwork,
    path: str,
    execution: str | None = None,
    implementation: str = "tensorflow",
    long_side: int = 0,
) -> str:
    """Exports a segmentation network for serving, at any batch and image size.

    The signature `serving_default` takes `images`, float32 [batch, height, width, 3] in
    [-1, 1]; `serving_bytes` takes `image_bytes`, strings [batch] of JPEG or PNG files
    whose images have one size, and turns them upright. Both return

    * `classes`, int32 [batch, height, width], and `probabilities`, float32 [batch,
      height, width, num_classes], of the images' own size,
    * `flops` of the backbone, `dense_flops`, what an ordinary one of its depth takes,
      and `head_flops`, int64 [batch], and of iterative networks `macs`,
    * of adaptive networks `<block>_ponder_cost` float32 and `<block>_num_units` int32,
      [batch], of SACT networks [batch, block height, block width],
    * of SACT networks `ponder_cost_map` float32 [batch, height, width, 1], of the size
      that the network saw.

    Args:
        model: The network.
        path: Directory to write.
        execution: As of a network; None: the model's own.
        implementation: Of perforated execution: "tensorflow" loads anywhere; "native"
            is faster, and loads after `custom_ops.load()`.
        long_side: Of `serving_bytes`: the network sees larger images resized to that,
            and the result is enlarged; 0: it sees them as they are.

    Returns:
        `path`.

    Raises:
        ValueError: On an `execution` or `implementation` that the network cannot have.
    """
    model = model if execution is None else model.with_execution(execution)
    serve, serve_bytes = _serving_functions(model, long_side)
    return write_saved_model(model, os.fspath(path), serve, serve_bytes, implementation)
