"""The pre-activation unit of two 3x3 convolutions of CIFAR networks.

A unit maps x to shortcut + mask * residual. It takes an optional bool mask `active`
[batch, height, width] of its output: where it is False the position is frozen and keeps
its value (SACT, section 2.3). Only units that keep shape may be given one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

import custom_ops
from custom_ops.implementation import native_library
from sact_tf import flops
from sact_tf.layers import (
    BatchNorm,
    build_child,
    conv2d,
    factory,
    policy_of,
    saved,
    slope_of,
)
from sact_tf.units import parts
from sact_tf.units.unit import Unit, is_own


@keras.utils.register_keras_serializable("sact_tf")
class BasicUnit(Unit):
    """Pre-activation unit of two 3x3 convolutions (CIFAR networks).

    Args:
        channels: Output channels; at least the input's. A change of depth is made up
            for by zero channels on both sides of a 2x2 average pooled shortcut.
        strides: Stride of the first convolution, 1 or 2.
        batch_norm: Makes the batch normalization and activation of the input, given a
            name; or the configuration of one.
        inner_batch_norm: The same for the one between the two convolutions.
        preact_shortcut: Whether the shortcut is the pre-activation (first unit of the
            network) or the raw input.
        weight_decay: L2 coefficient of the convolutions.
    """

    takes_precision = True

    def __init__(
        self,
        channels: int,
        strides: int,
        batch_norm: Callable[..., BatchNorm] | Mapping[str, Any],
        inner_batch_norm: Callable[..., BatchNorm] | Mapping[str, Any],
        preact_shortcut: bool = False,
        weight_decay: float = 0.0,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.channels = channels
        self.strides = strides
        self.preact_shortcut = preact_shortcut
        self._weight_decay = weight_decay
        decay = dict(weight_decay=weight_decay)
        with policy_of(self):
            self.preact = factory(batch_norm)(name="preact")
            self.conv1 = conv2d(channels, 3, strides, name="conv1", **decay)
            self.conv1_bn = factory(inner_batch_norm)(name="conv1_bn")
            self.conv2 = conv2d(channels, 3, use_bias=True, name="conv2", **decay)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "strides": self.strides,
            "batch_norm": saved(self.preact),
            "inner_batch_norm": saved(self.conv1_bn),
            "preact_shortcut": self.preact_shortcut,
            "weight_decay": self._weight_decay,
        }

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        return {
            "residual/preact": self.preact,
            "residual/conv1": self.conv1,
            "residual/conv1/BatchNorm": self.conv1_bn,
            "residual/conv2": self.conv2,
        }

    def build(self, input_shape):
        build_child(self.preact, input_shape)
        build_child(self.conv1, input_shape)
        inner_shape = [*input_shape[:3], self.channels]
        build_child(self.conv1_bn, inner_shape)
        build_child(self.conv2, inner_shape)
        super().build(input_shape)

    def output_stride(self):
        return self.strides

    def compute_output_shape(self, input_shape):
        return parts.downsampled(input_shape, self.strides, self.channels)

    def call(self, x, active=None, training=None):
        preact = self.preact(x, training=training)
        shortcut = self._shortcut(preact if self.preact_shortcut else x)
        residual = self.conv1_bn(self.conv1(preact), training=training)
        return parts.add_residual(shortcut, self.conv2(residual), active)

    def run_active(
        self, x: tf.Tensor, active, sums: tf.Tensor | None, precision: str = "float32"
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `BottleneckUnit.run_active`."""
        slopes = [slope_of(bn.activation) for bn in (self.preact, self.conv1_bn)]
        changes_shape = self.strides > 1 or x.shape[-1] != self.channels
        if changes_shape or self.preact_shortcut or None in slopes:
            return super().run_active(x, active, sums)
        if active is None:
            active = tf.ones(tf.shape(x)[:3], tf.bool)
        x = custom_ops.perforated_basic_unit(
            x,
            active,
            self.preact.folded(x.dtype),
            [tf.cast(conv.kernel, x.dtype) for conv in (self.conv1, self.conv2)],
            self.conv1_bn.folded(x.dtype),
            tf.cast(self.conv2.bias, x.dtype),
            slopes,
            precision=precision,
        )
        return x, tf.reduce_sum(x, [1, 2])

    def run_tiled(
        self, x: tf.Tensor, active, sums: tf.Tensor, tile_size: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `BottleneckUnit.run_tiled`."""

        if native_library("auto", "PerforatedBasicUnitAt", x.dtype) is not None:
            # It reads tiles in place; dense convolutions need a copy with surroundings.
            return self.run_active(x, active, sums)

        def residual(tiles, inside):
            tiles = parts.valid_conv(
                self.conv1, parts.zero_outside_image(self.preact(tiles), inside)
            )
            tiles = parts.zero_outside_image(
                self.conv1_bn(tiles), inside[:, 1:-1, 1:-1]
            )
            return parts.valid_conv(self.conv2, tiles) + tf.cast(
                self.conv2.bias, tiles.dtype
            )

        x, residual_sums = custom_ops.add_on_tiles(
            x, custom_ops.mask_of(active), tile_size, 2, residual
        )
        return x, sums + residual_sums

    def _shortcut(self, x):
        if self.strides > 1:
            # As the original's VALID pooling on the even sizes it accepts, and defined
            # on odd ones.
            x = tf.nn.avg_pool2d(x, self.strides, self.strides, "SAME")
        missing = self.channels - x.shape[-1]
        if missing:
            before = missing // 2
            x = tf.pad(x, [[0, 0], [0, 0], [0, 0], [before, missing - before]])
        return x

    def flops(self, x: tf.Tensor, active: tf.Tensor | None = None) -> tf.Tensor:
        """Operations per image on inputs shaped like x; int64 [batch].

        Under a mask the first convolution is counted on the mask dilated by 3x3, the
        second on the mask itself.
        """
        if active is None:
            first = second = flops.num_positions(x, self.strides)
        else:
            first = flops.num_active(flops.dilate(active))
            second = flops.num_active(active)
        return self.flops_at(second, first)

    def flops_at(self, runs: tf.Tensor, reads: tf.Tensor) -> tf.Tensor:
        first = flops.conv2d_flops(self.conv1, reads)
        return first + flops.conv2d_flops(self.conv2, runs)

    def block_parameters(self) -> custom_ops.UnitParameters | None:
        norms = [bn.as_norm() for bn in (self.preact, self.conv1_bn)]
        keeps_shape = self.strides == 1 and self.conv1.kernel.shape[2] == self.channels
        if (
            not keeps_shape
            or self.preact_shortcut
            or None in norms
            or not is_own(self, BasicUnit, "call", "run_active", "flops")
        ):
            return None
        kernels = [conv.kernel for conv in (self.conv1, self.conv2)]
        return custom_ops.UnitParameters(norms, kernels, self.conv2.bias)
