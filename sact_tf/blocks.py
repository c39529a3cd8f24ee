"""Keras layers that run a list of residual units under a halting rule.

A block wraps any list of layers that keep the shape of their input, but for the first.
A unit is called as `unit(x, training=...)`, in a `SACTBlock` as `unit(x, active=...,
training=...)` where its `call` has that argument. A unit may have a method `flops(x,
active=None)` that returns its operations per image, int64 [batch]; a block counts
operations where all its units do. A unit may have a method `run_active(x, active,
sums)`, which runs it in inference at the active positions [batch, height, width] only
(None: everywhere). It returns the output and the output's sums over positions [batch,
channels], for which it may use those of x (or None, where they are not known). Blocks
with `execution="perforated"` use it where there is one; those with `execution="tiled"`
prefer `run_tiled(x, active, sums, tile_size)` where only some tiles are active.

Images of several sizes share a batch by padding: `block(x, valid=mask)` tells which
positions [batch, height, width] of x lie inside of their image. The others cost nothing
and are not counted, and an image gets what it would get alone. This needs masked
execution, and units that take `valid` in `call` and `flops`, as `BottleneckUnit` does.

Every block returns its output, or with `return_end_points=True` the output and a
dictionary:

| key | PlainBlock | ACTBlock | SACTBlock |
|---|---|---|---|
| `flops` | int64 [batch] | int64 [batch] | int64 [batch] |
| `ponder_cost` | | float32 [batch] | float32 [batch, height, width] |
| `num_units` | | int32 [batch] | int32 [batch, height, width] |
| `halting_distribution` | | float32 [batch, n] | float32 [batch, height, width, n] |
| `unit_k/halting_proba` | | float32 [batch, 1] | float32 [batch, height, width, 1] |
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf.halting import EPSILON, HaltingState, halting_step, initial_halting_state
from sact_tf.halting_scores import ImageHaltingScore, SpatialHaltingScore
from sact_tf.layers import BatchNorm

EXECUTIONS = ("masked", "perforated", "tiled")
"""Ways to run a block; all use the same weights and give the same results.

`masked` runs every unit densely and multiplies residuals by the active mask. The others
compute active positions only, in inference (training always runs masked): `perforated`
gathers positions, `tiled` whole tiles, for blocks whose positions halt tile by tile.
"""


def _run_unit(unit, x, training, active=None, valid=None):
    """Runs a unit with the arguments its `call` has, and freezes inactive positions."""
    accepted = inspect.signature(unit.call).parameters
    options = {"training": training} if "training" in accepted else {}
    if valid is not None:
        if "valid" not in accepted:
            raise ValueError(
                f"valid: unit {unit.name} does not take it, and so cannot tell padding "
                "from the image"
            )
        options["valid"] = valid
    if active is None:
        return unit(x, **options)
    if "active" in accepted:
        return unit(x, active=active, **options)
    return tf.where(active[..., tf.newaxis], unit(x, **options), x)


def _unit_flops(unit, x, **masks):
    """Counts a unit's operations under those masks that are not None."""
    return unit.flops(x, **{k: m for k, m in masks.items() if m is not None})


def valid_after(layer: keras.layers.Layer, valid: tf.Tensor | None) -> tf.Tensor | None:
    """Returns the mask of a layer's output inside of images, given its input's.

    Args:
        layer: A unit, with or without `strides`, or a list of them in `units`.
        valid: Bool [batch, height, width], or None.
    """
    for unit in getattr(layer, "units", [layer]):
        strides = getattr(unit, "strides", 1)
        if valid is not None and strides > 1:
            valid = valid[:, ::strides, ::strides]
    return valid


class PlainBlock(keras.layers.Layer):
    """Runs all its residual units, one after the other.

    Args:
        units: Non-empty list of residual units.
        execution: "masked" or "perforated".
        name: Keras name of the layer.
    """

    _executions = EXECUTIONS[:2]

    def __init__(
        self,
        units: Sequence[keras.layers.Layer],
        execution: str = "masked",
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if execution not in self._executions:
            raise ValueError(
                f"execution must be one of {', '.join(self._executions)}; got "
                f"{execution!r}"
            )
        self.execution = execution
        if not units:
            raise ValueError(f"units must hold at least one layer, got {units!r}")
        self.units = list(units)

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        return {f"unit_{k}": unit for k, unit in enumerate(self.units, 1)}

    def build(self, input_shape):
        self._unit_output_shapes = []
        for unit in self.units:
            if not unit.built:
                with tf.name_scope(unit.name):
                    unit.build(input_shape)
                    unit.built = True
            input_shape = tf.TensorShape(unit.compute_output_shape(input_shape))
            self._unit_output_shapes.append(input_shape)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        for unit in self.units:
            input_shape = unit.compute_output_shape(input_shape)
        return input_shape

    def call(self, x, training=None, return_end_points=False, valid=None):
        flops = []
        for unit in self.units:
            if return_end_points and hasattr(unit, "flops"):
                flops.append(_unit_flops(unit, x, valid=valid))
            if self._skips(training, valid):
                x, _ = self._run_active(unit, x, None, None)
            else:
                x = _run_unit(unit, x, training, valid=valid)
            valid = valid_after(unit, valid)
        if not return_end_points:
            return x
        return x, self._flops_end_point(flops)

    def dense_flops(self, x: tf.Tensor, valid: tf.Tensor | None = None) -> tf.Tensor:
        """Counts what all units take at all positions, without halting scores.

        Args:
            x: [batch, height, width, channels]; only its shape counts, and only without
                `valid`.
            valid: As in a call.

        Returns:
            int64 [batch], the operations of a `PlainBlock` of these units.
        """
        total = 0
        for unit in self.units:
            total += _unit_flops(unit, x, valid=valid)
            strides = getattr(unit, "strides", 1)
            if strides > 1:
                x = x[:, ::strides, ::strides]
            valid = valid_after(unit, valid)
        return total

    def _skips(self, training, valid=None):
        skips = self.execution != "masked" and not training
        if skips and valid is not None:
            raise ValueError(
                f"valid: needs execution='masked'; {self.name} has {self.execution!r}"
            )
        return skips

    def _run_active(self, unit, x, active, sums):
        """Runs a unit in inference where active (None: everywhere).

        Returns its output and the output's sums over positions.
        """
        is_tiled = self.execution == "tiled" and active is not None
        if is_tiled and hasattr(unit, "run_tiled"):
            return unit.run_tiled(x, active, sums, self.tile_size)
        if hasattr(unit, "run_active"):
            return unit.run_active(x, active, sums)
        x = _run_unit(unit, x, False, active)
        return x, tf.reduce_sum(x, [1, 2])

    def _flops_end_point(self, flops):
        """Sums the units' counts, or reports none where a unit does not count."""
        if not all(hasattr(unit, "flops") for unit in self.units):
            return {}
        return {"flops": tf.reduce_sum(tf.stack(flops), 0)}


class _AdaptiveBlock(PlainBlock):
    """What ACT and SACT blocks share: heads, tau, and what they report."""

    _head_class: type[keras.layers.Layer] = ImageHaltingScore

    def __init__(
        self,
        units: Sequence[keras.layers.Layer],
        tau: float = 1.0,
        epsilon: float = EPSILON,
        batch_norm=None,
        weight_decay: float = 0.0,
        execution: str = "masked",
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(units, execution, name=name, **kwargs)
        if not tau >= 0:
            raise ValueError(f"tau must be a number >= 0, got {tau}")
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must lie in [0, 1), got {epsilon}")
        self.tau = tau
        self.epsilon = epsilon

        if batch_norm is None:

            def batch_norm(name):
                return BatchNorm(decay=0.99, epsilon=1e-3, name=name)

        self.heads = [
            self._head_class(batch_norm, weight_decay, name=f"unit_{k}_halting_proba")
            for k in range(1, len(self.units))
        ]

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        scopes = super().slim_scopes
        for k, head in enumerate(self.heads, 1):
            scopes[f"unit_{k}/halting_proba"] = head
        return scopes

    def build(self, input_shape):
        super().build(input_shape)
        shapes = self._unit_output_shapes
        for k, shape in enumerate(shapes[1:], 2):
            if shape.rank != 4 or not shape.is_compatible_with(shapes[0]):
                raise ValueError(
                    f"units after the first must keep the shape [batch, height, width, "
                    f"channels] of their input: unit {k} ({self.units[k - 1].name}) "
                    f"maps {shapes[k - 2]} to {shape}"
                )
        for head, shape in zip(self.heads, shapes):
            with tf.name_scope(head.name):
                head.build(shape)

    def _call_perforated(self, x, return_end_points):
        """The same in inference, at active images or positions only."""
        state = output = active = sums = None
        weights, scores, flops = [], [], []
        for k, unit in enumerate(self.units):
            unit_input = x
            # x can be updated in place once nobody else is going to read it.
            with tf.control_dependencies([] if output is None else [output]):
                x, sums = self._run_active(unit, x, active, sums)
            if state is None:
                state = initial_halting_state(self._shape(x))
            if return_end_points:
                flops += self._active_flops(k, x, unit_input, state.active)
            is_last = k == len(self.heads)
            score = None
            if not is_last:
                score = self.heads[k].run_active(x, state.active, sums)
                scores.append(score)
            weight, state = halting_step(state, score, is_last, self.epsilon)
            weights.append(weight)
            spread = self._spread(weight, x)
            if output is None:
                output = tf.cast(spread, x.dtype)[..., tf.newaxis] * x
            else:
                output = custom_ops.masked_accumulate(output, x, spread)
            active = self._spread(state.active, x)
        return self._finish(output, state, weights, scores, flops, return_end_points)

    def _finish(
        self,
        output: tf.Tensor,
        state: HaltingState,
        weights: list[tf.Tensor],
        scores: list[tf.Tensor],
        flops: list[tf.Tensor],
        return_end_points: bool,
        valid: tf.Tensor | None = None,
    ):
        self.add_loss(self.tau * self._mean_ponder_cost(state.ponder_cost, valid))
        if not return_end_points:
            return output
        end_points = {
            "ponder_cost": state.ponder_cost,
            "num_units": state.num_units,
            "halting_distribution": tf.stack(weights, axis=-1),
            **self._flops_end_point(flops),
        }
        for k, score in enumerate(scores, 1):
            end_points[f"unit_{k}/halting_proba"] = score[..., tf.newaxis]
        return output, end_points

    def _score(self, k, x, training, valid, **options):
        """Runs the head of unit k (from 0)."""
        if valid is not None:
            options["valid"] = valid
        return self.heads[k](x, training=training, **options)

    def _mean_ponder_cost(self, ponder_cost, valid):
        """Averages over images and, within each, its positions."""
        return tf.reduce_mean(ponder_cost)

    def _step_flops(self, k, x, unit_input, active=None, valid=None):
        """Operations of unit k (from 0) and its head, as [] or [int64 [batch]]."""
        unit = self.units[k]
        if not hasattr(unit, "flops"):
            return []
        flops = _unit_flops(unit, unit_input, active=active, valid=valid)
        if k < len(self.heads):
            valid = valid_after(unit, valid)
            flops += _unit_flops(self.heads[k], x, active=active, valid=valid)
        return [flops]


class ACTBlock(_AdaptiveBlock):
    """Adaptive Computation Time: each image halts on its own (section 3.1).

    After each unit an image may halt; what follows gets no weight in its output. Adds
    `tau` times the mean ponder cost to the losses.

    Args:
        units: Non-empty list of residual units.
        tau: Weight of the ponder cost, at least 0.
        epsilon: Halting slack (eq. 7), in [0, 1).
        batch_norm: Makes the batch normalizations of the halting heads, given a name.
        weight_decay: L2 coefficient of the halting heads.
        execution: "masked" or "perforated".
        early_stopping: Whether units are skipped at run time once the whole batch has
            halted. The results are the same; time is saved.
        name: Keras name of the layer.

    Raises:
        ValueError: On a negative `tau`, an `epsilon` outside [0, 1), no units, or (when
            built) units after the first that do not keep their input's shape.
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
            units, tau, epsilon, batch_norm, weight_decay, execution, name, **kwargs
        )
        self.early_stopping = early_stopping

    def call(self, x, training=None, return_end_points=False, valid=None):
        if self._skips(training, valid):
            return self._call_perforated(x, return_end_points)
        state = initial_halting_state(tf.shape(x)[:1])
        output = None
        weights, scores, flops = [], [], []
        for k in range(len(self.units)):
            active = state.active

            def step(k=k, x=x, state=state, output=output, valid=valid):
                return self._step(k, x, state, output, training, valid)

            def skip(x=x, state=state, output=output):
                zeros = tf.zeros(tf.shape(x)[:1])
                return x, output, state, zeros, zeros

            unit_input = x
            if k and self.early_stopping:
                x, output, state, weight, score = tf.cond(
                    tf.reduce_any(active), step, skip
                )
            else:
                x, output, state, weight, score = step()
            weights.append(weight)
            if k < len(self.heads):
                scores.append(score)
            if return_end_points:
                flops += self._active_flops(k, x, unit_input, active, valid)
            valid = valid_after(self.units[k], valid)
        return self._finish(output, state, weights, scores, flops, return_end_points)

    def _step(self, k, x, state, output, training, valid):
        x = _run_unit(self.units[k], x, training, valid=valid)
        is_last = k == len(self.heads)
        score = tf.ones(tf.shape(x)[:1])
        if not is_last:
            valid = valid_after(self.units[k], valid)
            score = self._score(k, x, training, valid)
        weight, state = halting_step(state, score, is_last, self.epsilon)
        term = tf.cast(weight, x.dtype)[:, tf.newaxis, tf.newaxis, tf.newaxis] * x
        return x, term if output is None else output + term, state, weight, score

    def _active_flops(self, k, x, unit_input, active, valid=None):
        return [
            count * tf.cast(active, tf.int64)
            for count in self._step_flops(k, x, unit_input, valid=valid)
        ]

    def _shape(self, x):
        return tf.shape(x)[:1]

    def _spread(self, per_image, x):
        """Gives every position of x [batch, height, width] its image's value."""
        return tf.broadcast_to(per_image[:, tf.newaxis, tf.newaxis], tf.shape(x)[:3])


class SACTBlock(_AdaptiveBlock):
    """Spatially Adaptive Computation Time: each position halts alone (section 3.2).

    A position that has halted is frozen: it keeps its value while its neighbours go on.
    Adds `tau` times the mean ponder cost over images and positions to the losses.

    Args:
        units: Non-empty list of residual units.
        tau: Weight of the ponder cost, at least 0.
        epsilon: Halting slack (eq. 7), in [0, 1).
        batch_norm: Makes the batch normalizations of the halting heads, given a name.
        weight_decay: L2 coefficient of the halting heads.
        execution: One of `EXECUTIONS`.
        tile_size: Side k of the square tiles whose positions share their mean halting
            score, and so halt together (section 2.3); 1: each position alone.
        name: Keras name of the layer.

    Raises:
        ValueError: As `ACTBlock`, and on a `tile_size` below 1 (2 if `execution` is
            "tiled").
    """

    _executions = EXECUTIONS
    _head_class = SpatialHaltingScore

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
            units, tau, epsilon, batch_norm, weight_decay, execution, name, **kwargs
        )
        at_least = 2 if execution == "tiled" else 1
        if tile_size != int(tile_size) or tile_size < at_least:
            raise ValueError(
                f"tile_size must be an integer >= {at_least} with execution="
                f"{execution!r}; got {tile_size}"
            )
        self.tile_size = int(tile_size)
        for head in self.heads:
            head.tile_size = self.tile_size

    def call(self, x, training=None, return_end_points=False, valid=None):
        if self._skips(training, valid):
            return self._call_perforated(x, return_end_points)
        active = None  # every position computes the first unit
        output = None
        weights, scores, flops = [], [], []
        for k, unit in enumerate(self.units):
            unit_input = x
            x = _run_unit(unit, x, training, active, valid)
            if return_end_points:
                flops += self._step_flops(k, x, unit_input, active, valid)
            valid = valid_after(unit, valid)
            is_last = k == len(self.heads)
            score = None
            if not is_last:
                score = self._score(k, x, training, valid, active=active)
                scores.append(score)
            if active is None:
                state = initial_halting_state(tf.shape(x)[:3], valid)
            weight, state = halting_step(state, score, is_last, self.epsilon)
            weights.append(weight)
            term = tf.cast(weight, x.dtype)[..., tf.newaxis] * x
            output = term if output is None else output + term
            active = state.active
        return self._finish(
            output, state, weights, scores, flops, return_end_points, valid
        )

    def _mean_ponder_cost(self, ponder_cost, valid):
        if valid is None:
            return tf.reduce_mean(ponder_cost)
        counts = tf.reduce_sum(tf.cast(valid, tf.float32), [1, 2])
        return tf.reduce_mean(tf.reduce_sum(ponder_cost, [1, 2]) / counts)

    def _active_flops(self, k, x, unit_input, active):
        return self._step_flops(k, x, unit_input, active if k else None)

    def _shape(self, x):
        return tf.shape(x)[:3]

    def _spread(self, per_position, x):
        return per_position
