"""PonderNet (Banino et al., 2021): losses are averaged over all steps.

The probability of stopping at step n, having come there, is lambda_n; lambda_N = 1:

    p_n = lambda_n prod_{j<n} (1 - lambda_j)
    loss = sum_n p_n CE(y_n) + beta KL(p || prior)

The prior is geometric, truncated at N: its last step has all the rest. The divergence
is that of the paper; a port that much was copied from takes the reverse one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from sact_tf.domains import AT_LEAST_0, FRACTION
from sact_tf.halting.domain import uniform
from sact_tf.halting.probabilistic import hard_step
from sact_tf.halting.rule import HaltingRule, ModelType, register_model_type

TEST_MODES = ("discrete", "thresholded")


class PonderState(NamedTuple):
    """What the rule carries from step to step; tensors have the shape S.

    Attributes:
        active: bool, True where the next step still runs; in training everywhere.
        num_units: int32, steps run so far.
        left: float32, 1 until stopped; in training prod (1 - lambda).
        cost: float32, in training the expected number of steps; else that number.
        log_prob: float32, in training log prod (1 - lambda); else of what was decided.
        divergence: float32, terms of KL(p || prior) so far.
        log_probs: log p_n of the steps so far, in training.
    """

    active: tf.Tensor
    num_units: tf.Tensor
    left: tf.Tensor
    cost: tf.Tensor
    log_prob: tf.Tensor
    divergence: tf.Tensor
    log_probs: tuple[tf.Tensor, ...] = ()


class PonderNetHalting(HaltingRule):
    """Runs all steps in training, and stops by chance in inference.

    It halts images (or vectors). Training has to average the losses of all steps by
    `log_prob`, as that of `sact_tf.networks` does. `tau` has no effect.

    Args:
        beta: Weight of the divergence from the prior, at least 0.
        lambda_p: The prior's probability of stopping, in (0, 1): it is geometric with a
            mean of 1 / lambda_p.
        test_mode: In inference: "discrete", stops with the probability lambda, or
            "thresholded", at the first lambda above 1/2.

    Raises:
        ValueError: On any other value, naming the argument.
    """

    reads_logits = True
    is_random = True
    reads_noise = True
    is_charged = False
    averages_losses = True
    test_modes = TEST_MODES

    def __init__(
        self, beta: float = 0.01, lambda_p: float = 0.2, test_mode: str = "discrete"
    ):
        self.beta = AT_LEAST_0.check(beta, "beta")
        self.lambda_p = FRACTION.check(lambda_p, "lambda_p")
        if self.lambda_p in (0, 1):
            raise ValueError(f"lambda_p must lie between 0 and 1; got {lambda_p}")
        if test_mode not in TEST_MODES:
            raise ValueError(
                f"test_mode must be one of {', '.join(TEST_MODES)}; got {test_mode!r}"
            )
        self.test_mode = test_mode

    def needs_seed(self, training):
        return not training and self.test_mode == "discrete"

    def is_hard(self, training):
        return not training

    def initial(self, shape, valid=None):
        ones, zeros = tf.ones(shape), tf.zeros(shape)
        return PonderState(
            active=tf.ones(shape, tf.bool) if valid is None else valid,
            num_units=tf.zeros(shape, tf.int32),
            left=ones if valid is None else tf.cast(valid, tf.float32),
            cost=zeros,
            log_prob=zeros,
            divergence=zeros,
        )

    def step(self, state, score, is_last, *, training=False, seed=None, noise=None):
        """As of `HaltingRule`; `noise` as of `ProbabilisticHalting`."""
        num_units = state.num_units + tf.cast(state.active, tf.int32)
        state = state._replace(num_units=num_units)
        score = None if score is None else tf.cast(score, tf.float32)
        if training:
            return self._step_in_training(state, score, is_last)
        if self.needs_seed(training) and not is_last and noise is None:
            noise = uniform(tf.shape(score), seed)
        return hard_step(state, score, is_last, noise)

    def _step_in_training(self, state, logits, is_last):
        steps = len(state.log_probs)
        log_p, log_prior = state.log_prob, steps * math.log(1 - self.lambda_p)
        if not is_last:
            log_p += tf.math.log_sigmoid(logits)
            log_prior += math.log(self.lambda_p)
        weight = tf.exp(log_p)
        new = state._replace(
            cost=state.cost + state.left,
            divergence=state.divergence + weight * (log_p - log_prior),
            log_probs=(*state.log_probs, log_p),
        )
        if is_last:
            return weight, new._replace(active=tf.zeros_like(state.active))
        log_left = state.log_prob + tf.math.log_sigmoid(-logits)
        return weight, new._replace(log_prob=log_left, left=tf.exp(log_left))

    def cost(self, state):
        return state.cost

    def survival(self, state, training):
        return state.left

    def log_prob(self, state, training):
        return tf.stack(state.log_probs, -1) if training else state.log_prob

    def loss(self, state):
        return self.beta * state.divergence


register_model_type(
    "pondernet",
    ModelType(
        PonderNetHalting,
        "image",
        description="PonderNet: whole images, in the last block",
        last_block_only=True,
    ),
)
