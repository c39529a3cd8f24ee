"""ResNet-50 to 152 on small images: what iterative networks are measured against.

Leroux et al. (2018, 2022) compare on CIFAR with ResNet-101 and ResNet-152. Their count
of the latter, 58 million parameters and 3.7 GMAC, is that of the ImageNet network with
a 3x3 stem of stride 1 and no pooling.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf.layers import BatchNorm
from sact_tf.networks.cifar_resnet import CifarResNet
from sact_tf.networks.imagenet_resnet import ImagenetResNet
from sact_tf.networks.residual_network import ResidualNetwork
from sact_tf.optimization import iterative_learning_rate
from sact_tf.units import BottleneckUnit

_linear_batch_norm = functools.partial(BatchNorm, decay=0.9, epsilon=1e-5)
_batch_norm = functools.partial(_linear_batch_norm, activation=tf.nn.relu)


def _make_unit(b, k, channels, strides, rate, options, name):
    return BottleneckUnit(
        CifarBottleneckResNet.architecture.expansion * channels,
        channels,
        strides,
        batch_norm=_batch_norm,
        weight_decay=options.weight_decay,
        name=name,
    )


@keras.utils.register_keras_serializable("sact_tf")
class CifarBottleneckResNet(ResidualNetwork):
    """See `cifar_bottleneck_resnet`."""

    architecture = dataclasses.replace(
        ImagenetResNet.architecture,
        block_name="block_{}",
        weight_decay=5e-4,
        one_for_all=True,
        stem_channels=None,
        stem_size=3,
        stem_stride=1,
        pool_stride=1,
        make_unit=_make_unit,
        dilates=False,
        batch_norm=_batch_norm,
        head_batch_norm=_linear_batch_norm,
        preprocessing="standardized",
        has_forms=False,
    )

    preprocess = staticmethod(CifarResNet.preprocess)

    def default_learning_rate(self, max_number_of_steps, num_examples, batch_size):
        return iterative_learning_rate(max_number_of_steps)


def cifar_bottleneck_resnet(
    model: str | int | Sequence[int] = "152",
    model_type: str = "vanilla",
    num_classes: int = 10,
    base_channels: int = 64,
    tau: float = 1.0,
    execution: str = "masked",
    tile_size: int = 1,
    name: str | None = None,
    **options,
) -> CifarBottleneckResNet:
    """Builds a residual network of bottleneck units for small images.

    A 3x3 stem, and four blocks at strides 1, 2, 4 and 8.

    Args:
        model: "50", "101", "152", "200", residual units per block as in "3_8_36_3", or
            one number for all of them.
        model_type: As of `imagenet_resnet`, as are all others.
        num_classes: Size of the logits; 0: there is no classifier.
        base_channels: Bottleneck channels of the first block, and those of the stem.
        tau: Weight of the ponder cost in the losses, at least 0.
        execution: How blocks run in inference.
        tile_size: With "sact", side of tiles that halt together.
        name: Keras name of the model.
        **options: As of `cifar_resnet`.

    Returns:
        A `tf_keras.Model` from standardised images [batch, height, width, 3] to logits
        [batch, num_classes].

    Raises:
        ValueError: Naming the argument, on any other value.
    """
    return CifarBottleneckResNet(
        model,
        model_type,
        num_classes,
        base_channels,
        tau,
        execution,
        tile_size,
        name,
        **options,
    )
