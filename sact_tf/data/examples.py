"""Labelled images of one size in memory, and batches of them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gzip
import os
import re
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from sact_tf.domains import first_line

_CROP_PADDING = 2


class DataError(ValueError):
    """A data set cannot be used; the message names file, record and what is wrong."""


UNREADABLE = (
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
)
"""What TensorFlow raises on files that went away, or are directories now."""

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


def check_records(files: Sequence[str]) -> None:
    """Checks that these can be the TFRecord files of one split; reads few bytes.

    Args:
        files: Paths; `NAME-00000-of-00002` says how many there are.

    Raises:
        DataError: Naming a file that is a directory, cannot be read, or is compressed;
            or those that are missing.
    """
    for file in files:
        if os.path.isdir(file):
            raise DataError(f"{file}: is a directory; expected a TFRecord file")
        try:
            is_compressed = _is_gzip(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror})") from error
        if is_compressed:
            raise DataError(
                f"{file}: is compressed by GZIP; expected a TFRecord file that is not "
                "(gunzip -c FILE > NEW_FILE)"
            )
    _check_shards(files)


def _is_gzip(file):
    """Whether a file unpacks; a record of 559903 bytes begins as a GZIP file does."""
    with open(file, "rb") as opened:
        if opened.read(3) != b"\x1f\x8b\x08":
            return False
    try:
        with gzip.open(file) as unpacked:
            unpacked.read(8)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    return True


def _check_shards(files):
    """Raises DataError where files of a set in parts are missing."""
    parts = collections.defaultdict(dict)
    for file in files:
        match = re.search(r"-(\d+)-of-(\d+)$", file)
        if match:
            parts[int(match[2])][int(match[1])] = file
    if len(parts) > 1:
        one, other = (min(files.values()) for files in list(parts.values())[:2])
        raise DataError(
            f"{one} and {os.path.basename(other)}: are of sets of "
            f"{' and '.join(map(str, sorted(parts)))} files; expected one set"
        )
    for count, present in parts.items():
        missing = [k for k in range(count) if k not in present]
        if missing:
            file = min(present.values())
            start = file[: file.rindex("-of-")].rpartition("-")[0]
            width = len(file.rpartition("-of-")[2])
            raise DataError(
                f"{start}-{missing[0]:0{width}}-of-{count:0{width}}: is missing, "
                f"with {len(missing)} of {count} files"
            )


def named_problem(message: str) -> str | None:
    """Returns "NAME is/has ..." of an assertion's message, None if it is another.

    Args:
        message: Of an error of TensorFlow.
    """
    found = re.search(
        r"\[(?:b['\"])?([^\n]+?)['\"]?\] \[((?:is|has) [^\]\n]+)\]",
        message.partition("assertion failed: ")[2],
    )
    return " ".join(found.groups()) if found else None


def first_undecodable(
    elements: tf.data.Dataset, decode: Callable, name_of: Callable
) -> str | None:
    """Returns the name of the first element that cannot be decoded, None without one.

    TensorFlow's own errors do not tell, so that all before it are decoded again.

    Args:
        elements: In order.
        decode: Maps an element to tensors.
        name_of: Maps an element to its name.
    """
    decoded = elements.map(decode, tf.data.AUTOTUNE, deterministic=True)
    count = 0
    try:
        for _ in decoded:
            count += 1
    except tf.errors.OpError:
        for name in elements.skip(count).map(name_of):
            return name.numpy().decode(errors="replace")
    return None


def explained_decoding(error: tf.errors.OpError, examples) -> DataError | None:
    """Returns what an error of reading images is about, None if it is about others.

    Args:
        error: An InvalidArgumentError.
        examples: What gives `elements`, `decode`, `name_of` and `name`.
    """
    problem = named_problem(error.message)
    if problem:
        return DataError(problem)
    if "ecode" not in error.message:
        return None
    elements = examples.elements(False, None, None)
    name = first_undecodable(elements, examples.decode, examples.name_of)
    return DataError(
        f"{name or examples.name}: an image cannot be decoded ({first_line(error)})"
    )


@dataclasses.dataclass(frozen=True)
class Examples:
    """A split of a data set.

    Attributes:
        images: uint8 [num_examples, height, width, 3].
        labels: int64 [num_examples], from 0 to num_classes - 1.
        num_classes: Number of classes.
        boxes: int64 [num_examples, 4] or None: top, left, bottom, right of the object
            in pixels, bottom and right exclusive.
        crop_padding: Zero pixels on each side, of which training crops; 0: it only
            flips.
        cutout: Side in pixels of a square, of every training image, that is set to
            the mean after standardisation (DeVries and Taylor, 2017); 0: none.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    boxes: np.ndarray | None = None
    crop_padding: int = _CROP_PADDING
    cutout: int = 0

    def __post_init__(self):
        if not len(self.images):
            raise ValueError("the data set has no examples")
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"{len(self.images)} images, but {len(self.labels)} labels"
            )
        if np.asarray(self.images).dtype != np.uint8:
            raise ValueError(
                f"images must be uint8; got {np.asarray(self.images).dtype}"
            )

    @property
    def num_examples(self) -> int:
        """Number of images."""
        return len(self.images)

    def explained_errors(self) -> contextlib.AbstractContextManager:
        """Explains errors of reading; there are none once images are in memory."""
        return contextlib.nullcontext()

    @staticmethod
    def _preprocess(images, labels):
        """Maps pixels of a batch to what a network takes, and leaves its labels."""
        return tf.image.per_image_standardization(images), labels

    def evaluation_batches(self, batch_size: int) -> tf.data.Dataset:
        """Preprocessed images and labels, each once and in order."""
        dataset = tf.data.Dataset.from_tensor_slices((self.images, self.labels))
        return dataset.batch(batch_size).map(self._preprocess).prefetch(2)

    def training_batches(
        self,
        batch_size: int,
        seed: int | None = None,
        shard: Shard | None = None,
        data_service: str | None = None,
    ) -> tf.data.Dataset:
        """Shuffled, augmented, standardised images and labels without end.

        As in the original: 2 zero pixels (`crop_padding`) are padded on each side, a
        crop of the original size and a horizontal flip are drawn, and the crop is
        standardised. `cutout` comes last.

        Args:
            batch_size: Images per batch.
            seed: Of shuffling and augmentation; None draws one.
            shard: The part of the examples to take; None: all.
            data_service: As in `fetch_ahead`.
        """
        images, labels = tf.constant(self.images), tf.constant(self.labels)

        def draw(seed, index):
            draws = tf.random.stateless_uniform([3], seed)
            # Of a seed of their own: they do not change what crops and flips are drawn.
            seed = tf.random.fold_in(seed, 1)
            return index, draws, tf.random.stateless_uniform([2], seed)

        def make_batch(indices, draws, centres):
            batch = _augment(tf.gather(images, indices), draws, self.crop_padding)
            batch, own_labels = self._preprocess(batch, tf.gather(labels, indices))
            if self.cutout:
                batch = _cut_out(batch, centres, self.cutout)
            return batch, own_labels

        dataset = take_shard(tf.data.Dataset.range(self.num_examples), shard)
        dataset = dataset.shuffle(self.num_examples, seed=seed).repeat()
        dataset = number_with_seeds(dataset, seed).map(draw)
        dataset = dataset.batch(batch_size, drop_remainder=True)
        dataset = dataset.map(make_batch, num_parallel_calls=2, deterministic=True)
        return fetch_ahead(dataset, data_service)


def _cut_out(images, centres, side):
    """Sets a square of every image to 0, by centres [batch, 2] from [0, 1).

    Any pixel may be the centre, so that squares at the border are cut off by it.
    """
    size = images.shape[1:3]

    def inside(centre, length):
        first = tf.cast(centre * length, tf.int32) - side // 2
        offset = tf.range(length) - first
        return (offset >= 0) & (offset < side)

    rows = inside(centres[:, :1], size[0])
    columns = inside(centres[:, 1:], size[1])
    is_cut = rows[:, :, tf.newaxis] & columns[:, tf.newaxis]
    return tf.where(is_cut[..., tf.newaxis], tf.zeros_like(images), images)


def _augment(images, draws, crop_padding):
    """Crops the padded images and flips some, by draws [batch, 3] from [0, 1)."""
    height, width = images.shape[1:3]
    padding = [crop_padding, crop_padding]
    padded = tf.pad(images, [[0, 0], padding, padding, [0, 0]])
    shifts = tf.cast(draws[:, :2] * (2 * crop_padding + 1), tf.int32)
    rows = shifts[:, :1] + tf.range(height)
    columns = shifts[:, 1:] + tf.range(width)
    columns = tf.where(draws[:, 2:] < 0.5, columns[:, ::-1], columns)
    images = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)
