"""Which numbers convolutions multiply: those they are given, or such of fewer bits."""

from __future__ import annotations

import tensorflow as tf

PRECISIONS = ("float32", "bfloat16")
"""`float32`: factors are multiplied as they are, of whatever type the input is.
`bfloat16`: of a float32 input, both factors of every product are rounded to bfloat16,
the nearest number of 8 significant bits; products are summed in float32, and whatever
is not a factor of a convolution stays float32."""


def check_precision(precision: str, dtype: tf.DType | None = None) -> bool:
    """Returns whether factors are rounded to bfloat16.

    Args:
        precision: As the caller received it.
        dtype: Type of the input, if it is known.

    Raises:
        ValueError: It is none of `PRECISIONS`, or the input is not float32.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}"
        )
    is_rounded = precision == "bfloat16"
    if is_rounded and dtype not in (None, tf.float32):
        raise ValueError(
            f"precision='bfloat16' needs a float32 input; got {dtype.name}"
        )
    return is_rounded


def as_factor(x: tf.Tensor, precision: str) -> tf.Tensor:
    """Returns x as the plain TensorFlow twins multiply it."""
    if precision == "float32":
        return x
    return tf.cast(tf.cast(x, tf.bfloat16), x.dtype)
