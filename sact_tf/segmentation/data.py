"""Images whose pixels are labelled: what a source gives, and batches of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from sact_tf.data.examples import (
    UNREADABLE,
    DataError,
    Shard,
    explained_decoding,
    fetch_ahead,
    number_with_seeds,
    take_shard,
)
from sact_tf.domains import INPUT_SIDE, OPTIONAL_SIDE, Domain, first_line
from sact_tf.segmentation.losses import VOID

SCALES = (0.5, 2.0)
"""Smallest and largest factor that training resizes images by."""
FACTOR = Domain(0.05, 20)
"""What such factors may be."""
_SHUFFLE_BUFFER = 512  # decoded images
_GREY = 127.5
# Crops lie inside of images by so many pixels: rounding must not lead outside.
_MARGIN = 1e-3


@dataclasses.dataclass(frozen=True)
class SegmentationExamples:
    """A split of a data set of images with a class at every pixel.

    Attributes:
        elements: Maps whether to shuffle, a seed and a part (None: all) to a dataset of
            whatever `decode` takes.
        decode: Maps an element to an image, uint8 [height, width, 3], and its labels,
            int32 [height, width], below `num_classes` or `VOID`.
        num_examples: Number of images.
        num_classes: Number of classes, without void.
        name: What an error calls the data set.
        class_names: Of the classes; empty where they have none.
        notes: Lines that tell what was left out, and how often.
        crop_size: Height and width of what training crops.
        scales: Smallest and largest factor that training resizes images by.
        flip: Whether training flips images sideways.
        cache: Whether decoded images are kept in memory.
        long_side: Images with a longer side are resized to that for evaluation, whose
            predictions are then enlarged; 0: none.
        counts: Pixels of every class, int64 [num_classes], where the source knows them.
        name_of: Maps an element to what an error calls it, a string.
    """

    elements: Callable[[bool, int | None, Shard | None], tf.data.Dataset]
    decode: Callable[..., tuple[tf.Tensor, tf.Tensor]]
    num_examples: int
    num_classes: int
    name: str
    class_names: Sequence[str] = ()
    notes: Sequence[str] = ()
    crop_size: tuple[int, int] = (320, 320)
    scales: tuple[float, float] = SCALES
    flip: bool = True
    cache: bool = False
    long_side: int = 0
    counts: np.ndarray | None = None
    name_of: Callable[..., tf.Tensor] = lambda *element: tf.constant("an image")

    def __post_init__(self):
        if not self.num_examples:
            raise DataError(f"{self.name}: the split has no images")
        for side in self.crop_size:
            INPUT_SIDE.check(side, "crop_size")
        for factor in self.scales:
            FACTOR.check(factor, "scales")
        if self.scales[0] > self.scales[1]:
            raise ValueError(
                "scales must be the smallest and the largest factor; got "
                f"{self.scales[0]:g} and {self.scales[1]:g}"
            )
        OPTIONAL_SIDE.check(self.long_side, "long_side")

    def names(self) -> list[str]:
        """Returns the classes' names, or their numbers."""
        return list(self.class_names) or [f"class {k}" for k in range(self.num_classes)]

    def class_pixels(self) -> np.ndarray:
        """Counts the pixels of every class, int64 [num_classes], in all images."""
        if self.counts is not None:
            return self.counts
        total = np.zeros([self.num_classes], np.int64)
        with self.explained_errors():
            decoded = self.elements(False, None, None).map(
                self.decode, tf.data.AUTOTUNE
            )
            for _, labels in decoded:
                labels = labels.numpy()
                total += np.bincount(labels[labels != VOID], minlength=len(total))
        return total

    def first(self, num_examples: int) -> SegmentationExamples:
        """Returns the first examples of this split, or all if there are fewer."""

        def elements(shuffle, seed, shard):
            dataset = self.elements(False, None, None).take(num_examples)
            dataset = take_shard(dataset, shard)
            return dataset.shuffle(num_examples, seed) if shuffle else dataset

        num_examples = min(num_examples, self.num_examples)
        return dataclasses.replace(
            self, elements=elements, num_examples=num_examples, counts=None
        )

    def evaluation_batches(self, batch_size: int = 1) -> tf.data.Dataset:
        """Every image once, whole; see `training_batches` for the batches.

        Images of one size are batched together, and so may come in another order.
        """

        def prepare(*element):
            image, labels = self.decode(*element)
            image = network_input(limit(image, self.long_side))
            return {"image": image, "labels": labels}

        def size(example):
            height, width = tf.unstack(tf.shape(example["labels"], tf.int64))
            return height * 2**31 + width

        dataset = self.elements(False, None, None)
        dataset = dataset.map(prepare, tf.data.AUTOTUNE, deterministic=True)
        if batch_size > 1:
            dataset = dataset.group_by_window(
                size, lambda _, group: group.batch(batch_size), window_size=batch_size
            )
        else:
            dataset = dataset.batch(1)
        return dataset.prefetch(tf.data.AUTOTUNE)

    def training_batches(
        self,
        batch_size: int,
        seed: int | None = None,
        shard: Shard | None = None,
        data_service: str | None = None,
    ) -> tf.data.Dataset:
        """Shuffled crops of scaled and flipped images, without end.

        Args:
            batch_size: Images per batch.
            seed: Of shuffling and augmentation; None draws one.
            shard: The part to take.
            data_service: As in `sact_tf.data.examples.fetch_ahead`.

        Returns:
            Dataset of dictionaries: `image`, float32 [batch, height, width, 3] in [-1,
            1], and `labels`, int32 [batch, height, width].
        """
        crop = functools.partial(
            random_crop, size=self.crop_size, scales=self.scales, flip=self.flip
        )

        def prepare(own_seed, element):
            image, labels = crop(*element, seed=own_seed)
            return {"image": image, "labels": labels}

        if self.cache:
            dataset = self.elements(False, None, shard)
            dataset = dataset.map(self.decode, tf.data.AUTOTUNE, deterministic=True)
            dataset = dataset.cache()
            buffer = min(self.num_examples, _SHUFFLE_BUFFER)
            dataset = dataset.shuffle(buffer, seed).repeat()
        else:
            dataset = self.elements(True, seed, shard).repeat()
            dataset = dataset.map(
                self.decode, tf.data.AUTOTUNE, deterministic=seed is not None
            )
        dataset = number_with_seeds(dataset, seed).map(
            prepare, tf.data.AUTOTUNE, deterministic=seed is not None
        )
        return fetch_ahead(dataset.batch(batch_size, drop_remainder=True), data_service)

    @contextlib.contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Turns TensorFlow's errors of reading, in a `with` block, into `DataError`."""
        try:
            yield
        except (*UNREADABLE, tf.errors.DataLossError) as error:
            raise DataError(f"{self.name}: {first_line(error)}") from error
        except tf.errors.InvalidArgumentError as error:
            explained = explained_decoding(error, self)
            if explained is None:
                raise
            raise explained from error


def network_input(image: tf.Tensor) -> tf.Tensor:
    """Maps pixels from 0 to 255 to float32 in [-1, 1]."""
    return tf.cast(image, tf.float32) / 127.5 - 1.0


def limit(image: tf.Tensor, long_side: int) -> tf.Tensor:
    """Makes an image smaller, its aspect kept, if its long side is longer than that.

    Args:
        image: uint8 [height, width, 3].
        long_side: Largest long side; 0: any.

    Returns:
        [height, width, 3], uint8, or float32 in [0, 255].
    """
    if not long_side:
        return image
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    factor = tf.minimum(1.0, long_side / tf.reduce_max(sides))
    size = tf.maximum(tf.cast(tf.round(sides * factor), tf.int32), 1)
    return tf.ensure_shape(
        tf.image.resize(image, size, antialias=True), [None, None, 3]
    )


def random_crop(
    image: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    size: Sequence[int],
    scales: Sequence[float] = SCALES,
    flip: bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Crops a scaled and flipped image and its labels, at random.

    Only what is cropped is resized: the image bilinearly, labels to the nearest. A crop
    that is larger than the scaled image holds all of it at a random place; around it
    are grey and void.

    Args:
        image: uint8 [height, width, 3].
        labels: int32 [height, width].
        seed: Integers [2].
        size: Height and width of the crop.
        scales: Smallest and largest factor; its logarithm is drawn evenly.
        flip: Whether every second image is flipped sideways.

    Returns:
        float32 [*size, 3] in [-1, 1]; int32 [*size].
    """
    draws = tf.random.stateless_uniform([4], seed)
    low, high = (float(np.log(factor)) for factor in scales)
    scale = tf.exp(low + (high - low) * draws[0])
    last = tf.cast(tf.shape(labels), tf.float32) - 1.0  # largest coordinates
    span = (tf.constant(size, tf.float32) - 1.0) / scale - 2 * _MARGIN
    room = last - 2 * _MARGIN - span
    start = draws[1:3] * room + _MARGIN
    # By the largest coordinate, as `crop_and_resize` takes it.
    start, end = (x / tf.maximum(last, 1.0) for x in (start, start + span))
    is_flipped = (draws[3] < 0.5) & flip
    left, right = tf.where(is_flipped, end[1], start[1]), end[1]
    right = tf.where(is_flipped, start[1], right)
    box = tf.stack([start[0], left, end[0], right])[tf.newaxis]

    def crop(x, method, outside):
        return tf.image.crop_and_resize(x[tf.newaxis], box, [0], size, method, outside)

    image = network_input(crop(image, "bilinear", _GREY)[0])
    labels = crop(labels[..., tf.newaxis], "nearest", float(VOID))[0, ..., 0]
    return image, tf.cast(tf.round(labels), tf.int32)
