"""Rules that stop for good: what they draw, and the gradients of it."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from sact_tf import latent_losses
from sact_tf.halting import BernoulliStop, ConfidenceThreshold


def test_gradient_of_the_stops_is_that_of_their_probability():
    rule, count = BernoulliStop(), 50
    logits = tf.Variable(tf.random.stateless_normal([3, count], [1, 1]))

    def run(logits):
        state = rule.initial([count])
        for n in range(4):
            score = logits[n] if n < 3 else None
            _, state = rule.step(
                state, score, n == 3, training=True, seed=tf.constant([7, n])
            )
        return state

    with tf.GradientTape() as tape:
        state = run(logits)
    units = state.num_units.numpy()
    assert set(units) == {1, 2, 3, 4}
    p = tf.sigmoid(logits).numpy()
    log_prob = np.zeros(count)
    for k, unit in enumerate(units):
        log_prob[k] = np.log1p(-p[: unit - 1, k]).sum()
        log_prob[k] += np.log(p[unit - 1, k]) if unit < 4 else 0
    np.testing.assert_allclose(rule.log_prob(state, True), log_prob, rtol=1e-4)
    # Via the sigmoid: what was drawn less its probability; nothing after the stop.
    drawn = np.arange(3)[:, np.newaxis] == units - 1
    decided = np.arange(3)[:, np.newaxis] <= units - 1
    gradient = tape.gradient(state.log_prob, logits)
    np.testing.assert_allclose(gradient, decided * (drawn - p), atol=1e-5)
    # And by differences of the log probability, where the same is drawn.
    for n in range(3):
        ends = []
        for step in (0.02, -0.02):
            moved = logits.numpy()
            moved[n] += step
            ends.append(run(tf.constant(moved)))
        same = np.all([end.num_units.numpy() == units for end in ends], 0)
        assert same.sum() > 40
        high, low = (rule.log_prob(end, True).numpy() for end in ends)
        slope = (high - low) / 0.04
        np.testing.assert_allclose(gradient.numpy()[n][same], slope[same], atol=1e-3)


@pytest.mark.parametrize(
    "gamma, best", [(0.99, 4), pytest.param(1.0, 7, marks=pytest.mark.long)]
)
def test_a_stop_that_sees_nothing_finds_the_best_step(gamma, best):
    """The errors of RAM in Li et al. (2017), of 3 and 6 steps in between."""
    errors = [10.0, 3.79, 2.7, 1.54, 1.34, 1.2, 1.07]
    rewards = (1 - np.array(errors) / 100) * gamma ** np.arange(1, 8)
    assert rewards.argmax() + 1 == best
    rewards = tf.constant(rewards, tf.float32)
    rule, logits = BernoulliStop(), tf.Variable(tf.zeros([6]))
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build([logits])

    def stop(seed, training):
        state = rule.initial([4096])
        for n in range(7):
            score = None if n == 6 else tf.fill([4096], logits[n])
            folded = tf.random.experimental.stateless_fold_in(seed, n)
            _, state = rule.step(state, score, n == 6, training=training, seed=folded)
        return state

    @tf.function
    def train(k):
        with tf.GradientTape() as tape:
            state = stop(tf.stack([1, k]), True)
            reward = tf.gather(rewards, state.num_units - 1)
            loss = latent_losses.score_function_term(
                state.log_prob, reward, tf.reduce_mean(reward)
            )
        optimizer.minimize(loss, [logits], tape)

    for k in tf.range(300):
        train(k)
    assert (stop(tf.constant([3, 5]), False).num_units.numpy() == best).all()


def test_a_confidence_stops_above_its_threshold():
    rule = ConfidenceThreshold(0.5)
    scores = tf.constant([0.4, 0.5, 0.6])
    weight, state = rule.step(rule.initial([3]), scores, False)
    assert weight.numpy().tolist() == [0, 0, 1]
    assert state.active.numpy().tolist() == [True, True, False]


@pytest.mark.parametrize(
    "rule, scores",
    [(BernoulliStop(0.5), [-1.0, 1.0]), (ConfidenceThreshold(0.5), [0.2, 0.9])],
    ids=["bernoulli", "confidence"],
)
def test_positions_stop_by_themselves_and_padding_never_runs(rule, scores):
    """They take any shape, as all rules do: of images, or of positions of images."""
    rng = np.random.default_rng(0)
    shape, valid = [2, 3, 4], rng.random([2, 3, 4]) < 0.7
    stops = rng.random([3, *shape]) < 0.4
    state, weights = rule.initial(shape, tf.constant(valid)), []
    for n in range(4):
        score = tf.constant(np.choose(stops[n], scores), tf.float32) if n < 3 else None
        weight, state = rule.step(state, score, n == 3)
        weights.append(weight.numpy())
    first = np.where(stops.any(0), stops.argmax(0), 3)  # the last takes what is left
    np.testing.assert_array_equal(state.num_units, valid * (first + 1))
    np.testing.assert_array_equal(
        weights, valid * (np.arange(4)[:, None, None, None] == first)
    )
    assert not state.active.numpy().any()
