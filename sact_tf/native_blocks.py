"""Blocks whose positions halt by the cumulative rule, in one native operation.

Where it fits, perforated execution gives all of a block but its first unit to
`custom_ops.perforated_block`. The loop of `AdaptiveBlock` is what it is tested against,
and runs everything else: other rules, heads or units, tiles, images that halt as a
whole, and training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

import custom_ops
from sact_tf.halting.cumulative import CumulativeHalting, HaltingState
from sact_tf.halting.domain import PositionDomain
from sact_tf.halting.heads import SpatialHaltingScore
from sact_tf.units.unit import is_own


class Parameters(NamedTuple):
    """Those of a block that fits."""

    units: Sequence[custom_ops.UnitParameters]
    heads: Sequence[custom_ops.HeadParameters]


def parameters(block, run, dtype: tf.DType) -> Parameters | None:
    """Returns what the native operation runs a block by, None where it cannot.

    Args:
        block: An `AdaptiveBlock`.
        run: How its steps are computed in this call.
        dtype: Of its features.
    """
    if (
        not run.takes_blocks
        or type(block.rule) is not CumulativeHalting
        or type(block.domain) is not PositionDomain
        or block.tile_size > 1
        or len(block.units) < 2
        or dtype not in (tf.float32, tf.float64)
        or not custom_ops.runs_on_cpu("PerforatedBlock", dtype)
        or not custom_ops.runs_on_cpu("PerforatedBottleneckAt", dtype)
    ):
        return None
    is_known = all(
        isinstance(head, SpatialHaltingScore)
        and is_own(head, SpatialHaltingScore, "call", "run_active", "flops")
        for head in block.heads
    )
    if not is_known:
        return None
    heads = [head.block_parameters() for head in block.heads]
    units = [unit.block_parameters() for unit in block.later_units()]
    if None in heads or None in units or not custom_ops.are_alike(units, heads):
        return None
    return Parameters(units, heads)


def later_flops(block, counts: tf.Tensor) -> list[tf.Tensor]:
    """Counts what the units after the first take, and their heads: int64 [batch] each.

    Args:
        block: A block that has been run.
        counts: Of `custom_ops.BlockResults`.
    """
    flops = []
    for k, unit in enumerate(block.later_units()):
        runs, reads = counts[:, k, 0], counts[:, k, 1]
        flops.append(unit.flops_at(runs, reads))
        if k + 1 < len(block.heads):
            flops.append(block.heads[k + 1].flops_at(runs))
    return flops


def final_state(results: custom_ops.BlockResults) -> HaltingState:
    """Returns the halting rule's state once everything has halted.

    What had been added up is not known any more, and left at 1.
    """
    return HaltingState(
        cumulative=tf.ones_like(results.remainder),
        remainder=results.remainder,
        num_units=results.num_units,
        active=tf.zeros_like(results.num_units, tf.bool),
    )
