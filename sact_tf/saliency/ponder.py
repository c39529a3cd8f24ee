"""Ponder cost maps of photographs, from a network or from files."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import reading, visualization
from sact_tf.data.examples import DataError
from sact_tf.data.images import read_image, require_finite
from sact_tf.networks.cifar_resnet import CifarResNet
from sact_tf.saliency import maps
from sact_tf.writing import atomic_file

_SUFFIXES = (".png", ".jpg", ".jpeg")
_PREFIX = "map/"
_SETTINGS = "settings"


def input_size(
    image_size: tuple[int, int] | int, size: tuple[int, int]
) -> tuple[int, int]:
    """Returns (height, width) of a network's input.

    Args:
        image_size: (width, height), or the longer edge, the aspect ratio being kept.
        size: (height, width) of the image.
    """
    if not isinstance(image_size, int):
        return image_size[1], image_size[0]
    scale = image_size / max(size)
    return tuple(max(round(side * scale), 1) for side in size)


def network_input(
    model: keras.layers.Layer, image: np.ndarray, size: tuple[int, int]
) -> tf.Tensor:
    """Resizes an image, all of it, and scales its values as the network is used to.

    Args:
        model: From `imagenet_resnet` or `cifar_resnet`, or a part of one.
        image: uint8 [any height, any width, 3].
        size: (height, width) of the result.

    Returns:
        float32 [1, height, width, 3].

    Raises:
        DataError: The image has NaN or infinite values.
    """
    require_finite(image, "image")
    image = tf.image.convert_image_dtype(image, tf.float32)[tf.newaxis]
    image = tf.image.resize(image, size, "bicubic", antialias=True)
    if isinstance(model, CifarResNet):
        return tf.image.per_image_standardization(image * 255.0)
    return tf.clip_by_value(image, 0.0, 1.0) * 2.0 - 1.0


def ponder_cost(
    model: keras.layers.Layer, image: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Returns the ponder cost of a SACT network, summed over blocks.

    Args:
        model: Any SACT network of this package, or a part of one that has
            `with_end_points`.
        image: uint8 [any height, any width, 3].
        size: (height, width) of the network's input.

    Returns:
        float32 [height, width].

    Raises:
        ValueError: The network has no ponder cost per position.
        DataError: The image has NaN or infinite values.
    """
    inputs = network_input(model, image, size)
    _, end_points = model.with_end_points(inputs, training=False)
    if not visualization.has_maps(end_points):
        raise ValueError("only SACT networks have a ponder cost map")
    return visualization.sact_map(end_points)[0, ..., 0].numpy()


def save_maps(
    path: str, values: Mapping[str, np.ndarray], settings: Mapping[str, object]
) -> None:
    """Writes maps to an `.npz` file, whole or not at all.

    Args:
        path: The file.
        values: By the stimulus's name, [height, width].
        settings: What made them, noted in the file as JSON.
    """
    arrays = {f"{_PREFIX}{name}": array for name, array in values.items()}
    arrays[_SETTINGS] = np.array(json.dumps(settings, sort_keys=True))
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def saved_settings(path: str) -> dict[str, object] | None:
    """Returns the settings noted by `save_maps`; None if there is no such file."""
    try:
        settings = json.loads(str(reading.read_npz(path, [_SETTINGS])[_SETTINGS]))
    except (ValueError, KeyError, RecursionError):
        return None  # missing, cut off, or of another kind: to be written anew
    return settings if isinstance(settings, dict) else None


def load_maps(path: str, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads ready-made maps.

    Args:
        path: An `.npz` file with one array [height, width] per image, called by its
            name, or written by `save_maps`; or a directory of PNG or JPEG files
            `<name>.png`.
        names: Stimuli's names.

    Returns:
        By name, float [height, width]; colours are averaged.

    Raises:
        DataError: A map is missing, or a file cannot be read.
    """
    source = pathlib.Path(path).expanduser()
    if source.is_dir():
        return {name: _read_picture(source, name) for name in names}
    if not source.is_file():
        raise DataError(f"{source}: does not exist")
    values = {
        key.removeprefix(_PREFIX): array
        for key, array in reading.read_npz(source).items()
        if key != _SETTINGS
    }
    names = list(names)
    missing = [name for name in names if name not in values]
    if missing:
        raise DataError(
            f"{source}: has no map of {len(missing)} of {len(names)} images, such as "
            f"{missing[0]!r}"
        )
    for name in names:
        array = values[name]
        if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
            raise DataError(
                f"{source}: {name} must be numbers [height, width]; got "
                f"{array.dtype} {list(array.shape)}"
            )
        require_finite(array, f"{source}: {name}")
    return {name: values[name] for name in names}


def _read_picture(directory, name):
    for suffix in _SUFFIXES:
        file = directory / f"{name}{suffix}"
        if file.is_file():
            return read_image(str(file)).numpy().mean(-1)
    raise DataError(f"{directory}: has no map {name}.png (or {', '.join(_SUFFIXES)})")


def check_photograph(image: np.ndarray, size: tuple[int, int], name: str) -> None:
    """Raises DataError unless an image has the aspect ratio that fixations refer to."""
    try:
        maps.check_aspect(image.shape[:2], size, name)
    except ValueError as error:
        raise DataError(str(error)) from error
