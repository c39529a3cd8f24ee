"""The unit of iterative networks: one set of weights, run again and again."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf import flops
from sact_tf.layers import (
    BatchNorm,
    build_child,
    conv2d,
    kernel_initializer,
    policy_of,
    zero_outside,
)
from sact_tf.units import parts
from sact_tf.units.unit import Unit

_EPSILON = 1e-5
_NATIVE_CHANNELS = 256
"""From so many, native convolutions of all positions took at most the time of
TensorFlow's: half of it at 512 channels, 7x7; with 64, 1.4 times as long."""


def iterative_batch_norm(name: str, activates: bool = True) -> BatchNorm:
    """Makes a batch normalization of iterative networks, by default with ReLU.

    The papers say nothing of its constants; these are PyTorch's, in which they were
    written.
    """
    activation = tf.nn.relu if activates else None
    return BatchNorm(decay=0.9, epsilon=_EPSILON, activation=activation, name=name)


def _normalized(x, norm):
    """Normalizes x in inference, as `BatchNorm` does, by [4, channels]."""
    if x.dtype == tf.float64:  # for which there is no fused kernel
        gamma, beta, mean, variance = tf.unstack(tf.cast(norm, x.dtype))
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, _EPSILON)
    gamma, beta, mean, variance = tf.unstack(norm)
    return tf.compat.v1.nn.fused_batch_norm(
        x, gamma, beta, mean, variance, epsilon=_EPSILON, is_training=False
    )[0]


@keras.utils.register_keras_serializable("sact_tf")
class IterativeUnit(Unit):
    """Bottleneck that a block runs up to `iterations` times (Leroux et al., 2022).

    y_i = F(s_(i-1)), s_i = s_(i-1) + y_i, where F is a 1x1, a 3x3 and a 1x1 convolution
    with a batch normalization each, and ReLU after the first two. All iterations share
    the convolutions; every one has batch normalizations of its own. IamNN (Leroux et
    al., 2018) begins with s_0 = 0, and F reads the block's input beside the state.

    Whether ReLU follows the last convolution is not said. Here it does not: states
    could only grow. The block's output goes through ReLU instead.

    Args:
        channels: n, of the 3x3 convolution.
        iterations: The most that a block runs it.
        expansion: e; states have e * n channels.
        reads_inputs: Whether it is that of IamNN.
        depthwise: Whether the 3x3 convolution is a depthwise one and a 1x1 convolution.
        weight_decay: L2 coefficient of the convolutions.
        name: Keras name of the layer.
    """

    takes_valid = takes_step = takes_inputs = True

    def __init__(
        self,
        channels: int,
        iterations: int,
        expansion: int = 1,
        reads_inputs: bool = False,
        depthwise: bool = False,
        weight_decay: float = 0.0,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.channels = channels
        self.iterations = iterations
        self.expansion = expansion
        self.reads_inputs = reads_inputs
        self._weight_decay = weight_decay
        self.depthwise = None
        with policy_of(self):
            self._make_layers(depthwise)

    def _make_layers(self, depthwise):
        n, decay = self.channels, dict(weight_decay=self._weight_decay)
        if depthwise:
            self.depthwise = keras.layers.DepthwiseConv2D(
                3,
                padding="same",
                use_bias=False,
                depthwise_initializer=kernel_initializer(),
                depthwise_regularizer=keras.regularizers.L2(self._weight_decay / 2),
                name="depthwise",
            )
        self.conv1 = conv2d(n, 1, name="conv1", **decay)
        self.conv2 = conv2d(n, 1 if depthwise else 3, name="conv2", **decay)
        self.conv3 = conv2d(self.expansion * n, 1, name="conv3", **decay)
        for c in (1, 2, 3):
            norms = [
                iterative_batch_norm(f"conv{c}_bn_{i}", activates=c < 3)
                for i in range(1, self.iterations + 1)
            ]
            setattr(self, f"conv{c}_bn", norms)

    @property
    def starts_at_zero(self) -> bool:
        """Whether the first state is 0, rather than the block's input."""
        return self.reads_inputs

    def _convolutions(self):
        layers = (self.conv1, self.depthwise, self.conv2, self.conv3)
        return [layer for layer in layers if layer is not None]

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "iterations": self.iterations,
            "expansion": self.expansion,
            "reads_inputs": self.reads_inputs,
            "depthwise": self.depthwise is not None,
            "weight_decay": self._weight_decay,
        }

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        scopes = {layer.name: layer for layer in self._convolutions()}
        norms = (*self.conv1_bn, *self.conv2_bn, *self.conv3_bn)
        return {**scopes, **{norm.name: norm for norm in norms}}

    def build(self, input_shape):
        shape, outer = list(input_shape), self.expansion * self.channels
        read = outer * (2 if self.reads_inputs else 1)
        build_child(self.conv1, [*shape[:3], read])
        inner = [*shape[:3], self.channels]
        for layer in self._convolutions()[1:]:
            build_child(layer, inner)
        for norm in (*self.conv1_bn, *self.conv2_bn):
            build_child(norm, inner)
        for norm in self.conv3_bn:
            build_child(norm, [*shape[:3], outer])
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return tf.TensorShape(input_shape)

    def call(self, x, active=None, training=None, valid=None, step=0, inputs=None):
        features = x
        if self.reads_inputs:
            x = tf.zeros_like(x) if step == 0 else x
            features = tf.concat([inputs, x], -1)
        y = self.conv1_bn[step](self.conv1(features), training=training)
        y = zero_outside(y, valid)
        y = y if self.depthwise is None else self.depthwise(y)
        y = self.conv2_bn[step](self.conv2(y), training=training)
        y = self.conv3_bn[step](self.conv3(y), training=training)
        return parts.add_residual(x, y, active)

    def stacked_norms(self) -> tuple[tf.Tensor, ...]:
        """Returns what normalizes every iteration in inference.

        Returns:
            Of every convolution in turn [iterations, 4, channels]: gamma, beta, moving
            mean and variance.
        """
        return tuple(
            tf.stack(
                [
                    tf.stack([n.gamma, n.beta, n.moving_mean, n.moving_variance])
                    for n in norms
                ]
            )
            for norms in (self.conv1_bn, self.conv2_bn, self.conv3_bn)
        )

    def run_gathered(
        self,
        x: tf.Tensor,
        norms: tuple[tf.Tensor, ...],
        inputs: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Runs an iteration in inference, as a call does.

        Where that is faster, by native kernels: a convolution takes the normalization
        and ReLU before it along, so that its input is read once.

        Args:
            x: States of images that run, [running, height, width, channels]; those
                of IamNN are 0 at first.
            norms: Of this iteration, [4, channels] each; see `stacked_norms`.
            inputs: What the block was given of these images.
        """
        features = tf.concat([inputs, x], -1) if self.reads_inputs else x
        fits = self.depthwise is None and self.channels >= _NATIVE_CHANNELS
        if fits and custom_ops.runs_on_cpu("PerforatedConv2DAt", x.dtype):
            return x + self._run_native(features, norms)
        y = tf.nn.relu(_normalized(self.conv1(features), norms[0]))
        y = y if self.depthwise is None else self.depthwise(y)
        y = tf.nn.relu(_normalized(self.conv2(y), norms[1]))
        return x + _normalized(self.conv3(y), norms[2])

    def _run_native(self, features, norms):
        everywhere = custom_ops.find_positions(tf.ones(tf.shape(features)[:3], tf.bool))
        y, before = features, {}
        for conv, (gamma, beta, mean, variance) in zip(
            (self.conv1, self.conv2, self.conv3), map(tf.unstack, norms)
        ):
            kernel = tf.cast(conv.kernel, y.dtype)
            y = custom_ops.perforated_conv2d(y, kernel, everywhere, **before)
            scale = gamma * tf.math.rsqrt(variance + _EPSILON)
            shift = beta - mean * scale
            scale, shift = (tf.cast(vector, y.dtype) for vector in (scale, shift))
            before = dict(input_scale=scale, input_shift=shift, input_slope=0.0)
        return y * scale + shift

    def flops(
        self,
        x: tf.Tensor,
        active: tf.Tensor | None = None,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Operations of one iteration on inputs shaped like x; int64 [batch]."""
        mask = valid if active is None else active
        counted = flops.num_positions(x) if mask is None else flops.num_active(mask)
        weights = sum(
            int(np.prod(variable.shape))
            for layer in self._convolutions()
            for variable in layer.weights
        )
        return counted * (2 * weights)
