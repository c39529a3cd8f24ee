"""The active positions of a mask, found once for all that computes there."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from custom_ops.implementation import native_library, runs_on_gpu


class ActivePositions(NamedTuple):
    """A mask, and where it is set; `find_positions` makes it.

    Positions are flat indices into [batch, height, width], ascending. Whatever takes a
    mask takes this in its place, and then need not look for the positions again.

    Attributes:
        mask: Bool [batch, height, width].
        positions: Int64 [active], where it is set.
        touched: Int64 [touched], what a 3x3 convolution that keeps size reads there:
            the positions of the mask dilated by 3x3.
        touched_rows: Int64 [batch, height, width], the index of each position in
            `touched`, or -1.
    """

    mask: tf.Tensor
    positions: tf.Tensor
    touched: tf.Tensor
    touched_rows: tf.Tensor


class DevicePositions(NamedTuple):
    """The same for the kernels of a GPU; `find_positions` makes it there.

    How many positions there are is known to the GPU alone, so that nobody waits for it.

    Attributes:
        mask: Bool [batch, height, width].
        places: Int64 vector, to be read by kernels.
    """

    mask: tf.Tensor
    places: tf.Tensor


def find_positions(
    mask: tf.Tensor | ActivePositions | DevicePositions, implementation: str = "auto"
) -> ActivePositions | DevicePositions:
    """Finds the active positions of a mask.

    For a step that computes at one mask several times: a residual unit, a halting head
    and `masked_accumulate`.

    Args:
        mask: [batch, height, width], bool or numbers (non-zero: active). Positions
            found before are returned as they are.
        implementation: As in `perforated_conv2d`; all give the same.

    Raises:
        ValueError: If the mask's type or rank does not fit.
        tf.errors.InvalidArgumentError: If a mask of numbers holds NaN or infinity.
        RuntimeError: If `implementation` is "native" and there is no kernel.

    >>> found = find_positions([[[True, False, False], [False, False, False]]])
    >>> found.positions.numpy().tolist()
    [0]
    >>> found.touched.numpy().tolist()
    [0, 1, 3, 4]
    """
    if isinstance(mask, ActivePositions):
        return mask
    if runs_on_gpu(implementation, "FindPlaces", tf.bool):
        if isinstance(mask, DevicePositions):
            return mask
        mask = as_mask(mask, (3,))
        library = native_library(implementation, "FindPlaces", tf.bool)
        return DevicePositions(mask, library.find_places(mask))
    mask = mask_of(mask)
    library = native_library(implementation, "FindPositions", tf.bool)
    if library is not None:
        return ActivePositions(mask, *library.find_positions(mask))
    return ActivePositions(mask, where_flat(mask), *touched_by(mask, 3, 3))


_FOUND = (ActivePositions, DevicePositions)


def mask_of(mask: tf.Tensor | ActivePositions | DevicePositions) -> tf.Tensor:
    """Returns the bool mask [batch, height, width] of what may be found positions."""
    return mask.mask if isinstance(mask, _FOUND) else as_mask(mask, (3,))


def split(
    mask: tf.Tensor | ActivePositions | DevicePositions, ranks: tuple[int, ...]
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns a bool mask and what was found in it: tensors for an op, or none.

    These are three of `ActivePositions`, or the one of `DevicePositions`.

    Args:
        mask: As callers of this package give it.
        ranks: Those that a mask alone may have.
    """
    if isinstance(mask, _FOUND):
        return mask.mask, list(mask[1:])
    return as_mask(mask, ranks), []


def as_mask(mask: tf.Tensor, ranks: tuple[int, ...]) -> tf.Tensor:
    """Returns a mask as bool; numbers must be finite, and mean True where not zero."""
    mask = tf.convert_to_tensor(mask)
    if mask.shape.rank not in ranks:
        raise ValueError(
            "mask must be [out height, out width], with batch before or not; got shape "
            f"{mask.shape}"
        )
    if mask.dtype == tf.bool:
        return mask
    if mask.dtype.is_floating:
        mask = tf.debugging.check_numerics(mask, "mask must be finite")
    elif not mask.dtype.is_integer:
        raise ValueError(f"mask must be bool or numbers; got {mask.dtype.name}")
    return tf.not_equal(mask, tf.zeros([], mask.dtype))


def where_flat(mask: tf.Tensor) -> tf.Tensor:
    """Flat indices of the set elements, int64 [active], in plain TensorFlow."""
    return tf.where(tf.reshape(mask, [-1]))[:, 0]


def touched_by(mask: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """What a convolution that keeps size reads at a mask, in plain TensorFlow.

    Args:
        mask: Bool [batch, height, width].
        height: Of the filters, odd.
        width: Of the filters, odd.

    Returns:
        `touched` and `touched_rows`, as in `ActivePositions`.
    """
    image = tf.cast(mask, tf.float32)[..., tf.newaxis]
    dilated = tf.nn.max_pool2d(image, [height, width], 1, "SAME")[..., 0] > 0
    touched = where_flat(dilated)
    numbers = tf.cumsum(tf.cast(tf.reshape(dilated, [-1]), tf.int64)) - 1
    rows = tf.where(
        dilated, tf.reshape(numbers, tf.shape(mask)), tf.constant(-1, tf.int64)
    )
    return touched, rows


def coordinates(
    positions: tf.Tensor, shape: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns image, y and x, int64 [n] each, of flat positions.

    Args:
        positions: Int64 [n].
        shape: Int64, begins with batch, height, width.
    """
    row = positions // shape[2]
    return row // shape[1], row % shape[1], positions % shape[2]
