"""ImageNet pre-activation residual networks of bottleneck units (ResNet-50 to 200)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf import flops
from sact_tf.data import inception
from sact_tf.layers import BatchNorm, conv2d, global_average
from sact_tf.networks import residual_network
from sact_tf.residual_units import BottleneckUnit

UNITS_PER_BLOCK = {
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
    "200": (3, 24, 36, 3),
}

_IMAGE_SIZE = 224  # that the original trains and evaluates on
_STEM_CHANNELS = 64  # whatever base_channels is
_linear_batch_norm = functools.partial(BatchNorm, decay=0.997, epsilon=1e-5)
_batch_norm = functools.partial(_linear_batch_norm, activation=tf.nn.relu)


@keras.utils.register_keras_serializable("sact_tf")
class ImagenetResNet(residual_network.ResidualNetwork):
    """See `imagenet_resnet`."""

    slim_scope = "resnet_v2"
    _weight_decay = 1e-4
    _block_name = "block{}"
    _stem_scope = "conv1"
    _final_bn_scope = "postnorm"
    _batch_norm = staticmethod(_batch_norm)
    _head_batch_norm = staticmethod(_linear_batch_norm)

    @staticmethod
    def preprocess(image, size=None):
        size = size or _IMAGE_SIZE
        return inception.for_evaluation(image, size, size)

    @staticmethod
    def _parse_units(model):
        return residual_network.parse_units(model, UNITS_PER_BLOCK, 4)

    def _make_stem(self, base_channels, weight_decay):
        return conv2d(
            _STEM_CHANNELS,
            7,
            2,
            "valid",
            use_bias=True,
            weight_decay=weight_decay,
            name="conv1",
        )

    def _make_unit(self, b, k, base_channels, weight_decay, name):
        channels = base_channels * 2**b
        return BottleneckUnit(
            4 * channels,
            channels,
            strides=2 if b and not k else 1,
            batch_norm=_batch_norm,
            weight_decay=weight_decay,
            name=name,
        )

    def _run_stem(self, images):
        x = self.stem(tf.pad(images, [[0, 0], [3, 3], [3, 3], [0, 0]]))
        total_flops = flops.conv2d_flops(self.stem, flops.num_positions(x))
        return tf.nn.max_pool2d(x, 3, 2, "SAME"), total_flops

    def _run_tail(self, x, training):
        return global_average(self.final_bn(x, training=training))


def imagenet_resnet(
    model: str | int | Sequence[int] = "101",
    model_type: str = "vanilla",
    num_classes: int = 1001,
    base_channels: int = 64,
    tau: float = 1.0,
    execution: str = "masked",
    tile_size: int = 1,
    name: str | None = None,
    weight_decay: float | None = None,
) -> ImagenetResNet:
    """Builds an ImageNet residual network: 7x7 stem, four blocks of bottleneck units.

    Args:
        model: "50", "101", "152", "200", or the residual units of each block as in
            "3_4_23_3".
        model_type: "vanilla", "act", "act_early_stopping" or "sact".
        num_classes: Size of the logits; 1001 is ImageNet and a background class 0.
        base_channels: Bottleneck channels of the first block; doubles from block to
            block.
        tau: Weight of the ponder cost in the losses, at least 0.
        execution: "masked": units run densely and residuals are multiplied by the
            active mask; "perforated": in inference, only active positions are computed;
            "tiled": the same by tiles, with a `tile_size` above 1.
        tile_size: With "sact", side of the square tiles of positions that share their
            halting scores.
        name: Keras name of the model.
        weight_decay: L2 coefficient c of the loss c * sum(w^2) / 2 of every
            convolution, halting heads included; None: the original's 1e-4.

    Returns:
        A `tf_keras.Model` from images [batch, height, width, 3] in [-1, 1] to logits
        [batch, num_classes].

    Raises:
        ValueError: Naming the argument, on any other value.
    """
    return ImagenetResNet(
        model,
        model_type,
        num_classes,
        base_channels,
        tau,
        execution,
        tile_size,
        name,
        weight_decay,
    )
