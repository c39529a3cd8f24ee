"""CIFAR pre-activation residual networks of basic units (ResNet-32, ResNet-110)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf.layers import BatchNorm, leaky_relu
from sact_tf.networks.residual_network import Architecture, ResidualNetwork
from sact_tf.optimization import cifar_learning_rate
from sact_tf.units import BasicUnit

_IMAGE_SIZE = 32
_SLOPE = 0.1
_batch_norm = functools.partial(
    BatchNorm, decay=0.9, epsilon=1e-3, activation=leaky_relu(_SLOPE)
)
# Inside a unit the original applies the leaky ReLU twice in a row.
_inner_batch_norm = functools.partial(
    BatchNorm, decay=0.9, epsilon=1e-3, activation=leaky_relu(_SLOPE**2)
)


def _make_unit(b, k, channels, strides, rate, options, name):
    return BasicUnit(
        channels,
        strides,
        batch_norm=_batch_norm,
        inner_batch_norm=_inner_batch_norm,
        preact_shortcut=not b and not k,
        weight_decay=options.weight_decay,
        name=name,
    )


@keras.utils.register_keras_serializable("sact_tf")
class CifarResNet(ResidualNetwork):
    """See `cifar_resnet`."""

    architecture = Architecture(
        slim_scope="resnet_residual",
        block_name="block_{}",
        stem_scope="Conv",
        final_bn_scope="BatchNorm",
        weight_decay=2e-4,
        units_per_block={},
        one_for_all=True,
        block_strides=(1, 2, 2),
        expansion=1,
        stem_channels=None,
        stem_size=3,
        stem_stride=1,
        pool_stride=1,
        pools_first=True,
        make_unit=_make_unit,
        dilates=False,
        batch_norm=_batch_norm,
        head_batch_norm=_batch_norm,
        preprocessing="standardized",
    )

    @staticmethod
    def preprocess(image, size=None):
        size = size or _IMAGE_SIZE
        # Images of that size, such as CIFAR's, pass unchanged.
        image = tf.image.resize(image, [size, size], antialias=True)
        return tf.image.per_image_standardization(image)

    def default_learning_rate(self, max_number_of_steps, num_examples, batch_size):
        return cifar_learning_rate(max_number_of_steps)


def cifar_resnet(
    model: str | int | Sequence[int] = "5",
    model_type: str = "vanilla",
    num_classes: int = 10,
    base_channels: int = 16,
    tau: float = 1.0,
    execution: str = "masked",
    tile_size: int = 1,
    name: str | None = None,
    include_top: bool = True,
    **options,
) -> CifarResNet:
    """Builds a CIFAR residual network: a 3x3 stem and three blocks of basic units.

    Args:
        model: Residual units per block: "5" (ResNet-32) and "18" (ResNet-110) give all
            three blocks as many, "3_4_5" each its own.
        model_type: "vanilla", "act", "act_early_stopping", "sact" or "pact", or another
            of `sact_tf.halting.model_types()`.
        num_classes: Size of the logits; 0: there is no classifier.
        base_channels: Channels of the first block; the others have 2 and 4 times as
            many.
        tau: Weight of the ponder cost in the losses, at least 0.
        execution: "masked": units run densely and residuals are multiplied by the
            active mask; "perforated": in inference, only active positions are computed;
            "tiled": the same by tiles, with a `tile_size` above 1.
        tile_size: With "sact", side of the square tiles of positions that share their
            halting scores.
        name: Keras name of the model.
        include_top: False: as `num_classes=0`, without a classifier.
        **options: Of the halting rule, such as `epsilon` (SACT) or `test_mode` (PACT),
            and others of `ResidualNetwork`: `precision` (as of `imagenet_resnet`),
            `group_grid`, `weight_decay`, `dtype`, `block_strides`, `halting_bias`, and
            without a classifier `pooling`, "avg" or "max" over positions.

    Returns:
        A `tf_keras.Model` from standardised images [batch, height, width, 3] to logits
        [batch, num_classes].

    Raises:
        ValueError: Naming the argument, on any other value.
    """
    return CifarResNet(
        model,
        model_type,
        num_classes if include_top else 0,
        base_channels,
        tau,
        execution,
        tile_size,
        name,
        **options,
    )
