"""Features of regions, and stage 4 of the network as classifier of boxes."""

from __future__ import annotations

from collections.abc import Sequence

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
        blocks: The network's last block, or the blocks of its last stage.
        final_bn: The batch normalization after it; None: there is none.
        channels: Of that output.
        num_classes: Without background, which is class 0 here.
        weight_decay: L2 coefficient of the linear layers.
    """

    def __init__(
        self,
        blocks: Sequence[keras.layers.Layer],
        final_bn: keras.layers.Layer | None,
        channels: int,
        num_classes: int,
        weight_decay: float = 0.0,
        name: str = "box_classifier",
    ):
        super().__init__(name=name)
        self.blocks = list(blocks)
        self.final_bn = final_bn
        self._channels = channels
        options = dict(weight_decay=weight_decay)
        self.class_conv = prediction_conv(num_classes + 1, name="class", **options)
        self.box_conv = prediction_conv(4 * (num_classes + 1), name="box", **options)

    @property
    def block(self) -> keras.layers.Layer:
        """The last block."""
        return self.blocks[-1]

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Its own layers; the others are the network's."""
        return {"class": self.class_conv, "box": self.box_conv}

    def build(self, input_shape):
        for conv in (self.class_conv, self.box_conv):
            build_child(conv, [None, 1, 1, self._channels])
        super().build(input_shape)

    @tf.autograph.experimental.do_not_convert
    def call(self, regions, training=None, trains_rule=False, seed=None):
        """Classifies regions.

        Args:
            regions: [n, height, width, channels].
            training: As in the blocks.
            trains_rule: Whether the blocks' halting rules are trained.
            seed: As in the blocks.

        Returns:
            Logits float32 [n, classes + 1]; for every class an encoded box, float32 [n,
            4 * (classes + 1)]; and what blocks tell of regions, by name, [n] each:
            `log_prob` where their rules are trained and know it, `num_units` where
            regions halt as a whole, and `macs` where blocks count them; sums over the
            blocks.
        """
        x, told = regions, {}
        for block in self.blocks:
            options = dict(training=training)
            if block.is_adaptive and trains_rule:
                options["trains_rule"] = True
            if block.is_adaptive and seed is not None:
                options["seed"] = seed
            if not block.is_adaptive or not (trains_rule or block.halts_as_a_whole):
                x = block(x, **options)
                continue
            x, end_points = block(x, return_end_points=True, **options)
            for key in ("log_prob", "num_units", "macs"):
                value = end_points.get(key)
                if value is not None and value.shape.rank == 1:
                    told[key] = told[key] + value if key in told else value
        if self.final_bn is not None:
            x = self.final_bn(x, training=training)
        pooled = global_average(x)
        logits, encoded = (
            tf.cast(conv(pooled)[:, 0, 0], tf.float32)
            for conv in (self.class_conv, self.box_conv)
        )
        return logits, encoded, told
