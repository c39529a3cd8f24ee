"""What the programs of recurrent attention share: flags of data and model."""

from __future__ import annotations

import os

from absl import flags

from experiments.common import programs
from sact_tf import halting
from sact_tf.data import cifar, imagenet, mnist, shapes
from sact_tf.data.examples import DataError
from sact_tf.networks import attention_options
from sact_tf.networks.attention import AttentionNetwork
from sact_tf.networks.fine_grained_attention import fine_grained_attention
from sact_tf.networks.recurrent_attention import recurrent_attention

FLAGS = flags.FLAGS
# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()

_SIDES = {"mnist": 28, "mnist_npz": 28, "cluttered_mnist": mnist.CLUTTERED_SIDE}
_PLAIN = ("mnist", "mnist_npz")
_SHAPES = {"shapes": shapes.load, "shape_details": shapes.load_details}
_MODEL_FLAGS = (
    *("steps", "dynamic", "gamma", "stop", "tau", "glimpse_size"),
    "stop_threshold",
)


def define_data_flags(split_name: str) -> None:
    """Defines --dataset, --dataset_dir, --split_name, --image_size, --tfds_name."""
    flags.DEFINE_enum(
        "dataset",
        "mnist",
        [*_SIDES, "tfds", "folder", "cifar10", *_SHAPES],
        "mnist: of TensorFlow Datasets; mnist_npz: from a file; cluttered_mnist: them "
        "among pieces of others, 60 x 60 pixels, made of either; tfds: --tfds_name of "
        "TensorFlow Datasets; folder: one directory of images per class; cifar10: the "
        "TFRecord files of cifar_main; shapes: made on the fly; shape_details: large "
        "objects that differ in a small mark, likewise.",
    )
    flags.DEFINE_string(
        "dataset_dir",
        None,
        "The .npz file with x_train, y_train, x_test and y_test; TensorFlow Datasets' "
        "data directory; the directory of TFRecord files; or the folder.",
    )
    flags.DEFINE_string(
        "split_name",
        split_name,
        "Split: train, test, or, of MNIST, train_part and validation (the first 55,000 "
        "training images and the last 5,000); of the others those that they have.",
    )
    flags.DEFINE_integer(
        "image_size", 64, "Side of images that are not MNIST or CIFAR-10.", 1
    )
    flags.DEFINE_string(
        "tfds_name", "caltech_birds2011", "Of --dataset=tfds, such as cars196."
    )


def define_model_flags() -> None:
    """Defines the flags that `make_model` reads."""
    flags.DEFINE_enum(
        "network",
        "ram",
        ["ram", "fine_grained"],
        "ram: small glimpses; fine_grained: the whole image, then crops, a residual "
        "network for each.",
    )
    flags.DEFINE_integer("steps", 7, "Glimpses at most.", lower_bound=1)
    flags.DEFINE_bool(
        "dynamic", True, "DT-RAM, which decides when to stop, rather than RAM."
    )
    flags.DEFINE_float(
        "gamma", 0.99, "Discount of the reward for every step, in (0, 1]."
    )
    flags.DEFINE_integer(
        "glimpse_size",
        8,
        "Side of the window; of --network=fine_grained by default 100 of 224 pixels of "
        "the image.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "scales",
        1,
        "Windows of --network=ram, each twice as wide as the one before.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "stop",
        "bernoulli",
        attention_options.HALTINGS,
        "How a DT-RAM stops: bernoulli, or act, which adds halting scores up.",
    )
    flags.DEFINE_float(
        "stop_threshold",
        None,
        "Probability above which a DT-RAM stops in inference; by default 0.9, of "
        "--network=fine_grained 0.5.",
    )
    flags.DEFINE_float("tau", 0.01, "Price of a step, of --stop=act.", lower_bound=0.0)
    _define_backbone_flags()


def _define_backbone_flags():
    flags.DEFINE_integer(
        "resized_to",
        None,
        "Of --network=fine_grained: side to which crops are resized; by default that "
        "of the image.",
        lower_bound=1,
    )
    programs.define_option(
        "model",
        "50",
        "Of --network=fine_grained: residual units per block of its networks, as in "
        "imagenet_train (of CIFAR-10 as in cifar_main).",
    )
    flags.DEFINE_enum(
        "model_type",
        "vanilla",
        halting.model_types(),
        "Of --network=fine_grained: of its residual networks.",
    )
    flags.DEFINE_integer(
        "base_channels",
        None,
        "Of --network=fine_grained: channels of the first block; by default 64, of "
        "CIFAR-10 16.",
        lower_bound=1,
    )
    flags.DEFINE_float(
        "backbone_tau",
        0.01,
        "Of --network=fine_grained: price of its networks' ponder cost, if adaptive.",
        lower_bound=0.0,
    )


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
        if name in _SHAPES:
            split = "validation" if split == "test" else split
            return imagenet.load_shapes(split, FLAGS.image_size, make=_SHAPES[name])
        if name == "cifar10":
            return cifar.load_tfrecord(directory, split)
        if not directory and name == "folder":
            raise DataError("must name a directory with --dataset=folder")
        if name == "folder":
            return imagenet.load_folder(directory, split, FLAGS.image_size)
        return imagenet.load_tfds(directory, split, FLAGS.image_size, FLAGS.tfds_name)


def image_shape() -> tuple[int, int, int]:
    """Returns height, width and channels of the data set's images."""
    if FLAGS.dataset == "cifar10":
        return cifar.IMAGE_SHAPE
    side = _SIDES.get(FLAGS.dataset)
    return (FLAGS.image_size,) * 2 + (3,) if side is None else (side, side, 1)


def is_fine_grained() -> bool:
    """Whether --network asks for a residual network for every step."""
    return FLAGS.network == "fine_grained"


def make_backbone():
    """Builds the residual network of --network=fine_grained, without classifier."""
    family = "cifar" if FLAGS.dataset == "cifar10" else "imagenet"
    options = dict(model=FLAGS.model, model_type=FLAGS.model_type, pooling="avg")
    if FLAGS.base_channels is not None:
        options["base_channels"] = FLAGS.base_channels
    if FLAGS.model_type != "vanilla":
        options["tau"] = FLAGS.backbone_tau
    return programs.FAMILIES[family](num_classes=0, **options)


def make_model(num_classes: int, **options) -> AttentionNetwork:
    """Builds the network the flags describe.

    Args:
        num_classes: Number of classes.
        **options: That take the place of flags, or that no flag says.

    Raises:
        ValueError: On flags that do not go together.
    """
    given = {name: FLAGS[name].value for name in _MODEL_FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    if is_fine_grained() and FLAGS["glimpse_size"].using_default_value:
        del given["glimpse_size"]
    options = {k: v for k, v in options.items() if v is not None}
    shape = image_shape()
    if not is_fine_grained():
        if FLAGS.dataset == "cifar10":
            raise ValueError("--dataset=cifar10: needs --network=fine_grained")
        others = dict(scales=FLAGS.scales, image_shape=shape)
        return recurrent_attention(num_classes, **{**given, **others, **options})
    if shape[-1] != 3:
        raise ValueError(
            f"--network=fine_grained: needs images of three channels; --dataset="
            f"{FLAGS.dataset} has {shape[-1]}"
        )
    if FLAGS.scales != 1:
        raise ValueError(f"--scales={FLAGS.scales}: needs --network=ram")
    others = dict(image_size=shape[0], resized_to=FLAGS.resized_to)
    return fine_grained_attention(
        num_classes, make_backbone(), **{**given, **others, **options}
    )
