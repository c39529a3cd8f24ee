"""Pre-activation residual units: ImageNet bottleneck and CIFAR basic unit.

A unit maps x to shortcut + mask * residual. It takes an optional bool mask `active`
[batch, height, width] of its output: where it is False the position is frozen and keeps
its value (section 3.2). Only units that keep shape may be given one.

Bottleneck units also take a bool mask `valid` [batch, height, width] of their input,
False in the padding of images of several sizes in one batch: there, convolutions read
zeros, as beyond the border of an image alone, and nothing is counted.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf import flops
from sact_tf.layers import BatchNorm, conv2d, slope_of, zero_outside


def _add_residual(shortcut, residual, active):
    if active is not None:
        residual *= tf.cast(active, residual.dtype)[..., tf.newaxis]
    return shortcut + residual


def _run_densely(unit, x, active):
    x = unit(x, active=active, training=False)
    return x, tf.reduce_sum(x, [1, 2])


def _zero_outside(tiles, inside):
    """Sets what lies outside the image to the zeros that SAME convolutions pad with."""
    return tf.where(inside, tiles, tf.zeros([], tiles.dtype))


def _valid(conv, tiles):
    return tf.nn.conv2d(tiles, tf.cast(conv.kernel, tiles.dtype), 1, "VALID")


def _downsampled(shape, strides, channels):
    sides = [None if side is None else -(-side // strides) for side in shape[1:3]]
    return tf.TensorShape([shape[0], *sides, channels])


class BottleneckUnit(keras.layers.Layer):
    """Pre-activation bottleneck unit: 1x1, 3x3, 1x1 (ImageNet networks).

    Args:
        channels: Output channels.
        bottleneck_channels: Channels of the 1x1 and 3x3 convolutions inside.
        strides: Stride of the 3x3 convolution and of the shortcut.
        batch_norm: Makes a batch normalization with ReLU, given a name.
        weight_decay: L2 coefficient of the convolutions.
    """

    def __init__(
        self,
        channels: int,
        bottleneck_channels: int,
        strides: int,
        batch_norm: Callable[..., BatchNorm],
        weight_decay: float = 0.0,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.channels = channels
        self.strides = strides
        self._weight_decay = weight_decay
        decay = dict(weight_decay=weight_decay)
        self.preact = batch_norm(name="preact")
        self.conv1 = conv2d(bottleneck_channels, 1, name="conv1", **decay)
        self.conv1_bn = batch_norm(name="conv1_bn")
        self.conv2 = conv2d(
            bottleneck_channels,
            3,
            strides,
            "same" if strides == 1 else "valid",
            name="conv2",
            **decay,
        )
        self.conv2_bn = batch_norm(name="conv2_bn")
        self.conv3 = conv2d(channels, 1, use_bias=True, name="conv3", **decay)
        self.shortcut = None

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
        self.preact.build(input_shape)
        if input_shape[-1] != self.channels:
            self.shortcut = conv2d(
                self.channels,
                1,
                self.strides,
                use_bias=True,
                weight_decay=self._weight_decay,
                name="shortcut",
            )
            self.shortcut.build(input_shape)
        self.conv1.build(input_shape)
        inner_shape = [*input_shape[:3], self.conv1.filters]
        for layer in (self.conv1_bn, self.conv2, self.conv2_bn, self.conv3):
            layer.build(inner_shape)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return _downsampled(input_shape, self.strides, self.channels)

    def call(self, x, active=None, training=None, valid=None):
        preact = self.preact(x, training=training)
        if self.shortcut is not None:
            shortcut = self.shortcut(preact)
        elif self.strides > 1:
            shortcut = x[:, :: self.strides, :: self.strides]
        else:
            shortcut = x
        residual = self.conv1_bn(self.conv1(preact), training=training)
        residual = zero_outside(residual, valid)
        if self.strides > 1:  # independent of the parity of the image size
            residual = tf.pad(residual, [[0, 0], [1, 1], [1, 1], [0, 0]])
        residual = self.conv2_bn(self.conv2(residual), training=training)
        return _add_residual(shortcut, self.conv3(residual), active)

    def run_active(
        self, x: tf.Tensor, active: tf.Tensor | None, sums: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs the unit in inference, computing active positions only.

        Args:
            x: [batch, height, width, channels].
            active: Bool [batch, height, width], or None: everywhere. Ignored by units
                with a projection shortcut, which run everywhere.
            sums: Sums of x over positions, [batch, channels], or None.

        Returns:
            The output, and its sums over positions.
        """
        norms = (self.preact, self.conv1_bn, self.conv2_bn)
        strided_identity = self.strides > 1 and self.shortcut is None
        if strided_identity or [slope_of(bn.activation) for bn in norms] != [0.0] * 3:
            return _run_densely(self, x, active)
        preactivation, *norms = (bn.folded(x.dtype) for bn in norms)
        convolutions = (self.conv1, self.conv2, self.conv3)
        filters = [tf.cast(conv.kernel, x.dtype) for conv in convolutions]
        bias = tf.cast(self.conv3.bias, x.dtype)
        if self.shortcut is not None:
            projection = [tf.cast(v, x.dtype) for v in self.shortcut.weights]
            return custom_ops.projection_bottleneck(
                x, preactivation, filters, norms, bias, *projection, self.strides
            )
        if active is None:
            active = tf.ones(tf.shape(x)[:3], tf.bool)
        outputs = custom_ops.perforated_bottleneck(
            x, active, preactivation, filters, norms, bias, sums
        )
        if sums is None:
            return outputs, tf.reduce_sum(outputs, [1, 2])
        return outputs

    def run_tiled(
        self, x: tf.Tensor, active: tf.Tensor, sums: tf.Tensor, tile_size: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `run_active`, by dense convolutions on the active tiles.

        Only for units that keep shape.

        Args:
            x: [batch, height, width, channels].
            active: Bool [batch, height, width], constant in tiles.
            sums: Sums of x over positions, [batch, channels].
            tile_size: Side of the tiles.
        """

        def residual(tiles, inside):
            tiles = self.conv1_bn(self.conv1(self.preact(tiles)))
            tiles = _valid(self.conv2, _zero_outside(tiles, inside))
            return self.conv3(self.conv2_bn(tiles))

        x, residual_sums = custom_ops.add_on_tiles(x, active, tile_size, 1, residual)
        return x, sums + residual_sums

    def flops(
        self,
        x: tf.Tensor,
        active: tf.Tensor | None = None,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Operations per image on inputs shaped like x; int64 [batch].

        Under a mask the first convolution is counted on the mask dilated by 3x3, the
        others on the mask itself.
        """
        if active is not None:
            first = flops.num_active(flops.dilate(active), valid)
            others = flops.num_active(active)
        elif valid is not None:
            first = flops.num_active(valid)
            others = flops.num_active(valid[:, :: self.strides, :: self.strides])
        else:
            first = flops.num_positions(x)
            others = flops.num_positions(x, self.strides)
        total = flops.conv2d_flops(self.conv1, first)
        for conv in (self.conv2, self.conv3, self.shortcut):
            if conv is not None:
                total += flops.conv2d_flops(conv, others)
        return total


class BasicUnit(keras.layers.Layer):
    """Pre-activation unit of two 3x3 convolutions (CIFAR networks).

    Args:
        channels: Output channels; at least the input's. A change of depth is made up
            for by zero channels on both sides of a 2x2 average pooled shortcut.
        strides: Stride of the first convolution, 1 or 2.
        batch_norm: Makes the batch normalization and activation of the input, given a
            name.
        inner_batch_norm: The same for the one between the two convolutions.
        preact_shortcut: Whether the shortcut is the pre-activation (first unit of the
            network) or the raw input.
        weight_decay: L2 coefficient of the convolutions.
    """

    def __init__(
        self,
        channels: int,
        strides: int,
        batch_norm: Callable[..., BatchNorm],
        inner_batch_norm: Callable[..., BatchNorm],
        preact_shortcut: bool = False,
        weight_decay: float = 0.0,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.channels = channels
        self.strides = strides
        self.preact_shortcut = preact_shortcut
        self.preact = batch_norm(name="preact")
        self.conv1 = conv2d(
            channels, 3, strides, weight_decay=weight_decay, name="conv1"
        )
        self.conv1_bn = inner_batch_norm(name="conv1_bn")
        self.conv2 = conv2d(
            channels, 3, use_bias=True, weight_decay=weight_decay, name="conv2"
        )

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        return {
            "residual/preact": self.preact,
            "residual/conv1": self.conv1,
            "residual/conv1/BatchNorm": self.conv1_bn,
            "residual/conv2": self.conv2,
        }

    def build(self, input_shape):
        self.preact.build(input_shape)
        self.conv1.build(input_shape)
        inner_shape = [*input_shape[:3], self.channels]
        self.conv1_bn.build(inner_shape)
        self.conv2.build(inner_shape)
        super().build(input_shape)

    def compute_output_shape(self, input_shape):
        return _downsampled(input_shape, self.strides, self.channels)

    def call(self, x, active=None, training=None):
        preact = self.preact(x, training=training)
        shortcut = self._shortcut(preact if self.preact_shortcut else x)
        residual = self.conv1_bn(self.conv1(preact), training=training)
        return _add_residual(shortcut, self.conv2(residual), active)

    def run_active(
        self, x: tf.Tensor, active: tf.Tensor | None, sums: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `BottleneckUnit.run_active`."""
        slopes = [slope_of(bn.activation) for bn in (self.preact, self.conv1_bn)]
        changes_shape = self.strides > 1 or x.shape[-1] != self.channels
        if changes_shape or self.preact_shortcut or None in slopes:
            return _run_densely(self, x, active)
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
        )
        return x, tf.reduce_sum(x, [1, 2])

    def run_tiled(
        self, x: tf.Tensor, active: tf.Tensor, sums: tf.Tensor, tile_size: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `BottleneckUnit.run_tiled`."""

        def residual(tiles, inside):
            tiles = _valid(self.conv1, _zero_outside(self.preact(tiles), inside))
            tiles = _zero_outside(self.conv1_bn(tiles), inside[:, 1:-1, 1:-1])
            return _valid(self.conv2, tiles) + tf.cast(self.conv2.bias, tiles.dtype)

        x, residual_sums = custom_ops.add_on_tiles(x, active, tile_size, 2, residual)
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
        return flops.conv2d_flops(self.conv1, first) + flops.conv2d_flops(
            self.conv2, second
        )
