"""What every op asks of its tensors; errors name the argument and what it got."""

from __future__ import annotations

import tensorflow as tf

_FLOATS = (tf.float16, tf.bfloat16, tf.float32, tf.float64)


def convert(name: str, value, dtype: tf.DType | None = None) -> tf.Tensor:
    """Returns an argument as a tensor, if it can be of `dtype`.

    Raises:
        ValueError: If it is none.
    """
    try:
        return tf.convert_to_tensor(value, dtype_hint=dtype)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name} must be a tensor; got {type(value).__name__}: {reason}"
        ) from error


def like(name: str, value, dtype: tf.DType, whose: str) -> tf.Tensor:
    """Returns an argument as a tensor of the type that another argument has.

    Raises:
        ValueError: If it has another.
    """
    tensor = convert(name, value, dtype)
    if tensor.dtype != dtype:
        raise ValueError(
            f"{name} must be {dtype.name} like {whose}; got {tensor.dtype.name}"
        )
    return tensor


def check_float(name: str, tensor: tf.Tensor) -> None:
    """Raises ValueError on a type that nothing here computes in."""
    if tensor.dtype not in _FLOATS:
        raise ValueError(
            f"{name} must be one of {', '.join(t.name for t in _FLOATS)}; got "
            f"{tensor.dtype.name}"
        )


def check_rank(
    name: str, tensor: tf.Tensor, ranks: tuple[int, ...], expected: str
) -> None:
    """Raises ValueError on a rank that is not one of some; they are told in words."""
    if tensor.shape.rank not in ranks:
        raise ValueError(f"{name} must be {expected}; got shape {tensor.shape}")


def check_size(
    name: str, tensor: tf.Tensor, axis: int, expected: int | None, what: str
) -> None:
    """Raises ValueError on another size of an axis, where both are known."""
    got = tensor.shape[axis]
    if None not in (got, expected) and got != expected:
        raise ValueError(
            f"{name} must have {expected} elements ({what}) in axis {axis}; got shape "
            f"{tensor.shape}"
        )
