"""The heads that turn a residual unit's output into halting scores h in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf import flops
from sact_tf.layers import (
    BatchNorm,
    conv2d,
    global_average,
    slope_of,
    zero_outside,
)

HALTING_BIAS = -3.0
"""Initial bias of every head: scores start small, so most units run."""


def _pointwise(conv: keras.layers.Conv2D, pooled: tf.Tensor) -> tf.Tensor:
    """A 1x1 convolution of [batch, 1, 1, channels], as the matrix product it is."""
    outputs = tf.matmul(pooled[:, 0, 0], conv.kernel[0, 0])
    if conv.use_bias:
        outputs += conv.bias
    return outputs[:, tf.newaxis, tf.newaxis]


def _to_one_channel(conv: keras.layers.Conv2D, x: tf.Tensor) -> tf.Tensor:
    """A SAME convolution to one channel, as a depthwise one summed over channels.

    The same products in another order. Forward and backward take about half the time of
    TensorFlow's dense convolution on a CPU, whose kernels are made for many output
    channels.
    """
    outputs = tf.nn.depthwise_conv2d(x, conv.kernel, [1, 1, 1, 1], "SAME")
    return tf.reduce_sum(outputs, -1, keepdims=True) + conv.bias


def share_in_tiles(scores: tf.Tensor, tile_size: int) -> tf.Tensor:
    """Gives all positions of a k x k tile their mean score (SACT, section 2.3).

    Args:
        scores: [batch, height, width].
        tile_size: Side k of the tiles, which begin at the top left corner.
    """
    height, width = tf.unstack(tf.shape(scores)[1:])
    around = [[0, 0], [0, -height % tile_size], [0, -width % tile_size]]

    def tile_sums(values):
        values = tf.pad(values, around)[..., tf.newaxis]
        return tf.nn.avg_pool2d(values, tile_size, tile_size, "VALID")[..., 0]

    means = tile_sums(scores) / tile_sums(tf.ones_like(scores))
    for axis in (1, 2):
        means = tf.repeat(means, tile_size, axis)
    return tf.reshape(means[:, :height, :width], tf.shape(scores))


def _normalized_mean(batch_norm, sums: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the normalized mean of x over positions, [batch, 1, 1, channels].

    Args:
        batch_norm: Applied in inference.
        sums: Sums of x over positions, [batch, channels].
        x: [batch, height, width, channels], only for its size.
    """
    count = tf.cast(tf.reduce_prod(tf.shape(x)[1:3]), sums.dtype)
    mean = (sums / count)[:, tf.newaxis, tf.newaxis]
    if not isinstance(batch_norm, BatchNorm):
        return batch_norm(mean, training=False)
    # TensorFlow's kernel takes longer to start than a single position to normalize.
    scale, shift = batch_norm.folded(mean.dtype)
    mean = mean * scale + shift
    return mean if batch_norm.activation is None else batch_norm.activation(mean)


class ImageHaltingScore(keras.layers.Layer):
    """Score of an image: a linear function of the pooled features (ACT, eq. 6).

    Args:
        batch_norm: Makes the batch normalization of the pooled features, given a name.
        weight_decay: L2 coefficient of the convolution.
    """

    def __init__(
        self,
        batch_norm: Callable[..., BatchNorm],
        weight_decay: float = 0.0,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.global_bn = batch_norm(name="global_bn")
        self.global_conv = conv2d(
            1,
            1,
            use_bias=True,
            weight_decay=weight_decay,
            bias_initializer=HALTING_BIAS,
            name="global_conv",
        )

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        return {"global_bn": self.global_bn, "global_conv": self.global_conv}

    def build(self, input_shape):
        pooled = [input_shape[0], 1, 1, input_shape[-1]]
        self.global_bn.build(pooled)
        self.global_conv.build(pooled)
        super().build(input_shape)

    def call(self, x, active=None, training=None, valid=None):
        """Maps [batch, height, width, channels] to float32 scores [batch].

        Args:
            x: Output of a unit.
            active: Not used.
            training: As in every layer.
            valid: Bool [batch, height, width], positions inside of the image; None:
                all.
        """
        pooled = global_average(x, valid)
        return self._score(self.global_bn(pooled, training=training))

    def run_active(self, x: tf.Tensor, active: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
        """Returns the scores in inference of active images [batch], zero elsewhere.

        Args:
            x: [batch, height, width, channels].
            active: Bool [batch].
            sums: Sums of x over positions, [batch, channels].
        """
        score = self._score(_normalized_mean(self.global_bn, sums, x))
        return tf.where(active, score, 0.0)

    def _score(self, pooled):
        logits = _pointwise(self.global_conv, pooled)
        return tf.sigmoid(tf.cast(logits[:, 0, 0, 0], tf.float32))

    def flops(
        self,
        x: tf.Tensor,
        active: tf.Tensor | None = None,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Operations per image on inputs shaped like x; int64 [batch]."""
        return flops.conv2d_flops(self.global_conv, tf.ones([tf.shape(x)[0]], tf.int64))


class SpatialHaltingScore(keras.layers.Layer):
    """Scores of positions: 3x3 convolution plus a function of pooled features (eq. 14).

    Args:
        batch_norm: Makes the two batch normalizations, given a name.
        weight_decay: L2 coefficient of the convolutions.

    Attributes:
        tile_size: Side of the square tiles whose positions share their mean score.
    """

    def __init__(
        self,
        batch_norm: Callable[..., BatchNorm],
        weight_decay: float = 0.0,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.tile_size = 1
        self.local_bn = batch_norm(name="local_bn")
        self.local_conv = conv2d(
            1,
            3,
            use_bias=True,
            weight_decay=weight_decay,
            bias_initializer=HALTING_BIAS,
            name="local_conv",
        )
        self.global_bn = batch_norm(name="global_bn")
        self.global_conv = conv2d(1, 1, weight_decay=weight_decay, name="global_conv")

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        return {
            "local_bn": self.local_bn,
            "local_conv": self.local_conv,
            "global_bn": self.global_bn,
            "global_conv": self.global_conv,
        }

    def build(self, input_shape):
        pooled = [input_shape[0], 1, 1, input_shape[-1]]
        self.local_bn.build(input_shape)
        self.local_conv.build(input_shape)
        self.global_bn.build(pooled)
        self.global_conv.build(pooled)
        super().build(input_shape)

    def call(self, x, active=None, training=None, valid=None):
        """Maps [batch, height, width, channels] to float32 [batch, height, width].

        The pooled features average over all positions, frozen ones too, that lie
        inside of the image: those where `valid` [batch, height, width] is True or None.
        """
        normalized = zero_outside(self.local_bn(x, training=training), valid)
        local = _to_one_channel(self.local_conv, normalized)
        pooled = self.global_bn(global_average(x, valid), training=training)
        return self._score(local, pooled)

    def run_active(self, x: tf.Tensor, active: tf.Tensor, sums: tf.Tensor) -> tf.Tensor:
        """Returns the scores in inference at active positions, zero elsewhere.

        Args:
            x: [batch, height, width, channels].
            active: Bool [batch, height, width].
            sums: Sums of x over positions, [batch, channels].
        """
        slope = slope_of(getattr(self.local_bn, "activation", None))
        if slope is None or not isinstance(self.local_bn, BatchNorm):
            return tf.where(active, self(x, training=False), 0.0)
        scale, shift = self.local_bn.folded(x.dtype)
        local = custom_ops.perforated_conv2d(
            x,
            tf.cast(self.local_conv.kernel, x.dtype),
            active,
            bias=tf.cast(self.local_conv.bias, x.dtype),
            input_scale=scale,
            input_shift=shift,
            input_slope=slope,
        )
        score = self._score(local, _normalized_mean(self.global_bn, sums, x))
        return tf.where(active, score, tf.zeros_like(score))

    def _score(self, local, pooled):
        logits = local + _pointwise(self.global_conv, pooled)
        scores = tf.sigmoid(tf.cast(logits[..., 0], tf.float32))
        return scores if self.tile_size == 1 else share_in_tiles(scores, self.tile_size)

    def flops(
        self,
        x: tf.Tensor,
        active: tf.Tensor | None = None,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Operations per image at the active positions of x; int64 [batch].

        The global convolution is counted even where everything has halted, as in the
        original.
        """
        if active is None:
            active = valid
        positions = (
            flops.num_positions(x) if active is None else flops.num_active(active)
        )
        return flops.conv2d_flops(self.local_conv, positions) + flops.conv2d_flops(
            self.global_conv, tf.ones_like(positions)
        )
