"""Images before the network, and classes after it."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.data.images import require_finite
from sact_tf.domains import Domain
from sact_tf.networks.options import PREPROCESSINGS

_NUM_CLASSES = 1000
_BACKGROUND = ("background", "background")


def preprocess_input(
    images: np.ndarray | tf.Tensor, model: keras.Model | None = None
) -> np.ndarray | tf.Tensor:
    """Maps pixels from 0 to 255 to what a network takes.

    Args:
        images: [height, width, 3] or [batch, height, width, 3] of any size, uint8, or
            floats in [0, 255].
        model: Its option `preprocessing` says what is done; None: that of ImageNet
            networks, x / 127.5 - 1.

    Returns:
        float32 of the same shape, a tensor where `images` are one.

    Raises:
        ValueError: The shape is another, or values are not from 0 to 255.

    >>> preprocess_input(np.uint8([[[0, 51, 255]]]))
    array([[[-1. , -0.6,  1. ]]], dtype=float32)
    """
    kind = PREPROCESSINGS[0] if model is None else model.options.preprocessing
    pixels = tf.convert_to_tensor(images)
    if pixels.shape.rank not in (3, 4) or pixels.shape[-1] not in (3, None):
        raise ValueError(
            "images must be [height, width, 3] or [batch, height, width, 3]; got "
            f"{pixels.shape.as_list()}"
        )
    if tf.executing_eagerly():
        _check_pixels(pixels)
    pixels = tf.cast(pixels, tf.float32)
    if kind == "standardized":
        result = tf.image.per_image_standardization(pixels)
    else:
        result = pixels / 127.5 - 1.0
    return result if tf.is_tensor(images) else result.numpy()


def _check_pixels(pixels):
    values = pixels.numpy()
    require_finite(values, "images")
    if not values.size:
        return
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        raise ValueError(f"images must lie in [0, 255]; got {low:g} to {high:g}")
    if pixels.dtype.is_floating and 0 < high <= 1:
        raise ValueError(
            f"images must lie in [0, 255]; got {low:g} to {high:g}, which looks like "
            "[0, 1]: multiply by 255"
        )


def decode_predictions(
    predictions: np.ndarray | tf.Tensor,
    top: int = 5,
    class_index: str | None = None,
) -> list[list[tuple[str, str, float]]]:
    """Names the likeliest classes of ImageNet.

    Args:
        predictions: Logits or probabilities, [batch, 1000] or [batch, 1001], of which
            class 0 is the background.
        top: How many classes of each image.
        class_index: Path of Keras' `imagenet_class_index.json`; None: the one that
            Keras has cached, or downloads.

    Returns:
        For each image the classes, the likeliest first: WordNet id, name, probability.

    Raises:
        ValueError: The predictions are of other classes, or the file is another.
        OSError: There is no such file, and it cannot be downloaded.
    """
    values = np.asarray(predictions, np.float64)
    if values.ndim != 2 or values.shape[1] not in (_NUM_CLASSES, _NUM_CLASSES + 1):
        raise ValueError(
            "predictions must be [batch, 1000] or [batch, 1001]; got "
            f"{list(values.shape)}"
        )
    top = Domain(1, values.shape[1], is_integer=True).check(top, "top")
    names = _class_names(class_index)
    if values.shape[1] > _NUM_CLASSES:
        names = [_BACKGROUND, *names]
    if values.min() < 0 or not np.allclose(values.sum(1), 1.0, atol=1e-3):
        values = tf.nn.softmax(values).numpy()
    best = np.argsort(-values, axis=1, kind="stable")[:, :top]
    return [
        [(*names[k], float(row[k])) for k in chosen]
        for row, chosen in zip(values, best)
    ]


def _class_names(path):
    """Returns WordNet id and name of the 1000 classes."""
    if path is None:
        return _cached_class_names()
    rows = reading.read_json(path)
    try:
        names = [tuple(map(str, rows[str(k)])) for k in range(_NUM_CLASSES)]
    except (KeyError, TypeError):
        names = []
    if not names or any(len(name) != 2 for name in names):
        raise DataError(
            f"{path}: is no class index of ImageNet; expected the keys 0 to 999, each "
            "with WordNet id and name"
        )
    return names


def _cached_class_names():
    numbers = np.arange(_NUM_CLASSES, dtype=np.float64)[np.newaxis]
    try:
        # Which reads the file, and downloads it before where it has to.
        (named,) = keras.applications.imagenet_utils.decode_predictions(
            numbers, top=_NUM_CLASSES
        )
    except Exception as error:  # which is what Keras raises where it has no network
        raise OSError(
            "class_index: imagenet_class_index.json is not cached and cannot be "
            f"downloaded ({' '.join(str(error).split())}); fetch it where there is a "
            "network and put it into ~/.keras/models, or give its path"
        ) from error
    return [(identity, name) for identity, name, _ in reversed(named)]
