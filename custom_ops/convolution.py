"""Perforated convolution: computed where a mask is set, zero elsewhere."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from custom_ops.arguments import check_float, check_rank, check_size, convert, like
from custom_ops.chains import chain_gradient
from custom_ops.implementation import load, native_library
from custom_ops.positions import ActivePositions, coordinates, split, where_flat
from custom_ops.precision import as_factor, check_precision

_MAX_INT = 2**31 - 1


def perforated_conv2d(
    input: tf.Tensor,
    filters: tf.Tensor,
    mask: tf.Tensor | ActivePositions,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
    bias: tf.Tensor | None = None,
    activation: str | Callable[[tf.Tensor], tf.Tensor] | None = None,
    *,
    dilations: int | Sequence[int] = 1,
    input_scale: tf.Tensor | None = None,
    input_shift: tf.Tensor | None = None,
    input_slope: float = 1.0,
    implementation: str = "auto",
    precision: str = "float32",
) -> tf.Tensor:
    """Convolves at the active positions only (SACT, section 2.3).

    Differentiable with respect to everything but the mask, any number of times and in
    forward mode; gradients too are computed at active positions only. Inputs that no
    active position reads are not touched: whatever they hold, NaN included, has no
    effect.

    Args:
        input: Float [batch, height, width, in].
        filters: [kernel height, kernel width, in, out], of the input's type.
        mask: [batch, out_height, out_width], or [out_height, out_width] for every image
            of the batch; bool, or numbers of which non-zero ones mean "compute". Or
            what `find_positions` found in one.
        strides: One number, or two for height and width.
        padding: "SAME", "VALID", or [[top, bottom], [left, right]].
        bias: [out], or None.
        activation: "relu", a function of tensors, or None.
        dilations: One number, or two for height and width.
        input_scale: [in], multiplies the input first, or None.
        input_shift: [in], then added to it, or None; padding stays zero.
        input_slope: Of the activation max(v, slope * v) that follows, in [0, 1]: the
            identity (1), leaky ReLU, or ReLU (0).
        implementation: "native" (compiled kernels; on a CPU float32 and float64, on a
            GPU float32, float16 and bfloat16), "tensorflow" (plain operations, any
            device and float type), or "auto": native on a CPU, and on GPUs that were
            measured to be faster so (`custom_ops.gpu_report`).
        precision: "float32": factors are multiplied as they are. "bfloat16": of a
            float32 input, filters and what they meet (after scale, shift and slope) are
            rounded to bfloat16, and products summed in float32. By native kernels that
            takes less time on CPUs that multiply bfloat16, and gives the same
            elsewhere; on a GPU they multiply as without it. For inference: gradients
            are close to those of "float32", and no more.

    Returns:
        [batch, out_height, out_width, out]: the convolution where the mask is set, zero
        elsewhere.

    Raises:
        ValueError: If an argument's type, rank or known size does not fit; names it.
        tf.errors.InvalidArgumentError: The same of sizes known only at run time, or if
            a mask of numbers holds NaN or infinity.
        RuntimeError: If `implementation` is "native" and there is no kernel.
    """
    input = convert("input", input)
    check_float("input", input)
    check_rank("input", input, (4,), "[batch, height, width, channels]")
    filters = like("filters", filters, input.dtype, "the input")
    check_rank("filters", filters, (4,), "[height, width, in channels, out channels]")
    check_size("filters", filters, 2, input.shape[3], "the input's channels")
    strides = _pair("strides", strides)
    dilations = _pair("dilations", dilations)
    padding, explicit_paddings = _parse_padding(padding)
    mask, found = split(mask, (2, 3))
    if mask.shape.rank == 3:
        check_size("mask", mask, 0, input.shape[0], "the input's batch")
    for axis in range(2):
        expected = _static_output_size(
            input.shape[1 + axis],
            filters.shape[axis],
            strides[axis],
            dilations[axis],
            padding,
            explicit_paddings[2 * axis : 2 * axis + 2],
        )
        check_size("mask", mask, axis - 2, expected, "the output's size")
    vectors = {}
    for name, vector, size in (
        ("bias", bias, filters.shape[3]),
        ("input_scale", input_scale, input.shape[3]),
        ("input_shift", input_shift, input.shape[3]),
    ):
        if vector is not None:
            vector = like(name, vector, input.dtype, "the input")
            check_rank(name, vector, (1,), "[channels]")
            check_size(name, vector, 0, size, "the channels")
        vectors[name] = vector
    slope, activation = _parse_activation(activation)
    check_slope("input_slope", input_slope)
    is_rounded = check_precision(precision, input.dtype)

    library = native_library(implementation, "PerforatedConv2DAt", input.dtype)
    run = _tensorflow_conv2d if library is None else _native_conv2d(library)
    output = run(
        input,
        filters,
        mask,
        **vectors,
        found=found,
        strides=strides,
        dilations=dilations,
        padding=padding,
        explicit_paddings=explicit_paddings,
        input_slope=input_slope,
        slope=slope,
        bfloat16_factors=is_rounded,
    )
    if activation is None:
        return output
    # An activation may map zero to something else.
    mask = tf.broadcast_to(mask, tf.shape(output)[:3])[..., tf.newaxis]
    return tf.where(mask, activation(output), tf.zeros([], output.dtype))


def _native_conv2d(library):
    def run(input, filters, mask, bias, input_scale, input_shift, found, **attributes):
        none = tf.zeros([0], input.dtype)
        bias, input_scale, input_shift = (
            none if vector is None else vector
            for vector in (bias, input_scale, input_shift)
        )
        return library.perforated_conv2d_at(
            input, filters, mask, bias, input_scale, input_shift, found, **attributes
        )

    return run


@tf.RegisterGradient("PerforatedConv2D")
@tf.RegisterGradient("PerforatedConv2DAt")
def _native_gradient(op, gradient):
    input, filters, mask, bias, scale, shift, *found = op.inputs
    gradient = activation_gradient(op.outputs[0], gradient, op.get_attr("slope"))
    results = _fused_gradient(op, gradient)
    if results is not None:
        to_input, (to_filters,), (to_scale,), (to_shift,), to_bias = results
        has_bias = bias.shape[0] != 0
        return (
            *(to_input, to_filters, None, to_bias if has_bias else None),
            *(to_scale, to_shift, *[None] * len(found)),
        )
    library = load()
    has_scale, has_shift = (vector.shape[0] != 0 for vector in (scale, shift))
    transformed = input
    if has_scale:
        transformed *= scale
    if has_shift:
        transformed += shift
    transformed = activate(transformed, op.get_attr("input_slope"))
    window = {
        name: op.get_attr(name)
        for name in ("strides", "dilations", "explicit_paddings")
    }
    window["padding"] = op.get_attr("padding").decode()
    input_gradient = library.perforated_conv2d_input_gradient(
        tf.shape(input), filters, mask, gradient, **window
    )
    filter_gradient = library.perforated_conv2d_filter_gradient(
        tf.shape(filters), transformed, mask, gradient, **window
    )
    input_gradient = activation_gradient(
        transformed, input_gradient, op.get_attr("input_slope")
    )
    bias_gradient = shift_gradient = scale_gradient = None
    if bias.shape[0] != 0:
        active = tf.boolean_mask(
            gradient, tf.broadcast_to(mask, tf.shape(gradient)[:3])
        )
        bias_gradient = tf.reduce_sum(active, 0)
    if has_shift:
        shift_gradient = tf.reduce_sum(input_gradient, [0, 1, 2])
    if has_scale:
        scale_gradient = tf.reduce_sum(input_gradient * input, [0, 1, 2])
        input_gradient *= scale
    return (
        input_gradient,
        filter_gradient,
        None,
        bias_gradient,
        scale_gradient,
        shift_gradient,
        *[None] * len(found),
    )


def _fused_gradient(op, gradient):
    """Returns the gradients by one operation, where the convolution keeps size."""
    input, filters, mask, _, scale, shift, *found = op.inputs
    height, width = filters.shape[:2]
    keeps_size = (
        mask.shape.rank == 3
        and height is not None
        and height == width
        and height % 2 == 1
        and op.get_attr("padding") == b"SAME"
        and list(op.get_attr("strides")) == [1, 1]
        and list(op.get_attr("dilations")) == [1, 1]
    )
    if not keeps_size:
        return None
    slopes = [op.get_attr("input_slope")]
    vectors = [scale], [shift]
    return chain_gradient(
        *(input, mask, found, gradient, [filters], *vectors, slopes), shortcut=False
    )


_WINDOW = ("strides", "dilations", "padding", "explicit_paddings")


def _window(op):
    values = {name: op.get_attr(name) for name in _WINDOW}
    return {**values, "padding": values["padding"].decode()}


def _plain_conv2d(library, input, filters, mask, window):
    """The kernel's convolution and nothing else."""
    none = tf.zeros([0], input.dtype)
    return library.perforated_conv2d(
        input, filters, mask, none, none, none, input_slope=1.0, slope=1.0, **window
    )


# Both gradients of a convolution are linear in what they take, and so are convolutions
# or gradients of such again.


@tf.RegisterGradient("PerforatedConv2DInputGradient")
def _second_input_gradient(op, gradient):
    library, window = load(), _window(op)
    _, filters, mask, inner = op.inputs
    return (
        None,
        library.perforated_conv2d_filter_gradient(
            tf.shape(filters), gradient, mask, inner, **window
        ),
        None,
        _plain_conv2d(library, gradient, filters, mask, window),
    )


@tf.RegisterGradient("PerforatedConv2DFilterGradient")
def _second_filter_gradient(op, gradient):
    library, window = load(), _window(op)
    _, input, mask, inner = op.inputs
    return (
        None,
        library.perforated_conv2d_input_gradient(
            tf.shape(input), gradient, mask, inner, **window
        ),
        None,
        _plain_conv2d(library, input, gradient, mask, window),
    )


def activation_gradient(
    output: tf.Tensor, gradient: tf.Tensor, slope: float
) -> tf.Tensor:
    """Gradient of max(x, slope * x), whose output has the sign of its input."""
    if slope == 1.0:
        return gradient
    return tf.where(output > 0, gradient, tf.cast(slope, gradient.dtype) * gradient)


def _checked_sizes(run):
    """Has the twin refuse what the kernels do, of sizes known only at run time."""

    @functools.wraps(run)
    def checked(input, filters, mask, **options):
        channels = tf.shape(input)[3]
        expected = {
            "bias": tf.shape(filters)[3],
            "input_scale": channels,
            "input_shift": channels,
        }
        checks = [
            tf.debugging.assert_equal(
                tf.shape(filters)[2], channels, "filters must have the input's channels"
            )
        ]
        checks += [
            tf.debugging.assert_equal(
                tf.size(options[name]), size, f"{name} must have as many channels"
            )
            for name, size in expected.items()
            if options[name] is not None
        ]
        with tf.control_dependencies(checks):
            input = tf.identity(input)

        def empty():
            height, width = tf.unstack(tf.shape(mask)[-2:])
            return tf.zeros([tf.shape(input)[0], height, width, 0], input.dtype)

        # TensorFlow refuses to scatter vectors of no elements.
        if filters.shape[3] is None:
            return tf.cond(
                tf.shape(filters)[3] > 0,
                lambda: run(input, filters, mask, **options),
                empty,
            )
        return run(input, filters, mask, **options) if filters.shape[3] else empty()

    return checked


@_checked_sizes
def _tensorflow_conv2d(
    input,
    filters,
    mask,
    bias,
    input_scale,
    input_shift,
    found,
    strides,
    dilations,
    padding,
    explicit_paddings,
    input_slope,
    slope,
    bfloat16_factors,
):
    """The same in plain TensorFlow: gather, multiply, scatter."""
    filters_shape = tf.shape(filters, tf.int64)
    shape = tf.shape(input, tf.int64)
    sizes, corner = [], []
    for axis in range(2):
        extent = (filters_shape[axis] - 1) * dilations[axis] + 1
        size, stride = shape[1 + axis], strides[axis]
        if padding == "SAME":
            output_size = (size + stride - 1) // stride
            total = tf.maximum((output_size - 1) * stride + extent - size, 0)
            before = total // 2
        else:
            before, after = explicit_paddings[2 * axis : 2 * axis + 2]
            output_size = (size + before + after - extent) // stride + 1
        sizes.append(output_size)
        corner.append(-before)
    output_shape = tf.stack([shape[0], *sizes, filters_shape[3]])
    with tf.control_dependencies(
        [
            tf.debugging.assert_equal(
                tf.shape(mask, tf.int64),
                output_shape[3 - mask.shape.rank : 3],
                "mask must have the size of the output",
            )
        ]
    ):
        everywhere = tf.broadcast_to(mask, output_shape[:3])
    positions = found[0] if len(found) == 3 else where_flat(everywhere)

    patches, inside = _patches(
        input, positions, output_shape, filters_shape, strides, dilations, corner
    )
    if input_scale is not None:
        patches *= input_scale
    if input_shift is not None:
        patches += input_shift
    patches = activate(patches, input_slope)
    patches = tf.where(inside[..., tf.newaxis], patches, tf.zeros([], input.dtype))
    depth = tf.reduce_prod(filters_shape[:3])
    rows = tf.reshape(patches, [tf.shape(positions, tf.int64)[0], depth])
    matrix = tf.reshape(filters, [depth, filters_shape[3]])
    if bfloat16_factors:
        rows, matrix = as_factor(rows, "bfloat16"), as_factor(matrix, "bfloat16")
    outputs = tf.matmul(rows, matrix)
    if bias is not None:
        outputs += bias
    outputs = activate(outputs, slope)
    num_outputs = tf.reduce_prod(output_shape[:3])
    output = tf.scatter_nd(
        positions[:, tf.newaxis], outputs, [num_outputs, filters_shape[3]]
    )
    static = [input.shape[0], *mask.shape[-2:], filters.shape[3]]
    return tf.ensure_shape(tf.reshape(output, output_shape), static)


def _patches(input, positions, output_shape, filters_shape, strides, dilations, corner):
    """What the taps read, and which lie in the image.

    Args:
        input: [batch, height, width, channels].
        positions: Int64 [active], flat, of the output.
        output_shape: Int64 [4].
        filters_shape: Int64 [4].
        strides: Of height and width.
        dilations: The same.
        corner: Where the first window begins, y and x.

    Returns:
        [active, taps, channels], anything outside of the image; bool [active, taps].
    """
    batch, height, width, channels = tf.unstack(tf.shape(input, tf.int64))
    image, *origin = coordinates(positions, output_shape)
    y, x = (
        origin[axis][:, tf.newaxis] * strides[axis]
        + corner[axis]
        + tf.range(filters_shape[axis]) * dilations[axis]
        for axis in range(2)
    )  # [active, kernel height], [active, kernel width]
    y_inside, x_inside = (y >= 0) & (y < height), (x >= 0) & (x < width)
    row = image[:, tf.newaxis] * height + y
    flat = row[:, :, tf.newaxis] * width + x[:, tf.newaxis]
    inside = y_inside[:, :, tf.newaxis] & x_inside[:, tf.newaxis]
    taps = [tf.size(positions, tf.int64), filters_shape[0] * filters_shape[1]]
    flat, inside = tf.reshape(flat, taps), tf.reshape(inside, taps)
    rows = tf.reshape(input, [batch * height * width, channels])
    return tf.gather(rows, tf.where(inside, flat, 0)), inside


def activate(x: tf.Tensor, slope: float) -> tf.Tensor:
    """Returns max(x, slope * x): the identity (1), leaky ReLU, or ReLU (0)."""
    if slope == 1.0:
        return x
    return tf.nn.relu(x) if slope == 0.0 else tf.nn.leaky_relu(x, slope)


def _pair(name: str, value: int | Sequence[int]) -> list[int]:
    values = [value, value]
    if isinstance(value, (list, tuple)) or (
        isinstance(value, np.ndarray) and value.ndim == 1
    ):
        values = list(value)
    integers = [_whole(v) for v in values]
    if len(integers) != 2 or None in integers or min(integers) < 1:
        raise ValueError(
            f"{name} must be one or two integers from 1 to {_MAX_INT}; got {value!r}"
        )
    return integers


def check_slope(name: str, value: float) -> None:
    """Raises ValueError unless a slope lies in [0, 1]."""
    try:
        is_fraction = bool(0 <= value <= 1)
    except (TypeError, ValueError):
        is_fraction = False
    if not is_fraction:
        raise ValueError(f"{name} must lie in [0, 1]; got {value}")


def _whole(value) -> int | None:
    """Returns a whole number of at most 31 bits as int, None for anything else."""
    try:
        integer = None if isinstance(value, (str, bytes)) else int(value)
        is_same = integer is not None and bool(value == integer)
    except (TypeError, ValueError, OverflowError):
        return None
    return integer if is_same and abs(integer) <= _MAX_INT else None


def _parse_padding(padding) -> tuple[str, list[int]]:
    """Returns "SAME", "VALID" or "EXPLICIT", and top, bottom, left, right."""
    if isinstance(padding, str):
        if padding.upper() in ("SAME", "VALID"):
            return padding.upper(), [0, 0, 0, 0]
    else:
        with contextlib.suppress(TypeError):
            pairs = [list(pair) for pair in padding]
            sides = [_whole(side) for pair in pairs for side in pair]
            is_pairs = [len(pair) for pair in pairs] == [2, 2]
            if is_pairs and None not in sides and min(sides) >= 0:
                return "EXPLICIT", sides
    raise ValueError(
        "padding must be 'SAME', 'VALID' or [[top, bottom], [left, right]] >= 0; got "
        f"{padding!r}"
    )


def _parse_activation(activation):
    """Returns the slope of a (leaky) ReLU, and a function for anything else."""
    if activation is None:
        return 1.0, None
    if activation == "relu" or activation is tf.nn.relu:
        return 0.0, None
    if callable(activation):
        return 1.0, activation
    raise ValueError(
        f"activation must be 'relu', a function or None; got {activation!r}"
    )


def _static_output_size(size, kernel, stride, dilation, padding, around) -> int | None:
    if size is None or kernel is None:
        return None
    if padding == "SAME":
        return -(-size // stride)
    extent = (kernel - 1) * dilation + 1
    output = (size + sum(around) - extent) // stride + 1
    if output < 0 or (output == 0 and size + sum(around) < extent - stride):
        raise ValueError(
            f"filters reach over {extent} positions, more than input and padding have: "
            f"{size + sum(around)}"
        )
    return output
