"""Where labelled images come from: folders, TensorFlow Datasets, generated scenes."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
import warnings
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sact_tf import domains
from sact_tf.data import prepared, shapes
from sact_tf.data.examples import DataError, take_shard
from sact_tf.data.images import decode_image, image_size
from sact_tf.optional import lazy
from sact_tf.segmentation.data import SegmentationExamples
from sact_tf.segmentation.losses import VOID

pil_image = lazy("PIL.Image")
tfds = lazy("tensorflow_datasets")

VOID_LABEL = 255
"""What pixels that are not counted have in label files, by default."""
LABEL = domains.Domain(0, 32766, is_integer=True)
_IMAGE_FILES = re.compile(r"^[^.].*\.(jpe?g|png)$", re.IGNORECASE)
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B")
_SHOWN = 3
_SHUFFLE_BUFFER = 2048  # encoded images


class _Label(NamedTuple):
    """A label file that was read."""

    packed: bytes  # int16, by zlib
    size: tuple[int, int]
    pixels: np.ndarray  # int64 [largest class + 1]


def load_folders(
    images: str,
    labels: str,
    num_classes: int | None = None,
    void_label: int = VOID_LABEL,
    **options,
) -> SegmentationExamples:
    """Opens a folder of images and one of label files of the same names.

    Images are JPEG or PNG files; labels PNG files of one channel (of a palette, its
    numbers count), whose pixels are classes from 0, or `void_label`. Subfolders count;
    hidden files do not. Images without labels, labels without image, and images of
    which all is void are left out, and noted. All label files are read once.

    Args:
        images: Folder.
        labels: Folder.
        num_classes: Without void; None: by the largest label.
        void_label: Of pixels that are not counted.
        **options: Of `SegmentationExamples`.

    Raises:
        FileNotFoundError: A folder is missing.
        DataError: There are no pairs, or a label file is not what it must be; names the
            file.
    """
    if num_classes is not None:
        domains.Domain(2, LABEL.high + 1, is_integer=True).check(
            num_classes, "num_classes"
        )
    LABEL.check(void_label, "void_label")
    found, targets = _files(images, "images"), _files(labels, "labels")
    names = sorted(found.keys() & targets.keys())
    notes = [
        *_left_out(found, targets, "image", "without label file"),
        *_left_out(targets, found, "label file", "without image"),
    ]
    if not names:
        raise DataError(
            f"{images}: none of {len(found)} images has a label file of its name in "
            f"{labels}, which holds {len(targets)}"
        )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        read = list(
            pool.map(
                lambda name: _read(found[name], targets[name], void_label, num_classes),
                names,
            )
        )
    kept = [k for k, label in enumerate(read) if label.pixels.sum()]
    void = [found[name] for k, name in enumerate(names) if k not in set(kept)]
    if void:
        notes.append(_note(void, "image", "of which all is void"))
    if not kept:
        raise DataError(
            f"{labels}: all pixels of all {len(read)} label files are void "
            f"({void_label}); there is nothing to learn from or to score"
        )
    largest = max(len(read[k].pixels) for k in kept)
    num_classes = num_classes or max(largest, 2)
    counts = np.zeros([num_classes], np.int64)
    for k in kept:
        counts[: len(read[k].pixels)] += read[k].pixels
    paths = tf.constant([found[names[k]] for k in kept])
    packed = tf.constant([read[k].packed for k in kept])
    sizes = tf.constant([read[k].size for k in kept], tf.int32)

    def elements(shuffle, seed, shard):
        dataset = tf.data.Dataset.from_tensor_slices((paths, packed, sizes))
        dataset = take_shard(dataset, shard)
        return dataset.shuffle(len(kept), seed) if shuffle else dataset

    def decode(path, packed, size):
        image = decode_image(tf.io.read_file(path), path)
        values = tf.io.decode_raw(tf.io.decode_compressed(packed, "ZLIB"), tf.int16)
        return image, tf.cast(tf.reshape(values, size), tf.int32)

    return SegmentationExamples(
        elements,
        decode,
        len(kept),
        num_classes,
        os.fspath(images),
        notes=notes,
        counts=counts,
        name_of=lambda path, *_: path,
        **options,
    )


def _files(folder, what):
    """Returns the paths of image files in a folder by their names in it, unextended."""
    root = pathlib.Path(os.path.expanduser(folder))
    if not root.is_dir():
        raise FileNotFoundError(f"{what} folder {folder} does not exist")
    files: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        if not _IMAGE_FILES.search(path.name) or not path.is_file():
            continue
        name = str(path.relative_to(root).with_suffix(""))
        if name in files:
            raise DataError(f"{files[name]} and {path}: are of the same name")
        files[name] = str(path)
    if not files:
        raise DataError(f"{folder}: holds no JPEG or PNG files")
    return files


def _note(paths, what, why):
    shown = ", ".join(os.path.basename(path) for path in paths[:_SHOWN])
    more = ", ..." if len(paths) > _SHOWN else ""
    files = f"{what}s" if len(paths) > 1 else what
    return f"{len(paths)} {files} {why}, left out: {shown}{more}"


def _left_out(those, others, what, why):
    paths = [those[name] for name in sorted(those.keys() - others.keys())]
    return [_note(paths, what, why)] if paths else []


def _read(image_path, path, void_label, num_classes):
    """Reads and checks a label file."""
    values = _label_pixels(path)
    size = image_size(image_path)
    if values.shape != size:
        (height, width), (rows, columns) = size, values.shape
        raise DataError(
            f"{path}: is {columns}x{rows}, but its image {image_path} {width}x{height} "
            "pixels (width x height); both must be alike"
        )
    counted = values[values != void_label]
    largest = LABEL.high if num_classes is None else num_classes - 1
    if counted.size and (counted.max() > largest or counted.min() < 0):
        wrong = np.unique(counted[(counted > largest) | (counted < 0)])
        raise DataError(
            f"{path}: has the labels {domains.brief(wrong.tolist())}; expected classes "
            f"from 0 to {largest}, or void, {void_label}"
        )
    packed = np.where(values == void_label, VOID, values).astype("<i2")
    pixels = np.bincount(counted.ravel(), minlength=1)
    return _Label(zlib.compress(packed.tobytes(), 1), size, pixels)


def _label_pixels(path):
    """Returns the numbers in a label file, int32 [height, width]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images
            with pil_image.open(path) as opened:
                kind, mode = opened.format, opened.mode
                values = np.asarray(opened) if mode in _ONE_CHANNEL else None
    except Exception as error:  # whatever PIL's readers raise
        raise DataError(f"{path}: cannot be read as PNG file of labels") from error
    if kind != "PNG":
        raise DataError(
            f"{path}: is a {kind} file; labels must be PNG files, which keep them exact"
        )
    if values is None:
        raise DataError(
            f"{path}: is coded in colours ({mode}); labels must have one channel, of "
            "class numbers: convert the files once, as docs/segmentation.md shows"
        )
    return values.astype(np.int32)


class _Tfds(NamedTuple):
    """Where a data set of TensorFlow Datasets has what.

    Attributes:
        image: Feature of the image.
        labels: Feature of the labels.
        first: Label of class 0; smaller ones are void.
    """

    image: str
    labels: str
    first: int


TFDS_NAMES = {
    "scene_parse150": _Tfds("image", "annotation", 1),
    "oxford_iiit_pet": _Tfds("image", "segmentation_mask", 1),
}
"""Data sets of TensorFlow Datasets: ADE20K's 150 classes, and pets (3 classes)."""
_TFDS_CLASSES = {"scene_parse150": 150, "oxford_iiit_pet": 3}


def load_tfds(
    name: str, split: str, directory: str | None = None, **options
) -> SegmentationExamples:
    """Opens a data set of TensorFlow Datasets, which prepares it on first use.

    Args:
        name: One of `TFDS_NAMES`.
        split: Such as "train".
        directory: TensorFlow Datasets' data directory, or None for its default.
        **options: Of `SegmentationExamples`.

    Raises:
        DataError: The data set, or the split, is not there.
    """
    if name not in TFDS_NAMES:
        raise ValueError(
            f"tfds_name must be one of {', '.join(TFDS_NAMES)}; got {name!r}"
        )
    builder = prepared.builder(name, split, directory)
    known = TFDS_NAMES[name]

    def elements(shuffle, seed, shard):
        dataset = builder.as_dataset(
            split=split,
            shuffle_files=shuffle,
            read_config=tfds.ReadConfig(shuffle_seed=seed),
            decoders={known.image: tfds.decode.SkipDecoding()},
        )
        dataset = take_shard(dataset, shard)
        return dataset.shuffle(_SHUFFLE_BUFFER, seed) if shuffle else dataset

    def name_of(example):
        return example.get("file_name", tf.constant(f"{name}: an image"))

    def decode(example):
        image = decode_image(example[known.image], name_of(example))
        labels = tf.cast(example[known.labels][..., 0], tf.int32) - known.first
        is_class = (labels >= 0) & (labels < _TFDS_CLASSES[name])
        return image, tf.where(is_class, labels, VOID)

    return SegmentationExamples(
        elements,
        decode,
        builder.info.splits[split].num_examples,
        _TFDS_CLASSES[name],
        f"{name} of TensorFlow Datasets",
        name_of=name_of,
        **options,
    )


_STREAM = 2  # of random numbers; the detectors' scenes are others
SCENE_SIZE = 128
"""Side of the generated scenes, by default."""


def load_shapes(
    split: str,
    num_examples: int | None = None,
    image_size: int = SCENE_SIZE,
    **options,
) -> SegmentationExamples:
    """Makes scenes; the same arguments always give the same.

    A scene has one to four objects of ten classes, apart from each other, on cluttered
    background, which is class 0.

    Args:
        split: "train" or "validation".
        num_examples: How many; by default 1000 and 200. Fewer are the first of more.
        image_size: Side of the square scenes.
        **options: Of `SegmentationExamples`.

    Raises:
        ValueError: On another split, or scenes too small.
    """
    scenes = shapes.draw_scenes(split, num_examples, image_size, _STREAM)
    num_examples = len(scenes)
    images = tf.constant(np.stack([scene.image for scene in scenes]))
    labels = np.stack([scene.labels for scene in scenes])
    names = ["background", *shapes.CLASS_NAMES]

    def elements(shuffle, seed, shard):
        dataset = tf.data.Dataset.from_tensor_slices((images, tf.constant(labels)))
        dataset = take_shard(dataset, shard)
        return dataset.shuffle(num_examples, seed) if shuffle else dataset

    return SegmentationExamples(
        elements,
        lambda image, labels: (image, tf.cast(labels, tf.int32)),
        num_examples,
        len(names),
        "shapes",
        class_names=names,
        counts=np.bincount(labels.ravel(), minlength=len(names)),
        **options,
    )


def class_names(text: str, num_classes: int | None = None) -> Sequence[str]:
    """Reads names of classes: of a file, one a line, or joined by commas.

    Args:
        text: Path of a file, or names.
        num_classes: How many there must be; None: any number of at least 2.

    Raises:
        ValueError: There are more or fewer.
        DataError: The file cannot be read.
    """
    path = os.path.expanduser(text)
    if os.path.isfile(path):
        try:
            lines = pathlib.Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as text ({error})") from error
    else:
        lines = text.split(",")
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != (num_classes or max(len(names), 2)):
        raise ValueError(
            f"class names must be {num_classes or 'at least 2'}, joined by commas or "
            f"one on each line of a file; got {len(names)} in {domains.brief(text)}"
        )
    return names
