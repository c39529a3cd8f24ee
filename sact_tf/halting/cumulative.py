"""The cumulative halting rule of ACT and SACT (SACT, sections 2.2 and 2.3).

Pure functions on tensors of any shape S: ACT halts per image (S = [batch]), SACT per
spatial position (S = [batch, height, width]). Both follow the same few lines, which are
also all an iterative or recurrent model needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from sact_tf.halting.rule import HaltingRule, ModelType, register_model_type

EPSILON = 0.01
"""Halting slack epsilon of SACT eq. 7, as in the paper and in the original code."""


class HaltingState(NamedTuple):
    """What the recurrence carries from unit to unit; every field has shape S.

    Attributes:
        cumulative: float32, sum of the halting scores of the units run so far.
        remainder: float32, 1 minus the scores before the halting unit (SACT eq. 8): R
            once halted, and until then what is left to distribute.
        num_units: int32, units run so far; N (SACT eq. 7) once halted.
        active: bool, True where the next unit still runs.
    """

    cumulative: tf.Tensor
    remainder: tf.Tensor
    num_units: tf.Tensor
    active: tf.Tensor

    @property
    def ponder_cost(self) -> tf.Tensor:
        """Ponder cost rho = N + R (SACT eq. 11), float32 of shape S.

        Its gradient with respect to the score of a unit is -1 before the halting unit,
        and 0 for it and all that follow (SACT eq. 12): N and comparisons carry none.
        """
        return tf.cast(self.num_units, tf.float32) + self.remainder


def initial_halting_state(
    shape: Sequence[int] | tf.Tensor, valid: tf.Tensor | None = None
) -> HaltingState:
    """Returns the state before the first unit: everything active, nothing spent.

    Args:
        shape: The shape S, a list of ints or an int tensor.
        valid: Bool of shape S; where it is False, nothing ever runs and the ponder cost
            stays zero. None: it is True everywhere.
    """
    state = HaltingState(
        cumulative=tf.zeros(shape),
        remainder=tf.ones(shape),
        num_units=tf.zeros(shape, tf.int32),
        active=tf.ones(shape, tf.bool),
    )
    if valid is None:
        return state
    return state._replace(remainder=tf.cast(valid, tf.float32), active=valid)


def halting_step(
    state: HaltingState,
    score: tf.Tensor | None,
    is_last: bool,
    epsilon: float = EPSILON,
) -> tuple[tf.Tensor, HaltingState]:
    """Advances the recurrence by one unit (SACT, algorithms 1 and 2, lines 8-26).

    Args:
        state: `HaltingState` before this unit; every field has shape S.
        score: Halting scores h of this unit in [0, 1], float tensor of shape S; sums
            are kept in float32 whatever its type. Not used for the last unit, whose
            score is 1 (SACT eq. 5).
        is_last: Whether this is the last unit of the block, which always halts.
        epsilon: Halting slack (SACT eq. 7).

    Returns:
        The weight of this unit's output in the block output (SACT eq. 9), float32 of
        shape S and zero where already halted, and the new `HaltingState`.

    >>> state = initial_halting_state([1])
    >>> for h in (0.1, 0.1, 0.2, 0.8):
    ...     weight, state = halting_step(state, tf.constant([h]), is_last=False)
    >>> print(f"{float(state.ponder_cost[0]):.1f}")  # SACT, figure 3
    4.6
    """
    num_units = state.num_units + tf.cast(state.active, tf.int32)
    if is_last:
        weight = tf.where(state.active, state.remainder, tf.zeros_like(state.remainder))
        active = tf.zeros_like(state.active)
        return weight, state._replace(num_units=num_units, active=active)
    score = tf.cast(score, tf.float32)
    cumulative = state.cumulative + score
    continuing = state.active & (cumulative < 1.0 - epsilon)
    # SACT eq. 9: h while continuing, the remainder where it halts, 0 from there on.
    # zeros_like, because broadcasting a scalar takes longer than the rest.
    weight = tf.where(
        continuing,
        score,
        tf.where(state.active, state.remainder, tf.zeros_like(score)),
    )
    remainder = tf.where(continuing, state.remainder - score, state.remainder)
    return weight, HaltingState(cumulative, remainder, num_units, continuing)


class CumulativeHalting(HaltingRule):
    """Halts where the sum of the scores reaches 1 - epsilon (SACT, section 2.2).

    Args:
        epsilon: Halting slack (SACT eq. 7), in [0, 1).

    Raises:
        ValueError: On any other `epsilon`.
    """

    def __init__(self, epsilon: float = EPSILON):
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must lie in [0, 1), got {epsilon}")
        self.epsilon = epsilon

    def initial(self, shape, valid=None):
        return initial_halting_state(shape, valid)

    def step(self, state, score, is_last, *, training=False, seed=None):
        return halting_step(state, score, is_last, self.epsilon)

    def cost(self, state):
        return state.ponder_cost


register_model_type(
    "act",
    ModelType(CumulativeHalting, "image", description="Adaptive Computation Time"),
)
register_model_type(
    "act_early_stopping",
    ModelType(
        CumulativeHalting,
        "image",
        early_stopping=True,
        description="the same, skipping units once the whole batch has halted",
    ),
)
register_model_type(
    "sact",
    ModelType(
        CumulativeHalting,
        "position",
        description="Spatially Adaptive Computation Time",
    ),
)
