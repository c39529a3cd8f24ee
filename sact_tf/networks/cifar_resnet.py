"""CIFAR pre-activation residual networks of basic units (ResNet-32, ResNet-110)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf import flops
from sact_tf.layers import BatchNorm, conv2d, global_average, leaky_relu
from sact_tf.networks import residual_network
from sact_tf.residual_units import BasicUnit

_IMAGE_SIZE = 32
_SLOPE = 0.1
_batch_norm = functools.partial(
    BatchNorm, decay=0.9, epsilon=1e-3, activation=leaky_relu(_SLOPE)
)
# Inside a unit the original applies the leaky ReLU twice in a row.
_inner_batch_norm = functools.partial(
    BatchNorm, decay=0.9, epsilon=1e-3, activation=leaky_relu(_SLOPE**2)
)


@keras.utils.register_keras_serializable("sact_tf")
class CifarResNet(residual_network.ResidualNetwork):
    """See `cifar_resnet`."""

    slim_scope = "resnet_residual"
    _weight_decay = 2e-4
    _block_name = "block_{}"
    _stem_scope = "Conv"
    _final_bn_scope = "BatchNorm"
    _batch_norm = staticmethod(_batch_norm)
    _head_batch_norm = staticmethod(_batch_norm)

    @staticmethod
    def preprocess(image, size=None):
        size = size or _IMAGE_SIZE
        # Images of that size, such as CIFAR's, pass unchanged.
        image = tf.image.resize(image, [size, size], antialias=True)
        return tf.image.per_image_standardization(image)

    @staticmethod
    def _parse_units(model):
        if isinstance(model, (str, int)) and str(model).isdigit():
            model = [int(model)] * 3
        return residual_network.parse_units(model, {}, 3)

    def _make_stem(self, base_channels, weight_decay):
        return conv2d(
            base_channels, 3, use_bias=True, weight_decay=weight_decay, name="Conv"
        )

    def _make_unit(self, b, k, base_channels, weight_decay, name):
        return BasicUnit(
            base_channels * 2**b,
            strides=2 if b and not k else 1,
            batch_norm=_batch_norm,
            inner_batch_norm=_inner_batch_norm,
            preact_shortcut=not b and not k,
            weight_decay=weight_decay,
            name=name,
        )

    def _run_stem(self, images):
        x = self.stem(images)
        return x, flops.conv2d_flops(self.stem, flops.num_positions(x))

    def _run_tail(self, x, training):
        # The original pools before the last batch normalization.
        return self.final_bn(global_average(x), training=training)


def cifar_resnet(
    model: str | int | Sequence[int] = "5",
    model_type: str = "vanilla",
    num_classes: int = 10,
    base_channels: int = 16,
    tau: float = 1.0,
    execution: str = "masked",
    tile_size: int = 1,
    name: str | None = None,
) -> CifarResNet:
    """Builds a CIFAR residual network: a 3x3 stem and three blocks of basic units.

    Args:
        model: Residual units per block: "5" (ResNet-32) and "18" (ResNet-110) give all
            three blocks as many, "3_4_5" each its own.
        model_type: "vanilla", "act", "act_early_stopping" or "sact".
        num_classes: Size of the logits.
        base_channels: Channels of the first block; the others have 2 and 4 times as
            many.
        tau: Weight of the ponder cost in the losses, at least 0.
        execution: "masked": units run densely and residuals are multiplied by the
            active mask; "perforated": in inference, only active positions are computed;
            "tiled": the same by tiles, with a `tile_size` above 1.
        tile_size: With "sact", side of the square tiles of positions that share their
            halting scores.
        name: Keras name of the model.

    Returns:
        A `tf_keras.Model` from standardised images [batch, height, width, 3] to logits
        [batch, num_classes].

    Raises:
        ValueError: Naming the argument, on any other value.
    """
    return CifarResNet(
        model, model_type, num_classes, base_channels, tau, execution, tile_size, name
    )
