"""The region proposal network, and the proposals that it makes (Ren et al., 2015)."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from sact_tf.layers import build_child
from sact_tf.optional import lazy

box_ops = lazy("official.vision.ops.box_ops")

_INITIAL_STDDEV = 0.01  # of new layers, as Ren et al.
_MIN_SIDE = 1.0  # of proposals, in pixels


def prediction_conv(
    filters: int,
    kernel_size: int = 1,
    activation: str | None = None,
    weight_decay: float = 0.0,
    name: str | None = None,
) -> keras.layers.Conv2D:
    """Returns a convolution of the detector's own, initialised as Ren et al. do."""
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        padding="same",
        activation=activation,
        kernel_initializer=keras.initializers.RandomNormal(stddev=_INITIAL_STDDEV),
        kernel_regularizer=keras.regularizers.L2(weight_decay / 2),
        name=name,
    )


class RegionProposalNetwork(keras.layers.Layer):
    """Tells for each anchor whether it is an object, and how to move it there.

    Args:
        channels: Of the 3x3 convolution.
        num_anchors: Anchors at each position.
        weight_decay: L2 coefficient of the convolutions.
    """

    def __init__(
        self,
        channels: int,
        num_anchors: int,
        weight_decay: float = 0.0,
        name: str = "rpn",
    ):
        super().__init__(name=name)
        options = dict(weight_decay=weight_decay)
        self.conv = prediction_conv(channels, 3, "relu", name="conv", **options)
        self.score = prediction_conv(num_anchors, name="score", **options)
        self.box = prediction_conv(4 * num_anchors, name="box", **options)

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        return {"conv": self.conv, "score": self.score, "box": self.box}

    def build(self, input_shape):
        build_child(self.conv, input_shape)
        for head in (self.score, self.box):
            build_child(head, [*input_shape[:3], self.conv.filters])
        super().build(input_shape)

    def call(self, features):
        """Maps [batch, height, width, channels] to logits and encoded boxes.

        Returns:
            float32 [batch, n] and [batch, n, 4], in the order of `anchor_grid`.
        """
        hidden = self.conv(features)
        batch = tf.shape(features)[0]
        scores = tf.reshape(tf.cast(self.score(hidden), tf.float32), [batch, -1])
        boxes = tf.reshape(tf.cast(self.box(hidden), tf.float32), [batch, -1, 4])
        return scores, boxes


def propose(
    logits: tf.Tensor,
    encoded: tf.Tensor,
    anchors: tf.Tensor,
    allowed: tf.Tensor,
    image_sizes: tf.Tensor,
    num_proposals: int = 300,
    nms_iou: float = 0.6,
    pre_nms_top_k: int = 6000,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Turns the predictions of all anchors into proposals.

    Args:
        logits: [batch, n], that an anchor is an object.
        encoded: [batch, n, 4], the boxes, encoded relative to the anchors.
        anchors: [n, 4] in pixels.
        allowed: Bool [batch, n]; other anchors propose nothing.
        image_sizes: [batch, 2], heights and widths inside of which boxes are clipped.
        num_proposals: p, how many are made of each image.
        nms_iou: Where two proposals overlap with a larger IoU, only the one with the
            higher score is kept.
        pre_nms_top_k: How many of the best anchors are looked at.

    Returns:
        Boxes float32 [batch, p, 4] in pixels, the best first, and their scores [batch,
        p]. Rows without a proposal are -1 and have the score 0. No gradient.
    """
    logits, encoded = tf.stop_gradient(logits), tf.stop_gradient(encoded)
    scores = tf.where(allowed, tf.sigmoid(logits), 0.0)
    k = tf.minimum(tf.shape(scores)[1], pre_nms_top_k)
    scores, best = tf.math.top_k(scores, k)
    boxes = box_ops.decode_boxes(
        tf.gather(encoded, best, batch_dims=1), tf.gather(anchors, best)
    )
    sizes = tf.cast(image_sizes, tf.float32)[:, tf.newaxis]
    boxes = box_ops.clip_boxes(boxes, sizes)
    sides = boxes[..., 2:] - boxes[..., :2]
    scores = tf.where(tf.reduce_min(sides, -1) >= _MIN_SIDE, scores, 0.0)
    boxes, scores, _, counts = tf.image.combined_non_max_suppression(
        boxes[:, :, tf.newaxis],
        scores[..., tf.newaxis],
        max_output_size_per_class=num_proposals,
        max_total_size=num_proposals,
        iou_threshold=nms_iou,
        score_threshold=0.0,
        clip_boxes=False,
    )
    is_there = tf.range(num_proposals) < counts[:, tf.newaxis]
    boxes = tf.where(is_there[..., tf.newaxis], boxes, -1.0)
    boxes = tf.ensure_shape(boxes, [None, num_proposals, 4])
    return tf.stop_gradient(boxes), tf.stop_gradient(scores)
