"""Interpolation, convolution and pooling that read compact rows through index tables.

A perforated convolution with a static mask leaves the values of the kept positions, the
same in every image: `rows` [batch, kept, channels] (PerforatedCNNs, Figurnov et al.,
2016). `nearest_interpolate` makes the full tensor of them. The next convolution or
pooling needs none: it reads rows through a table that says for each of its outputs and
taps which row lies nearest to what the tap reads, or -1 in the padding.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from custom_ops.arguments import check_float, check_rank, check_size, convert, like
from custom_ops.convolution import activate, activation_gradient, check_slope
from custom_ops.implementation import load, native_library, runs_on_gpu

KINDS = ("max", "average")
"""Of pooling."""


def nearest_interpolate(
    rows: tf.Tensor, index: tf.Tensor, implementation: str = "auto"
) -> tf.Tensor:
    """Gives every position of an image the value of a kept one.

    Differentiable with respect to `rows`: the gradients of all positions that share a
    row are added up.

    Args:
        rows: Float [batch, kept, channels].
        index: Int32 [height, width], for each position its row, in [0, kept).
        implementation: As in `perforated_conv2d`.

    Returns:
        [batch, height, width, channels], of the type of `rows`.

    Raises:
        ValueError: If an argument's type or rank does not fit; names it.
        tf.errors.InvalidArgumentError: If an index lies outside.
        RuntimeError: If `implementation` is "native" and there is no kernel.

    >>> rows = [[[1.0], [2.0]]]
    >>> nearest_interpolate(rows, [[0, 0, 1], [1, 1, 0]])[0, ..., 0].numpy().tolist()
    [[1.0, 1.0, 2.0], [2.0, 2.0, 1.0]]
    """
    rows = _rows(rows)
    index = _table("index", index, "[height, width]")
    op = "NearestInterpolate"
    library = native_library(implementation, op, rows.dtype)
    if library is None or runs_on_gpu(implementation, op, rows.dtype):
        index = _in_range("index", index, 0, rows)
    if library is not None:
        return library.nearest_interpolate(rows, index)
    return _gather(rows, index)


def indexed_conv2d(
    rows: tf.Tensor,
    filters: tf.Tensor,
    taps: tf.Tensor,
    bias: tf.Tensor | None = None,
    implementation: str = "auto",
    *,
    scale: tf.Tensor | None = None,
    slope: float = 1.0,
) -> tf.Tensor:
    """Convolves rows that a table names.

    Differentiable with respect to all but the table and the slope.

    Args:
        rows: Float [batch, rows_in, in].
        filters: [kernel height, kernel width, in, out], of the type of `rows`.
        taps: Int32 [rows_out, kernel height * kernel width]: for each output what its
            taps read, in the order of the filters: rows, or -1 for zeros.
        bias: [out], added to the convolution, or None.
        implementation: As in `perforated_conv2d`.
        scale: [out], multiplies the convolution before the bias is added, as a
            normalization in inference does, or None.
        slope: Of the activation max(v, slope * v) that follows, in [0, 1]: the identity
            (1), leaky ReLU, or ReLU (0).

    Returns:
        [batch, rows_out, out].

    Raises:
        ValueError: If an argument's type, rank or known size does not fit; names it.
        tf.errors.InvalidArgumentError: The same of sizes known only at run time, or if
            a tap lies outside.
        RuntimeError: If `implementation` is "native" and there is no kernel.

    >>> rows, filters = [[[1.0], [10.0], [100.0]]], [[[[1.0]], [[2.0]]]]
    >>> indexed_conv2d(rows, filters, [[0, 1], [2, -1]]).numpy().tolist()
    [[[21.0], [100.0]]]
    """
    rows = _rows(rows)
    filters = like("filters", filters, rows.dtype, "the rows")
    check_rank("filters", filters, (4,), "[height, width, in channels, out channels]")
    check_size("filters", filters, 2, rows.shape[2], "the rows' channels")
    taps = _table("taps", taps, "[rows_out, kernel height * kernel width]")
    if None not in filters.shape[:2]:
        check_size("taps", taps, 1, filters.shape[0] * filters.shape[1], "the filters'")
    vectors = {"bias": bias, "scale": scale}
    for name, vector in vectors.items():
        if vector is not None:
            vectors[name] = vector = like(name, vector, rows.dtype, "the rows")
            check_rank(name, vector, (1,), "[channels]")
            check_size(name, vector, 0, filters.shape[3], "the channels")
    check_slope("slope", slope)
    op = "IndexedConv2D"
    library = native_library(implementation, op, rows.dtype)
    if library is None:
        return _tensorflow_conv2d(rows, filters, taps, **vectors, slope=slope)
    if runs_on_gpu(implementation, op, rows.dtype):
        taps = _in_range("taps", taps, -1, rows)
    return _native_conv2d(library, rows, filters, taps, **vectors, slope=slope)


def _native_conv2d(library, rows, filters, taps, bias=None, scale=None, slope=1.0):
    bias = tf.zeros([0], rows.dtype) if bias is None else bias
    scale = [] if scale is None else [scale]
    return library.indexed_conv2d(rows, filters, taps, bias, scale, slope=slope)


def indexed_pool(
    rows: tf.Tensor,
    taps: tf.Tensor,
    kind: str = "max",
    implementation: str = "auto",
) -> tf.Tensor:
    """Pools rows that a table names.

    Differentiable with respect to `rows`; the gradient of a maximum goes to the first
    tap that reads it.

    Args:
        rows: Float [batch, rows_in, channels].
        taps: Int32 [rows_out, taps]: for each output the rows of its window; -1 is not
            counted. An output without any is zero.
        kind: "max" or "average".
        implementation: As in `perforated_conv2d`.

    Returns:
        [batch, rows_out, channels].

    Raises:
        ValueError: If an argument's type or rank does not fit, or on another kind.
        tf.errors.InvalidArgumentError: If a tap lies outside.
        RuntimeError: If `implementation` is "native" and there is no kernel.

    >>> indexed_pool([[[1.0], [5.0]]], [[0, 0, 1], [0, -1, -1]]).numpy().tolist()
    [[[5.0], [1.0]]]
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    rows = _rows(rows)
    taps = _table("taps", taps, "[rows_out, taps]")
    op = "IndexedPool"
    library = native_library(implementation, op, rows.dtype)
    if library is None:
        return _tensorflow_pool(rows, taps, kind)
    if runs_on_gpu(implementation, op, rows.dtype):
        taps = _in_range("taps", taps, -1, rows)
    return library.indexed_pool(rows, taps, kind=kind)


def _rows(rows) -> tf.Tensor:
    rows = convert("rows", rows)
    check_float("rows", rows)
    check_rank("rows", rows, (3,), "[batch, rows, channels]")
    return rows


def _table(name: str, table, expected: str) -> tf.Tensor:
    table = convert(name, table)
    if table.dtype != tf.int32:
        raise ValueError(f"{name} must be int32; got {table.dtype.name}")
    check_rank(name, table, (2,), expected)
    return table


def _in_range(name: str, table: tf.Tensor, low: int, rows: tf.Tensor) -> tf.Tensor:
    """Returns a table once each element is known to be a row, or at least `low`."""
    message = f"{name} must lie in [{low}, number of rows)"
    known, num_rows = tf.get_static_value(table), rows.shape[1]
    if known is None or num_rows is None:
        count = tf.shape(rows)[1]
        is_right = tf.reduce_all((table >= low) & (table < count))
        least, most = tf.reduce_min(table), tf.reduce_max(table)
        values = [message, "rows:", count, "values from", least, "to", most]
        with tf.control_dependencies([tf.debugging.Assert(is_right, values)]):
            return tf.identity(table)
    if known.size and (known.min() < low or known.max() >= num_rows):
        raise tf.errors.InvalidArgumentError(
            None,
            None,
            f"{message}; there are {num_rows} rows, and values from {known.min()} to "
            f"{known.max()}",
        )
    return table  # Nothing is left to check whenever it runs.


def _gather(rows: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """`tf.gather` along axis 1, whose gradient fails where there are no images."""
    batch, num_rows, channels = tf.unstack(tf.shape(rows))
    first = tf.range(batch)[:, tf.newaxis, tf.newaxis] * num_rows
    flat = tf.reshape(rows, [batch * num_rows, channels])
    values = tf.gather(flat, first + index)
    return tf.ensure_shape(values, [rows.shape[0], *index.shape, rows.shape[2]])


def _gather_taps(rows: tf.Tensor, taps: tf.Tensor) -> tf.Tensor:
    """What the taps read, [batch, rows_out, taps, channels]; zeros where -1."""
    taps = _in_range("taps", taps, -1, rows)
    return _gather(tf.pad(rows, [[0, 0], [1, 0], [0, 0]]), taps + 1)


def _names_all_in_order(taps, rows) -> bool:
    """Whether a table is known to name each row once, in order."""
    known, num_rows = tf.get_static_value(taps), rows.shape[1]
    if known is None or num_rows is None:
        return False
    return np.array_equal(known, np.arange(num_rows)[:, np.newaxis])


def _tensorflow_conv2d(rows, filters, taps, bias, scale, slope):
    """The convolution in plain TensorFlow: gather, multiply."""
    batch, _, channels = tf.unstack(tf.shape(rows))
    height, width, inputs, outputs = tf.unstack(tf.shape(filters))
    num_rows, num_taps = tf.unstack(tf.shape(taps))
    equal = [
        (inputs, channels, "filters must have the rows' channels"),
        (num_taps, height * width, "taps must have as many columns as filters taps"),
    ]
    for name, vector in (("bias", bias), ("scale", scale)):
        if vector is not None:
            equal.append(
                (tf.size(vector), outputs, f"{name} must have as many channels")
            )
    with tf.control_dependencies(
        [tf.debugging.assert_equal(*sizes) for sizes in equal]
    ):
        rows, filters = tf.identity(rows), tf.identity(filters)
        bias, scale = (v if v is None else tf.identity(v) for v in (bias, scale))
    patches = rows if _names_all_in_order(taps, rows) else _gather_taps(rows, taps)
    depth = num_taps * channels
    output = tf.matmul(
        tf.reshape(patches, [batch * num_rows, depth]),
        tf.reshape(filters, [depth, outputs]),
    )
    if scale is not None:
        output *= scale
    if bias is not None:
        output += bias
    output = activate(output, slope)
    static = [rows.shape[0], taps.shape[0], filters.shape[3]]
    return tf.ensure_shape(tf.reshape(output, [batch, num_rows, outputs]), static)


def _tensorflow_pool(rows, taps, kind):
    """Pooling in plain TensorFlow: gather, reduce."""
    values = _gather_taps(rows, taps)
    if kind == "average":  # What is not counted is zero.
        return tf.reduce_sum(values, 2) / _count(taps, rows.dtype)
    chosen = _first_greatest(values, taps)
    return tf.reduce_sum(tf.where(chosen, values, tf.zeros([], rows.dtype)), 2)


def _count(taps, dtype):
    """How many taps an output counts, at least 1, [rows_out, 1]."""
    counted = tf.cast(taps >= 0, tf.int32)
    return tf.cast(tf.maximum(1, tf.reduce_sum(counted, 1, True)), dtype)


def _first_greatest(values, taps):
    """Which tap a maximum comes from: bool, shaped like the values of all taps."""
    counted = taps[..., tf.newaxis] >= 0
    infinity = tf.constant(float("inf"), values.dtype)
    keys = tf.where(tf.math.is_nan(values), infinity, values)  # NaN shall be seen.
    keys = tf.where(counted, keys, -infinity)
    is_greatest = tf.logical_and(keys == tf.reduce_max(keys, 2, True), counted)
    is_first = tf.cumsum(tf.cast(is_greatest, tf.int32), 2) == 1
    return tf.logical_and(is_greatest, is_first)


# Gradients of the native ops. All but a maximum is linear in what it takes, so that the
# gradients of gradients are the ops again.


def _num_rows(rows):
    return tf.shape(rows)[1]


@tf.RegisterGradient("NearestInterpolate")
def _interpolate_gradient(op, gradient):
    rows, index = op.inputs
    batch, height, width, channels = tf.unstack(tf.shape(gradient))
    return load().add_to_rows(
        _num_rows(rows),
        tf.reshape(index, [height * width, 1]),
        tf.reshape(gradient, [batch, height * width, channels]),
    ), None


@tf.RegisterGradient("IndexedConv2D")
def _conv2d_gradient(op, gradient):
    library = load()
    rows, filters, taps, bias, *scales = op.inputs
    gradient = activation_gradient(op.outputs[0], gradient, op.get_attr("slope"))
    to_bias = tf.reduce_sum(gradient, [0, 1]) if bias.shape[0] != 0 else None
    to_scales = []
    if scales:
        unscaled = _native_conv2d(library, rows, filters, taps)
        to_scales = [tf.reduce_sum(gradient * unscaled, [0, 1])]
        gradient *= scales[0]
    return (
        library.indexed_conv2d_input_gradient(_num_rows(rows), filters, taps, gradient),
        library.indexed_conv2d_filter_gradient(tf.shape(filters), rows, taps, gradient),
        None,
        to_bias,
        *to_scales,
    )


@tf.RegisterGradient("IndexedConv2DInputGradient")
def _second_input_gradient(op, gradient):
    library = load()
    _, filters, taps, inner = op.inputs
    return (
        None,
        library.indexed_conv2d_filter_gradient(
            tf.shape(filters), gradient, taps, inner
        ),
        None,
        _native_conv2d(library, gradient, filters, taps),
    )


@tf.RegisterGradient("IndexedConv2DFilterGradient")
def _second_filter_gradient(op, gradient):
    library = load()
    _, rows, taps, inner = op.inputs
    return (
        None,
        library.indexed_conv2d_input_gradient(_num_rows(rows), gradient, taps, inner),
        None,
        _native_conv2d(library, rows, gradient, taps),
    )


@tf.RegisterGradient("IndexedPool")
def _pool_gradient(op, gradient):
    rows, taps = op.inputs
    if op.get_attr("kind") == b"max":
        return load().indexed_max_pool_gradient(rows, taps, gradient), None
    gradient /= _count(taps, gradient.dtype)
    return load().add_to_rows(_num_rows(rows), taps, gradient), None


@tf.RegisterGradient("AddToRows")
def _add_to_rows_gradient(op, gradient):
    taps = op.inputs[1]
    mean = load().indexed_pool(gradient, taps, kind="average")
    return None, None, mean * _count(taps, gradient.dtype)


@tf.RegisterGradient("IndexedMaxPoolGradient")
def _second_max_gradient(op, gradient):
    rows, taps, _ = op.inputs
    chosen = _first_greatest(_gather_taps(rows, taps), taps)
    zero = tf.zeros([], rows.dtype)
    chosen_gradients = tf.where(chosen, _gather_taps(gradient, taps), zero)
    return None, None, tf.reduce_sum(chosen_gradients, 2)
