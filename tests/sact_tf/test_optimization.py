"""The optimizer, the learning rates and the loss."""

import numpy as np
import pytest
import tensorflow as tf

from sact_tf import optimization


def test_momentum_is_tensorflow_1s():
    variable = tf.Variable([1.0])
    rate = tf.Variable(0.1)
    optimizer = optimization.Momentum(rate, 0.9)
    expected, accumulator = 1.0, 0.0
    for step, gradient in enumerate([0.5, -1.0, 2.0]):
        optimizer.learning_rate = 0.1 if step < 2 else 0.01
        optimizer.apply_gradients([(tf.constant([gradient]), variable)])
        accumulator = 0.9 * accumulator + gradient
        expected -= (0.1 if step < 2 else 0.01) * accumulator
    np.testing.assert_allclose(variable, [expected], rtol=1e-6)


def test_nesterov_looks_ahead():
    variable = tf.Variable([1.0])
    optimizer = optimization.Momentum(0.1, 0.9, nesterov=True)
    expected, accumulator = 1.0, 0.0
    for gradient in (0.5, -1.0, 2.0):
        optimizer.apply_gradients([(tf.constant([gradient]), variable)])
        accumulator = 0.9 * accumulator + gradient
        expected -= 0.1 * (gradient + 0.9 * accumulator)
    np.testing.assert_allclose(variable, [expected], rtol=1e-6)


def test_smooth_schedules():
    cosine = optimization.smooth_learning_rate(100, 0.4, warm_up=False)
    np.testing.assert_allclose(
        [cosine(step) for step in (0, 50, 100)], [0.4, 0.2, 0.0], atol=1e-7
    )
    cycle = optimization.smooth_learning_rate(100, 0.4, warm_up=True)
    rates = [float(cycle(step)) for step in range(101)]
    np.testing.assert_allclose(rates[:26], np.linspace(0, 0.4, 26), atol=1e-6)
    np.testing.assert_allclose(rates[100], 0.0, atol=1e-7)
    assert np.all(np.diff(rates[25:]) < 0)
    # A run of a single step has no time to rise.
    assert float(optimization.smooth_learning_rate(1, 0.4, warm_up=True)(0)) > 0


def test_cifar_schedule():
    schedule = optimization.cifar_learning_rate(100000)
    for step, rate in (
        (0, 0.1),
        (60000, 0.1),
        (60001, 0.01),
        (75001, 1e-3),
        (90001, 1e-4),
    ):
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-6)
    np.testing.assert_allclose(
        optimization.cifar_learning_rate(5000)(3001), 0.01, rtol=1e-6
    )
    np.testing.assert_allclose(
        optimization.cifar_learning_rate(100, [1, 2, 3])(3), 1e-3, rtol=1e-6
    )
    for boundaries in ([1, 2], [3, 2, 1]):
        with pytest.raises(ValueError, match="3 increasing steps"):
            optimization.cifar_learning_rate(100, boundaries)


def test_imagenet_schedule_is_a_staircase():
    schedule = optimization.imagenet_learning_rate(1000, 10, 0.4, 0.5, 2.0)
    rates = [float(schedule(step)) for step in (0, 199, 200, 399, 400)]
    np.testing.assert_allclose(rates, [0.4, 0.4, 0.2, 0.2, 0.1], rtol=1e-6)


def test_cross_entropy_by_hand():
    logits = np.log([[0.2, 0.3, 0.5]])
    np.testing.assert_allclose(
        optimization.CrossEntropy()([2], logits), -np.log(0.5), rtol=1e-6
    )
    # A third of 0.3 is added to every class, and 0.3 of the label's taken away.
    expected = -(0.1 * np.log([0.2, 0.3]).sum() + 0.8 * np.log(0.5))
    smoothed = optimization.CrossEntropy(0.3)
    np.testing.assert_allclose(smoothed([2], logits), expected, rtol=1e-6)
    copy = optimization.CrossEntropy.from_config(smoothed.get_config())
    assert copy.label_smoothing == 0.3
