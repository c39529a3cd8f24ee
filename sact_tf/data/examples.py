"""Labelled images of one size in memory, and batches of them."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import tensorflow as tf

_CROP_PADDING = 2


class DataError(ValueError):
    """A data set cannot be used; the message names file, record and what is wrong."""


Shard = tuple[int, int]
"""How many parts a data set is dealt into, one for every process, and which one."""


def take_shard(dataset: tf.data.Dataset, shard: Shard | None) -> tf.data.Dataset:
    """Returns the elements of a part, or all if `shard` is None."""
    return dataset if shard is None else dataset.shard(*shard)


def number_with_seeds(
    dataset: tf.data.Dataset, seed: int | tf.Tensor | None
) -> tf.data.Dataset:
    """Pairs elements with seeds for stateless random operations, int64 [2].

    The k-th element gets the same whatever runs in parallel and however batches are
    dealt out to devices.

    Args:
        dataset: Any.
        seed: The seeds' first part; None draws one.
    """
    first = np.random.randint(2**31) if seed is None else seed
    seeds = tf.data.Dataset.counter().map(
        lambda k: tf.stack([tf.cast(first, tf.int64), k])
    )
    return tf.data.Dataset.zip(seeds, dataset)


def fetch_ahead(dataset: tf.data.Dataset, data_service: str | None) -> tf.data.Dataset:
    """Has batches prepared while others are used.

    Args:
        dataset: Batches.
        data_service: Address of the tf.data service that prepares them; None: this
            process does.
    """
    if data_service is not None:
        # Every worker of the service prepares batches of all examples.
        policy = tf.data.experimental.service.ShardingPolicy.OFF
        dataset = dataset.apply(
            tf.data.experimental.service.distribute(policy, data_service)
        )
    return dataset.prefetch(tf.data.AUTOTUNE)


@dataclasses.dataclass(frozen=True)
class Examples:
    """A split of a data set.

    Attributes:
        images: uint8 [num_examples, height, width, 3].
        labels: int64 [num_examples], from 0 to num_classes - 1.
        num_classes: Number of classes.
        boxes: int64 [num_examples, 4] or None: top, left, bottom, right of the object
            in pixels, bottom and right exclusive.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    boxes: np.ndarray | None = None

    def __post_init__(self):
        if not len(self.images):
            raise ValueError("the data set has no examples")
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"{len(self.images)} images, but {len(self.labels)} labels"
            )

    @property
    def num_examples(self) -> int:
        """Number of images."""
        return len(self.images)

    def explained_errors(self) -> contextlib.AbstractContextManager:
        """Explains errors of reading; there are none once images are in memory."""
        return contextlib.nullcontext()

    def evaluation_batches(self, batch_size: int) -> tf.data.Dataset:
        """Standardised images and labels, each once and in order."""
        dataset = tf.data.Dataset.from_tensor_slices((self.images, self.labels))
        return dataset.batch(batch_size).map(_standardize).prefetch(2)

    def training_batches(
        self,
        batch_size: int,
        seed: int | None = None,
        shard: Shard | None = None,
        data_service: str | None = None,
    ) -> tf.data.Dataset:
        """Shuffled, augmented, standardised images and labels without end.

        As in the original: 2 zero pixels are padded on each side, a crop of the
        original size and a horizontal flip are drawn, and the crop is standardised.

        Args:
            batch_size: Images per batch.
            seed: Of shuffling and augmentation; None draws one.
            shard: The part of the examples to take; None: all.
            data_service: As in `fetch_ahead`.
        """
        images, labels = tf.constant(self.images), tf.constant(self.labels)

        def draw(seed, index):
            return index, tf.random.stateless_uniform([3], seed)

        def make_batch(indices, draws):
            batch = tf.gather(images, indices)
            return _standardize(_augment(batch, draws), tf.gather(labels, indices))

        dataset = take_shard(tf.data.Dataset.range(self.num_examples), shard)
        dataset = dataset.shuffle(self.num_examples, seed=seed).repeat()
        dataset = number_with_seeds(dataset, seed).map(draw)
        dataset = dataset.batch(batch_size, drop_remainder=True)
        dataset = dataset.map(make_batch, num_parallel_calls=2, deterministic=True)
        return fetch_ahead(dataset, data_service)


def _augment(images, draws):
    """Crops the padded images and flips some, by draws [batch, 3] from [0, 1)."""
    height, width = images.shape[1:3]
    padding = [_CROP_PADDING, _CROP_PADDING]
    padded = tf.pad(images, [[0, 0], padding, padding, [0, 0]])
    shifts = tf.cast(draws[:, :2] * (2 * _CROP_PADDING + 1), tf.int32)
    rows = shifts[:, :1] + tf.range(height)
    columns = shifts[:, 1:] + tf.range(width)
    columns = tf.where(draws[:, 2:] < 0.5, columns[:, ::-1], columns)
    images = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)


def _standardize(images, labels):
    return tf.image.per_image_standardization(images), labels
