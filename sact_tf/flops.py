"""Exact operation counts per image, of convolutions only (SACT, section 4.1).

int64, two for each multiply-add.
"""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras


def num_positions(x: tf.Tensor, strides: int = 1) -> tf.Tensor:
    """Counts the spatial positions left of a feature map by a stride.

    Args:
        x: [batch, height, width, channels].
        strides: Stride of the convolution; a side of n positions leaves ceil(n /
            strides).

    Returns:
        int64 [batch], the same number for every image.
    """
    batch, height, width = tf.unstack(tf.shape(x, tf.int64)[:3])
    # Not -(-side // strides): ONNX divides negative numbers otherwise.
    height, width = ((side + strides - 1) // strides for side in (height, width))
    return tf.fill([batch], height * width)


def num_active(active: tf.Tensor, valid: tf.Tensor | None = None) -> tf.Tensor:
    """Counts the True positions of a mask [batch, height, width]; int64 [batch].

    Args:
        active: Bool [batch, height, width].
        valid: Mask of the same shape of the positions that count at all; None: all.
    """
    if valid is not None:
        active = active & valid
    return tf.reduce_sum(tf.cast(active, tf.int64), [1, 2])


def dilate(active: tf.Tensor, rate: int = 1) -> tf.Tensor:
    """Dilates a bool mask [batch, height, width] by the 3x3 square.

    These are the positions at which a following 3x3 convolution reads its input, and
    hence where the convolution before it has to be computed (SACT, section 2.3).

    Args:
        active: Bool [batch, height, width].
        rate: Dilation of the convolution, the distance of the square's positions.
    """
    # Constant bounds: every operation that computes one takes as long as a slice.
    bounds = [(None, -2 * rate), (rate, -rate), (2 * rate, None)]
    padded = tf.pad(active, [[0, 0], [rate, rate], [rate, rate]])
    above, here, below = (padded[:, first:last] for first, last in bounds)
    rows = above | here | below
    left, here, right = (rows[:, :, first:last] for first, last in bounds)
    return left | here | right


def conv2d_flops(layer: keras.layers.Conv2D, positions: tf.Tensor) -> tf.Tensor:
    """Operations of one built convolution layer; biases are not counted.

    Args:
        layer: The layer; its kernel is [height, width, in channels, out channels].
        positions: int64 [batch], output positions at which it is computed.

    Returns:
        int64 [batch].
    """
    height, width, in_channels, filters = layer.kernel.shape
    return positions * (2 * height * width * in_channels * filters)


def multiply_accumulates(flops: tf.Tensor) -> tf.Tensor:
    """Returns the multiply-accumulates (MACs) of operations counted here.

    The unit of the papers on iterative networks: one where FLOPs count two.
    """
    return flops // 2
