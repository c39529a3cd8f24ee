"""Residual units at a mask, against the same made of dense operations."""

import threading

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


def affine(channels, seed):
    return normal(channels, seed=seed), normal(channels, seed=seed + 1)


def apply(x, scale_shift, slope=0.0):
    return tf.nn.leaky_relu(x * scale_shift[0] + scale_shift[1], slope)


def mask_of(*shape, share):
    return tf.constant(np.random.default_rng(7).random(shape) < share)


def bottleneck(channels=20, inner=6, outer=5, x_channels=None):
    x_channels = x_channels or channels
    return dict(
        preactivation=affine(x_channels, 1),
        filters=[
            normal(1, 1, x_channels, inner),
            normal(3, 3, inner, outer),
            normal(1, 1, outer, channels),
        ],
        norms=[affine(inner, 3), affine(outer, 5)],
        bias=normal(channels, seed=9),
    )


def dense_residual(x, stride, preactivation, filters, norms, bias):
    x = apply(x, preactivation)
    x = apply(tf.nn.conv2d(x, filters[0], 1, "SAME"), norms[0])
    around = [[0, 0], [1, 1], [1, 1], [0, 0]]
    x = apply(tf.nn.conv2d(x, filters[1], stride, around), norms[1])
    return tf.nn.conv2d(x, filters[2], 1, "SAME") + bias


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_bottleneck(implementation, share):
    x, unit = normal(2, 9, 7, 20), bottleneck()
    mask = mask_of(2, 9, 7, share=share)
    y, sums = custom_ops.perforated_bottleneck(
        x,
        mask,
        **unit,
        sums=tf.reduce_sum(x, [1, 2]),
        implementation=implementation,
    )
    expected = x + dense_residual(x, 1, **unit) * tf.cast(mask, x.dtype)[..., None]
    np.testing.assert_allclose(y, expected, atol=1e-10)
    np.testing.assert_allclose(sums, tf.reduce_sum(expected, [1, 2]), atol=1e-9)
    alone = custom_ops.perforated_bottleneck(
        x, mask, **unit, implementation=implementation
    )
    np.testing.assert_allclose(alone, y, atol=1e-12)
    frozen = ~mask.numpy()
    np.testing.assert_array_equal(y.numpy()[frozen], x.numpy()[frozen])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_projection_bottleneck(implementation, stride, size):
    x, unit = normal(2, *size, 7), bottleneck(x_channels=7)
    projection, bias = normal(1, 1, 7, 20, seed=11), normal(20, seed=12)
    y, sums = custom_ops.projection_bottleneck(
        x,
        **unit,
        projection=projection,
        projection_bias=bias,
        stride=stride,
        implementation=implementation,
    )
    shortcut = tf.nn.conv2d(
        apply(x, unit["preactivation"]),
        projection,
        stride,
        "SAME" if stride == 1 else "VALID",
    )
    expected = shortcut + bias + dense_residual(x, stride, **unit)
    np.testing.assert_allclose(y, expected, atol=1e-10)
    np.testing.assert_allclose(sums, tf.reduce_sum(expected, [1, 2]), atol=1e-9)


@pytest.mark.parametrize("channels, inner", [(6, 5), (3, 2), (40, 40)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_basic_unit(implementation, channels, inner, share):
    x, mask = normal(2, 6, 7, channels), mask_of(2, 6, 7, share=share)
    preactivation, norm = affine(channels, 1), affine(inner, 3)
    filters = [normal(3, 3, channels, inner), normal(3, 3, inner, channels)]
    bias = normal(channels, seed=5)
    y = custom_ops.perforated_basic_unit(
        x,
        mask,
        preactivation,
        filters,
        norm,
        bias,
        slopes=(0.1, 0.01),
        implementation=implementation,
    )
    inside = tf.nn.conv2d(apply(x, preactivation, 0.1), filters[0], 1, "SAME")
    residual = tf.nn.conv2d(apply(inside, norm, 0.01), filters[1], 1, "SAME") + bias
    expected = x + residual * tf.cast(mask, x.dtype)[..., None]
    np.testing.assert_allclose(y, expected, atol=1e-10)


def test_what_a_unit_does_not_read_has_no_effect(implementation):
    mask = np.zeros([1, 8, 8], bool)
    mask[0, 4, 4] = True
    read = np.zeros([1, 8, 8], bool)
    read[0, 3:6, 3:6] = True
    x, unit = normal(1, 8, 8, 20), bottleneck()
    poisoned = tf.where(read[..., None], x, np.nan)
    clean, other = (
        custom_ops.perforated_bottleneck(v, mask, **unit, implementation=implementation)
        for v in (x, poisoned)
    )
    np.testing.assert_array_equal(clean[0, 3:6, 3:6], other[0, 3:6, 3:6])


def test_accumulate_and_fold(implementation):
    total, x = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    weight = tf.cast(mask_of(2, 3, 4, share=0.5), tf.float32) * 0.25
    y = custom_ops.masked_accumulate(total, x, weight, implementation=implementation)
    expected = total + tf.cast(weight, tf.float64)[..., None] * x
    np.testing.assert_allclose(y, expected, atol=1e-12)
    parameters = [normal(6, seed=k) for k in range(3)] + [normal(6, seed=3) ** 2]
    scale, shift = custom_ops.fold_batch_norm(
        *parameters, epsilon=1e-3, implementation=implementation
    )
    gamma, beta, mean, variance = parameters
    v = normal(4, 6)
    np.testing.assert_allclose(
        v * scale + shift,
        tf.nn.batch_normalization(v, mean, variance, beta, gamma, 1e-3),
        atol=1e-9,
    )


def test_does_not_change_what_others_hold(implementation):
    """The result may take over the input's memory only where nobody else needs it."""
    x, unit = normal(1, 6, 6, 20), bottleneck()
    before = x.numpy().copy()
    custom_ops.perforated_bottleneck(
        x, np.ones([1, 6, 6], bool), **unit, implementation=implementation
    )
    np.testing.assert_array_equal(x, before)

    @tf.function
    def both(x):
        x = x + 1.0
        y = custom_ops.perforated_bottleneck(
            x, tf.ones([1, 6, 6], tf.bool), **unit, implementation=implementation
        )
        return x, y

    np.testing.assert_allclose(both(x)[0], before + 1.0)


def test_two_threads(implementation):
    x, mask = normal(1, 20, 20, 20), mask_of(1, 20, 20, share=0.5)
    units = [bottleneck(inner=inner) for inner in (6, 33)]

    def run(unit):
        return custom_ops.perforated_bottleneck(
            x, mask, **unit, implementation=implementation
        ).numpy()

    expected = [run(unit) for unit in units]
    failures = []

    def repeat(unit, result):
        for _ in range(30):
            if not np.array_equal(run(unit), result):
                failures.append(unit)

    threads = [
        threading.Thread(target=repeat, args=pair) for pair in zip(units, expected)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_errors_name_the_argument():
    if custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    x, unit = normal(1, 6, 6, 20), bottleneck()
    ones = np.ones([1, 6, 6], bool)
    bad = dict(unit, bias=normal(3))
    for arguments, message in (
        (dict(mask=ones[:, :5], **unit), "mask must be"),
        (dict(mask=ones, **bad), "bias must be"),
        (dict(mask=ones, **unit, sums=normal(1, 3)), "sums must be"),
        (dict(mask=ones, **dict(unit, filters=unit["filters"][::-1])), "filters_0"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            custom_ops.perforated_bottleneck(x, **arguments)
