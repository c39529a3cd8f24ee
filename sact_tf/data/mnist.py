"""MNIST, from a file or TensorFlow Datasets, and digits in clutter made of it.

Images are not augmented, and are scaled to [0, 1].
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from sact_tf import reading
from sact_tf.data import prepared
from sact_tf.data.examples import (
    DataError,
    Examples,
    Shard,
    fetch_ahead,
    take_shard,
)
from sact_tf.optional import lazy

tfds = lazy("tensorflow_datasets")

SPLITS = ("train", "train_part", "validation", "test")
"""The last 5,000 training images are "validation", the others "train_part"."""
NUM_HELD_OUT = 5000
CLUTTERED_SIDE = 60
_SIDE = 28
_NUM_CLASSES = 10
_NUM_PIECES, _PIECE = 4, 8
_READ_AT_ONCE = 1000


class Digits(Examples):
    """Grey images, uint8 [num_examples, height, width, 1], of ten classes."""

    @staticmethod
    def _preprocess(images, labels):
        """Maps pixels to [0, 1]."""
        return tf.cast(images, tf.float32) / 255.0, labels

    def training_batches(
        self,
        batch_size: int,
        seed: int | None = None,
        shard: Shard | None = None,
        data_service: str | None = None,
    ) -> tf.data.Dataset:
        """Shuffled images in [0, 1] and labels without end.

        Arguments are those of `Examples.training_batches`.
        """
        images, labels = tf.constant(self.images), tf.constant(self.labels)
        dataset = take_shard(tf.data.Dataset.range(self.num_examples), shard)
        dataset = dataset.shuffle(self.num_examples, seed=seed).repeat()
        dataset = dataset.batch(batch_size, drop_remainder=True)
        dataset = dataset.map(
            lambda rows: self._preprocess(
                tf.gather(images, rows), tf.gather(labels, rows)
            ),
            num_parallel_calls=2,
            deterministic=True,
        )
        return fetch_ahead(dataset, data_service)


def load_npz(path: str, split: str) -> Digits:
    """Reads a file with the arrays x_train, y_train, x_test and y_test.

    Args:
        path: The `.npz` file; one that holds Python objects is refused.
        split: One of `SPLITS`.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It lacks an array, or one has another shape or type.
    """
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: does not exist")
    part = "test" if split == "test" else "train"
    names = (f"x_{part}", f"y_{part}")
    arrays = reading.read_npz(path, names)
    for name in names:
        if name not in arrays:
            raise DataError(f"{path}: has no array {name}")
    images, labels = (arrays[name] for name in names)
    if images.dtype != np.uint8 or images.shape[1:] != (_SIDE, _SIDE):
        raise DataError(
            f"{path}: {names[0]} must be uint8 [n, {_SIDE}, {_SIDE}]; got "
            f"{images.dtype} {list(images.shape)}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(
            f"{path}: {names[1]} must be integers [{len(images)}]; got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    return _split(images, labels, split, path)


def load_tfds(directory: str | None, split: str) -> Digits:
    """Loads `mnist` of TensorFlow Datasets.

    Args:
        directory: TensorFlow Datasets' data directory, or None for its default.
        split: One of `SPLITS`.

    Raises:
        DataError: The data set is not there.
    """
    part = "test" if split == "test" else "train"
    builder = prepared.builder("mnist", part, directory)
    with prepared.explained("mnist", directory):
        # With batch_size=-1 it aborts where metadata do not tell the split's size.
        dataset = builder.as_dataset(split=part).batch(_READ_AT_ONCE)
        parts = list(tfds.as_numpy(dataset))
        images = np.concatenate([each["image"] for each in parts])
        labels = np.concatenate([each["label"] for each in parts])
    return _split(images[..., 0], labels, split, "mnist")


def _split(images, labels, split, name):
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < _NUM_CLASSES:
        raise DataError(
            f"{name}: labels must lie in 0..{_NUM_CLASSES - 1}; got "
            f"{labels.min()}..{labels.max()}"
        )
    held_out = NUM_HELD_OUT if split in ("train_part", "validation") else 0
    if len(images) <= held_out:
        raise DataError(
            f"{name}: the split {split} needs more than {held_out} images; there are "
            f"{len(images)}"
        )
    first = len(images) - held_out if split == "validation" else 0
    last = len(images) - held_out if split == "train_part" else len(images)
    chosen = slice(first, last)
    images = images[chosen, ..., np.newaxis]
    return Digits(images, labels[chosen].astype(np.int64), _NUM_CLASSES)


def clutter(digits: Digits, seed: int = 0, side: int = CLUTTERED_SIDE) -> Digits:
    """Puts every digit in a random place among pieces of others (Mnih et al., 2014).

    Args:
        digits: Of 28 x 28 pixels.
        seed: The same gives the same images.
        side: Of the images made.

    Returns:
        Images [n, side, side, 1], each with four pieces of 8 x 8 pixels.
    """
    rng = np.random.default_rng(seed)
    count = digits.num_examples
    made = np.zeros([count, side, side, 1], np.uint8)
    others = rng.integers(0, count, [count, _NUM_PIECES])
    cut = rng.integers(0, _SIDE - _PIECE + 1, [count, _NUM_PIECES, 2])
    put = rng.integers(0, side - _PIECE + 1, [count, _NUM_PIECES, 2])
    place = rng.integers(0, side - _SIDE + 1, [count, 2])
    for k, image in enumerate(made):
        _add(image, digits.images[k], *place[k])
        for other, (y, x), (top, left) in zip(others[k], cut[k], put[k]):
            piece = digits.images[other, y : y + _PIECE, x : x + _PIECE]
            _add(image, piece, top, left)
    return Digits(made, digits.labels, digits.num_classes)


def _add(image, part, top, left):
    """Draws a part over an image, the lighter of both."""
    height, width = part.shape[:2]
    window = image[top : top + height, left : left + width]
    np.maximum(window, part, out=window)
