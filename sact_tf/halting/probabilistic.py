"""Probabilistic Adaptive Computation Time (PACT; Figurnov's thesis, chapter on it).

Where something stops is a latent variable z in 1..L. The halting score h of unit l is
the probability of stopping there, h_L = 1, so that

    q(z = l) = h_l prod_{i<l} (1 - h_i),    E[z] = sum_l prod_{i<l} (1 - h_i).

Training maximizes E_q[log p(y | x, z)] - tau E_q[z]: MAP inference of z by stochastic
variational optimization, under a prior p(z = l) proportional to exp(-tau l). There is
no entropy term: the bound is tight for a q that is sure of itself.

The temperature, the baseline and the state of the relaxed model are not in what of the
thesis could be read; their defaults are choices of this project.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from sact_tf.domains import POSITIVE
from sact_tf.halting.domain import uniform
from sact_tf.halting.rule import HaltingRule, ModelType, register_model_type

MODES = ("relaxed", "discrete", "thresholded")
ESTIMATORS = ("relaxation", "reinforce")
BASELINES = ("average", "linear")


class ProbabilisticState(NamedTuple):
    """What the rule carries from unit to unit; every field has the shape S.

    Attributes:
        active: bool, True where the next unit still runs; in relaxed mode everywhere.
        num_units: int32, units run so far.
        left: float32, what of the output's weight is not given yet: the product of
            1 - xi. 0 or 1 in the hard modes.
        survival: float32, the product of 1 - h: the probability that the next unit
            runs. Only kept in relaxed mode.
        cost: float32, the sum of `survival` over the units so far (E[z] in the end); in
            the hard modes the number of units.
        log_prob: float32, log probability of what was decided so far. Only kept in the
            hard modes.
    """

    active: tf.Tensor
    num_units: tf.Tensor
    left: tf.Tensor
    survival: tf.Tensor
    cost: tf.Tensor
    log_prob: tf.Tensor


def logistic(noise: tf.Tensor) -> tf.Tensor:
    """Maps uniform noise u in (0, 1) to logistic noise log u - log(1 - u)."""
    return tf.math.log(noise) - tf.math.log1p(-noise)


def hard_step(
    state: NamedTuple, logits: tf.Tensor | None, is_last: bool, noise: tf.Tensor | None
) -> tuple[tf.Tensor, NamedTuple]:
    """Stops at the first unit whose xi is 1.

    Args:
        state: With the fields of `ProbabilisticState`, this unit counted already.
        logits: Of stopping here, float32 of shape S.
        is_last: Whether everything stops here.
        noise: Uniform noise in (0, 1), by which xi is 1 with the probability h; None:
            xi tells whether the logit is above 0.

    Returns:
        The weight of the unit's output, 0 or 1, and the new state.
    """
    active = state.active
    cost = state.cost + tf.cast(active, tf.float32)
    log_prob = state.log_prob
    stops = active
    if not is_last:
        decided = logits if noise is None else logits + logistic(noise)
        stops = active & (decided > 0)
        chosen = tf.math.log_sigmoid(tf.where(stops, logits, -logits))
        log_prob += tf.where(active, chosen, tf.zeros_like(chosen))
    weight = tf.cast(stops, tf.float32)
    return weight, state._replace(
        active=active & ~stops,
        left=state.left - weight,
        cost=cost,
        log_prob=log_prob,
    )


class ProbabilisticHalting(HaltingRule):
    """Stops by chance, with the halting score as probability.

    All modes have the same weights; they differ in what xi_l stands for. A unit's
    output has the weight xi_l prod_{i<l} (1 - xi_i).

    | mode | xi_l | units |
    |---|---|---|
    | relaxed | in (0, 1): sigmoid((logit + logistic noise) / temperature) | all run |
    | discrete | 0 or 1, with probability h_l | until the first xi = 1 |
    | thresholded | whether the logit is above 0 | until the first xi = 1 |

    With the same seed, the relaxed xi is above 1/2 where the discrete one is 1.

    The cost is E[z] in relaxed mode, given the features along the sampled path, and z
    in the hard modes.

    Args:
        mode: In training: one of `MODES`. No gradient reaches the heads in a hard mode,
            but by REINFORCE.
        temperature: Of the relaxation, above 0.
        estimator: Of gradients: "relaxation" differentiates through the relaxed xi;
            "reinforce" needs mode "discrete", and training that adds its term to the
            loss, as that of `sact_tf.networks` does.
        test_mode: In inference: one of `MODES`.
        mask_state: What the relaxed model's units compute on. True: a unit's residual
            is multiplied by what is left, so that units see halted neighbours nearly
            frozen, as in the hard modes; since the output is weighted as well, late
            residuals are attenuated twice. False: by the weights alone.
        baseline: Of REINFORCE: "average" of past rewards, or "linear": that and a
            linear function of the image.

    Raises:
        ValueError: On any other value, naming the argument.
    """

    reads_logits = True
    is_random = True
    reads_noise = True
    test_modes = MODES

    def __init__(
        self,
        mode: str = "relaxed",
        temperature: float = 2 / 3,
        estimator: str = "relaxation",
        test_mode: str = "thresholded",
        mask_state: bool = True,
        baseline: str = "average",
    ):
        for name, value, accepted in (
            ("mode", mode, MODES),
            ("test_mode", test_mode, MODES),
            ("estimator", estimator, ESTIMATORS),
            ("baseline", baseline, BASELINES),
        ):
            if value not in accepted:
                raise ValueError(
                    f"{name} must be one of {', '.join(accepted)}; got {value!r}"
                )
        if estimator == "reinforce" and mode != "discrete":
            raise ValueError(
                "estimator 'reinforce' needs mode 'discrete', where there is something "
                f"to sample; got mode {mode!r}"
            )
        self.mode = mode
        self.temperature = POSITIVE.check(temperature, "temperature")
        self.estimator = estimator
        self.test_mode = test_mode
        self.mask_state = bool(mask_state)
        self.baseline = baseline

    @property
    def scores_samples(self):
        return self.estimator == "reinforce"

    def mode_in(self, training: bool | None) -> str:
        """Returns the mode in training or in inference."""
        return self.mode if training else self.test_mode

    def needs_seed(self, training):
        return self.mode_in(training) != "thresholded"

    def is_hard(self, training):
        return self.mode_in(training) != "relaxed"

    def initial(self, shape, valid=None):
        ones = tf.ones(shape)
        if valid is not None:
            ones = tf.cast(valid, tf.float32)
        zeros = tf.zeros(shape)
        return ProbabilisticState(
            active=tf.ones(shape, tf.bool) if valid is None else valid,
            num_units=tf.zeros(shape, tf.int32),
            left=ones,
            survival=ones,
            cost=zeros,
            log_prob=zeros,
        )

    def step(self, state, score, is_last, *, training=False, seed=None, noise=None):
        """As of `HaltingRule`.

        Args:
            noise: Uniform noise in (0, 1); None: it is drawn by `seed`.
        """
        num_units = state.num_units + tf.cast(state.active, tf.int32)
        state = state._replace(num_units=num_units)
        if score is not None:
            score = tf.cast(score, tf.float32)
        if self.needs_seed(training) and not is_last and noise is None:
            if seed is None:
                raise ValueError(
                    f"seed must be given in {self.mode_in(training)} mode; got None"
                )
            noise = uniform(tf.shape(score), seed)
        if self.is_hard(training):
            return hard_step(state, score, is_last, noise)
        return self._step_relaxed(state, score, is_last, noise)

    def _step_relaxed(self, state, logits, is_last, noise):
        cost = state.cost + state.survival
        if is_last:
            nothing = tf.zeros_like(state.left)
            active = tf.zeros_like(state.active)
            return state.left, state._replace(active=active, left=nothing, cost=cost)
        # Of logits: log(h) - log(1 - h) of a float32 score would overflow.
        xi = tf.sigmoid((logits + logistic(noise)) / self.temperature)
        weight = xi * state.left
        return weight, state._replace(
            left=state.left - weight,  # so that weights sum up to 1
            survival=state.survival * tf.sigmoid(-logits),
            cost=cost,
        )

    def cost(self, state):
        return state.cost

    def gate(self, state, training):
        return state.left if self.mask_state else None

    def survival(self, state, training):
        return state.survival

    def log_prob(self, state, training):
        return state.log_prob if self.is_hard(training) else None


def probabilistic_halting(mode: str | None = None, **options) -> ProbabilisticHalting:
    """Makes the rule of a network.

    Args:
        mode: As of the rule; None: what the estimator needs.
        **options: Of `ProbabilisticHalting`.
    """
    if mode is None:
        mode = "discrete" if options.get("estimator") == "reinforce" else "relaxed"
    return ProbabilisticHalting(mode, **options)


register_model_type(
    "pact",
    ModelType(
        probabilistic_halting,
        "position",
        description="Probabilistic Adaptive Computation Time of positions",
    ),
)
register_model_type(
    "pact_image",
    ModelType(
        probabilistic_halting,
        "image",
        description="Probabilistic Adaptive Computation Time of whole images",
    ),
)
