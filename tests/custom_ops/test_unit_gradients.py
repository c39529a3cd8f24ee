"""Gradients of residual units at a mask, against those of dense operations."""

import numpy as np
import pytest
import tensorflow as tf

import custom_ops


@pytest.fixture(params=("native", "tensorflow"))
def implementation(request):
    if request.param == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    return request.param


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape))


def mask_of(*shape, share):
    return tf.constant(np.random.default_rng(7).random(shape) < share)


def masked(mask, x):
    return tf.cast(mask, x.dtype)[..., tf.newaxis] * x


def apply(x, scale, shift, slope=0.0):
    return tf.nn.leaky_relu(x * scale + shift, slope)


def same(x, filters):
    return tf.nn.conv2d(x, filters, 1, "SAME")


def bottleneck_inputs(channels=9, inner=6, outer=5, x_channels=None):
    x_channels = x_channels or channels
    shapes = [
        *([x_channels], [x_channels]),
        *([1, 1, x_channels, inner], [3, 3, inner, outer], [1, 1, outer, channels]),
        *([inner], [outer], [inner], [outer], [channels]),
    ]
    return [normal(*shape, seed=k) for k, shape in enumerate(shapes, 1)]


def split_bottleneck(values):
    scale, shift, *others = values
    norms = list(zip(others[3:5], others[5:7]))
    return (scale, shift), others[:3], norms, others[7]


def dense_bottleneck(x, values, stride=1):
    preactivation, filters, norms, bias = split_bottleneck(values)
    x = apply(same(apply(x, *preactivation), filters[0]), *norms[0])
    around = [[0, 0], [1, 1], [1, 1], [0, 0]]
    x = apply(tf.nn.conv2d(x, filters[1], stride, around), *norms[1])
    return same(x, filters[2]) + bias


def gradients_of(function, inputs):
    """Differentiates a weighted sum of all outputs, the weights being random."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = tf.nest.flatten(function(*inputs))
        loss = tf.add_n(
            [
                tf.reduce_sum(normal(*y.shape, seed=50 + k) * tf.sin(y))
                for k, y in enumerate(outputs)
            ]
        )
    return tape.gradient(loss, inputs, unconnected_gradients="zero")


def check(function, dense, inputs):
    expected = gradients_of(dense, inputs)
    for run in (function, tf.function(function)):
        for got, wanted in zip(gradients_of(run, inputs), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("has_sums", [False, True])
def test_bottleneck(implementation, share, has_sums):
    mask = mask_of(2, 6, 7, share=share)
    found = custom_ops.find_positions(mask, implementation)

    def unit(x, *values, where=found):
        sums = tf.reduce_sum(x, [1, 2]) if has_sums else None
        return custom_ops.perforated_bottleneck(
            x, where, *split_bottleneck(values), sums, implementation
        )

    def dense(x, *values):
        y = x + masked(mask, dense_bottleneck(x, values))
        return (y, tf.reduce_sum(y, [1, 2])) if has_sums else y

    inputs = [normal(2, 6, 7, 9), *bottleneck_inputs()]
    check(unit, dense, inputs)
    check(lambda *values: unit(*values, where=mask), dense, inputs)


@pytest.mark.parametrize("stride", [1, 2])
def test_projection(implementation, stride):
    def unit(x, projection, projection_bias, *values):
        return custom_ops.projection_bottleneck(
            *(x, *split_bottleneck(values), projection, projection_bias, stride),
            implementation,
        )

    def dense(x, projection, projection_bias, *values):
        shortcut = apply(x, *values[:2])[:, ::stride, ::stride]
        y = same(shortcut, projection) + projection_bias
        y += dense_bottleneck(x, values, stride)
        return y, tf.reduce_sum(y, [1, 2])

    inputs = [normal(2, 5, 6, 4), normal(1, 1, 4, 9, seed=30), normal(9, seed=31)]
    check(unit, dense, [*inputs, *bottleneck_inputs(x_channels=4)])


@pytest.mark.parametrize("channels, inner", [(6, 5), (3, 2), (34, 36)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_basic_unit(implementation, channels, inner, share):
    mask, slopes = mask_of(2, 5, 6, share=share), (0.25, 0.5)

    def unit(x, scale, shift, first, second, norm_scale, norm_shift, bias):
        return custom_ops.perforated_basic_unit(
            *(x, mask, (scale, shift), [first, second], (norm_scale, norm_shift)),
            bias,
            slopes,
            implementation,
        )

    def dense(x, scale, shift, first, second, norm_scale, norm_shift, bias):
        inside = same(apply(x, scale, shift, slopes[0]), first)
        inside = apply(inside, norm_scale, norm_shift, slopes[1])
        return x + masked(mask, same(inside, second) + bias)

    shapes = [[2, 5, 6, channels], [channels], [channels], [3, 3, channels, inner]]
    shapes += [[3, 3, inner, channels], [inner], [inner], [channels]]
    check(unit, dense, [normal(*shape, seed=k) for k, shape in enumerate(shapes)])


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("filters", [1, 4, 40])
def test_convolution(implementation, size, filters):
    """Where it keeps size, its gradients are by one operation too."""
    mask = mask_of(2, 6, 5, share=0.4)

    def layer(x, kernel, scale, shift, bias, where=mask):
        return custom_ops.perforated_conv2d(
            *(x, kernel, where),
            bias=bias,
            input_scale=scale,
            input_shift=shift,
            input_slope=0.5,
            activation="relu",
            implementation=implementation,
        )

    def dense(x, kernel, scale, shift, bias):
        y = same(apply(x, scale, shift, 0.5), kernel) + bias
        return masked(mask, tf.nn.relu(y))

    shapes = [[2, 6, 5, 35], [size, size, 35, filters], [35], [35], [filters]]
    inputs = [normal(*shape, seed=k) for k, shape in enumerate(shapes)]
    check(layer, dense, inputs)
    found = custom_ops.find_positions(mask, implementation)
    check(lambda *values: layer(*values, where=found), dense, inputs)


def test_numerically():
    if custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    mask = mask_of(1, 3, 3, share=0.5)

    @tf.function
    def unit(x, sums, *values):
        y, new_sums = custom_ops.perforated_bottleneck(
            x, mask, *split_bottleneck(values), sums, "native"
        )
        return tf.concat([tf.reshape(y, [-1]), tf.reshape(new_sums, [-1])], 0)

    values = bottleneck_inputs(channels=3, inner=2, outer=2)
    inputs = [normal(1, 3, 3, 3), normal(1, 3, seed=40), *values]
    theoretical, numerical = tf.test.compute_gradient(unit, inputs, delta=1e-6)
    for a, b in zip(theoretical, numerical):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3)


def test_second_gradients():
    if custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    mask = mask_of(1, 4, 5, share=0.5)
    inputs = [normal(1, 4, 5, 4), *bottleneck_inputs(channels=4, inner=3, outer=2)]

    def penalties(implementation):
        def first(*inputs):
            return gradients_of(
                lambda x, *values: custom_ops.perforated_bottleneck(
                    *(x, mask, *split_bottleneck(values), tf.reduce_sum(x, [1, 2])),
                    implementation,
                ),
                list(inputs),
            )

        return gradients_of(first, inputs)

    for got, wanted in zip(penalties("native"), penalties("tensorflow"), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-8)


@pytest.mark.parametrize("is_found", [False, True])
def test_accumulate(implementation, is_found):
    mask = mask_of(2, 3, 4, share=0.5)
    positions = custom_ops.find_positions(mask, implementation) if is_found else None

    def accumulate(total, x, weight):
        weight = tf.where(mask, tf.cast(weight, tf.float32), 0.0)
        return custom_ops.masked_accumulate(total, x, weight, implementation, positions)

    def dense(total, x, weight):
        weight = tf.cast(tf.cast(weight, tf.float32), tf.float64)
        return total + masked(mask, weight[..., tf.newaxis] * x)

    inputs = [normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1), normal(2, 3, 4, seed=2)]
    expected = gradients_of(dense, inputs)
    for got, wanted in zip(gradients_of(accumulate, inputs), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_fold_batch_norm(implementation):
    def folded(*values):
        *others, variance = values
        return custom_ops.fold_batch_norm(
            *others, variance**2, 1e-3, implementation=implementation
        )

    def dense(gamma, beta, mean, variance):
        scale = gamma / tf.sqrt(variance**2 + 1e-3)
        return scale, beta - mean * scale

    inputs = [normal(5, seed=k) for k in range(4)]
    expected = gradients_of(dense, inputs)
    for got, wanted in zip(gradients_of(folded, inputs), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
