"""Rules that stop for good: what comes out is the output of the last unit that ran.

| rule | its score | stops |
|---|---|---|
| `BernoulliStop` | the logit of stopping | by chance in training, then by a threshold |
| `ConfidenceThreshold` | the probability of the likeliest class | above a threshold |

`sact_tf.networks.recurrent_attention` uses both. They are no model types of residual
networks: what they need beside the rule, a reward or a classifier after every unit,
these do not have.
"""

from __future__ import annotations

import math

import tensorflow as tf

from sact_tf.domains import FRACTION
from sact_tf.halting.domain import uniform
from sact_tf.halting.probabilistic import ProbabilisticState, hard_step
from sact_tf.halting.rule import CountingState, HaltingRule

_LARGEST_LOGIT = 10.0  # as in the public code of DT-RAM


class BernoulliStop(HaltingRule):
    """Draws after every unit whether to stop (DT-RAM; Li et al., 2017).

    Training has to add the score function's gradient, by `log_prob`: the logarithm of
    the probability of all that was decided, the stop included. The last unit stops
    without a decision.

    Args:
        threshold: In inference it stops where the probability is above it, in (0, 1).

    Raises:
        ValueError: On any other threshold.
    """

    reads_logits = True
    is_random = True
    is_charged = False
    scores_samples = True

    def __init__(self, threshold: float = 0.9):
        self.threshold = FRACTION.check(threshold, "stop_threshold")
        if self.threshold in (0, 1):
            raise ValueError(f"stop_threshold must lie in (0, 1); got {threshold}")

    def needs_seed(self, training):
        return bool(training)

    def initial(self, shape, valid=None):
        zeros = tf.zeros(shape)
        return ProbabilisticState(
            active=tf.ones(shape, tf.bool) if valid is None else valid,
            num_units=tf.zeros(shape, tf.int32),
            left=tf.ones(shape) if valid is None else tf.cast(valid, tf.float32),
            survival=tf.ones(shape),
            cost=zeros,
            log_prob=zeros,
        )

    def step(self, state, score, is_last, *, training=False, seed=None):
        num_units = state.num_units + tf.cast(state.active, tf.int32)
        state = state._replace(num_units=num_units)
        if is_last:
            return hard_step(state, None, True, None)
        logits = tf.clip_by_value(
            tf.cast(score, tf.float32), -_LARGEST_LOGIT, _LARGEST_LOGIT
        )
        if training:
            return hard_step(state, logits, False, uniform(tf.shape(logits), seed))
        # Where the probability is above the threshold, this is above 0.
        shift = math.log(self.threshold / (1 - self.threshold))
        return hard_step(state, logits - shift, False, None)

    def cost(self, state):
        return state.cost

    def log_prob(self, state, training):
        return state.log_prob if training else None


class ConfidenceThreshold(HaltingRule):
    """Stops once the network is sure of its answer; nothing of it is learned.

    Args:
        threshold: Stops where the score is above it, in [0, 1]: at 0 after the first
            unit, at 1 after the last.

    Raises:
        ValueError: On any other threshold.
    """

    is_charged = False

    def __init__(self, threshold: float):
        self.threshold = FRACTION.check(threshold, "confidence_threshold")

    def initial(self, shape, valid=None):
        active = tf.ones(shape, tf.bool) if valid is None else valid
        return CountingState(active, tf.zeros(shape, tf.int32))

    def step(self, state, score, is_last, *, training=False, seed=None):
        stops = state.active
        if not is_last:
            stops &= tf.cast(score, tf.float32) > self.threshold
        num_units = state.num_units + tf.cast(state.active, tf.int32)
        weight = tf.cast(stops, tf.float32)
        return weight, CountingState(state.active & ~stops, num_units)

    def cost(self, state):
        return tf.cast(state.num_units, tf.float32)
