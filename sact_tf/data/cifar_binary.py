"""CIFAR-10 as published: the binary batches, and TFRecord files made of them."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from sact_tf.data.cifar import IMAGE_SHAPE, NUM_CLASSES, SPLITS
from sact_tf.data.examples import DataError
from sact_tf.domains import first_line
from sact_tf.writing import atomic_file

BATCHES = {
    "train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
    "test": ("test_batch.bin",),
}
"""Names of the published files, by split."""

_PIXELS = int(np.prod(IMAGE_SHAPE))
_RECORD = 1 + _PIXELS  # label, then the red, green and blue planes
_MOST_BYTES = 100 * 10000 * _RECORD  # of one file; the published have 10,000 records


def read_batches(path: str) -> dict[str, bytes]:
    """Reads all batches of a directory or of an archive.

    Args:
        path: Directory of the files `BATCHES`, or the published `.tar.gz` with them, in
            any directory of it.

    Returns:
        The files' contents by their names.

    Raises:
        FileNotFoundError: There is no such path.
        DataError: A batch is missing, or the archive cannot be read.
    """
    path = os.path.expanduser(os.fspath(path))
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: No such file or directory")
    read = _read_directory if os.path.isdir(path) else _read_archive
    wanted = [name for split in SPLITS for name in BATCHES[split]]
    found = read(path, wanted)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"{path}: has no {', '.join(missing)}; take CIFAR-10's binary version"
        )
    return found


def _read_directory(path, wanted):
    found = {}
    for name in wanted:
        file = os.path.join(path, name)
        if os.path.exists(file):
            _check_size(file, os.path.getsize(file))
            with open(file, "rb") as opened:
                found[name] = opened.read()
    return found


def _read_archive(path, wanted):
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if name in wanted and member.isfile():
                    _check_size(f"{path}: {name}", member.size)
                    found[name] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        reason = first_line(error).rstrip(":")
        raise DataError(f"{path}: is no readable .tar.gz archive ({reason})") from error
    return found


def _check_size(name, size):
    if size > _MOST_BYTES:
        raise DataError(f"{name}: has {size} bytes; expected at most {_MOST_BYTES}")


def parse_batch(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images [n, 32, 32, 3] and labels [n] of a batch, uint8.

    Args:
        content: Of the file.
        name: What an error calls it.

    Raises:
        DataError: It is empty or cut off, or a label is not in 0..9.
    """
    if not content or len(content) % _RECORD:
        raise DataError(
            f"{name}: has {len(content)} bytes, which are no whole records of {_RECORD}"
        )
    records = np.frombuffer(content, np.uint8).reshape([-1, _RECORD])
    labels = records[:, 0]
    if labels.max() >= NUM_CLASSES:
        k = int(np.argmax(labels >= NUM_CLASSES))
        raise DataError(
            f"{name}: record {k} has label {labels[k]}, expected 0 to {NUM_CLASSES - 1}"
        )
    height, width, channels = IMAGE_SHAPE
    planes = records[:, 1:].reshape([-1, channels, height, width])
    return planes.transpose([0, 2, 3, 1]), labels


def serialized_example(image: np.ndarray, label: int) -> bytes:
    """Returns a record as the original's converter writes it, its image as PNG.

    Args:
        image: uint8 [32, 32, 3].
        label: From 0 to 9.
    """

    def of_bytes(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def of_integer(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {
        "image/encoded": of_bytes(tf.io.encode_png(image).numpy()),
        "image/format": of_bytes(b"png"),
        "image/class/label": of_integer(int(label)),
        "image/height": of_integer(image.shape[0]),
        "image/width": of_integer(image.shape[1]),
    }
    features = tf.train.Features(feature=features)
    return tf.train.Example(features=features).SerializeToString()


def convert(
    path: str, directory: str, progress: Callable[[str, int], None] | None = None
) -> dict[str, int]:
    """Writes `cifar10_train.tfrecord` and `cifar10_test.tfrecord`.

    Nothing is written unless all batches are as they should be.

    Args:
        path: As of `read_batches`.
        directory: Where to write, each file whole or not at all.
        progress: Called with the split and the number of images written so far.

    Returns:
        The number of images by split.

    Raises:
        FileNotFoundError, DataError: As `read_batches` and `parse_batch`.
        WritingError: A file cannot be written.
    """
    found = read_batches(path)
    batches = {
        split: [parse_batch(found[n], f"{path}: {n}") for n in BATCHES[split]]
        for split in SPLITS
    }
    counts = {}
    for split in SPLITS:
        target = os.path.join(directory, f"cifar10_{split}.tfrecord")
        counts[split] = 0
        with atomic_file(target) as temporary:
            with tf.io.TFRecordWriter(temporary) as writer:
                for images, labels in batches[split]:
                    for image, label in zip(images, labels):
                        writer.write(serialized_example(image, label))
                    counts[split] += len(labels)
                    if progress is not None:
                        progress(split, counts[split])
    return counts
