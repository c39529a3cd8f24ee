"""CIFAR pre-activation residual networks of basic units (ResNet-32, ResNet-110)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tf_keras as keras

from sact_tf import flops
from sact_tf.layers import BatchNorm, conv2d, global_average, leaky_relu
from sact_tf.networks import residual_network
from sact_tf.residual_units import BasicUnit

_WEIGHT_DECAY = 2e-4
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
    _final_scopes = ("Conv", "BatchNorm", "logits")

    def __init__(
        self,
        model: str | int | Sequence[int] = "5",
        model_type: str = "vanilla",
        num_classes: int = 10,
        base_channels: int = 16,
        tau: float = 1.0,
        execution: str = "masked",
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        residual_network.check_options(
            model_type, tau, execution, num_classes, base_channels
        )
        if isinstance(model, (str, int)) and str(model).isdigit():
            model = [int(model)] * 3
        units_per_block = residual_network.parse_units(model, {}, 3)
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
            units = [
                BasicUnit(
                    base_channels * 2**b,
                    strides=2 if b and not k else 1,
                    batch_norm=_batch_norm,
                    inner_batch_norm=_inner_batch_norm,
                    preact_shortcut=not b and not k,
                    name=f"unit_{k + 1}",
                    **decay,
                )
                for k in range(num_units)
            ]
            blocks.append(
                residual_network.make_block(
                    model_type, units, tau, _batch_norm, name=f"block_{b + 1}", **decay
                )
            )
        self._set_layers(
            stem=conv2d(base_channels, 3, use_bias=True, name="Conv", **decay),
            blocks=blocks,
            final_bn=_batch_norm(name="BatchNorm"),
            classifier=conv2d(num_classes, 1, use_bias=True, name="logits", **decay),
        )

    def get_config(self):
        return {**self._config, "name": self.name}

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
            active mask.
        name: Keras name of the model.

    Returns:
        A `tf_keras.Model` from standardised images [batch, height, width, 3] to logits
        [batch, num_classes].

    Raises:
        ValueError: Naming the argument, on any other value.
    """
    return CifarResNet(
        model, model_type, num_classes, base_channels, tau, execution, name
    )
