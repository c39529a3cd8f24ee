"""Residual units and what surrounds them at active positions only, for inference.

Each is one native operation, because launching ten of them for a tenth of the
positions costs more than it saves; the plain TensorFlow twin beside it says what it
computes. Batch normalizations come folded to scale and shift (`fold_batch_norm`). None
of them has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from custom_ops.convolution import activate, as_mask
from custom_ops.implementation import native_library

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
    mask: tf.Tensor,
    preactivation: Affine,
    filters: Sequence[tf.Tensor],
    norms: Sequence[Affine],
    bias: tf.Tensor,
    sums: tf.Tensor | None = None,
    implementation: str = "auto",
) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
    """Adds the residual of a pre-activation bottleneck unit to x where a mask is set.

    The residual is conv3(f(norm1(conv2(f(norm0(conv1(f(preactivation(x))))))) + bias,
    where f is ReLU. The 3x3 and the last 1x1 convolution run at the mask, the first 1x1
    where the 3x3 reads: at the mask dilated by 3x3 (SACT, section 2.3).

    Args:
        x: Float32 or float64 [batch, height, width, channels].
        mask: [batch, height, width], bool or numbers (non-zero: compute).
        preactivation: Scale and shift before the first ReLU, [channels].
        filters: Of the three convolutions, [1, 1, channels, c], [3, 3, c, d] and
            [1, 1, d, channels].
        norms: Two scales and shifts, after the first (c) and second (d) convolution.
        bias: [channels], added to the residual.
        sums: The sums of x over its positions, [batch, channels], or None.
        implementation: As in `perforated_conv2d`.

    Returns:
        Shaped like x. Given `sums`, also the sums of the result over its positions,
        which costs next to nothing here and a pass over the result elsewhere.

    Raises:
        ValueError: If the mask's type or rank does not fit.
        tf.errors.InvalidArgumentError: If a size does not fit; names the argument.
    """
    x = tf.convert_to_tensor(x)
    mask = as_mask(mask, (3,))
    library = native_library(implementation, "PerforatedBottleneck", x.dtype)
    if library is not None:
        y, new_sums = library.perforated_bottleneck(
            x,
            mask,
            tf.zeros([0], x.dtype) if sums is None else sums,
            *preactivation,
            *filters,
            *(scale for scale, _ in norms),
            *(shift for _, shift in norms),
            bias,
        )
        return y if sums is None else (y, new_sums)

    first = _Rows.touched(mask, filters[1])
    rows = _affine_relu(tf.gather_nd(x, first.positions), preactivation)
    rows = _affine_relu(tf.matmul(rows, filters[0][0, 0]), norms[0])
    active = tf.where(mask)
    rows = tf.matmul(first.patches(rows, active, filters[1]), _matrix(filters[1]))
    rows = tf.matmul(_affine_relu(rows, norms[1]), filters[2][0, 0]) + bias
    y = tf.tensor_scatter_nd_add(x, active, rows)
    if sums is None:
        return y
    batch = tf.shape(x)[0]
    return y, sums + tf.math.unsorted_segment_sum(rows, active[:, 0], batch)


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
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs a pre-activation bottleneck unit with a projection shortcut everywhere.

    The first unit of a block: as `perforated_bottleneck` at all positions, but the 3x3
    convolution has a stride (and one position of padding on each side), and the
    shortcut is a strided 1x1 convolution of the preactivation.

    Args:
        x: Float32 or float64 [batch, height, width, in].
        preactivation: Scale and shift before the first ReLU, [in].
        filters: Of the three convolutions, [1, 1, in, c], [3, 3, c, d] and
            [1, 1, d, channels].
        norms: Two scales and shifts, after the first (c) and second (d) convolution.
        bias: [channels], added to the residual.
        projection: [1, 1, in, channels].
        projection_bias: [channels].
        stride: In both directions.
        implementation: As in `perforated_conv2d`.

    Returns:
        [batch, ceil(height / stride), ceil(width / stride), channels], and its sums
        over positions, [batch, channels].

    Raises:
        tf.errors.InvalidArgumentError: If a size does not fit; names the argument.
    """
    x = tf.convert_to_tensor(x)
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
            )
        )
    preactivated = _affine_relu(x, preactivation)
    y = tf.nn.conv2d(preactivated, projection, stride, "SAME") + projection_bias
    rows = _affine_relu(tf.nn.conv2d(preactivated, filters[0], 1, "SAME"), norms[0])
    side = filters[1].shape[0] // 2
    around = [[0, 0], [side, side], [side, side], [0, 0]]
    rows = _affine_relu(tf.nn.conv2d(rows, filters[1], stride, around), norms[1])
    y += tf.nn.conv2d(rows, filters[2], 1, "SAME") + bias
    return y, tf.reduce_sum(y, [1, 2])


def perforated_basic_unit(
    x: tf.Tensor,
    mask: tf.Tensor,
    preactivation: Affine,
    filters: Sequence[tf.Tensor],
    norm: Affine,
    bias: tf.Tensor,
    slopes: Sequence[float] = (0.0, 0.0),
    implementation: str = "auto",
) -> tf.Tensor:
    """Adds the residual of a pre-activation unit of two 3x3 convolutions to x.

    The residual is conv2(f2(norm(conv1(f1(preactivation(x)))))) + bias. The second
    convolution runs at the mask, the first where the second reads.

    Args:
        x: Float32 or float64 [batch, height, width, channels].
        mask: [batch, height, width], bool or numbers (non-zero: compute).
        preactivation: Scale and shift before the first activation, [channels].
        filters: [3, 3, channels, c] and [3, 3, c, channels].
        norm: Scale and shift between the convolutions, [c].
        bias: [channels], added to the residual.
        slopes: Of the activations f1 and f2, max(v, slope * v), in [0, 1].
        implementation: As in `perforated_conv2d`.

    Returns:
        Shaped like x.

    Raises:
        ValueError: If the mask's type or rank does not fit.
        tf.errors.InvalidArgumentError: If a size does not fit; names the argument.
    """
    x = tf.convert_to_tensor(x)
    mask = as_mask(mask, (3,))
    library = native_library(implementation, "PerforatedBasicUnit", x.dtype)
    if library is not None:
        return library.perforated_basic_unit(
            x,
            mask,
            *preactivation,
            *filters,
            *norm,
            bias,
            slopes=list(slopes),
        )
    reads = _Rows.touched(mask, filters[1])
    inner = _Rows.touched(reads.mask, filters[0])
    rows = tf.gather_nd(x, inner.positions) * preactivation[0] + preactivation[1]
    rows = inner.patches(activate(rows, slopes[0]), reads.positions, filters[0])
    rows = tf.matmul(rows, _matrix(filters[0])) * norm[0] + norm[1]
    active = tf.where(mask)
    rows = reads.patches(activate(rows, slopes[1]), active, filters[1])
    rows = tf.matmul(rows, _matrix(filters[1])) + bias
    return tf.tensor_scatter_nd_add(x, active, rows)


def masked_accumulate(
    total: tf.Tensor, x: tf.Tensor, weight: tf.Tensor, implementation: str = "auto"
) -> tf.Tensor:
    """Returns total + weight * x, computed where the weight is not zero.

    Args:
        total: Float32 or float64 [batch, height, width, channels].
        x: The same.
        weight: Float32 [batch, height, width].
        implementation: As in `perforated_conv2d`.

    Raises:
        tf.errors.InvalidArgumentError: If a size does not fit; names the argument.
    """
    total = tf.convert_to_tensor(total)
    library = native_library(implementation, "MaskedAccumulate", total.dtype)
    if library is not None:
        return library.masked_accumulate(total, x, weight)
    active = tf.where(tf.not_equal(weight, 0.0))
    factors = tf.cast(tf.gather_nd(weight, active), total.dtype)[:, tf.newaxis]
    return tf.tensor_scatter_nd_add(total, active, factors * tf.gather_nd(x, active))


class _Rows:
    """The positions of a mask as compact rows, and patches of such rows."""

    def __init__(self, mask):
        self.mask = mask
        self.positions = tf.where(mask)

    @classmethod
    def touched(cls, mask, filters):
        """Positions that a SAME convolution reads at a mask: the mask dilated."""
        sizes = [1, filters.shape[0], filters.shape[1], 1]
        dilated = tf.nn.max_pool2d(
            tf.cast(mask, tf.float32)[..., tf.newaxis], sizes, 1, "SAME"
        )
        return cls(dilated[..., 0] > 0)

    def patches(self, rows, positions, filters):
        """Patches [n, depth] of a SAME convolution at n positions, zeros outside."""
        height, width, channels, _ = filters.shape
        numbers = tf.range(1, tf.shape(rows)[0] + 1)
        around = [[0, 0], [height // 2] * 2, [width // 2] * 2]
        table = tf.pad(
            tf.scatter_nd(
                self.positions, numbers, tf.shape(self.mask, out_type=tf.int64)
            ),
            around,
        )
        taps = tf.constant(
            [[0, y, x] for y in range(height) for x in range(width)], tf.int64
        )
        where = tf.gather_nd(table, positions[:, tf.newaxis] + taps)  # 0 is padding
        rows = tf.concat([tf.zeros([1, channels], rows.dtype), rows], 0)
        return tf.reshape(tf.gather(rows, where), [-1, height * width * channels])


def _matrix(filters):
    return tf.reshape(filters, [-1, filters.shape[-1]])


def _affine_relu(rows, affine):
    return tf.nn.relu(rows * affine[0] + affine[1])


def _no_gradient(op, *gradients):
    raise LookupError(
        f"{op.type} is for inference and has no gradient; train with "
        "execution='masked', or with perforated_conv2d, which has one"
    )


for _op in (
    "PerforatedBottleneck",
    "ProjectionBottleneck",
    "PerforatedBasicUnit",
    "MaskedAccumulate",
):
    tf.RegisterGradient(_op)(_no_gradient)
