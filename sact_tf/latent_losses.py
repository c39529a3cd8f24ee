"""What training adds for halting rules that sample: REINFORCE, and averages of losses.

Both need the loss of the whole network beside the log probabilities that blocks tell:

* REINFORCE (PACT, discrete): the gradient of E_q[R] is E_q[(R - b) grad log q], with
  the reward R = log p(y | x, z) - tau z and any baseline b that does not depend on z.
* PonderNet averages the losses of all units' outputs, sum_n q(n) CE(y_n).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf.halting import HaltingRule

_DECAY = 0.99
_SIDE = 4  # of the images that the linear baseline reads
_RATE = 0.5


def score_function_term(
    log_prob: tf.Tensor, reward: tf.Tensor, baseline: tf.Tensor | float = 0.0
) -> tf.Tensor:
    """Returns what has the value 0, and REINFORCE's gradient of the mean loss -R.

    Args:
        log_prob: log q(z) of what was sampled, float32 [batch].
        reward: R, float32 [batch].
        baseline: b, float32 of the same shape or a scalar.

    >>> logits = tf.Variable([0.0])
    >>> with tf.GradientTape() as tape:  # it stopped, which was good
    ...     log_prob = tf.math.log_sigmoid(logits)
    ...     term = score_function_term(log_prob, tf.constant([2.0]))
    >>> float(term), tape.gradient(term, logits).numpy().tolist()
    (0.0, [-1.0])
    """
    term = -tf.stop_gradient(reward - baseline) * log_prob
    return tf.reduce_mean(term - tf.stop_gradient(term))


class RewardBaseline:
    """The baseline of REINFORCE: what reward to expect, whatever is sampled.

    An exponential average of past rewards, decay 0.99; optionally with a linear
    function of the image at 4 x 4 pixels, that follows the gradient of the squared
    error. It is training state: not among the weights of a network, and in checkpoints
    where an optimizer's slots are.

    Args:
        is_linear: Whether it reads the image.
    """

    def __init__(self, is_linear: bool = False):
        def variable(shape):
            return tf.Variable(
                tf.zeros(shape),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.MEAN,
            )

        self._sum = variable([])  # of rewards, by weights that fall off
        self._weight = variable([])  # sum of these weights
        self._slope = variable([3 * _SIDE**2]) if is_linear else None

    def variables(self) -> dict[str, tf.Variable]:
        """Returns its variables by their names in checkpoints."""
        named = {"sum": self._sum, "weight": self._weight, "slope": self._slope}
        return {
            f"optimizer/baseline/{name}": variable
            for name, variable in named.items()
            if variable is not None
        }

    def __call__(self, images: tf.Tensor, reward: tf.Tensor) -> tf.Tensor:
        """Returns the baseline of every image, and learns from their rewards.

        Before anything is known, it is the mean of the rewards given.

        Args:
            images: [batch, height, width, 3].
            reward: float32 [batch].
        """
        reward = tf.stop_gradient(reward)
        weight = self._weight.read_value()
        average = tf.where(
            weight > 0,
            tf.math.divide_no_nan(self._sum.read_value(), weight),
            tf.reduce_mean(reward),
        )
        baseline = tf.fill(tf.shape(reward), average)
        if self._slope is not None:
            small = tf.image.resize(tf.cast(images, tf.float32), [_SIDE] * 2)
            features = tf.reshape(small, [-1, 3 * _SIDE**2])
            baseline += tf.linalg.matvec(features, self._slope.read_value())
            error = (reward - baseline)[:, tf.newaxis]
            # By the features' square (normalized least mean squares), which is stable
            # whatever their size.
            size = tf.reduce_mean(tf.reduce_sum(tf.square(features), 1))
            step = _RATE * tf.reduce_mean(error * features, 0)
            step = tf.math.divide_no_nan(step, size)
            self._slope.assign_add(tf.where(weight > 0, step, tf.zeros_like(step)))
        self._sum.assign(_DECAY * self._sum + (1 - _DECAY) * tf.reduce_mean(reward))
        self._weight.assign(_DECAY * self._weight + (1 - _DECAY))
        return tf.stop_gradient(baseline)


def make_baseline(rule: HaltingRule | None) -> RewardBaseline | None:
    """Returns the baseline that a rule's training takes, if any."""
    if rule is None or not rule.scores_samples:
        return None
    return RewardBaseline(rule.baseline == "linear")


def per_example_losses(
    loss: keras.losses.Loss | Callable | str, labels: tf.Tensor, logits: tf.Tensor
) -> tf.Tensor:
    """Returns the loss of every image, float32 [batch], before any reduction.

    Args:
        loss: What a model was compiled with.
        labels: As that takes them.
        logits: [batch, classes].
    """
    loss = keras.losses.get(loss)
    call = loss.call if isinstance(loss, keras.losses.Loss) else loss
    return tf.cast(call(labels, logits), tf.float32)


def reinforce_term(
    inputs: tf.Tensor,
    losses: tf.Tensor,
    costs: Sequence[tuple[float, tf.Tensor]],
    log_probs: Sequence[tf.Tensor],
    baseline: RewardBaseline,
) -> tf.Tensor:
    """Returns REINFORCE's term of the loss, whose value is 0.

    Args:
        inputs: Images that a linear baseline reads, [batch, height, width, 3].
        losses: What every example costs beside its ponder cost, [batch].
        costs: tau, and the ponder cost [batch, ...], of all blocks.
        log_probs: Of the same, [batch].
        baseline: Learns from these rewards.
    """
    reward = -losses
    for tau, cost in costs:
        reward -= tau * tf.reduce_mean(tf.reshape(cost, [tf.shape(losses)[0], -1]), 1)
    reward = tf.stop_gradient(reward)
    return score_function_term(tf.add_n(log_probs), reward, baseline(inputs, reward))


def averaged_over_units(
    states: tf.Tensor,
    log_prob: tf.Tensor,
    classify: Callable[[tf.Tensor], tf.Tensor],
    labels: tf.Tensor,
    sample_weight: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns labels, logits and weights of all units' outputs, as of one batch.

    Their weighted mean loss is the mean over examples of sum_n q(n) CE(y_n). All units'
    outputs go through one call of the classifier, for its batch normalization to see
    the same moments.

    Args:
        states: Outputs of all units, [n, batch, ...].
        log_prob: log q(n), [batch, n] or [batch, time, n].
        classify: Maps [n * batch, ...] to logits.
        labels: [batch, ...].
        sample_weight: [batch], or None.

    Returns:
        Each with n times as many rows, those of the first unit first.
    """
    count = log_prob.shape[-1]
    logits = classify(_joined(states))
    weights = count * tf.exp(log_prob)  # n, for the mean over n times as many
    if sample_weight is not None:
        ones = [1] * (weights.shape.rank - 1)
        weights *= tf.reshape(tf.cast(sample_weight, weights.dtype), [-1, *ones])
    axes = range(weights.shape.rank)
    weights = _joined(tf.transpose(weights, [axes[-1], *axes[:-1]]))
    repeats = [count] + [1] * (labels.shape.rank - 1)
    return tf.tile(labels, repeats), logits, weights


def _joined(values):
    """Joins the first two axes."""
    return tf.reshape(values, tf.concat([[-1], tf.shape(values)[2:]], 0))
