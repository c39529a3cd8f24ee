"""Which training steps may use compiled kernels in masked execution."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import tensorflow as tf

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


def has_kernel(op: str, dtype: tf.DType) -> bool:
    """Tells whether compiled kernels run an operation here, unless told otherwise."""
    return native_library("auto", op, dtype) is not None
