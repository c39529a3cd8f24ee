"""ImageNet, and other sets of photographs, read while they are needed.

Sources are the original code's TFRecord files, TensorFlow Datasets, a folder of images
with one directory per class, and `shapes`. Images are preprocessed as by Inception v3.
As in the original, class 0 is the background, which no image has; `shapes` has none.

Files are turned upright as their EXIF data say, but in the original's TFRecord files,
whose images it took as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator

import tensorflow as tf

from sact_tf.data import inception, prepared, shapes
from sact_tf.data.examples import (
    UNREADABLE,
    DataError,
    Examples,
    Shard,
    check_records,
    explained_decoding,
    fetch_ahead,
    number_with_seeds,
    take_shard,
)
from sact_tf.data.images import decode_image, read_image
from sact_tf.domains import INPUT_SIDE, brief, first_line
from sact_tf.optional import lazy

tfds = lazy("tensorflow_datasets")

__all__ = [
    "DEFAULT_DIRECTORY",
    "SPLIT_SIZES",
    "ImageExamples",
    "decode_image",
    "load_folder",
    "load_shapes",
    "load_tfds",
    "load_tfrecord",
    "read_image",
]

DEFAULT_DIRECTORY = "~/tensorflow/data/imagenet"
SPLIT_SIZES = {"train": 1281167, "validation": 50000}
"""Images in the splits of ImageNet (ILSVRC 2012)."""
_NUM_SHARDS = {"train": 1024, "validation": 128}  # of the original's files
_NUM_CLASSES = 1001
_IMAGE_FILES = re.compile(r"^[^.].*\.(jpe?g|png)$", re.IGNORECASE)
_SHUFFLE_BUFFER = 2048  # encoded images
_READ_FILES = 16  # at the same time


@dataclasses.dataclass(frozen=True)
class ImageExamples:
    """A split of a data set of images of any size; has what `Examples` has.

    Attributes:
        elements: Maps whether to shuffle, a seed, and the part to take (`Shard` or
            None) to a dataset of whatever `decode` takes.
        decode: Maps an element to an image (uint8 [height, width, 3]), its label
            (int64, below `num_classes`), and boxes (float32 [n, 4]: ymin, xmin, ymax,
            xmax in [0, 1]).
        num_examples: Number of images.
        num_classes: Number of classes.
        image_size: Side of the preprocessed images.
        name: What an error calls the data set.
        corrupt_file: Returns the first file that is truncated or corrupt, or None.
        name_of: Maps an element to what an error calls it, a string.
    """

    elements: Callable[[bool, int | None, Shard | None], tf.data.Dataset]
    decode: Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]
    num_examples: int
    num_classes: int
    image_size: int
    name: str
    corrupt_file: Callable[[], str | None] = lambda: None
    name_of: Callable[..., tf.Tensor] = lambda *element: tf.constant("an image")

    def __post_init__(self):
        INPUT_SIDE.check(self.image_size, "image_size")

    def evaluation_batches(self, batch_size: int) -> tf.data.Dataset:
        """Centres of the images in [-1, 1] and labels, each once and in order."""

        def preprocess(*element):
            image, label, _ = self.decode(*element)
            size = self.image_size
            return inception.for_evaluation(image, size, size), label

        dataset = self.elements(False, None, None)
        dataset = dataset.map(preprocess, tf.data.AUTOTUNE, deterministic=True)
        return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def training_batches(
        self,
        batch_size: int,
        seed: int | None = None,
        shard: Shard | None = None,
        data_service: str | None = None,
    ) -> tf.data.Dataset:
        """Shuffled and distorted images in [-1, 1] and labels, without end.

        Arguments are those of `Examples.training_batches`.
        """

        def preprocess(seed, element):
            element = element if isinstance(element, tuple) else (element,)
            image, label, boxes = self.decode(*element)
            size = self.image_size
            return inception.for_training(image, size, size, seed, boxes), label

        dataset = self.elements(True, seed, shard).repeat()
        dataset = number_with_seeds(dataset, seed)
        dataset = dataset.map(
            preprocess, tf.data.AUTOTUNE, deterministic=seed is not None
        )
        dataset = dataset.batch(batch_size, drop_remainder=True)
        return fetch_ahead(dataset, data_service)

    def first(self, num_examples: int) -> ImageExamples:
        """Returns the first examples of this split, or all if there are fewer."""

        def elements(shuffle, seed, shard):
            return self.elements(shuffle, seed, shard).take(num_examples)

        num_examples = min(num_examples, self.num_examples)
        return dataclasses.replace(self, elements=elements, num_examples=num_examples)

    @contextlib.contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Turns TensorFlow's errors of reading, in a `with` block, into `DataError`."""
        try:
            yield
        except tf.errors.DataLossError as error:
            where = self.corrupt_file() or f"a file of {self.name}"
            raise DataError(f"{where}: truncated or corrupt") from error
        except UNREADABLE as error:
            raise DataError(f"{self.name}: {first_line(error)}") from error
        except tf.errors.InvalidArgumentError as error:
            explained = explained_decoding(error, self)
            if explained is None:
                raise
            raise explained from error


def load_tfrecord(
    directory: str | None, split: str, image_size: int = 224
) -> ImageExamples:
    """Opens the original's ImageNet files, `train-*` and `validation-*`.

    Args:
        directory: Where the files are; None is `~/tensorflow/data/imagenet`.
        split: "train" or "validation".
        image_size: Side of the preprocessed images.

    Raises:
        FileNotFoundError: The directory or files are missing.
        DataError: The files hold no records, or one of fewer than ImageNet's files is
            truncated or corrupt.
    """
    _check_split(split)
    root = _existing_directory(directory or DEFAULT_DIRECTORY)
    files = sorted(str(path) for path in root.glob(f"{split}-*"))
    if not files:
        raise FileNotFoundError(f"data directory {root} has no files {split}-*")
    check_records(files)
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string, ""),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64, -1),
        **{
            f"image/object/bbox/{side}": tf.io.VarLenFeature(tf.float32)
            for side in ("ymin", "xmin", "ymax", "xmax")
        },
    }

    def read(file):
        records = tf.data.TFRecordDataset(file).enumerate()
        return records.map(lambda k, record: (file, k, record))

    def elements(shuffle, seed, shard):
        dataset = tf.data.Dataset.from_tensor_slices(files)
        if not shuffle:
            return take_shard(dataset.flat_map(read), shard)
        by_file = shard is not None and shard[0] <= len(files)
        dataset = take_shard(dataset, shard if by_file else None)
        dataset = dataset.shuffle(len(files), seed).interleave(
            read, _READ_FILES, num_parallel_calls=tf.data.AUTOTUNE
        )
        dataset = take_shard(dataset, None if by_file else shard)
        return dataset.shuffle(_SHUFFLE_BUFFER, seed)

    def name_of(file, k, record):
        return tf.strings.join([file, ": record ", tf.strings.as_string(k)])

    def decode(file, k, record):
        example = tf.io.parse_single_example(record, features)
        name = name_of(file, k, record)
        label = example["image/class/label"]
        is_label = (label >= 0) & (label < _NUM_CLASSES)
        check = tf.debugging.Assert(is_label, [name, "is without a label in 0..1000"])
        with tf.control_dependencies([check] if check is not None else []):
            image = decode_image(example["image/encoded"], name, upright=False)
        sides = [
            tf.sparse.to_dense(example[f"image/object/bbox/{side}"])
            for side in ("ymin", "xmin", "ymax", "xmax")
        ]
        return image, label, tf.stack(sides, 1)

    def corrupt_file():
        for file in files:
            try:
                for _ in tf.data.TFRecordDataset(file):
                    pass
            except tf.errors.OpError:
                return file
        return None

    if len(files) == _NUM_SHARDS[split]:
        num_examples = SPLIT_SIZES[split]
    else:  # a part, or a set of one's own
        try:
            num_examples = sum(1 for _ in tf.data.TFRecordDataset(files))
        except tf.errors.OpError as error:
            raise DataError(f"{corrupt_file()}: truncated or corrupt") from error
        if not num_examples:
            raise DataError(f"{root}: the files {split}-* hold no records")
    return ImageExamples(
        elements,
        decode,
        num_examples,
        _NUM_CLASSES,
        image_size,
        str(root),
        corrupt_file,
        name_of,
    )


def load_folder(directory: str, split: str, image_size: int = 224) -> ImageExamples:
    """Opens a folder of JPEG and PNG images with one directory per class.

    Classes are numbered from 1 in the order of their directories' names, the same for
    all splits: by the split `train`, or, where there is none, by all splits together.
    Hidden files and directories are passed over.

    Args:
        directory: Holds the classes' directories, or one named like the split that
            does.
        split: Such as "train".
        image_size: Side of the preprocessed images.

    Raises:
        FileNotFoundError: The directory is missing.
        DataError: It holds no classes, or a class no images, or one that is not among
            those of `train`.
    """
    root = _existing_directory(directory)
    classes = _subdirectories(root)
    numbers = {path.name: k for k, path in enumerate(classes, 1)}
    if (root / split).is_dir():
        numbers = _class_numbers(root)
        root = root / split
        classes = _subdirectories(root)
    paths, labels = [], []
    for path in classes:
        if path.name not in numbers:
            raise DataError(
                f"{path}: is no class of {root.parent / 'train'}, which has "
                f"{brief(list(numbers))}"
            )
        images = sorted(str(f) for f in path.iterdir() if _IMAGE_FILES.search(f.name))
        if not images:
            raise DataError(f"{path}: holds no JPEG or PNG images")
        paths += images
        labels += [numbers[path.name]] * len(images)
    if not classes:
        raise DataError(f"{root}: holds no directories, one per class")

    def elements(shuffle, seed, shard):
        dataset = tf.data.Dataset.from_tensor_slices((paths, labels))
        dataset = take_shard(dataset, shard)
        return dataset.shuffle(len(paths), seed) if shuffle else dataset

    def decode(path, label):
        image = decode_image(tf.io.read_file(path), path)
        return image, tf.cast(label, tf.int64), tf.zeros([0, 4])

    return ImageExamples(
        elements,
        decode,
        len(paths),
        len(numbers) + 1,
        image_size,
        str(root),
        name_of=lambda path, label: path,
    )


def _subdirectories(root):
    """Directories that are not hidden; tools leave such as `.ipynb_checkpoints`."""
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")


def _class_numbers(root):
    """Numbers the classes of a folder of splits."""
    is_given = (root / "train").is_dir()
    splits = [root / "train"] if is_given else _subdirectories(root)
    names = {path.name for split in splits for path in _subdirectories(split)}
    return {name: k for k, name in enumerate(sorted(names), 1)}


def load_tfds(
    directory: str | None,
    split: str,
    image_size: int = 224,
    name: str = "imagenet2012",
) -> ImageExamples:
    """Opens a set of TensorFlow Datasets, prepared as its documentation says.

    Args:
        directory: TensorFlow Datasets' data directory, or None for its default.
        split: "train" or "validation"; of another data set any that it has.
        image_size: Side of the preprocessed images.
        name: Of another data set, such as "caltech_birds2011" or "cars196", with the
            features `image` and `label`. Its classes begin at 0.

    Raises:
        DataError: The data set is not there, or has other features.
    """
    is_imagenet = name == "imagenet2012"
    if is_imagenet:
        _check_split(split)
    builder = prepared.builder(name, split, directory)
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise DataError(
            f"{name} must have the features image and label; it has "
            f"{brief(list(features))}"
        )

    def elements(shuffle, seed, shard):
        context = shard and tf.distribute.InputContext(*shard)
        options = tfds.ReadConfig(shuffle_seed=seed, input_context=context)
        dataset = builder.as_dataset(
            split=split,
            shuffle_files=shuffle,
            read_config=options,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        return dataset.shuffle(_SHUFFLE_BUFFER, seed) if shuffle else dataset

    def name_of(example):
        files = (example.get(key) for key in ("file_name", "image/filename"))
        return next((f for f in files if f is not None), tf.constant(f"{name}: one"))

    def decode(example):
        image = decode_image(example["image"], name_of(example))
        return image, example["label"] + int(is_imagenet), tf.zeros([0, 4])

    return ImageExamples(
        elements,
        decode,
        builder.info.splits[split].num_examples,
        _NUM_CLASSES if is_imagenet else features["label"].num_classes,
        image_size,
        f"{name} of TensorFlow Datasets",
        name_of=name_of,
    )


def load_shapes(
    split: str,
    image_size: int = 224,
    num_examples: int | None = None,
    make: Callable[..., Examples] = shapes.load,
) -> ImageExamples:
    """Makes `shapes` images, a seventh larger than their centre that is evaluated.

    Args:
        split: "train" or "validation".
        image_size: Side of the preprocessed images.
        num_examples: How many; None is a default of `make`.
        make: `shapes.load`, or `shapes.load_details`.
    """
    _check_split(split)
    INPUT_SIDE.check(image_size, "image_size")
    side = max(shapes.MIN_SIZE, round(image_size / inception.CENTRAL_FRACTION))
    made = make("train" if split == "train" else "test", side, num_examples)

    def elements(shuffle, seed, shard):
        tensors = (made.images, made.labels, (made.boxes / side).astype("float32"))
        dataset = take_shard(tf.data.Dataset.from_tensor_slices(tensors), shard)
        return dataset.shuffle(made.num_examples, seed) if shuffle else dataset

    def decode(image, label, box):
        return image, label, box[tf.newaxis]

    return ImageExamples(
        elements, decode, made.num_examples, made.num_classes, image_size, "shapes"
    )


def _check_split(split):
    if split not in SPLIT_SIZES:
        raise ValueError(
            f"split must be one of {', '.join(SPLIT_SIZES)}; got {split!r}"
        )


def _existing_directory(directory):
    root = pathlib.Path(directory).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data directory {root} does not exist")
    return root
