"""How a network of glimpses stops and learns: its options, checked once."""

from __future__ import annotations

import dataclasses

from sact_tf import halting
from sact_tf.domains import AT_LEAST_0, COUNT, FRACTION
from sact_tf.halting import BernoulliStop, ConfidenceThreshold, CumulativeHalting

HALTINGS = ("bernoulli", "act")
BASELINES = ("scalar", "state")


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """How a network of glimpses stops and learns.

    Attributes:
        steps: Glimpses taken, or the most of them.
        dynamic: Whether it decides when to stop.
        gamma: Discount of the reward for every step, in (0, 1].
        stop: "bernoulli", or "act", which adds halting scores up.
        stop_threshold: Probability above which a Bernoulli stop stops in inference.
        confidence_threshold: One that is not dynamic stops in inference once its
            likeliest class is likelier than that; None: it takes all steps.
        tau: Price of every step, of `stop="act"`.
        intermediate_supervision: Whether the loss is that of all steps taken.
        baseline: What reward is expected: "scalar", one number, as in the public code;
            "state", one linear function of the state for every step.
        exploration: Probability with which a batch stops at a random step instead.
            Stops learn nothing from it, all else does. It falls as in the public code:
            times 0.8 after every pass, not below 0.1.
        exploration_steps: Training steps of a pass.
        curriculum_steps: One that is not dynamic takes one glimpse for so many training
            steps, then two, and so on; None: all from the beginning.

    Raises:
        ValueError: On any other value, naming the attribute.
    """

    steps: int
    dynamic: bool = True
    gamma: float = 0.99
    stop: str = "bernoulli"
    stop_threshold: float = 0.9
    confidence_threshold: float | None = None
    tau: float = 0.01
    intermediate_supervision: bool = False
    baseline: str = "scalar"
    exploration: float = 0.0
    exploration_steps: int = 1000
    curriculum_steps: int | None = None

    def __post_init__(self):
        for name in ("steps", "exploration_steps"):
            COUNT.check(getattr(self, name), name)
        if self.curriculum_steps is not None:
            COUNT.check(self.curriculum_steps, "curriculum_steps")
        if not FRACTION.check(self.gamma, "gamma"):
            raise ValueError(f"gamma must lie in (0, 1]; got {self.gamma}")
        FRACTION.check(self.exploration, "exploration")
        AT_LEAST_0.check(self.tau, "tau")
        for name, accepted in (
            ("stop", HALTINGS),
            ("baseline", BASELINES),
        ):
            value = getattr(self, name)
            if value not in accepted:
                shown = ", ".join(accepted)
                raise ValueError(f"{name} must be one of {shown}; got {value!r}")
        self.make_rule()

    def make_rule(self) -> halting.HaltingRule | None:
        """Returns the halting rule, None of what takes all steps."""
        if self.confidence_threshold is not None:
            rule = ConfidenceThreshold(self.confidence_threshold)
            if self.dynamic:
                raise ValueError(
                    f"confidence_threshold is for a RAM (dynamic=False) only; got "
                    f"{self.confidence_threshold} with dynamic=True"
                )
            return rule
        bernoulli = BernoulliStop(self.stop_threshold)
        if not self.dynamic:
            return None
        return bernoulli if self.stop == "bernoulli" else CumulativeHalting()
