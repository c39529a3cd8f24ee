"""What bottleneck and basic units have in common."""

from __future__ import annotations

import tensorflow as tf


def add_residual(shortcut, residual, active):
    if active is not None:
        residual *= tf.cast(active, residual.dtype)[..., tf.newaxis]
    return shortcut + residual


def zero_outside_image(tiles, inside):
    """Sets what lies outside the image to the zeros that SAME convolutions pad with."""
    return tf.where(inside, tiles, tf.zeros([], tiles.dtype))


def valid_conv(conv, tiles):
    kernel = tf.cast(conv.kernel, tiles.dtype)
    return tf.nn.conv2d(tiles, kernel, 1, "VALID", dilations=conv.dilation_rate)


def downsampled(shape, strides, channels):
    sides = [None if side is None else -(-side // strides) for side in shape[1:3]]
    return tf.TensorShape([shape[0], *sides, channels])
