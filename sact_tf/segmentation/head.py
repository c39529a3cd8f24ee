"""The head of UPerNet: pyramid pooling, a top-down path, and their fusion.

Xiao et al., Unified perceptual parsing for scene understanding (ECCV 2018), which the
papers on iterative networks take for segmentation. The Model Garden has no pyramid
pooling, and its feature pyramid doubles maps by repetition, so that only images whose
sides 32 divides fit it; hence this one, which takes images of any size. Its variables
have TF-Slim names, as all of a checkpoint here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf import flops
from sact_tf.domains import COUNT, Domain
from sact_tf.layers import BatchNorm, build_child, conv2d

_batch_norm = functools.partial(
    BatchNorm, decay=0.99, epsilon=1e-5, activation=tf.nn.relu
)
_CHANNELS = Domain(1, 4096, is_integer=True)


def resize(x: tf.Tensor, size: tf.Tensor | Sequence[int]) -> tf.Tensor:
    """Resizes [batch, height, width, channels] bilinearly; keeps its type.

    Args:
        x: Float of any precision.
        size: Height and width of the result.
    """
    return tf.cast(tf.image.resize(x, size), x.dtype)


def adaptive_average(x: tf.Tensor, bins: int) -> tf.Tensor:
    """Averages over bins x bins rectangles, which overlap where they must.

    Rectangle i of a side of n positions begins at floor(i * n / bins) and ends before
    ceil((i + 1) * n / bins), so that none is empty, however few positions there are.

    Args:
        x: [batch, height, width, channels].
        bins: Rectangles along each side.

    Returns:
        [batch, bins, bins, channels].

    >>> adaptive_average(tf.reshape([1.0, 2.0, 3.0], [1, 1, 3, 1]), 2)[0, 0, :, 0]
    <tf.Tensor: shape=(2,), dtype=float32, numpy=array([1.5, 2.5], dtype=float32)>
    """
    dtype = tf.float64 if x.dtype == tf.float64 else tf.float32

    def shares(side):
        starts = tf.range(bins) * side // bins
        ends = (tf.range(1, bins + 1) * side + bins - 1) // bins
        places = tf.range(side)
        inside = (places >= starts[:, tf.newaxis]) & (places < ends[:, tf.newaxis])
        inside = tf.cast(inside, dtype)
        return inside / tf.reduce_sum(inside, 1, keepdims=True)

    height, width = tf.unstack(tf.shape(x)[1:3])
    pooled = tf.einsum(
        "ih,bhwc,jw->bijc", shares(height), tf.cast(x, dtype), shares(width)
    )
    return tf.cast(pooled, x.dtype)


class ConvUnit(keras.layers.Layer):
    """Convolution, batch normalization or bias, ReLU.

    Args:
        filters: Output channels.
        kernel_size: Side of the kernel.
        weight_decay: L2 coefficient of the kernel.
        normalizes: Whether there is batch normalization, rather than a bias.
        name: Keras name.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        weight_decay: float,
        normalizes: bool,
        name: str,
    ):
        super().__init__(name=name)
        self.conv = conv2d(
            filters,
            kernel_size,
            use_bias=not normalizes,
            weight_decay=weight_decay,
            name="conv",
        )
        self.batch_norm = _batch_norm(name="BatchNorm") if normalizes else None

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Layers by their scopes in checkpoints, below this one's."""
        scopes = {"conv": self.conv}
        if self.batch_norm is not None:
            scopes["BatchNorm"] = self.batch_norm
        return scopes

    def build(self, input_shape):
        build_child(self.conv, input_shape)
        if self.batch_norm is not None:
            build_child(self.batch_norm, [None, None, None, self.conv.filters])
        super().build(input_shape)

    def call(self, x, training=None):
        x = self.conv(x)
        if self.batch_norm is None:
            return tf.nn.relu(x)
        return self.batch_norm(x, training=training)


class SegmentationHead(keras.layers.Layer):
    """Maps features of several scales to logits at the finest of them.

    The coarsest features, and averages of them over pyramids of rectangles (with a bias
    in place of the paper's batch normalization: a batch of few images has few
    averages), become the top of a top-down path: to each finer scale, brought to as
    many channels by a 1x1 convolution, the enlarged coarser one is added. The results
    of all scales, each after a 3x3 convolution and enlarged to the finest, are fused by
    one more.

    Args:
        num_classes: Size of the logits.
        channels: Of all that lies between features and logits.
        bins: Rectangles along each side, of each pyramid; none: there is no pooling.
        weight_decay: L2 coefficient c of c * sum(w^2) / 2 of every convolution.
        name: Keras name.

    Raises:
        ValueError: On any other value, naming the argument.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 64,
        bins: Sequence[int] = (1, 2, 3, 6),
        weight_decay: float = 1e-4,
        name: str = "segmentation_head",
    ):
        super().__init__(name=name)
        _CHANNELS.check(channels, "head_channels")
        self.channels = channels
        self.bins = tuple(COUNT.check(count, "bins") for count in bins)
        self._decay = weight_decay
        self.logits = conv2d(
            num_classes, 1, use_bias=True, weight_decay=weight_decay, name="logits"
        )

    def _unit(self, kernel_size, name, normalizes=True):
        return ConvUnit(self.channels, kernel_size, self._decay, normalizes, name)

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Layers by their scopes in checkpoints, below this one's."""
        units = [*self.pools, self.top, *self.laterals, *self.outputs, self.fusion]
        return {**{unit.name: unit for unit in units}, "logits": self.logits}

    def build(self, input_shape):
        fine, channels = len(input_shape) - 1, self.channels
        # A batch has too few averages for their moments to mean much.
        self.pools = [self._unit(1, f"pool_{count}", False) for count in self.bins]
        self.top = self._unit(3, "top")
        self.laterals = [self._unit(1, f"lateral_{k + 1}") for k in range(fine)]
        self.outputs = [self._unit(3, f"output_{k + 1}") for k in range(fine)]
        self.fusion = self._unit(3, "fusion")
        coarsest = int(input_shape[-1][-1])
        for unit in self.pools:
            build_child(unit, [None, None, None, coarsest])
        together = coarsest + channels * len(self.bins)
        build_child(self.top, [None, None, None, together])
        for unit, shape in zip(self.laterals, input_shape):
            build_child(unit, shape)
        for unit in self.outputs:
            build_child(unit, [None, None, None, channels])
        build_child(self.fusion, [None, None, None, channels * (fine + 1)])
        build_child(self.logits, [None, None, None, channels])
        super().build(input_shape)

    @tf.autograph.experimental.do_not_convert
    def call(self, features, training=None):
        """Computes logits.

        Args:
            features: List of [batch, h, w, c], the finest first.
            training: As of batch normalization.

        Returns:
            Logits [batch, h, w, num_classes] of the finest features' size.
        """
        *fine, coarsest = features
        size = tf.shape(coarsest)[1:3]
        pooled = [
            resize(unit(adaptive_average(coarsest, count), training=training), size)
            for unit, count in zip(self.pools, self.bins)
        ]
        x = self.top(tf.concat([coarsest, *pooled], -1), training=training)
        maps = [x]
        for k in reversed(range(len(fine))):
            x = resize(x, tf.shape(fine[k])[1:3])
            x += self.laterals[k](fine[k], training=training)
            maps.append(self.outputs[k](x, training=training))
        size = tf.shape(features[0])[1:3]
        maps = [resize(x, size) for x in reversed(maps)]
        return self.logits(self.fusion(tf.concat(maps, -1), training=training))

    def flops(self, features: Sequence[tf.Tensor]) -> tf.Tensor:
        """Counts operations of the convolutions; int64 [batch].

        Args:
            features: As of `call`; only shapes count.
        """
        *fine, coarsest = features
        ones = tf.ones_like(flops.num_positions(coarsest))
        total = flops.conv2d_flops(self.top.conv, flops.num_positions(coarsest))
        for unit, count in zip(self.pools, self.bins):
            total += flops.conv2d_flops(unit.conv, ones * count**2)
        for x, lateral, output in zip(fine, self.laterals, self.outputs):
            for unit in (lateral, output):
                total += flops.conv2d_flops(unit.conv, flops.num_positions(x))
        for layer in (self.fusion.conv, self.logits):
            total += flops.conv2d_flops(layer, flops.num_positions(features[0]))
        return total
