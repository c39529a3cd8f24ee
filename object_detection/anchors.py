"""Anchors of one feature map: their grid, samples of them, and their targets."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from sact_tf.optional import lazy

anchor_generator = lazy("official.vision.ops.anchor_generator")
box_matcher = lazy("official.vision.ops.box_matcher")
box_ops = lazy("official.vision.ops.box_ops")
iou_similarity = lazy("official.vision.ops.iou_similarity")
sampling_ops = lazy("official.vision.ops.sampling_ops")

SIZES = (64, 128, 256, 512)
"""Sides of square anchors in pixels (supplementary A.2)."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Width divided by height."""

_BACKGROUND_IOU = 0.3
_FOREGROUND_IOU = 0.7
_FOREGROUND_FRACTION = 0.5


def anchor_grid(
    height: int | tf.Tensor,
    width: int | tf.Tensor,
    stride: int,
    sizes: Sequence[float] = SIZES,
    aspect_ratios: Sequence[float] = ASPECT_RATIOS,
) -> tf.Tensor:
    """Returns the anchors of a feature map, at the centres of its positions.

    The anchor of size s and ratio r at position (i, j) is s / sqrt(r) high, s * sqrt(r)
    wide and has its centre at ((i + 1/2) * stride, (j + 1/2) * stride).

    Args:
        height: Of the feature map.
        width: Of the feature map.
        stride: Pixels from one position to the next.
        sizes: Square roots of the anchors' areas, in pixels.
        aspect_ratios: Width divided by height.

    Returns:
        float32 [height * width * anchors, 4]: ymin, xmin, ymax, xmax in pixels. Sizes
        vary slower than ratios, and both faster than positions.
    """
    generate = anchor_generator.AnchorGeneratorv1(
        [1.0], [list(map(float, sizes))], [list(map(float, aspect_ratios))], [stride]
    )
    first = tf.reshape(generate([stride, stride])[0], [1, 1, -1, 4])
    rows = stride * tf.range(tf.cast(height, tf.float32))
    columns = stride * tf.range(tf.cast(width, tf.float32))
    rows, columns = tf.meshgrid(rows, columns, indexing="ij")
    shifts = tf.stack([rows, columns, rows, columns], -1)
    return tf.reshape(shifts[:, :, tf.newaxis] + first, [-1, 4])


def sample_anchors(
    anchors: tf.Tensor,
    allowed: tf.Tensor,
    boxes: tf.Tensor,
    num_samples: int = 256,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Draws the anchors a training step looks at, and tells what they should predict.

    As Ren et al. (2015), section 3.1: an anchor is an object where its IoU with a box
    is at least 0.7 or none has a larger one with that box, and background where it is
    below 0.3 with all. Up to half of the samples are objects, the others background.
    Anchors across the border take part, as they do in the Model Garden.

    Args:
        anchors: [n, 4] in pixels.
        allowed: Bool [batch, n]; others are never drawn.
        boxes: Objects [batch, m, 4] in pixels; rows that are not one are negative.
        num_samples: k, how many to draw in each image.

    Returns:
        Indices of the samples, int32 [batch, k]; labels, int32 [batch, k]: 1 object, 0
        background, -1 neither, where fewer than k can be drawn; and the encoded boxes
        of the objects, float32 [batch, k, 4], zero for others.
    """
    batch = tf.shape(boxes)[0]
    all_anchors = tf.broadcast_to(anchors, [batch, *tf.unstack(tf.shape(anchors))])
    is_box = tf.reduce_max(boxes, -1, keepdims=True) >= 0
    iou = iou_similarity.IouSimilarity()(
        all_anchors, boxes, ~allowed[..., tf.newaxis], ~is_box
    )
    match = box_matcher.BoxMatcher([_BACKGROUND_IOU, _FOREGROUND_IOU], [-1, -2, 1])
    matched, indicators = match(iou)
    # Not the matcher's own way, which also gives an anchor to each missing box.
    largest = tf.reduce_max(iou, 1, keepdims=True)
    is_largest = tf.reduce_any((iou == largest) & (largest > 0), -1)
    is_object = is_largest | (indicators == 1)
    candidates = allowed & (is_object | (indicators == -1))
    sampler = sampling_ops.BalancedPositiveNegativeSampler(_FOREGROUND_FRACTION)
    sampled = tf.map_fn(
        lambda masks: sampler.subsample(masks[0], num_samples, masks[1]),
        (candidates, is_object & allowed),
        fn_output_signature=tf.TensorSpec([None], tf.bool),
    )
    # There may be fewer anchors than samples.
    padded = tf.pad(tf.cast(sampled, tf.int32), [[0, 0], [0, num_samples]])
    drawn, indices = tf.math.top_k(padded, num_samples)
    indices = tf.minimum(indices, tf.shape(anchors)[0] - 1)
    is_object = tf.gather(is_object, indices, batch_dims=1)
    labels = tf.where(drawn > 0, tf.cast(is_object, tf.int32), -1)
    matched = tf.gather(matched, indices, batch_dims=1)
    targets = box_ops.encode_boxes(
        tf.gather(boxes, matched, batch_dims=1), tf.gather(anchors, indices)
    )
    targets = tf.where(labels[..., tf.newaxis] == 1, targets, 0.0)
    return indices, labels, tf.stop_gradient(targets)
