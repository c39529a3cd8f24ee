"""ImageNet pre-activation residual networks of bottleneck units (ResNet-50 to 200)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf import pretrained
from sact_tf.data import inception
from sact_tf.layers import BatchNorm
from sact_tf.networks.options import parse_units
from sact_tf.networks.residual_network import Architecture, ResidualNetwork
from sact_tf.optimization import imagenet_learning_rate
from sact_tf.units import BottleneckUnit

UNITS_PER_BLOCK = {
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
    "200": (3, 24, 36, 3),
}

_IMAGE_SIZE = 224  # that the original trains and evaluates on
_EXPANSION = 4
_linear_batch_norm = functools.partial(BatchNorm, decay=0.997, epsilon=1e-5)
_batch_norm = functools.partial(_linear_batch_norm, activation=tf.nn.relu)


def _make_unit(b, k, channels, strides, rate, options, name):
    return BottleneckUnit(
        _EXPANSION * channels,
        channels,
        strides,
        batch_norm=_batch_norm,
        weight_decay=options.weight_decay,
        downsample=options.downsample,
        rate=rate,
        name=name,
    )


@keras.utils.register_keras_serializable("sact_tf")
class ImagenetResNet(ResidualNetwork):
    """See `imagenet_resnet`."""

    architecture = Architecture(
        slim_scope="resnet_v2",
        block_name="block{}",
        stem_scope="conv1",
        final_bn_scope="postnorm",
        weight_decay=1e-4,
        units_per_block=UNITS_PER_BLOCK,
        one_for_all=False,
        block_strides=(1, 2, 2, 2),
        expansion=_EXPANSION,
        stem_channels=64,
        stem_size=7,
        stem_stride=2,
        pool_stride=2,
        pools_first=False,
        make_unit=_make_unit,
        dilates=True,
        batch_norm=_batch_norm,
        head_batch_norm=_linear_batch_norm,
        preprocessing="symmetric",
        has_forms=True,
    )

    @staticmethod
    def preprocess(image, size=None):
        size = size or _IMAGE_SIZE
        return inception.for_evaluation(image, size, size)

    def default_learning_rate(self, max_number_of_steps, num_examples, batch_size):
        return imagenet_learning_rate(num_examples, batch_size)


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
    weights: str | None = None,
    include_top: bool = True,
    **options,
) -> ImagenetResNet:
    """Builds an ImageNet residual network: 7x7 stem, four blocks of bottleneck units.

    Args:
        model: "50", "101", "152", "200", or the residual units of each block as in
            "3_4_23_3".
        model_type: "vanilla", "act", "act_early_stopping", "sact" or "pact", or another
            of `sact_tf.halting.model_types()`.
        num_classes: Size of the logits; 1001 is ImageNet and a background class 0. 0:
            there is no classifier, see `pooling`.
        base_channels: Bottleneck channels of the first block; doubles from block to
            block. The stem has 64 whatever this is.
        tau: Weight of the ponder cost in the losses, at least 0.
        execution: "masked": units run densely and residuals are multiplied by the
            active mask; "perforated": in inference, only active positions are computed;
            "tiled": the same by tiles, with a `tile_size` above 1.
        tile_size: With "sact", side of the square tiles of positions that share their
            halting scores.
        name: Keras name of the model.
        weight_decay: L2 coefficient c of the loss c * sum(w^2) / 2 of every
            convolution, halting heads included; None: the original's 1e-4.
        weights: What to start from: "keras_applications" downloads those of ResNet50V2,
            101V2 or 152V2; otherwise a path, as of `sact_tf.load_pretrained`. The forms
            below are those of the weights unless given. A classifier of other classes
            than the weights' stays as initialised, and so do halting heads. None: all
            are fresh.
        include_top: False: as `num_classes=0`, without a classifier.
        **options: Of the halting rule, such as `epsilon` (SACT) or `test_mode` (PACT),
            and others of `ResidualNetwork`: `precision` (with "bfloat16" units round
            what they multiply in perforated execution), `group_grid`, `dtype`,
            `block_strides` (as detectors give block 4 stride 1), `halting_bias`, `rate`
            (with 2, 4 or 8 the
            strides of the last one, two or three blocks become dilations of their 3x3
            convolutions: the features are that much denser), and the forms that weights
            from elsewhere ask for, `stem_pool` ("same", "symmetric" or "zeros") and
            `downsample` ("conv2" or "input"). Without a classifier `pooling`: "avg" or
            "max" over positions.

    Returns:
        A `tf_keras.Model` from images [batch, height, width, 3] in [-1, 1] to logits
        [batch, num_classes]; without a classifier to features [batch, h, w, channels],
        or [batch, channels] with `pooling`.

    Raises:
        ValueError: Naming the argument, on any other value.
        OSError: The weights cannot be had; tells the file that is missing.
    """
    found = None
    num_classes = num_classes if include_top else 0
    if weights is not None:
        found = _find_weights(weights, model)
        if found.form is not None:
            options = {**found.form._asdict(), **options}
    network = ImagenetResNet(
        model,
        model_type,
        num_classes,
        base_channels,
        tau,
        execution,
        tile_size,
        name,
        weight_decay,
        **options,
    )
    if found is not None:
        imagenet = (1000, 1001)
        fits = found.num_classes == num_classes or (
            found.num_classes in imagenet and num_classes in imagenet
        )
        pretrained.load_found(network, found, without_classifier=not fits)
    return network


def _find_weights(weights, model):
    if weights == "keras_applications":
        units = parse_units(model, UNITS_PER_BLOCK, 4)
        return pretrained.read_keras_applications("_".join(map(str, units)))
    return pretrained.identify(weights)
