"""The pre-activation bottleneck unit of ImageNet networks.

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
    zero_outside,
)
from sact_tf.units import parts
from sact_tf.units.unit import Unit, is_own


@keras.utils.register_keras_serializable("sact_tf")
class BottleneckUnit(Unit):
    """Pre-activation bottleneck unit: 1x1, 3x3, 1x1 (ImageNet networks).

    Takes `valid`: see `Unit`.

    Args:
        channels: Output channels.
        bottleneck_channels: Channels of the 1x1 and 3x3 convolutions inside.
        strides: Stride of the 3x3 convolution and of the shortcut.
        batch_norm: Makes a batch normalization with ReLU, given a name; or the
            configuration of one.
        weight_decay: L2 coefficient of the convolutions.
        rate: Dilation of the 3x3 convolution (atrous convolution).
        downsample: Where the stride is: "conv2", as above; "input": of its input the
            unit takes every so many positions, and all else runs at stride 1.

    Raises:
        ValueError: There are a stride and a dilation.
    """

    takes_valid = takes_precision = True

    def __init__(
        self,
        channels: int,
        bottleneck_channels: int,
        strides: int,
        batch_norm: Callable[..., BatchNorm] | Mapping[str, Any],
        weight_decay: float = 0.0,
        name: str | None = None,
        rate: int = 1,
        downsample: str = "conv2",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if rate > 1 and strides > 1:
            raise ValueError(
                f"rate must be 1 in a unit of stride {strides}; got {rate}"
            )
        self.rate = rate
        self.channels = channels
        self.strides = strides
        self.bottleneck_channels = bottleneck_channels
        self._weight_decay = weight_decay
        self.downsample = downsample
        # Of which the input's part is taken first, and what is left inside.
        self._input_stride = strides if downsample == "input" else 1
        self._stride = strides // self._input_stride
        self.shortcut = None
        with policy_of(self):
            self._make_layers(factory(batch_norm))

    def _make_layers(self, batch_norm):
        inner, decay = self.bottleneck_channels, dict(weight_decay=self._weight_decay)
        padding = "same" if self._stride == 1 else "valid"
        self.preact = batch_norm(name="preact")
        self.conv1 = conv2d(inner, 1, name="conv1", **decay)
        self.conv1_bn = batch_norm(name="conv1_bn")
        self.conv2 = conv2d(
            *(inner, 3, self._stride, padding), rate=self.rate, name="conv2", **decay
        )
        self.conv2_bn = batch_norm(name="conv2_bn")
        self.conv3 = conv2d(self.channels, 1, use_bias=True, name="conv3", **decay)

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "bottleneck_channels": self.bottleneck_channels,
            "strides": self.strides,
            "batch_norm": saved(self.preact),
            "weight_decay": self._weight_decay,
            "rate": self.rate,
            "downsample": self.downsample,
        }

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        scopes = {
            "bottleneck_v2/preact": self.preact,
            "bottleneck_v2/conv1": self.conv1,
            "bottleneck_v2/conv1/BatchNorm": self.conv1_bn,
            "bottleneck_v2/conv2": self.conv2,
            "bottleneck_v2/conv2/BatchNorm": self.conv2_bn,
            "bottleneck_v2/conv3": self.conv3,
        }
        if self.shortcut is not None:
            scopes["bottleneck_v2/shortcut"] = self.shortcut
        return scopes

    def build(self, input_shape):
        build_child(self.preact, input_shape)
        if input_shape[-1] != self.channels:
            with policy_of(self):
                self.shortcut = conv2d(
                    self.channels,
                    1,
                    self._stride,
                    use_bias=True,
                    weight_decay=self._weight_decay,
                    name="shortcut",
                )
            build_child(self.shortcut, input_shape)
        build_child(self.conv1, input_shape)
        inner_shape = [*input_shape[:3], self.conv1.filters]
        for layer in (self.conv1_bn, self.conv2, self.conv2_bn, self.conv3):
            build_child(layer, inner_shape)
        super().build(input_shape)

    def output_stride(self):
        return self.strides

    def compute_output_shape(self, input_shape):
        return parts.downsampled(input_shape, self.strides, self.channels)

    def call(self, x, active=None, training=None, valid=None):
        x, valid = self._subsampled(x), self._subsampled(valid)
        preact = self.preact(x, training=training)
        if self.shortcut is not None:
            shortcut = self.shortcut(preact)
        elif self._stride > 1:
            shortcut = x[:, :: self._stride, :: self._stride]
        else:
            shortcut = x
        residual = self.conv1_bn(self.conv1(preact), training=training)
        residual = zero_outside(residual, valid)
        if self._stride > 1:  # independent of the parity of the image size
            residual = tf.pad(residual, [[0, 0], [1, 1], [1, 1], [0, 0]])
        residual = self.conv2_bn(self.conv2(residual), training=training)
        return parts.add_residual(shortcut, self.conv3(residual), active)

    def _subsampled(self, x):
        """Takes of features, or of a mask of them, what the unit works on."""
        stride = self._input_stride
        return x if x is None or stride == 1 else x[:, ::stride, ::stride]

    def run_active(
        self, x: tf.Tensor, active, sums: tf.Tensor | None, precision: str = "float32"
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs the unit in inference, computing active positions only.

        Args:
            x: [batch, height, width, channels].
            active: Bool [batch, height, width], or None: everywhere. Ignored by units
                with a projection shortcut, which run everywhere.
            sums: Sums of x over positions, [batch, channels], or None.
            precision: One of `custom_ops.PRECISIONS`, of the convolutions. Units whose
                activations are other than ReLU are always "float32".

        Returns:
            The output, and its sums over positions.
        """
        norms = (self.preact, self.conv1_bn, self.conv2_bn)
        strided_identity = self.strides > 1 and self.shortcut is None
        if strided_identity or [slope_of(bn.activation) for bn in norms] != [0.0] * 3:
            return super().run_active(x, active, sums)
        x = self._subsampled(x)
        if self.rate > 1:
            return self._run_active_dilated(x, active, sums, precision)
        preactivation, *norms = (bn.folded(x.dtype) for bn in norms)
        convolutions = (self.conv1, self.conv2, self.conv3)
        filters = [tf.cast(conv.kernel, x.dtype) for conv in convolutions]
        bias = tf.cast(self.conv3.bias, x.dtype)
        if self.shortcut is not None:
            projection = [tf.cast(v, x.dtype) for v in self.shortcut.weights]
            return custom_ops.projection_bottleneck(
                *(x, preactivation, filters, norms, bias, *projection, self._stride),
                precision=precision,
            )
        if active is None:
            active = tf.ones(tf.shape(x)[:3], tf.bool)
        outputs = custom_ops.perforated_bottleneck(
            *(x, active, preactivation, filters, norms, bias, sums),
            precision=precision,
        )
        if sums is None:
            return outputs, tf.reduce_sum(outputs, [1, 2])
        return outputs

    def _run_active_dilated(self, x, active, sums, precision):
        """As `run_active`, of single convolutions: the fused unit has no dilation."""
        if self.shortcut is not None or active is None:
            return super().run_active(x, active, sums)
        mask = custom_ops.mask_of(active)

        def convolve(x, conv, mask, norm, **options):
            scale, shift = norm.folded(x.dtype)
            return custom_ops.perforated_conv2d(
                x,
                tf.cast(conv.kernel, x.dtype),
                mask,
                input_scale=scale,
                input_shift=shift,
                input_slope=0.0,
                precision=precision,
                **options,
            )

        read = flops.dilate(mask, self.rate)
        residual = convolve(x, self.conv1, read, self.preact)
        residual = convolve(
            residual, self.conv2, mask, self.conv1_bn, dilations=self.rate
        )
        bias = tf.cast(self.conv3.bias, x.dtype)
        residual = convolve(residual, self.conv3, mask, self.conv2_bn, bias=bias)
        x = x + residual
        return x, tf.reduce_sum(x, [1, 2])

    def run_tiled(
        self, x: tf.Tensor, active, sums: tf.Tensor, tile_size: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `run_active`, by dense convolutions on the active tiles.

        Only for units that keep shape.

        Args:
            x: [batch, height, width, channels].
            active: Bool [batch, height, width], constant in tiles.
            sums: Sums of x over positions, [batch, channels].
            tile_size: Side of the tiles.
        """

        if native_library("auto", "PerforatedBottleneckAt", x.dtype) is not None:
            # It reads tiles in place; dense convolutions need a copy with surroundings.
            return self.run_active(x, active, sums)

        def residual(tiles, inside):
            tiles = self.conv1_bn(self.conv1(self.preact(tiles)))
            tiles = parts.valid_conv(
                self.conv2, parts.zero_outside_image(tiles, inside)
            )
            return self.conv3(self.conv2_bn(tiles))

        x, residual_sums = custom_ops.add_on_tiles(
            x, custom_ops.mask_of(active), tile_size, self.rate, residual
        )
        return x, sums + residual_sums

    def flops(
        self,
        x: tf.Tensor,
        active: tf.Tensor | None = None,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Operations per image on inputs shaped like x; int64 [batch].

        Under a mask the first convolution is counted where the 3x3 convolution reads
        (on the mask dilated by 3x3), the others on the mask itself.
        """
        x, valid = self._subsampled(x), self._subsampled(valid)
        if active is not None:
            first = flops.num_active(flops.dilate(active, self.rate), valid)
            others = flops.num_active(active)
        elif valid is not None:
            first = flops.num_active(valid)
            others = flops.num_active(valid[:, :: self._stride, :: self._stride])
        else:
            first = flops.num_positions(x)
            others = flops.num_positions(x, self._stride)
        return self.flops_at(others, first)

    def flops_at(self, runs: tf.Tensor, reads: tf.Tensor) -> tf.Tensor:
        total = flops.conv2d_flops(self.conv1, reads)
        for conv in (self.conv2, self.conv3, self.shortcut):
            if conv is not None:
                total += flops.conv2d_flops(conv, runs)
        return total

    def block_parameters(self) -> custom_ops.UnitParameters | None:
        norms = [bn.as_norm() for bn in (self.preact, self.conv1_bn, self.conv2_bn)]
        keeps_shape = self.strides == 1 and self.shortcut is None
        if (
            not keeps_shape
            or self.rate > 1
            or any(norm is None or norm.slope != 0.0 for norm in norms)
            or not is_own(self, BottleneckUnit, "call", "run_active", "flops")
        ):
            return None
        kernels = [conv.kernel for conv in (self.conv1, self.conv2, self.conv3)]
        return custom_ops.UnitParameters(norms, kernels, self.conv3.bias)
