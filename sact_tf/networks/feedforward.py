"""Feed-forward convolutional networks with pooling: NIN, AlexNet and VGG-16.

They are plain Functional models of `tf_keras`, which `sact_tf.perforation` perforates
like any others. The perforation paper (Figurnov et al., 2016) used these three.
"""

from __future__ import annotations

from collections.abc import Sequence

import tf_keras as keras

from sact_tf.domains import COUNT, FRACTION, INPUT_SIDE

layers = keras.layers

_NIN_BLOCKS = ((192, 5, (160, 96)), (192, 5, (192, 192)), (192, 3, (192,)))
"""Channels and kernel size of a spatial convolution, channels of the 1x1 after it."""


def check_input_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns height, width and channels.

    Raises:
        ValueError: They are not three numbers, or not such of an image.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"input_shape must be (height, width, channels); got {tuple(input_shape)}"
        )
    height, width = (INPUT_SIDE.check(n, "input_shape") for n in input_shape[:2])
    return height, width, COUNT.check(input_shape[2], "input_shape")


def _convolution(x, filters, size, name, weight_decay, batch_norm=True, strides=1):
    """A convolution, batch normalization if asked for, and ReLU."""
    x = layers.Conv2D(
        filters,
        size,
        strides,
        "same",
        use_bias=not batch_norm,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(weight_decay),
        name=name,
    )(x)
    if batch_norm:
        x = layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def nin(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    dropout: float = 0.0,
    weight_decay: float = 5e-4,
) -> keras.Model:
    """Network in Network for CIFAR (Lin et al., 2013), with batch normalization.

    Three spatial convolutions, each followed by 1x1 convolutions; the last of these
    gives a map per class, whose mean is the logit. 968,394 parameters that are trained
    (10 classes).

    Args:
        num_classes: Number of classes.
        input_shape: Height, width and channels of an image.
        dropout: Share of activations dropped after each of the two poolings; the
            original drops half, which needs a long schedule.
        weight_decay: Of all kernels, the factor of their squared sum.

    Returns:
        Model from images, float32 [batch, height, width, channels], to logits, float32
        [batch, num_classes].

    Raises:
        ValueError: An argument is out of range.

    >>> nin().output_shape
    (None, 10)
    """
    COUNT.check(num_classes, "num_classes")
    FRACTION.check(dropout, "dropout")
    x = inputs = keras.Input(check_input_shape(input_shape), name="images")
    for k, (channels, size, pointwise) in enumerate(_NIN_BLOCKS, 1):
        x = _convolution(x, channels, size, f"conv{k}", weight_decay)
        for j, channels in enumerate(pointwise, 1):
            x = _convolution(x, channels, 1, f"conv{k}_1x1_{j}", weight_decay)
        if k < len(_NIN_BLOCKS):
            pool = layers.MaxPooling2D if k == 1 else layers.AveragePooling2D
            x = pool(3, 2, "same", name=f"pool{k}")(x)
            if dropout:
                x = layers.Dropout(dropout, name=f"dropout{k}")(x)
    x = layers.Conv2D(
        num_classes,
        1,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(weight_decay),
        name="classes",
    )(x)
    outputs = layers.GlobalAveragePooling2D(name="logits")(x)
    return keras.Model(inputs, outputs, name="nin")


def alexnet(
    num_classes: int = 1000,
    input_shape: Sequence[int] = (227, 227, 3),
    dropout: float = 0.5,
    weight_decay: float = 5e-4,
) -> keras.Model:
    """AlexNet (Krizhevsky et al., 2012), with batch normalization for its LRN.

    Five convolutions, three of which a 3x3 pooling of stride 2 follows, and three dense
    layers. Convolutions are not split into the two groups of the original, which were
    its two GPUs'.

    Args:
        num_classes: Number of classes.
        input_shape: Height, width and channels of an image; sides of at least 67.
        dropout: Share of activations dropped before each of the first two dense layers.
        weight_decay: Of all kernels, the factor of their squared sum.

    Returns:
        Model from images, float32 [batch, height, width, channels], to logits, float32
        [batch, num_classes].

    Raises:
        ValueError: An argument is out of range.
    """
    COUNT.check(num_classes, "num_classes")
    FRACTION.check(dropout, "dropout")
    shape = check_input_shape(input_shape)
    if min(shape[:2]) < 67:
        raise ValueError(
            f"input_shape must have sides >= 67 in AlexNet; got {shape[0]}x{shape[1]}"
        )
    regularizer = keras.regularizers.L2(weight_decay)
    x = inputs = keras.Input(shape, name="images")
    x = layers.Conv2D(
        96,
        11,
        4,
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=regularizer,
        name="conv1",
    )(x)
    x = layers.BatchNormalization(epsilon=1e-5, name="conv1_bn")(x)
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = _convolution(x, 256, 5, "conv2", weight_decay)
    x = layers.MaxPooling2D(3, 2, name="pool2")(x)
    for k, channels in ((3, 384), (4, 384), (5, 256)):
        x = _convolution(x, channels, 3, f"conv{k}", weight_decay)
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)
    x = layers.Flatten(name="flatten")(x)
    for k in (6, 7):
        if dropout:
            x = layers.Dropout(dropout, name=f"dropout{k}")(x)
        x = layers.Dense(
            4096,
            "relu",
            kernel_initializer="he_normal",
            kernel_regularizer=regularizer,
            name=f"fc{k}",
        )(x)
    outputs = layers.Dense(num_classes, kernel_regularizer=regularizer, name="logits")(
        x
    )
    return keras.Model(inputs, outputs, name="alexnet")


def vgg16(
    num_classes: int = 1000,
    input_shape: Sequence[int] = (224, 224, 3),
    weights: str | None = None,
) -> keras.Model:
    """VGG-16 (Simonyan & Zisserman, 2014) as Keras Applications gives it.

    Args:
        num_classes: Number of classes.
        input_shape: Height, width and channels of an image.
        weights: None: random ones; "imagenet", which Keras downloads; or a file.

    Returns:
        Model from images, float32 [batch, height, width, channels], to probabilities,
        float32 [batch, num_classes].

    Raises:
        ValueError: An argument is out of range.
    """
    COUNT.check(num_classes, "num_classes")
    return keras.applications.VGG16(
        weights=weights,
        input_shape=check_input_shape(input_shape),
        classes=num_classes,
    )


def resnet50(
    num_classes: int = 1000, input_shape: Sequence[int] = (224, 224, 3)
) -> keras.Model:
    """ResNet-50 v2 (He et al., 2016) as Keras Applications gives it, random weights.

    Arguments and result are those of `vgg16`.
    """
    COUNT.check(num_classes, "num_classes")
    return keras.applications.ResNet50V2(
        weights=None,
        input_shape=check_input_shape(input_shape),
        classes=num_classes,
    )


NETWORKS = {"nin": nin, "alexnet": alexnet, "vgg16": vgg16, "resnet": resnet50}
"""Builders by name; each takes `num_classes` and `input_shape`."""
