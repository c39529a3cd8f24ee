"""Blocks that run all their units, and what every block is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf import halting
from sact_tf.executions import EXECUTIONS, Masked, Perforated, Step, Tiled
from sact_tf.layers import build_child
from sact_tf.units.unit import as_unit, restored_unit, saved_unit


def sum_flops(counts: Sequence[tf.Tensor | None]) -> dict[str, tf.Tensor]:
    """Sums the units' counts, or reports none where a unit does not count."""
    if any(count is None for count in counts):
        return {}
    return {"flops": tf.reduce_sum(tf.stack(counts), 0)}


def first_scopes(form, layers):
    """Returns layers by a scope of their number, those that recur by their first."""
    first = {}
    for k, layer in enumerate(layers, 1):
        first.setdefault(id(layer), (form.format(k), layer))
    return dict(first.values())


def given_masks(active, valid):
    """Returns those masks that are not None, by their names."""
    masks = {"active": active, "valid": valid}
    return {name: mask for name, mask in masks.items() if mask is not None}


class Block(keras.layers.Layer):
    """What plain and adaptive blocks share: units, and how they are saved and built."""

    def __init__(
        self,
        units: Sequence[keras.layers.Layer],
        execution: str,
        executions: Sequence[str],
        name: str | None,
        precision: str = "float32",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if custom_ops.check_precision(precision) and self.compute_dtype != "float32":
            raise ValueError(
                f"precision must be float32 in a block that computes in "
                f"{self.compute_dtype}, such as by a mixed precision policy; got "
                f"{precision!r}"
            )
        self.precision = precision
        if execution not in executions:
            raise ValueError(
                f"execution must be one of {', '.join(executions)}; got {execution!r}"
            )
        if not units:
            raise ValueError(f"units must hold at least one layer, got {units!r}")
        self.execution = execution
        self.units = list(units)

    @property
    def is_adaptive(self) -> bool:
        """Whether the block decides how many of its units to run."""
        return False

    def output_stride(self) -> int:
        """Returns how many positions of the input there are for one of the output."""
        return int(np.prod([unit.output_stride() for unit in self._steps()]))

    # A method: Keras would save what an attribute holds once more.
    def _steps(self):
        return [as_unit(unit) for unit in self.units]

    def _distinct_units(self):
        return list({id(unit): unit for unit in self.units}.values())

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Layers by their scopes in TF-Slim checkpoints, each once."""
        return first_scopes("unit_{}", self.units)

    def get_config(self):
        distinct = self._distinct_units()
        numbers = {id(unit): number for number, unit in enumerate(distinct)}
        return {
            **super().get_config(),
            "units": [saved_unit(unit) for unit in distinct],
            "order": [numbers[id(unit)] for unit in self.units],
            "execution": self.execution,
            "precision": self.precision,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        units = [restored_unit(unit) for unit in config.pop("units")]
        config["units"] = [units[i] for i in config.pop("order")]
        return cls(**config)

    def build(self, input_shape):
        self._build_units(input_shape)
        super().build(input_shape)

    def _build_units(self, shape) -> list[tf.TensorShape]:
        """Builds the units; returns the shapes of their outputs."""
        shapes = []
        for unit in self.units:
            build_child(unit, shape)
            shape = tf.TensorShape(unit.compute_output_shape(shape))
            shapes.append(shape)
        return shapes

    def build_from_config(self, config):  # asked for by files, without our name
        build_child(self, config["input_shape"])

    def compute_output_shape(self, input_shape):
        for unit in self.units:
            input_shape = unit.compute_output_shape(input_shape)
        return input_shape

    def valid_after(self, valid: tf.Tensor | None) -> tf.Tensor | None:
        """Returns `valid` of the output, given that of the input."""
        for unit in self._steps():
            valid = unit.valid_after(valid)
        return valid

    def dense_flops(
        self,
        x: tf.Tensor,
        valid: tf.Tensor | None = None,
        num_units: int | None = None,
    ) -> tf.Tensor:
        """Counts what all units take at all positions, without halting scores.

        Args:
            x: [batch, height, width, channels]; only its shape counts, and only without
                `valid`.
            valid: As in a call.
            num_units: Only of the first ones; None: of all.

        Returns:
            int64 [batch], the operations of a `PlainBlock` of these units.
        """
        total = 0
        for unit in self._steps()[:num_units]:
            total += unit.flops(x, **given_masks(None, valid))
            stride = unit.output_stride()
            x = x[:, ::stride, ::stride]
            valid = unit.valid_after(valid)
        return total

    def _run(self, domain, training, valid, is_masked=False, trains=False):
        """Returns how steps are computed in this call.

        Args:
            domain: What halts.
            training: As in the call.
            valid: The same.
            is_masked: Whether nothing may be skipped.
            trains: Whether gradients are going to be asked for, whatever `training`.
        """
        if self.execution == "masked" or training or is_masked:
            return Masked(domain, training)
        if valid is not None:
            raise ValueError(
                f"valid: needs execution='masked'; {self.name} has {self.execution!r}"
            )
        if self.execution == "tiled":
            return Tiled(domain, self.tile_size, trains)
        return Perforated(domain, self.precision, trains)


@keras.utils.register_keras_serializable("sact_tf")
class PlainBlock(Block):
    """Runs all its residual units, one after the other.

    Args:
        units: Non-empty list of residual units.
        execution: "masked" or "perforated".
        name: Keras name of the layer.
        precision: One of `custom_ops.PRECISIONS`, of what perforated units multiply.
    """

    def __init__(
        self,
        units: Sequence[keras.layers.Layer],
        execution: str = "masked",
        name: str | None = None,
        precision: str = "float32",
        **kwargs,
    ):
        super().__init__(units, execution, EXECUTIONS[:2], name, precision, **kwargs)

    def call(self, x, training=None, return_end_points=False, valid=None):
        run = self._run(halting.DOMAINS["image"], training, valid)
        inputs, flops = x, []
        for k, unit in enumerate(self._steps()):
            if return_end_points:
                flops.append(unit.flops(x, **given_masks(None, valid)))
            x = run.run(unit, x, Step(k, inputs, None, valid))
            valid = unit.valid_after(valid)
        return (x, sum_flops(flops)) if return_end_points else x
