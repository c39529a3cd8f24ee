"""CIFAR-10 from the original code's TFRecord files, or from TensorFlow Datasets."""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from sact_tf.data import prepared
from sact_tf.data.examples import DataError, Examples, check_records
from sact_tf.optional import lazy

tfds = lazy("tensorflow_datasets")

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
NUM_CLASSES = len(CLASS_NAMES)
IMAGE_SHAPE = (32, 32, 3)
SPLITS = ("train", "test")
_RECORD_OVERHEAD = 16  # bytes of length and checksums around a TFRecord's content
DEFAULT_DIRECTORY = "~/tensorflow/data/cifar10"


def load_tfrecord(directory: str | None, split: str) -> Examples:
    """Reads `cifar10_train.tfrecord` or `cifar10_test.tfrecord`, and checks it.

    Records hold `image/encoded` (PNG or JPEG bytes) and `image/class/label`. As in the
    original, EXIF data have no effect.

    Args:
        directory: Where the files are; None is `~/tensorflow/data/cifar10`.
        split: "train" or "test".

    Raises:
        FileNotFoundError: The directory or file is missing.
        DataError: The file is empty, truncated or corrupt, an image cannot be decoded
            or is not 32x32x3, or a label is missing or not in 0..9.
    """
    _check_split(split)
    directory = os.path.expanduser(directory or DEFAULT_DIRECTORY)
    path = os.path.join(directory, f"cifar10_{split}.tfrecord")
    if not tf.io.gfile.isdir(directory):
        raise FileNotFoundError(f"data directory {directory} does not exist")
    if not tf.io.gfile.exists(path):
        raise FileNotFoundError(
            f"data directory {directory} has no file {os.path.basename(path)}"
        )
    check_records([path])
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string, ""),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64, -1),
    }

    def parse(record):
        example = tf.io.parse_single_example(record, features)
        image = tf.io.decode_image(example["image/encoded"], expand_animations=False)
        return image, example["image/class/label"], tf.strings.length(record)

    dataset = tf.data.TFRecordDataset(path).map(
        parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    images, labels, bytes_read = [], [], 0
    try:
        for image, label, length in dataset.prefetch(1024).as_numpy_iterator():
            if image.shape != IMAGE_SHAPE:
                raise DataError(
                    f"{path}: record {len(images)} holds an image of shape "
                    f"{'x'.join(map(str, image.shape))}, expected 32x32x3"
                )
            if not 0 <= label < NUM_CLASSES:
                raise DataError(
                    f"{path}: record {len(images)} has label {label}, expected 0 to "
                    f"{NUM_CLASSES - 1}"
                )
            images.append(image)
            labels.append(label)
            bytes_read += length + _RECORD_OVERHEAD
    except tf.errors.DataLossError as error:
        raise DataError(
            f"{path}: truncated or corrupt at or after record {len(images)}"
        ) from error
    except tf.errors.InvalidArgumentError as error:
        raise DataError(
            f"{path}: record {len(images)} or a near one is no example of an encoded "
            "image and a label"
        ) from error
    if bytes_read != tf.io.gfile.stat(path).length:
        # TensorFlow takes a file cut off within a record's header for a whole one.
        raise DataError(f"{path}: truncated after record {len(images) - 1}")
    if not images:
        raise DataError(f"{path}: holds no records")
    return Examples(np.stack(images), np.array(labels, np.int64), NUM_CLASSES)


def load_tfds(directory: str | None, split: str) -> Examples:
    """Reads CIFAR-10 through TensorFlow Datasets, which downloads it on first use.

    Args:
        directory: TensorFlow Datasets' data directory, or None for its default.
        split: "train" or "test".

    Raises:
        DataError: The data set can be neither found nor downloaded.
    """
    _check_split(split)
    with prepared.explained("cifar10", directory):
        dataset = tfds.load(
            "cifar10", data_dir=directory, split=split, as_supervised=True
        )
        images, labels = zip(*dataset.as_numpy_iterator())
    return Examples(np.stack(images), np.array(labels, np.int64), NUM_CLASSES)


def _check_split(split):
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
