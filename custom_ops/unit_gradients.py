"""Gradients of the native units, computed where the units compute.

Inner features of units are computed again. Where the compiled kernel is not, such as on
a GPU, the unit's plain TensorFlow twin is differentiated. Second gradients are those of
plain TensorFlow too.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from custom_ops import units
from custom_ops.chains import chain_gradient
from custom_ops.convolution import perforated_conv2d
from custom_ops.implementation import native_library
from custom_ops.positions import touched_by


def _of_twin(twin: Callable[..., object], inputs, gradients):
    """Differentiates a unit's TensorFlow twin by its float inputs."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = twin(*inputs)
    return tape.gradient(
        outputs, inputs, gradients, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )


@tf.RegisterGradient("PerforatedBottleneck")
@tf.RegisterGradient("PerforatedBottleneckAt")
def _bottleneck(op, gradient, new_sums_gradient):
    # x, mask, sums, preactivation (2), filters (3), scales (2), shifts (2), bias.
    x, mask, sums, *parameters = op.inputs[:13]
    found = op.inputs[13:]
    has_sums = sums.shape[0] != 0
    sums_gradient = new_sums_gradient if has_sums else None
    scale, shift, *filters = parameters[:5]
    scales, shifts = [scale, *parameters[5:7]], [shift, *parameters[7:9]]
    results = chain_gradient(
        *(x, mask, found, gradient, filters, scales, shifts, [0.0] * 3, True),
        sums_gradient,
    )
    if results is not None:
        to_x, of_filters, of_scales, of_shifts, of_bias = results
        of_parameters = [of_scales[0], of_shifts[0], *of_filters]
        of_parameters += [*of_scales[1:], *of_shifts[1:], of_bias]
    else:

        def twin(x, *parameters):
            scale, shift, *others = parameters
            y, new_sums = units.perforated_bottleneck(
                x,
                mask,
                (scale, shift),
                others[:3],
                list(zip(others[3:5], others[5:7])),
                others[7],
                tf.zeros([tf.shape(x)[0], tf.shape(x)[3]], x.dtype),
                "tensorflow",
            )
            return [y, new_sums] if has_sums else [y]

        gradients = [gradient, new_sums_gradient] if has_sums else [gradient]
        to_x, *of_parameters = _of_twin(twin, [x, *parameters], gradients)
    return to_x, None, sums_gradient, *of_parameters, *[None] * len(found)


@tf.RegisterGradient("PerforatedBasicUnit")
@tf.RegisterGradient("PerforatedBasicUnitAt")
def _basic_unit(op, gradient):
    # x, mask, preactivation (2), filters (2), scale, shift, bias.
    x, mask, *parameters = op.inputs[:9]
    found = op.inputs[9:]
    slopes = list(op.get_attr("slopes"))
    scale, shift, *filters = parameters[:4]
    scales, shifts = [scale, parameters[4]], [shift, parameters[5]]
    results = chain_gradient(
        x, mask, found, gradient, filters, scales, shifts, slopes, True
    )
    if results is not None:
        to_x, of_filters, of_scales, of_shifts, of_bias = results
        of_parameters = [of_scales[0], of_shifts[0], *of_filters]
        of_parameters += [of_scales[1], of_shifts[1], of_bias]
    else:

        def twin(x, *parameters):
            scale, shift, first, second, *norm, bias = parameters
            return units.perforated_basic_unit(
                *(x, mask, (scale, shift), [first, second], norm, bias, slopes),
                "tensorflow",
            )

        to_x, *of_parameters = _of_twin(twin, [x, *parameters], gradient)
    return to_x, None, *of_parameters, *[None] * len(found)


@tf.RegisterGradient("ProjectionBottleneck")
def _projection(op, gradient, sums_gradient):
    # Runs everywhere, so that TensorFlow's dense convolutions do well.
    def twin(x, *parameters):
        scale, shift, *others = parameters
        return list(
            units.projection_bottleneck(
                x,
                (scale, shift),
                others[:3],
                list(zip(others[3:5], others[5:7])),
                *others[7:10],
                op.get_attr("stride"),
                "tensorflow",
            )
        )

    return _of_twin(twin, list(op.inputs), [gradient, sums_gradient])


@tf.RegisterGradient("MaskedAccumulate")
@tf.RegisterGradient("MaskedAccumulateAt")
def _accumulate(op, gradient):
    _, x, weight, *found = op.inputs
    library = native_library("auto", "MaskedAccumulateGradient", x.dtype)
    if library is not None:
        to_x, to_weight = library.masked_accumulate_gradient(gradient, x, weight)
    else:
        to_x, to_weight = _accumulate_gradient(gradient, x, weight)
    return gradient, to_x, to_weight, *[None] * len(found)


def _accumulate_gradient(gradient, x, weight):
    """What the kernel computes, in plain TensorFlow: zero where the weight is."""
    to_x = gradient * tf.cast(weight, x.dtype)[..., tf.newaxis]
    to_weight = tf.cast(tf.einsum("bhwc,bhwc->bhw", gradient, x), weight.dtype)
    return to_x, tf.where(weight != 0.0, to_weight, tf.zeros_like(to_weight))


@tf.RegisterGradient("MaskedAccumulateGradient")
def _second_accumulate(op, to_x_gradient, to_weight_gradient):
    return _of_twin(
        lambda *inputs: list(_accumulate_gradient(*inputs)),
        list(op.inputs),
        [to_x_gradient, to_weight_gradient],
    )


@tf.RegisterGradient("FoldBatchNorm")
def _folded(op, scale_gradient, shift_gradient):
    gamma, _, mean, variance = op.inputs
    scale = op.outputs[0]
    factor = tf.math.rsqrt(variance + tf.cast(op.get_attr("epsilon"), variance.dtype))
    to_scale = scale_gradient - shift_gradient * mean
    to_factor = to_scale * gamma
    return (
        to_scale * factor,
        shift_gradient,
        -shift_gradient * scale,
        -0.5 * to_factor * factor**3,
    )


@tf.RegisterGradient("PerforatedChainGradient")
def _second(op, *gradients):
    count = op.get_attr("K")
    x, mask, gradient, sums_gradient, *parameters = op.inputs[: 4 + 3 * count]
    slopes, has_shortcut = op.get_attr("slopes"), op.get_attr("shortcut")
    has_sums = sums_gradient.shape[0] != 0
    masks = [mask]
    for filters in reversed(parameters[1:count]):
        reads = touched_by(masks[0], *filters.shape[:2])[1]
        masks.insert(0, reads >= 0)

    def first(x, gradient, sums_gradient, *parameters):
        """Returns what the op does."""
        inner = [x, *parameters]
        bias = tf.zeros([gradient.shape[-1]], x.dtype)
        with tf.GradientTape() as tape:
            tape.watch([*inner, bias])
            y = x
            for i, (read, slope) in enumerate(zip(masks, slopes)):
                filters, scale, shift = parameters[i::count]
                y = perforated_conv2d(
                    y,
                    filters,
                    read,
                    bias=bias if i + 1 == count else None,
                    input_scale=scale if scale.shape[0] else None,
                    input_shift=shift if shift.shape[0] else None,
                    input_slope=slope,
                    implementation="tensorflow",
                )
            residual_sums = tf.reduce_sum(y, [1, 2])
            y = y + x if has_shortcut else y
            outputs = [y, residual_sums] if has_sums else [y]
        passed = [gradient, sums_gradient] if has_sums else [gradient]
        zero = tf.UnconnectedGradients.ZERO
        return tape.gradient(outputs, [*inner, bias], passed, zero)

    inputs = [x, gradient, sums_gradient, *parameters]
    to_x, to_gradient, to_sums, *to_parameters = _of_twin(first, inputs, gradients)
    to_found = [None] * op.get_attr("N")
    return to_x, None, to_gradient, to_sums, *to_parameters, *to_found
