"""What bottleneck and basic units have in common."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import tensorflow as tf

import custom_ops
from custom_ops.implementation import native_library

_fuses = contextvars.ContextVar("fuses", default=False)


@contextlib.contextmanager
def fused_steps() -> Iterator[None]:
    """Lets masked execution use compiled kernels for sums under a mask, in a block.

    For what is traced inside, such as a training step. Not for functions that are
    saved: those have to run where this package is not.
    """
    token = _fuses.set(True)
    try:
        yield
    finally:
        _fuses.reset(token)


def fuses(x: tf.Tensor) -> bool:
    """Tells whether sums with x under a mask are to be computed by compiled kernels."""
    return _fuses.get() and has_kernel("MaskedAccumulateGradient", x.dtype)


def add_residual(shortcut, residual, active):
    if active is not None and fuses(residual):
        return custom_ops.masked_add(shortcut, residual, active)
    if active is not None:
        residual *= tf.cast(active, residual.dtype)[..., tf.newaxis]
    return shortcut + residual


def has_kernel(op: str, dtype: tf.DType) -> bool:
    """Tells whether compiled kernels run an operation here, unless told otherwise."""
    return native_library("auto", op, dtype) is not None


def zero_outside_image(tiles, inside):
    """Sets what lies outside the image to the zeros that SAME convolutions pad with."""
    return tf.where(inside, tiles, tf.zeros([], tiles.dtype))


def valid_conv(conv, tiles):
    kernel = tf.cast(conv.kernel, tiles.dtype)
    return tf.nn.conv2d(tiles, kernel, 1, "VALID", dilations=conv.dilation_rate)


def downsampled(shape, strides, channels):
    sides = [None if side is None else -(-side // strides) for side in shape[1:3]]
    return tf.TensorShape([shape[0], *sides, channels])
