"""Residual units and what surrounds them at active positions only.

Each is one native operation, because launching ten of them for a tenth of the
positions costs more than it saves; the plain TensorFlow twin beside it says what it
computes. Batch normalizations come folded to scale and shift (`fold_batch_norm`), as
they are with stored moments. So do their gradients (`custom_ops.unit_gradients`), which
skip what the units skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from custom_ops.convolution import activate
from custom_ops.implementation import native_library
from custom_ops.positions import (
    ActivePositions,
    DevicePositions,
    coordinates,
    find_positions,
    split,
    touched_by,
    where_flat,
)
from custom_ops.precision import as_factor, check_precision

Affine = tuple[tf.Tensor, tf.Tensor]
"""Scale and shift per channel, [channels] each."""


def fold_batch_norm(
    gamma: tf.Tensor,
    beta: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    epsilon: float,
    implementation: str = "auto",
) -> Affine:
    """Returns the scale and shift that a batch normalization in inference amounts to.

    Args:
        gamma: [channels], as all others.
        beta: Added after the normalization.
        mean: Moving mean.
        variance: Moving variance.
        epsilon: Added to the variance.
        implementation: As in `perforated_conv2d`.
    """
    gamma = tf.convert_to_tensor(gamma)
    library = native_library(implementation, "FoldBatchNorm", gamma.dtype)
    if library is not None:
        return tuple(
            library.fold_batch_norm(gamma, beta, mean, variance, epsilon=epsilon)
        )
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    return scale, beta - mean * scale


def perforated_bottleneck(
    x: tf.Tensor,
    mask: tf.Tensor | ActivePositions,
    preactivation: Affine,
    filters: Sequence[tf.Tensor],
    norms: Sequence[Affine],
    bias: tf.Tensor,
    sums: tf.Tensor | None = None,
    implementation: str = "auto",
    precision: str = "float32",
) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
    """Adds the residual of a pre-activation bottleneck unit to x where a mask is set.

    The residual is conv3(f(norm1(conv2(f(norm0(conv1(f(preactivation(x))))))) + bias,
    where f is ReLU. The 3x3 and the last 1x1 convolution run at the mask, the first 1x1
    where the 3x3 reads: at the mask dilated by 3x3 (SACT, section 2.3).

    Args:
        x: Float [batch, height, width, channels].
        mask: [batch, height, width], bool or numbers (non-zero: compute), or what
            `find_positions` found in one.
        preactivation: Scale and shift before the first ReLU, [channels].
        filters: Of the three convolutions, [1, 1, channels, c], [3, 3, c, d] and
            [1, 1, d, channels].
        norms: Two scales and shifts, after the first (c) and second (d) convolution.
        bias: [channels], added to the residual.
        sums: The sums of x over its positions, [batch, channels], or None.
        implementation: As in `perforated_conv2d`.
        precision: As in `perforated_conv2d`. x, the result and both sums stay float32.

    Returns:
        Shaped like x. Given `sums`, also the sums of the result over its positions,
        which costs next to nothing here and a pass over the result elsewhere.

    Raises:
        ValueError: If the mask's type or rank, or the precision, does not fit.
        tf.errors.InvalidArgumentError: If a size does not fit; names the argument.
    """
    x = tf.convert_to_tensor(x)
    bool_mask, found = split(mask, (3,))
    is_rounded = check_precision(precision, x.dtype)
    library = native_library(implementation, "PerforatedBottleneckAt", x.dtype)
    if library is not None:
        y, new_sums = library.perforated_bottleneck_at(
            x,
            bool_mask,
            tf.zeros([0], x.dtype) if sums is None else sums,
            *preactivation,
            *filters,
            *(scale for scale, _ in norms),
            *(shift for _, shift in norms),
            bias,
            found,
            bfloat16_factors=is_rounded,
        )
        return y if sums is None else (y, new_sums)

    found = find_positions(mask, "tensorflow")
    first = _Reads.at(found, filters[1])
    rows = _affine_relu(tf.gather(_rows(x), first.positions), preactivation)
    rows = _affine_relu(_matmul(rows, filters[0][0, 0], precision), norms[0])
    patches = first.patches(rows, found.positions, filters[1])
    rows = _affine_relu(_matmul(patches, _matrix(filters[1]), precision), norms[1])
    rows = _matmul(rows, filters[2][0, 0], precision) + bias
    y = _add_rows(x, found.positions, rows)
    if sums is None:
        return y
    shape = tf.shape(x, tf.int64)
    images, _, _ = coordinates(found.positions, shape)
    return y, sums + tf.math.unsorted_segment_sum(rows, images, shape[0])


def projection_bottleneck(
    x: tf.Tensor,
    preactivation: Affine,
    filters: Sequence[tf.Tensor],
    norms: Sequence[Affine],
    bias: tf.Tensor,
    projection: tf.Tensor,
    projection_bias: tf.Tensor,
    stride: int = 1,
    implementation: str = "auto",
    precision: str = "float32",
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs a pre-activation bottleneck unit with a projection shortcut everywhere.

    The first unit of a block: as `perforated_bottleneck` at all positions, but the 3x3
    convolution has a stride (and one position of padding on each side), and the
    shortcut is a strided 1x1 convolution of the preactivation.

    Args:
        x: Float [batch, height, width, in].
        preactivation: Scale and shift before the first ReLU, [in].
        filters: Of the three convolutions, [1, 1, in, c], [3, 3, c, d] and
            [1, 1, d, channels].
        norms: Two scales and shifts, after the first (c) and second (d) convolution.
        bias: [channels], added to the residual.
        projection: [1, 1, in, channels].
        projection_bias: [channels].
        stride: In both directions.
        implementation: As in `perforated_conv2d`.
        precision: As in `perforated_conv2d`. x and what is returned stay float32.

    Returns:
        [batch, ceil(height / stride), ceil(width / stride), channels], and its sums
        over positions, [batch, channels].

    Raises:
        ValueError: If the precision does not fit.
        tf.errors.InvalidArgumentError: If a size does not fit; names the argument.
    """
    x = tf.convert_to_tensor(x)
    is_rounded = check_precision(precision, x.dtype)
    library = native_library(implementation, "ProjectionBottleneck", x.dtype)
    if library is not None:
        return tuple(
            library.projection_bottleneck(
                x,
                *preactivation,
                *filters,
                *(scale for scale, _ in norms),
                *(shift for _, shift in norms),
                bias,
                projection,
                projection_bias,
                stride=stride,
                bfloat16_factors=is_rounded,
            )
        )

    def convolve(x, filters, stride, padding):
        x, filters = (as_factor(factor, precision) for factor in (x, filters))
        return tf.nn.conv2d(x, filters, stride, padding)

    def compute():
        preactivated = _affine_relu(x, preactivation)
        y = convolve(preactivated, projection, stride, "SAME") + projection_bias
        rows = _affine_relu(convolve(preactivated, filters[0], 1, "SAME"), norms[0])
        side = filters[1].shape[0] // 2
        around = [[0, 0], [side, side], [side, side], [0, 0]]
        rows = _affine_relu(convolve(rows, filters[1], stride, around), norms[1])
        y += convolve(rows, filters[2], 1, "SAME") + bias
        return y, tf.reduce_sum(y, [1, 2])

    if x.shape[0] not in (None, 0):
        return compute()
    # TensorFlow's convolutions, where they are oneDNN's, give an empty batch the shape
    # of their input.
    batch, *sides = tf.unstack(tf.shape(x)[:3])
    sides = [-(-side // stride) for side in sides]
    channels = projection.shape[-1]
    return tf.cond(
        batch > 0,
        compute,
        lambda: (
            tf.zeros([batch, *sides, channels], x.dtype),
            tf.zeros([batch, channels], x.dtype),
        ),
    )


def perforated_basic_unit(
    x: tf.Tensor,
    mask: tf.Tensor | ActivePositions,
    preactivation: Affine,
    filters: Sequence[tf.Tensor],
    norm: Affine,
    bias: tf.Tensor,
    slopes: Sequence[float] = (0.0, 0.0),
    implementation: str = "auto",
    precision: str = "float32",
) -> tf.Tensor:
    """Adds the residual of a pre-activation unit of two 3x3 convolutions to x.

    The residual is conv2(f2(norm(conv1(f1(preactivation(x)))))) + bias. The second
    convolution runs at the mask, the first where the second reads.

    Args:
        x: Float [batch, height, width, channels].
        mask: [batch, height, width], bool or numbers (non-zero: compute), or what
            `find_positions` found in one.
        preactivation: Scale and shift before the first activation, [channels].
        filters: [3, 3, channels, c] and [3, 3, c, channels].
        norm: Scale and shift between the convolutions, [c].
        bias: [channels], added to the residual.
        slopes: Of the activations f1 and f2, max(v, slope * v), in [0, 1].
        implementation: As in `perforated_conv2d`.
        precision: As in `perforated_conv2d`. x and the result stay float32.

    Returns:
        Shaped like x.

    Raises:
        ValueError: If the mask's type or rank, or the precision, does not fit.
        tf.errors.InvalidArgumentError: If a size does not fit; names the argument.
    """
    x = tf.convert_to_tensor(x)
    bool_mask, found = split(mask, (3,))
    is_rounded = check_precision(precision, x.dtype)
    library = native_library(implementation, "PerforatedBasicUnitAt", x.dtype)
    if library is not None:
        return library.perforated_basic_unit_at(
            x,
            bool_mask,
            *preactivation,
            *filters,
            *norm,
            bias,
            found,
            slopes=list(slopes),
            bfloat16_factors=is_rounded,
        )
    found = find_positions(mask, "tensorflow")
    second = _Reads.at(found, filters[1])
    first = _Reads.of_mask(second.rows >= 0, filters[0])
    rows = tf.gather(_rows(x), first.positions) * preactivation[0] + preactivation[1]
    rows = first.patches(activate(rows, slopes[0]), second.positions, filters[0])
    rows = _matmul(rows, _matrix(filters[0]), precision) * norm[0] + norm[1]
    rows = second.patches(activate(rows, slopes[1]), found.positions, filters[1])
    rows = _matmul(rows, _matrix(filters[1]), precision) + bias
    return _add_rows(x, found.positions, rows)


def masked_accumulate(
    total: tf.Tensor,
    x: tf.Tensor,
    weight: tf.Tensor,
    implementation: str = "auto",
    positions: ActivePositions | DevicePositions | None = None,
) -> tf.Tensor:
    """Returns total + weight * x, computed where the weight is not zero.

    Args:
        total: Float [batch, height, width, channels].
        x: The same.
        weight: Float32 [batch, height, width].
        implementation: As in `perforated_conv2d`.
        positions: Where to compute instead, so that nobody looks for the weights that
            are not zero. Others must be zero: they are not read.

    Raises:
        tf.errors.InvalidArgumentError: If a size does not fit; names the argument.
    """
    total = tf.convert_to_tensor(total)
    library = native_library(implementation, "MaskedAccumulateAt", total.dtype)
    if library is not None:
        found = [] if positions is None else positions[1:]
        return library.masked_accumulate_at(total, x, weight, found)
    weight = tf.convert_to_tensor(weight)
    is_known = isinstance(positions, ActivePositions)
    active = positions.positions if is_known else where_flat(weight != 0.0)
    factors = tf.gather(tf.reshape(weight, [-1]), active)[:, tf.newaxis]
    rows = tf.cast(factors, total.dtype) * tf.gather(_rows(x), active)
    return _add_rows(total, active, rows)


class _Reads(NamedTuple):
    """What a SAME convolution reads at active positions, as compact rows.

    Attributes:
        positions: Int64 [n], flat.
        rows: Int64 [batch, height, width], the index of each in `positions`, or -1.
    """

    positions: tf.Tensor
    rows: tf.Tensor

    @classmethod
    def at(cls, found, filters):
        if filters.shape[:2] == [3, 3]:
            return cls(found.touched, found.touched_rows)
        return cls.of_mask(found.mask, filters)

    @classmethod
    def of_mask(cls, mask, filters):
        return cls(*touched_by(mask, *filters.shape[:2]))

    def patches(self, rows, positions, filters):
        """Patches [n, depth] of the convolution at n positions, zeros outside."""
        height, width, channels, _ = filters.shape
        around = [[0, 0], [height // 2] * 2, [width // 2] * 2]
        table = tf.pad(self.rows + 1, around)  # 0 is padding
        taps = tf.constant(
            [[0, y, x] for y in range(height) for x in range(width)], tf.int64
        )
        shape = tf.shape(self.rows, tf.int64)
        corner = tf.stack(coordinates(positions, shape), -1)[:, tf.newaxis]
        where = tf.gather_nd(table, corner + taps)
        rows = tf.concat([tf.zeros([1, channels], rows.dtype), rows], 0)
        return tf.reshape(tf.gather(rows, where), [-1, height * width * channels])


def _rows(x):
    """Every position's channels, [positions, channels]."""
    shape = tf.shape(x, tf.int64)
    return tf.reshape(x, [tf.reduce_prod(shape[:3]), shape[3]])


def _add_rows(x, positions, rows):
    """Adds rows [n, channels] to x at n flat positions."""
    y = tf.tensor_scatter_nd_add(_rows(x), positions[:, tf.newaxis], rows)
    return tf.ensure_shape(tf.reshape(y, tf.shape(x)), x.shape)


def _matrix(filters):
    return tf.reshape(filters, [-1, filters.shape[-1]])


def _matmul(rows, matrix, precision):
    return tf.matmul(as_factor(rows, precision), as_factor(matrix, precision))


def _affine_relu(rows, affine):
    return tf.nn.relu(rows * affine[0] + affine[1])
