"""The four losses of Faster R-CNN, by the Model Garden."""

from __future__ import annotations

import tensorflow as tf

from object_detection.box_classifier import BOX_WEIGHTS
from sact_tf.optional import lazy

box_ops = lazy("official.vision.ops.box_ops")
maskrcnn_losses = lazy("official.vision.losses.maskrcnn_losses")

_PROPOSAL_HUBER_DELTA = 1 / 9
_BOX_HUBER_DELTA = 1.0


def proposal_losses(
    logits: tf.Tensor,
    encoded: tf.Tensor,
    indices: tf.Tensor,
    labels: tf.Tensor,
    targets: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Losses of the region proposal network on sampled anchors.

    Args:
        logits: [batch, n].
        encoded: [batch, n, 4].
        indices: Of the k sampled anchors, and so on, as `sample_anchors` returns them.
        labels: [batch, k].
        targets: [batch, k, 4].

    Returns:
        float32 scalars: `rpn_score`, the cross-entropy divided by k and the number of
        images, and `rpn_box`, the Huber loss averaged over coordinates of objects.
    """
    logits = tf.gather(logits, indices, batch_dims=1)
    encoded = tf.gather(encoded, indices, batch_dims=1)
    num_samples = labels.shape[1]
    score_loss = maskrcnn_losses.RpnScoreLoss(num_samples)
    box_loss = maskrcnn_losses.RpnBoxLoss(_PROPOSAL_HUBER_DELTA)
    # These want feature maps [batch, height, width, anchors], by pyramid level.
    as_map = [-1, 1, num_samples, 1]
    boxes_as_map = [-1, 1, num_samples, 4]
    return {
        "rpn_score": score_loss(
            {"4": tf.reshape(logits, as_map)}, {"4": tf.reshape(labels, as_map)}
        ),
        "rpn_box": box_loss(
            {"4": tf.reshape(encoded, boxes_as_map)},
            {"4": tf.reshape(targets, boxes_as_map)},
        ),
    }


def box_losses(
    logits: tf.Tensor,
    encoded: tf.Tensor,
    regions: tf.Tensor,
    classes: tf.Tensor,
    boxes: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Losses of the box classifier on sampled regions.

    Args:
        logits: [batch, k, classes + 1].
        encoded: [batch, k, 4 * (classes + 1)].
        regions: [batch, k, 4] in pixels.
        classes: int32 [batch, k], 0 is background.
        boxes: [batch, k, 4], of the matched objects, in pixels.

    Returns:
        float32 scalars: `box_class`, the mean cross-entropy, and `box_refinement`, the
        Huber loss averaged over coordinates of regions that are objects.
    """
    targets = box_ops.encode_boxes(boxes, regions, BOX_WEIGHTS)
    targets = tf.where(classes[..., tf.newaxis] > 0, targets, 0.0)
    return {
        "box_class": maskrcnn_losses.FastrcnnClassLoss()(logits, classes),
        "box_refinement": maskrcnn_losses.FastrcnnBoxLoss(_BOX_HUBER_DELTA)(
            encoded, classes, tf.stop_gradient(targets)
        ),
    }
