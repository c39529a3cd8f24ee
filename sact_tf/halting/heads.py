"""The heads that turn a residual unit's output into halting scores h in [0, 1].

A head of one's own is any layer that maps a unit's output, its residual and the
block's input, [batch, height, width, channels] each, to what the halting rule reads:
float32 [batch], or [batch, height, width] for positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf import flops
from sact_tf.layers import (
    BatchNorm,
    build_child,
    conv2d,
    factory,
    global_average,
    policy_of,
    saved,
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


class HaltingHead(keras.layers.Layer):
    """What every head of this package is: logits of features, and a sigmoid.

    A head defines `_make_layers`, `slim_scopes`, `_logits` and `_active_logits`.

    Args:
        weight_decay: L2 coefficient of the convolutions.
        name: Keras name of the layer.
        bias: Initial bias: scores start small, so most units run.
    """

    reads_residual: bool = False
    """Whether `call` wants the unit's residual, which takes a subtraction."""

    def __init__(
        self,
        weight_decay: float = 0.0,
        name: str | None = None,
        bias: float = HALTING_BIAS,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self._weight_decay = weight_decay
        self._bias = bias
        with policy_of(self):
            self._make_layers()

    def _make_layers(self):
        raise NotImplementedError

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Layers by their scopes in TF-Slim checkpoints."""
        raise NotImplementedError

    def get_config(self):
        return {
            **super().get_config(),
            "weight_decay": self._weight_decay,
            "bias": self._bias,
        }

    def call(
        self,
        x,
        residual=None,
        inputs=None,
        active=None,
        training=None,
        valid=None,
        logits=False,
    ):
        """Scores what halts.

        Args:
            x: Output of a unit, [batch, height, width, channels].
            residual: What the unit added to its input, shaped like x; only where the
                head reads it.
            inputs: The block's input.
            active: Not used.
            training: As in every layer.
            valid: Bool [batch, height, width], positions inside of the image; None:
                all.
            logits: Whether logits are returned rather than scores.

        Returns:
            float32 scores of what halts, [batch] or [batch, height, width].
        """
        scores = self._logits(x, residual, inputs, training, valid)
        return scores if logits else tf.sigmoid(scores)

    def run_active(
        self, x: tf.Tensor, active, sums: tf.Tensor, logits: bool = False
    ) -> tf.Tensor:
        """Returns the scores in inference of what is active, any value elsewhere.

        Args:
            x: [batch, height, width, channels].
            active: `custom_ops.ActivePositions`, the positions to score at least.
            sums: Sums of x over positions, [batch, channels].
            logits: As in a call.
        """
        scores = self._active_logits(x, active, sums)
        return scores if logits else tf.sigmoid(scores)


class NormalizedHead(HaltingHead):
    """A head that normalizes what it reads: those of SACT.

    Args:
        batch_norm: Makes the batch normalizations, given a name; or the configuration
            of one.
        weight_decay: As of `HaltingHead`, as are all others.
        name: Keras name of the layer.
        bias: Initial bias.
    """

    def __init__(
        self,
        batch_norm: Callable[..., BatchNorm] | Mapping[str, Any],
        weight_decay: float = 0.0,
        name: str | None = None,
        bias: float = HALTING_BIAS,
        **kwargs,
    ):
        self._batch_norm = factory(batch_norm)
        super().__init__(weight_decay, name, bias, **kwargs)

    def get_config(self):
        return {**super().get_config(), "batch_norm": saved(self.global_bn)}


def head_flops(head: keras.layers.Layer) -> Callable[..., tf.Tensor | None]:
    """Returns what counts a head's operations, which a head of one's own may lack."""
    return getattr(head, "flops", lambda x, **masks: None)


@keras.utils.register_keras_serializable("sact_tf")
class ImageHaltingScore(NormalizedHead):
    """Score of an image: a linear function of the pooled features (SACT eq. 6).

    Arguments are those of `NormalizedHead`.
    """

    def _make_layers(self):
        self.global_bn = self._batch_norm(name="global_bn")
        self.global_conv = conv2d(
            1,
            1,
            use_bias=True,
            weight_decay=self._weight_decay,
            bias_initializer=self._bias,
            name="global_conv",
        )

    @property
    def slim_scopes(self):
        return {"global_bn": self.global_bn, "global_conv": self.global_conv}

    def build(self, input_shape):
        pooled = [input_shape[0], 1, 1, input_shape[-1]]
        build_child(self.global_bn, pooled)
        build_child(self.global_conv, pooled)
        super().build(input_shape)

    def _logits(self, x, residual, inputs, training, valid):
        pooled = self.global_bn(global_average(x, valid), training=training)
        return self._of_pooled(pooled)

    def _active_logits(self, x, active, sums):
        return self._of_pooled(_normalized_mean(self.global_bn, sums, x))

    def _of_pooled(self, pooled):
        return tf.cast(_pointwise(self.global_conv, pooled)[:, 0, 0, 0], tf.float32)

    def flops(
        self,
        x: tf.Tensor,
        active: tf.Tensor | None = None,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Operations per image on inputs shaped like x; int64 [batch]."""
        return flops.conv2d_flops(self.global_conv, tf.ones([tf.shape(x)[0]], tf.int64))


@keras.utils.register_keras_serializable("sact_tf")
class SpatialHaltingScore(NormalizedHead):
    """Scores of positions: a 3x3 convolution and pooled features (SACT eq. 14).

    The pooled features average over all positions, frozen ones too, that lie inside of
    the image. Arguments are those of `NormalizedHead`.
    """

    def _make_layers(self):
        decay = dict(weight_decay=self._weight_decay)
        self.local_bn = self._batch_norm(name="local_bn")
        self.local_conv = conv2d(
            1,
            3,
            use_bias=True,
            bias_initializer=self._bias,
            name="local_conv",
            **decay,
        )
        self.global_bn = self._batch_norm(name="global_bn")
        self.global_conv = conv2d(1, 1, name="global_conv", **decay)

    @property
    def slim_scopes(self):
        return {
            "local_bn": self.local_bn,
            "local_conv": self.local_conv,
            "global_bn": self.global_bn,
            "global_conv": self.global_conv,
        }

    def build(self, input_shape):
        pooled = [input_shape[0], 1, 1, input_shape[-1]]
        build_child(self.local_bn, input_shape)
        build_child(self.local_conv, input_shape)
        build_child(self.global_bn, pooled)
        build_child(self.global_conv, pooled)
        super().build(input_shape)

    def _logits(self, x, residual, inputs, training, valid):
        normalized = zero_outside(self.local_bn(x, training=training), valid)
        local = _to_one_channel(self.local_conv, normalized)
        pooled = self.global_bn(global_average(x, valid), training=training)
        return self._sum(local, pooled)

    def _active_logits(self, x, active, sums):
        if self._slope() is None:
            return self._logits(x, None, None, False, None)
        local = self._convolve(x, active, self.local_bn.folded(x.dtype))
        return self._sum(local, _normalized_mean(self.global_bn, sums, x))

    def _slope(self):
        """Returns the slope of a batch normalization's activation that can be fused."""
        is_ours = isinstance(self.local_bn, BatchNorm)
        return slope_of(self.local_bn.activation) if is_ours else None

    def _convolve(self, x, active, folded):
        """Normalizes and convolves x at active positions."""
        scale, shift = folded
        return custom_ops.perforated_conv2d(
            x,
            tf.cast(self.local_conv.kernel, x.dtype),
            active,
            bias=tf.cast(self.local_conv.bias, x.dtype),
            input_scale=scale,
            input_shift=shift,
            input_slope=self._slope(),
        )

    def _sum(self, local, pooled):
        logits = local + _pointwise(self.global_conv, pooled)
        return tf.cast(logits[..., 0], tf.float32)

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
        return self.flops_at(positions)

    def flops_at(self, positions: tf.Tensor) -> tf.Tensor:
        """Counts operations as `flops`, at so many positions, int64 [batch]."""
        return flops.conv2d_flops(self.local_conv, positions) + flops.conv2d_flops(
            self.global_conv, tf.ones_like(positions)
        )

    def block_parameters(self) -> custom_ops.HeadParameters | None:
        """Returns what `custom_ops.perforated_block` runs it by; None: it cannot."""
        norms = [
            bn.as_norm() if isinstance(bn, BatchNorm) else None
            for bn in (self.local_bn, self.global_bn)
        ]
        if None in norms:
            return None
        local, pooled = norms
        return custom_ops.HeadParameters(
            *(local, self.local_conv.kernel, self.local_conv.bias),
            *(pooled, self.global_conv.kernel),
        )
