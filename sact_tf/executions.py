"""How one step of a block is computed: masked, perforated, or by tiles.

All executions use the same weights, and give the same results at every position that
counts. `Masked` is the reference, and what training runs whose batch normalization
takes the moments of the batch: these are over all positions, halted ones included, so
that none can be skipped. With stored moments all executions have gradients.

With the precision "bfloat16" (`custom_ops.PRECISIONS`), convolutions of units that
`Perforated` runs round what they multiply to bfloat16, and sum in float32. Features
between units, halting scores, sums over positions and the block's output stay float32.
The reference, and so training, is float32 always.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf.halting import HaltingDomain, HaltingHead
from sact_tf.units.unit import Unit

EXECUTIONS = ("masked", "perforated", "tiled")
"""Ways to run a block.

`masked` runs every unit densely and multiplies residuals by the active mask. The others
compute active positions only, where batch normalization uses stored moments (with those
of batches all run masked): `perforated` gathers positions, `tiled` whole tiles, for
blocks whose positions halt tile by tile.
"""


class Step(NamedTuple):
    """What a unit and a head are told beside their input.

    Attributes:
        index: How often the block has run units before.
        inputs: The input of the block.
        active: What runs this unit, bool of the halting rule's shape S; None:
            everything does.
        valid: Bool [batch, height, width], what of the unit's input lies inside of
            images; None: everything does.
        gate: How much of what the unit adds to its input is kept, float32 of shape S;
            None: all of it. Only where `active` is None.
    """

    index: int
    inputs: tf.Tensor
    active: tf.Tensor | None
    valid: tf.Tensor | None
    gate: tf.Tensor | None = None


def _unit_options(unit, step):
    """Returns what the unit asks for, by name."""
    options = {}
    if unit.takes_step:
        options["step"] = step.index
    if unit.takes_inputs:
        options["inputs"] = step.inputs
    return options


class Masked:
    """Runs every unit at all positions.

    Args:
        domain: What halts.
        training: As in every layer.

    Attributes:
        takes_blocks: Whether `sact_tf.native_blocks` may run several units at once.
    """

    is_masked = True
    takes_blocks = False

    def __init__(self, domain: HaltingDomain, training: bool | None):
        self._domain = domain
        self._training = training

    def run(self, unit, x: tf.Tensor, step: Step, output=None) -> tf.Tensor:
        """Runs a unit, which leaves positions as they are that have halted."""
        options = _unit_options(unit, step)
        if step.valid is not None:
            if not unit.takes_valid:
                raise ValueError(
                    f"valid: unit {unit.name} does not take it, and so cannot tell "
                    "padding from the image"
                )
            options["valid"] = step.valid
        active = None if step.active is None else self._domain.mask(step.active)
        y = unit(x, active=active, training=self._training, **options)
        if step.gate is None:
            return y
        return x + self._domain.factors(step.gate, x) * (y - x)

    def score(
        self,
        head: keras.layers.Layer,
        x: tf.Tensor,
        residual: tf.Tensor,
        step: Step,
        logits: bool,
    ) -> tf.Tensor:
        """Scores the output x of a unit; `step` is that of the output."""
        if not isinstance(head, HaltingHead):
            if step.valid is not None:
                raise ValueError(
                    f"valid: head {head.name} does not take it, and so cannot tell "
                    "padding from the image"
                )
            return head(x, residual, step.inputs)
        return head(
            x,
            residual,
            step.inputs,
            active=step.active,
            training=self._training,
            valid=step.valid,
            logits=logits,
        )

    def add(
        self, output: tf.Tensor | None, weight: tf.Tensor, x: tf.Tensor, step: Step
    ) -> tf.Tensor:
        """Adds a unit's output by its weight to that of the block."""
        term = self._domain.factors(weight, x) * x
        return term if output is None else output + term


class Perforated(Masked):
    """Runs units at active positions only.

    Active positions are found once in every step, and serve the unit, its head and the
    sum of outputs. The sums of x over positions travel with x.

    Args:
        domain: What halts.
        precision: One of `custom_ops.PRECISIONS`, of units that take it.
        trains: Whether gradients are going to be asked for.
    """

    is_masked = False

    def __init__(
        self, domain: HaltingDomain, precision: str = "float32", trains: bool = False
    ):
        super().__init__(domain, False)
        self._precision = precision
        self._trains = trains
        self._sums = None
        self._positions = None

    @property
    def takes_blocks(self):
        return not self._trains

    def run_later_units(
        self, x: tf.Tensor, units, heads, epsilon: float, imposed: tf.Tensor | None
    ) -> custom_ops.BlockResults:
        """Runs all of a block but its first unit, which `run` has run.

        Args:
            x: The first unit's output.
            units: `custom_ops.UnitParameters` of the others.
            heads: `custom_ops.HeadParameters` of all but the last.
            epsilon: Halting slack.
            imposed: As in `custom_ops.perforated_block`.
        """
        return custom_ops.perforated_block(
            *(x, self._sums, units, heads, epsilon, imposed), precision=self._precision
        )

    def run(self, unit, x, step, output=None):
        if step.active is not None:
            mask = self._domain.spread(step.active, x)
            self._positions = custom_ops.find_positions(mask)
        # x can be updated in place once nobody else is going to read it.
        with tf.control_dependencies([] if output is None else [output]):
            x, self._sums = self._run(unit, x, _unit_options(unit, step))
        return x

    def _run(self, unit, x, options):
        if self._trains and self._positions is None:
            # Nothing is skipped, and TensorFlow's operations keep what their gradients
            # need, where the fused unit would be run again.
            return Unit.run_active(unit, x, None, self._sums, **options)
        # Gradients are those of float32 units.
        is_other = self._precision != "float32" and not self._trains
        if unit.takes_precision and is_other:
            options = {**options, "precision": self._precision}
        return unit.run_active(x, self._positions, self._sums, **options)

    def score(self, head, x, residual, step, logits):
        active = step.active
        if active is None:
            active = tf.ones(self._domain.shape(x), tf.bool)
        if not isinstance(head, HaltingHead):
            scores = super().score(head, x, residual, step, logits)
        else:
            positions = self._positions
            if positions is None:
                positions = custom_ops.find_positions(self._domain.spread(active, x))
            scores = head.run_active(x, positions, self._sums, logits)
        return tf.where(active, scores, tf.zeros_like(scores))

    def add(self, output, weight, x, step):
        if output is None:
            return super().add(output, weight, x, step)
        spread = self._domain.spread(weight, x)
        return custom_ops.masked_accumulate(
            output, x, spread, positions=self._positions
        )


class Tiled(Perforated):
    """Runs units on active tiles.

    Args:
        domain: What halts.
        tile_size: Side of the tiles.
        trains: Whether gradients are going to be asked for.
    """

    takes_blocks = False

    def __init__(self, domain: HaltingDomain, tile_size: int, trains: bool = False):
        super().__init__(domain, trains=trains)
        self._tile_size = tile_size

    def _run(self, unit, x, options):
        if self._positions is None:
            return super()._run(unit, x, options)
        return unit.run_tiled(
            x, self._positions, self._sums, self._tile_size, **options
        )
