"""The halting recurrence against the equations of SACT (section 2.2)."""

import doctest

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from sact_tf import halting

scores_strategy = st.lists(
    st.floats(0, 1, width=32), min_size=0, max_size=8
)  # of all units but the last


def run(scores, shape=(1,), epsilon=halting.EPSILON):
    """Runs the recurrence; returns the stacked weights and the final state."""
    state = halting.initial_halting_state(shape)
    weights = []
    for score in scores:
        weight, state = halting.halting_step(state, score, False, epsilon)
        weights.append(weight)
    weight, state = halting.halting_step(state, None, True, epsilon)
    return tf.stack([*weights, weight]), state


def reference(scores, epsilon=halting.EPSILON):
    """N, R and p of one position in float32 (SACT, eqs. 5 and 7 to 9)."""
    scores = [*map(np.float32, scores), np.float32(1)]
    cumulative, num_units = np.float32(0), 0
    while True:
        cumulative += scores[num_units]
        num_units += 1
        if cumulative >= np.float32(1 - epsilon) or num_units == len(scores):
            break
    remainder = 1 - np.sum(scores[: num_units - 1], dtype=np.float64)
    weights = np.zeros(len(scores))
    weights[: num_units - 1] = scores[: num_units - 1]
    weights[num_units - 1] = remainder
    return num_units, remainder, weights


def test_docstring_example():
    assert doctest.testmod(halting, extraglobs={"tf": tf}).failed == 0


@settings(deadline=None, max_examples=60)
@given(scores_strategy)
def test_equals_the_equations(scores):
    num_units, remainder, expected = reference(scores)
    weights, state = run([tf.constant([s]) for s in scores])
    assert int(state.num_units[0]) == num_units
    np.testing.assert_allclose(state.remainder[0], remainder, atol=1e-6)
    np.testing.assert_allclose(weights[:, 0], expected, atol=1e-6)
    # The ponder cost rho (SACT, eq. 11).
    np.testing.assert_allclose(state.ponder_cost[0], num_units + remainder, atol=1e-5)
    assert not bool(state.active[0])


@settings(deadline=None, max_examples=40)
@given(scores_strategy)
def test_weights_are_a_distribution(scores):
    weights, _ = run([tf.constant([s]) for s in scores])
    assert float(tf.reduce_min(weights)) >= 0
    np.testing.assert_allclose(tf.reduce_sum(weights), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    "scores, num_units, ponder_cost, expected, gradients",
    [
        ([0.999] * 4, 1, 2.0, [1, 0, 0, 0, 0], [0, 0, 0, 0]),
        ([0.01, 0.5, 0.6, 0.7], 3, 3.49, [0.01, 0.5, 0.49, 0, 0], [-1, -1, 0, 0]),
        ([0.01] * 4, 5, 5.96, [0.01] * 4 + [0.96], [-1, -1, -1, -1]),
    ],
)
def test_values_of_the_originals_tests(
    scores, num_units, ponder_cost, expected, gradients
):
    scores = [tf.constant([score]) for score in scores]
    with tf.GradientTape() as tape:
        tape.watch(scores)
        weights, state = run(scores)
        rho = state.ponder_cost
    assert int(state.num_units[0]) == num_units
    np.testing.assert_allclose(rho, [ponder_cost], rtol=1e-6)
    np.testing.assert_allclose(weights[:, 0], expected, atol=1e-6)
    actual = tape.gradient(
        rho, scores, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    assert [float(gradient[0]) for gradient in actual] == gradients


def test_positions_halt_independently():
    scores = np.random.default_rng(0).uniform(0, 0.6, [4, 2, 3, 5]).astype(np.float32)
    _, state = run([tf.constant(s) for s in scores], [2, 3, 5])
    for index in np.ndindex(2, 3, 5):
        num_units, remainder, _ = reference(scores[(slice(None), *index)])
        assert int(state.num_units[index]) == num_units
        np.testing.assert_allclose(state.remainder[index], remainder, atol=1e-6)


def test_ponder_cost_gradient_is_equation_12_of_sact():
    scores = [tf.Variable([s]) for s in (0.1, 0.3, 0.7, 0.2)]  # halts at the third
    with tf.GradientTape() as tape:
        ponder_cost = run(scores)[1].ponder_cost
    gradients = tape.gradient(
        ponder_cost, scores, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    assert [float(g[0]) for g in gradients] == [-1.0, -1.0, 0.0, 0.0]


def test_weighted_sum_gradient_matches_differences():
    values = tf.constant([0.3, -1.2, 2.0, 0.7])
    points = np.array(
        [0.1, 0.3, 0.7], np.float32
    )  # far from changes of the halting unit

    def loss(scores):
        weights, state = run([scores[k : k + 1] for k in range(3)])
        return tf.reduce_sum(weights[:, 0] * values) + state.ponder_cost[0]

    theoretical, numerical = tf.test.compute_gradient(loss, [points], delta=1e-3)
    np.testing.assert_allclose(theoretical[0], numerical[0], atol=2e-3)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_sums_are_float32_whatever_the_scores(dtype):
    state = halting.initial_halting_state([1])
    weight, state = halting.halting_step(state, tf.constant([0.1], dtype), False)
    assert weight.dtype == state.cumulative.dtype == state.remainder.dtype == tf.float32


def test_zero_epsilon_needs_the_full_sum():
    _, state = run([tf.constant([0.995])], epsilon=0.0)
    assert int(state.num_units[0]) == 2
    _, state = run([tf.constant([0.995])])
    assert int(state.num_units[0]) == 1
