"""Batch normalization and pooling."""

import numpy as np
import pytest
import tensorflow as tf

from sact_tf.layers import BatchNorm, global_average


@pytest.mark.parametrize(
    "dtype, shape",
    [("float32", [3, 4, 5, 2]), ("float64", [3, 4, 5, 2]), ("float32", [1, 1, 1, 2])],
)
def test_batch_statistics_are_biased(dtype, shape):
    layer = BatchNorm(decay=0.9, epsilon=1e-3, dtype=dtype)
    x = tf.random.stateless_normal(shape, [1, 2], dtype=dtype) * 3 + 1
    y = layer(x, training=True)
    mean, variance = x.numpy().mean((0, 1, 2)), x.numpy().var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-3), atol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, rtol=1e-4)


def test_frozen_layer_uses_moving_statistics():
    layer = BatchNorm(decay=0.9, epsilon=0.0)
    layer.build([None, None, None, 2])
    layer.moving_mean.assign([1.0, 2.0])
    layer.trainable = False
    x = tf.random.stateless_normal([3, 4, 5, 2], [1, 2])
    np.testing.assert_allclose(layer(x, training=True), x - [1.0, 2.0], atol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean, [1.0, 2.0])


def test_activation_follows():
    layer = BatchNorm(decay=0.9, epsilon=0.0, activation=tf.nn.relu)
    x = tf.constant([[[[-1.0, 2.0]]]])
    np.testing.assert_allclose(layer(x), [[[[0.0, 2.0]]]])


def test_global_average_of_half_precision_does_not_overflow():
    x = tf.fill([1, 100, 100, 1], tf.constant(100, tf.float16))
    assert float(global_average(x)[0, 0, 0, 0]) == 100.0
