"""The block of iterative networks: one unit, run until ACT stops it.

Leroux et al., IamNN (2018) and Iterative neural networks for adaptive inference (2022).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import tensorflow as tf
import tf_keras as keras

from sact_tf import flops
from sact_tf.blocks import AdaptiveBlock
from sact_tf.halting import EPSILON, CumulativeHalting, ImageDomain
from sact_tf.halting.gates import GATE_BIAS, IamGate, IterativeGate
from sact_tf.layers import build_child, conv2d, policy_of, zero_outside
from sact_tf.units import parts
from sact_tf.units.iterative import IterativeUnit, iterative_batch_norm

VARIANTS = {
    "iterative": "iterative residual network, which runs one unit per stage again and "
    "again (Leroux et al., 2022)",
    "iamnn": "the same as first published, with states that begin at 0 (2018)",
}
"""Iterative networks by name, and what they are."""


class FrozenImages(ImageDomain):
    """Images, of which those that have halted keep their state.

    Batch statistics of later iterations are then those of the states as they are, as in
    the paper's algorithm.
    """

    def mask(self, active):
        return active[:, tf.newaxis, tf.newaxis]


class _Running(NamedTuple):
    """The images that still run, and what has become of the others.

    Attributes:
        index: int32 [running], their numbers in the batch.
        features: Their states, [running, height, width, channels].
        inputs: What the block was given of them.
        partial: The sum of their weighted states so far.
        outputs: The block's output of those that have halted, [batch, ...].
        state: Of the halting rule, all of [batch].
    """

    index: tf.Tensor
    features: tf.Tensor
    inputs: tf.Tensor
    partial: tf.Tensor
    outputs: tf.Tensor
    state: tuple


@keras.utils.register_keras_serializable("sact_tf")
class IterativeBlock(AdaptiveBlock):
    """A stage: the way down to it, one unit run up to L times, and ReLU.

    With execution "perforated", images leave the batch in inference once they have
    halted, and iterations are skipped once all have.

    Args:
        channels: n, of the unit's 3x3 convolution.
        iterations: L.
        expansion: e; the block's output has e * n channels.
        variant: One of `VARIANTS`.
        depthwise: As of `IterativeUnit`.
        strides: 1, or 2: the resolution is halved first, together with the change of
            channels: by the stride of that 1x1 convolution, or (IamNN) by max pooling
            before it.
        tau: Weight of the ponder cost.
        epsilon: Halting slack.
        execution: "masked" or "perforated".
        weight_decay: L2 coefficient of all convolutions and of the gate.
        halting_bias: Initial bias of the gate.
        name: Keras name of the layer.
    """

    def __init__(
        self,
        channels: int,
        iterations: int,
        expansion: int = 1,
        variant: str = "iterative",
        depthwise: bool = False,
        strides: int = 1,
        tau: float = 0.001,
        epsilon: float = EPSILON,
        execution: str = "masked",
        weight_decay: float = 0.0,
        halting_bias: float = GATE_BIAS,
        name: str | None = None,
        **kwargs,
    ):
        self._own_config = dict(
            channels=channels,
            iterations=iterations,
            expansion=expansion,
            variant=variant,
            depthwise=depthwise,
            strides=strides,
            epsilon=epsilon,
            weight_decay=weight_decay,
            halting_bias=halting_bias,
        )
        is_iamnn = variant == "iamnn"
        gate = IamGate if is_iamnn else IterativeGate
        unit = IterativeUnit(
            channels,
            iterations,
            expansion,
            is_iamnn,
            depthwise,
            weight_decay,
            name="unit_1",
            dtype=kwargs.get("dtype"),
        )
        super().__init__(
            [unit] * iterations,
            CumulativeHalting(epsilon),
            FrozenImages(),
            tau,
            functools.partial(gate, bias=halting_bias),
            execution,
            weight_decay=weight_decay,
            name=name,
            **kwargs,
        )
        self.strides = strides
        self._pools = is_iamnn and strides > 1
        self.transition = self.transition_bn = None

    def get_config(self):
        return {
            **keras.layers.Layer.get_config(self),
            **self._own_config,
            "tau": self.tau,
            "execution": self.execution,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.units[0].channels * self.units[0].expansion

    @property
    def slim_scopes(self):
        scopes = dict(super().slim_scopes)
        if self.transition is not None:
            scopes["transition"] = self.transition
            scopes["transition/BatchNorm"] = self.transition_bn
        return scopes

    def build(self, input_shape):
        input_shape = tf.TensorShape(input_shape)
        if input_shape[-1] != self.out_channels or self.strides > 1:
            with policy_of(self):
                self.transition = conv2d(
                    self.out_channels,
                    1,
                    1 if self._pools else self.strides,
                    weight_decay=self._own_config["weight_decay"],
                    name="transition",
                )
                self.transition_bn = iterative_batch_norm("transition_bn")
            build_child(self.transition, input_shape)
            build_child(self.transition_bn, [None, None, None, self.out_channels])
        super().build(self.compute_output_shape(input_shape))
        self._build_input_shape = input_shape  # which files hold

    def compute_output_shape(self, input_shape):
        return parts.downsampled(input_shape, self.strides, self.out_channels)

    def output_stride(self):
        return self.strides

    def valid_after(self, valid):
        return valid if valid is None else valid[:, :: self.strides, :: self.strides]

    def _enter(self, x, training, valid):
        """Brings the input to the stage's resolution and channels."""
        if self._pools:
            x = tf.nn.max_pool2d(x, 2, 2, "SAME")
        if self.transition is None:
            return x
        x = self.transition_bn(self.transition(x), training=training)
        return zero_outside(x, valid)

    def _transition_flops(self, x, valid):
        """Counts on the stage's input; int64 [batch]."""
        if valid is not None:
            positions = flops.num_active(valid)
        else:
            positions = flops.num_positions(x)
        if self.transition is None:
            return tf.zeros_like(positions)
        return flops.conv2d_flops(self.transition, positions)

    def dense_flops(self, x, valid=None, num_units=None):
        valid = self.valid_after(valid)
        x = x[:, :: self.strides, :: self.strides]
        total = super().dense_flops(x, valid, num_units)
        return total + self._transition_flops(x, valid)

    def call(
        self,
        x,
        training=None,
        return_end_points=False,
        valid=None,
        seed=None,
        trains_rule=None,
    ):
        valid = self.valid_after(valid)
        x = self._enter(x, training, valid)
        if self.execution == "masked" or training:
            output, end_points = super().call(
                x, training, True, valid, seed, trains_rule
            )
        elif valid is not None:
            raise ValueError(
                f"valid: needs execution='masked'; {self.name} has {self.execution!r}"
            )
        else:
            output, end_points = self._run_gathered(x)
        if self.units[0].starts_at_zero:
            output += x
        output = zero_outside(tf.nn.relu(output), valid)
        if not return_end_points:
            return output
        end_points["flops"] += self._transition_flops(x, valid)
        gate_macs = self.heads[0].macs() if self.heads else 0
        gated = tf.minimum(end_points["num_units"], len(self.heads))
        scores = tf.cast(gated, tf.int64) * gate_macs
        end_points["macs"] = flops.multiply_accumulates(end_points["flops"]) + scores
        return output, end_points

    def _run_gathered(self, x):
        """Runs in inference; images that have halted leave the batch.

        A loop, and not a row of conditions: each of those takes time even where its
        iteration is skipped.
        """
        unit, last = self.units[0], len(self.units) - 1
        state = self.rule.initial(self.domain.shape(x), None)
        zeros = tf.zeros_like(x)
        batch = tf.shape(x)[0]
        first = zeros if unit.starts_at_zero else x
        running = _Running(tf.range(batch), first, x, zeros, zeros, state)
        told = tf.zeros([2, last + 1, batch])  # weights, and scores
        norms = unit.stacked_norms()

        def goes_on(k, running, told):
            return (k < last) & (tf.size(running.index) > 0)

        def step(k, running, told, is_last=False):
            running, *rows = self._gathered_step(k, running, norms, is_last)
            where = tf.stack([[0, k], [1, k]])
            return k + 1, running, tf.tensor_scatter_nd_update(told, where, rows)

        loop = (tf.constant(0), running, told)
        if last:
            shapes = tf.nest.map_structure(_shape_in_loop, loop)
            loop = tf.while_loop(goes_on, step, loop, shapes, parallel_iterations=1)
        _, running, told = tf.cond(
            tf.size(loop[1].index) > 0,
            lambda: step(tf.constant(last), *loop[1:], is_last=True),
            lambda: loop,
        )
        state = running.state
        self.add_loss(self.current_tau() * self.domain.mean(self.rule.cost(state)))
        each = unit.flops(x)
        end_points = {
            "ponder_cost": self.rule.cost(state),
            "num_units": state.num_units,
            "halting_distribution": tf.transpose(told[0]),
            "flops": each * tf.cast(state.num_units, tf.int64),
        }
        for k in range(last):
            end_points[f"unit_{k + 1}/halting_proba"] = told[1, k][:, tf.newaxis]
        return tf.ensure_shape(running.outputs, x.shape), end_points

    def _gathered_step(self, k, running, norms, is_last):
        """Runs iteration k (from 0) of the images that still run.

        Returns:
            What then runs; the iteration's weights and scores, float32 [batch] each.
        """
        before, index, unit = running.features, running.index, self.units[0]
        features = unit.run_gathered(before, [n[k] for n in norms], running.inputs)
        shape = self.domain.shape(running.outputs)
        score = None
        if not is_last:
            residual = features - before
            score = self.heads[0](features, residual, running.inputs, training=False)
            score = tf.scatter_nd(index[:, tf.newaxis], score, shape)
            score = self._impose(k, score, running.outputs)
        weight, state = self.rule.step(running.state, score, is_last)
        factors = self.domain.factors(tf.gather(weight, index), features)
        running = running._replace(
            features=features, partial=running.partial + factors * features, state=state
        )
        stays = tf.gather(state.active, index)
        running = tf.cond(
            tf.reduce_all(stays), lambda: running, lambda: _without(running, stays)
        )
        return running, weight, tf.zeros(shape) if score is None else score


def _shape_in_loop(value):
    """Returns the shape of a loop's variable, but for the images that run."""
    shape = value.shape
    images = shape.rank if shape.rank in (1, 4) else 0
    return tf.TensorShape([None, *shape[1:]]) if images else shape


def _without(running, stays):
    """Takes the images that have halted out of those that run.

    Args:
        running: `_Running`.
        stays: Bool [running].
    """
    halted = tf.where(~stays)
    outputs = tf.tensor_scatter_nd_update(
        running.outputs,
        tf.gather(running.index, halted),
        tf.gather(running.partial, halted[:, 0]),
    )
    stay = tf.where(stays)[:, 0]
    names = ("index", "features", "inputs", "partial")
    kept = {name: tf.gather(getattr(running, name), stay) for name in names}
    return running._replace(outputs=outputs, **kept)
