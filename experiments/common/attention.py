"""What the programs of recurrent attention share: flags of data and model."""

from __future__ import annotations

import os

from absl import flags

from experiments.common import programs
from sact_tf.data import imagenet, mnist
from sact_tf.data.examples import DataError
from sact_tf.networks import recurrent_attention
from sact_tf.networks.recurrent_attention import RecurrentAttention

FLAGS = flags.FLAGS
# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()

_SIDES = {"mnist": 28, "mnist_npz": 28, "cluttered_mnist": mnist.CLUTTERED_SIDE}


def define_data_flags(split_name: str) -> None:
    """Defines --dataset, --dataset_dir, --split_name, --image_size, --tfds_name."""
    flags.DEFINE_enum(
        "dataset",
        "mnist",
        [*_SIDES, "tfds", "folder", "shapes"],
        "mnist: of TensorFlow Datasets; mnist_npz: from a file; cluttered_mnist: them "
        "among pieces of others, 60 x 60 pixels, made of either; tfds: --tfds_name of "
        "TensorFlow Datasets; folder: one directory of images per class; shapes: made "
        "on the fly.",
    )
    flags.DEFINE_string(
        "dataset_dir",
        None,
        "The .npz file with x_train, y_train, x_test and y_test; TensorFlow Datasets' "
        "data directory; or the folder.",
    )
    flags.DEFINE_string(
        "split_name",
        split_name,
        "Split: train, test, or, of MNIST, train_part and validation (the first 55,000 "
        "training images and the last 5,000); of the others those that they have.",
    )
    flags.DEFINE_integer(
        "image_size", 64, "Side of images that are not MNIST.", lower_bound=1
    )
    flags.DEFINE_string(
        "tfds_name", "caltech_birds2011", "Of --dataset=tfds, such as cars196."
    )


def define_model_flags() -> None:
    """Defines the flags that `make_model` reads."""
    flags.DEFINE_integer("steps", 7, "Glimpses at most.", lower_bound=1)
    flags.DEFINE_bool(
        "dynamic", True, "DT-RAM, which decides when to stop, rather than RAM."
    )
    flags.DEFINE_float(
        "gamma", 0.99, "Discount of the reward for every step, in (0, 1]."
    )
    flags.DEFINE_integer("glimpse_size", 8, "Side of the window.", lower_bound=1)
    flags.DEFINE_integer(
        "scales", 1, "Windows, each twice as wide as the one before.", lower_bound=1
    )
    flags.DEFINE_enum(
        "stop",
        "bernoulli",
        recurrent_attention.HALTINGS,
        "How a DT-RAM stops: bernoulli, or act, which adds halting scores up.",
    )
    flags.DEFINE_float(
        "stop_threshold", 0.9, "Probability above which a DT-RAM stops in inference."
    )
    flags.DEFINE_float("tau", 0.01, "Price of a step, of --stop=act.", lower_bound=0.0)


def load_examples(split: str):
    """Opens the split of the data set that the flags name."""
    name, directory = FLAGS.dataset, FLAGS.dataset_dir
    with programs.naming_dataset_dir():
        if name in _SIDES:
            is_file = name == "mnist_npz" or (
                directory is not None and os.path.isfile(os.path.expanduser(directory))
            )
            if is_file and not directory:
                raise DataError(f"must name a .npz file with --dataset={name}")
            load = mnist.load_npz if is_file else mnist.load_tfds
            digits = load(directory, split)
            # Another seed for every split, so that none has another's clutter.
            seed = mnist.SPLITS.index(split)
            return mnist.clutter(digits, seed) if name not in _PLAIN else digits
        if name == "shapes":
            split = "validation" if split == "test" else split
            return imagenet.load_shapes(split, FLAGS.image_size)
        if not directory and name == "folder":
            raise DataError("must name a directory with --dataset=folder")
        if name == "folder":
            return imagenet.load_folder(directory, split, FLAGS.image_size)
        return imagenet.load_tfds(directory, split, FLAGS.image_size, FLAGS.tfds_name)


_PLAIN = ("mnist", "mnist_npz")


def image_shape() -> tuple[int, int, int]:
    """Returns height, width and channels of the data set's images."""
    side = _SIDES.get(FLAGS.dataset)
    return (FLAGS.image_size,) * 2 + (3,) if side is None else (side, side, 1)


def make_model(num_classes: int, **options) -> RecurrentAttention:
    """Builds the network the flags describe.

    Args:
        num_classes: Number of classes.
        **options: That take the place of flags, or that no flag says.
    """
    names = "steps dynamic gamma glimpse_size scales stop stop_threshold tau"
    given = {name: FLAGS[name].value for name in names.split()}
    return recurrent_attention.recurrent_attention(
        num_classes, **{**given, "image_shape": image_shape(), **options}
    )
