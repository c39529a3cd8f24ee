"""Features of regions, and block 4 of the network as classifier of boxes."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from object_detection.proposals import prediction_conv
from sact_tf.layers import build_child, global_average

BOX_WEIGHTS = [10.0, 10.0, 5.0, 5.0]
"""Factors of encoded boxes in the second stage (as in the Model Garden)."""


def crop_regions(
    features: tf.Tensor,
    boxes: tf.Tensor,
    feature_sizes: tf.Tensor,
    stride: int,
    crop_size: int = 28,
    pool_size: int = 7,
) -> tf.Tensor:
    """Samples the features inside of boxes on a grid, and pools them (SACT, A.2).

    Position i of the features has its centre at pixel (i + 1/2) * stride, as the
    anchors do, so that pixel y lies at y / stride - 1/2; bilinear samples go from edge
    to edge of a box. Boxes are clipped to the centres of the outermost positions:
    padding is never read, and no value is made up beyond the border.

    Args:
        features: [batch, height, width, channels].
        boxes: [batch, n, 4] in pixels.
        feature_sizes: [batch, 2], heights and widths of the features without padding.
        stride: Pixels from one position to the next.
        crop_size: Samples along each side of a box.
        pool_size: What these are max-pooled to; divides `crop_size`.

    Returns:
        [batch * n, pool_size, pool_size, channels].
    """
    last = tf.cast(feature_sizes - 1, tf.float32)[:, tf.newaxis]
    last = tf.concat([last, last], -1)
    positions = tf.clip_by_value(boxes / float(stride) - 0.5, 0.0, last)
    # The op wants 1 to be the last position of the features, padding included.
    scale = tf.cast(tf.shape(features)[1:3] - 1, tf.float32)
    positions = tf.math.divide_no_nan(positions, tf.concat([scale, scale], 0))
    batch, count = tf.shape(boxes)[0], tf.shape(boxes)[1]
    crops = tf.image.crop_and_resize(
        features,
        tf.stop_gradient(tf.reshape(positions, [-1, 4])),
        tf.repeat(tf.range(batch), count),
        [crop_size, crop_size],
    )
    window = crop_size // pool_size
    crops = tf.nn.max_pool2d(tf.cast(crops, features.dtype), window, window, "VALID")
    return tf.ensure_shape(crops, [None, pool_size, pool_size, features.shape[-1]])


class BoxClassifier(keras.layers.Layer):
    """Block 4, average pooling, and linear layers for classes and boxes.

    Args:
        block: The network's last block.
        final_bn: The batch normalization after it.
        num_classes: Without background, which is class 0 here.
        weight_decay: L2 coefficient of the linear layers.
    """

    def __init__(
        self,
        block: keras.layers.Layer,
        final_bn: keras.layers.Layer,
        num_classes: int,
        weight_decay: float = 0.0,
        name: str = "box_classifier",
    ):
        super().__init__(name=name)
        self.block = block
        self.final_bn = final_bn
        options = dict(weight_decay=weight_decay)
        self.class_conv = prediction_conv(num_classes + 1, name="class", **options)
        self.box_conv = prediction_conv(4 * (num_classes + 1), name="box", **options)

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Its own layers; the others are the network's."""
        return {"class": self.class_conv, "box": self.box_conv}

    def build(self, input_shape):
        channels = self.final_bn.gamma.shape[0]
        for conv in (self.class_conv, self.box_conv):
            build_child(conv, [None, 1, 1, channels])
        super().build(input_shape)

    @tf.autograph.experimental.do_not_convert
    def call(self, regions, training=None, trains_rule=False):
        """Classifies regions.

        Args:
            regions: [n, height, width, channels].
            training: As in the block.
            trains_rule: Whether the block's halting rule is trained; its end points are
                then returned as well.

        Returns:
            Logits float32 [n, classes + 1], and for every class an encoded box, float32
            [n, 4 * (classes + 1)].
        """
        options = {}
        if trains_rule and self.block.is_adaptive:
            options = dict(trains_rule=True, return_end_points=True)
        x = self.block(regions, training=training, **options)
        x, end_points = x if options else (x, {})
        pooled = global_average(self.final_bn(x, training=training))
        results = tuple(
            tf.cast(conv(pooled)[:, 0, 0], tf.float32)
            for conv in (self.class_conv, self.box_conv)
        )
        return (*results, end_points) if trains_rule else results
