"""Blocks of ACT and SACT, and the block that a model type asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tf_keras as keras

from sact_tf import halting
from sact_tf.blocks import AdaptiveBlock
from sact_tf.halting import EPSILON, CumulativeHalting
from sact_tf.plain_block import PlainBlock


class _CumulativeBlock(AdaptiveBlock):
    """A block of the cumulative rule, which is told its epsilon alone."""

    @property
    def epsilon(self) -> float:
        """Halting slack (SACT eq. 7)."""
        return self.rule.epsilon

    def get_config(self):
        config = super().get_config()
        del config["rule"], config["domain"]
        return {**config, "epsilon": self.epsilon}


@keras.utils.register_keras_serializable("sact_tf")
class ACTBlock(_CumulativeBlock):
    """Adaptive Computation Time: each image halts on its own (SACT, section 2.2).

    After each unit an image may halt; what follows gets no weight in its output. An
    `AdaptiveBlock` with `CumulativeHalting` of images.

    Args:
        units: Non-empty list of residual units.
        tau: Weight of the ponder cost, at least 0.
        epsilon: Halting slack (SACT eq. 7), in [0, 1).
        batch_norm: As of `AdaptiveBlock`, as are all others.
        weight_decay: L2 coefficient of the halting heads.
        execution: "masked" or "perforated".
        early_stopping: Whether units are skipped once the whole batch has halted.
        name: Keras name of the layer.
        **kwargs: Of `AdaptiveBlock`.
    """

    def __init__(
        self,
        units: Sequence[keras.layers.Layer],
        tau: float = 1.0,
        epsilon: float = EPSILON,
        batch_norm=None,
        weight_decay: float = 0.0,
        execution: str = "masked",
        early_stopping: bool = False,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(
            units,
            CumulativeHalting(epsilon),
            "image",
            tau,
            execution=execution,
            batch_norm=batch_norm,
            weight_decay=weight_decay,
            early_stopping=early_stopping,
            name=name,
            **kwargs,
        )


@keras.utils.register_keras_serializable("sact_tf")
class SACTBlock(_CumulativeBlock):
    """Spatially Adaptive Computation Time: each position halts alone.

    A position that has halted is frozen: it keeps its value while its neighbours go on
    (SACT, section 2.3). An `AdaptiveBlock` with `CumulativeHalting` of positions.

    Args:
        units: Non-empty list of residual units.
        tau: Weight of the ponder cost, at least 0.
        epsilon: Halting slack (SACT eq. 7), in [0, 1).
        batch_norm: As of `AdaptiveBlock`, as are all others.
        weight_decay: L2 coefficient of the halting heads.
        execution: One of `EXECUTIONS`.
        tile_size: Side of the square tiles whose positions halt together.
        name: Keras name of the layer.
        **kwargs: Of `AdaptiveBlock`.
    """

    def __init__(
        self,
        units: Sequence[keras.layers.Layer],
        tau: float = 1.0,
        epsilon: float = EPSILON,
        batch_norm=None,
        weight_decay: float = 0.0,
        execution: str = "masked",
        tile_size: int = 1,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(
            units,
            CumulativeHalting(epsilon),
            "position",
            tau,
            execution=execution,
            batch_norm=batch_norm,
            weight_decay=weight_decay,
            tile_size=tile_size,
            name=name,
            **kwargs,
        )


def make_block(
    model_type: str,
    units: Sequence[keras.layers.Layer],
    rule_options: Mapping[str, Any] | None = None,
    execution: str = "masked",
    name: str | None = None,
    precision: str = "float32",
    **options,
) -> PlainBlock | AdaptiveBlock:
    """Returns the block layer of a model type around a list of residual units.

    Args:
        model_type: One of `halting.model_types()`.
        units: Non-empty list of residual units.
        rule_options: Arguments of the model type's halting rule.
        execution: One of `EXECUTIONS`.
        name: Keras name of the layer.
        precision: One of `custom_ops.PRECISIONS`.
        **options: Of `AdaptiveBlock`; not used where all units run.
    """
    kind = halting.model_type(model_type)
    rule = kind.make_rule(model_type, rule_options or {})
    if rule is None:
        return PlainBlock(units, execution, name, precision)
    options.update(execution=execution, precision=precision, name=name)
    options.update(early_stopping=kind.early_stopping)
    named = {"image": ACTBlock, "position": SACTBlock}
    if type(rule) is CumulativeHalting and kind.domain in named:
        return named[kind.domain](units, epsilon=rule.epsilon, **options)
    return AdaptiveBlock(units, rule, kind.domain, **options)
