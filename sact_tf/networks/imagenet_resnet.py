"""ImageNet pre-activation residual networks of bottleneck units (ResNet-50 to 200)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf import flops
from sact_tf.layers import BatchNorm, conv2d, global_average
from sact_tf.networks import residual_network
from sact_tf.residual_units import BottleneckUnit

UNITS_PER_BLOCK = {
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
    "200": (3, 24, 36, 3),
}

_WEIGHT_DECAY = 1e-4
_STEM_CHANNELS = 64  # whatever base_channels is
# The batch normalizations of the halting heads are linear.
_linear_batch_norm = functools.partial(BatchNorm, decay=0.997, epsilon=1e-5)
_batch_norm = functools.partial(_linear_batch_norm, activation=tf.nn.relu)


@keras.utils.register_keras_serializable("sact_tf")
class ImagenetResNet(residual_network.ResidualNetwork):
    """See `imagenet_resnet`."""

    slim_scope = "resnet_v2"
    _final_scopes = ("conv1", "postnorm", "logits")

    def __init__(
        self,
        model: str | int | Sequence[int] = "101",
        model_type: str = "vanilla",
        num_classes: int = 1001,
        base_channels: int = 64,
        tau: float = 1.0,
        execution: str = "masked",
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        residual_network.check_options(
            model_type, tau, execution, num_classes, base_channels
        )
        units_per_block = residual_network.parse_units(model, UNITS_PER_BLOCK, 4)
        self._config = dict(
            model="_".join(map(str, units_per_block)),
            model_type=model_type,
            num_classes=num_classes,
            base_channels=base_channels,
            tau=tau,
            execution=execution,
        )
        decay = dict(weight_decay=_WEIGHT_DECAY)
        blocks = []
        for b, num_units in enumerate(units_per_block):
            channels = base_channels * 2**b
            units = [
                BottleneckUnit(
                    4 * channels,
                    channels,
                    strides=2 if b and not k else 1,
                    batch_norm=_batch_norm,
                    name=f"unit_{k + 1}",
                    **decay,
                )
                for k in range(num_units)
            ]
            blocks.append(
                residual_network.make_block(
                    model_type,
                    units,
                    tau,
                    _linear_batch_norm,
                    name=f"block{b + 1}",
                    **decay,
                )
            )
        self._set_layers(
            stem=conv2d(
                _STEM_CHANNELS, 7, 2, "valid", use_bias=True, name="conv1", **decay
            ),
            blocks=blocks,
            final_bn=_batch_norm(name="postnorm"),
            classifier=conv2d(num_classes, 1, use_bias=True, name="logits", **decay),
        )

    def get_config(self):
        return {**self._config, "name": self.name}

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
    name: str | None = None,
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
            active mask.
        name: Keras name of the model.

    Returns:
        A `tf_keras.Model` from images [batch, height, width, 3] in [-1, 1] to logits
        [batch, num_classes].

    Raises:
        ValueError: Naming the argument, on any other value.
    """
    return ImagenetResNet(
        model, model_type, num_classes, base_channels, tau, execution, name
    )
