"""What programs of feed-forward networks share: flags of data, model and training."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import tf_keras as keras
from absl import flags

from experiments.common import distribution, programs
from sact_tf import classifiers
from sact_tf.data import cifar, imagenet, shapes
from sact_tf.data.examples import DataError, Examples
from sact_tf.networks.feedforward import NETWORKS

FLAGS = flags.FLAGS
# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()

_OWN_SIZE = ("tfrecord", "cifar_tfds")  # CIFAR-10, whose images have one size
_TEST_SPLITS = {"folder": "validation", "tfds": "validation"}


def define_data_flags() -> None:
    """Defines --dataset, --dataset_dir, --tfds_name, splits, --image_size."""
    flags.DEFINE_enum(
        "dataset",
        "tfrecord",
        ["tfrecord", "cifar_tfds", "tfds", "folder", "shapes", "none"],
        "tfrecord: CIFAR-10 in the original's files; cifar_tfds: CIFAR-10 through "
        "TensorFlow Datasets; tfds: --tfds_name of TensorFlow Datasets; folder: one "
        "directory of images per class; shapes: made on the fly; none: no images, "
        "where only time is measured.",
    )
    flags.DEFINE_string(
        "dataset_dir",
        None,
        "Directory with cifar10_train.tfrecord and cifar10_test.tfrecord (default "
        f"{cifar.DEFAULT_DIRECTORY}), TensorFlow Datasets' data directory, or the "
        "folder.",
    )
    flags.DEFINE_string(
        "tfds_name", "imagenet2012", "Of --dataset=tfds, such as caltech_birds2011."
    )
    flags.DEFINE_string("train_split", "train", "Split to train and to select on.")
    flags.DEFINE_string(
        "eval_split",
        None,
        "Split to evaluate; by default test of CIFAR-10 and shapes, validation of "
        "others.",
    )
    flags.DEFINE_integer(
        "image_size",
        None,
        "Side of images; by default 224, of CIFAR-10 and shapes 32.",
        lower_bound=1,
    )


def image_size() -> int:
    """Returns the side of images.

    Raises:
        ValueError: CIFAR-10 has no other.
    """
    own = cifar.IMAGE_SHAPE[0]
    if FLAGS.dataset in _OWN_SIZE and FLAGS.image_size not in (None, own):
        raise ValueError(
            f"--image_size={FLAGS.image_size}: images of --dataset={FLAGS.dataset} "
            f"have side {own}"
        )
    if FLAGS.image_size is not None:
        return FLAGS.image_size
    return own if FLAGS.dataset in (*_OWN_SIZE, "shapes") else 224


def load_examples(split: str):
    """Opens a split of the data set that the flags name.

    Args:
        split: "train" or "eval": --train_split or --eval_split.
    """
    name = FLAGS.train_split
    if split == "eval":
        name = FLAGS.eval_split or _TEST_SPLITS.get(FLAGS.dataset, "test")
    size, directory = image_size(), FLAGS.dataset_dir
    if FLAGS.dataset == "none":
        raise ValueError("--dataset=none: this needs images")
    if FLAGS.dataset == "shapes":
        return shapes.load(name, size)
    with programs.naming_dataset_dir():
        if FLAGS.dataset == "tfrecord":
            return cifar.load_tfrecord(directory, name)
        if FLAGS.dataset == "cifar_tfds":
            return cifar.load_tfds(directory, name)
        if FLAGS.dataset == "tfds":
            return imagenet.load_tfds(directory, name, size, FLAGS.tfds_name)
        if not directory:
            raise DataError("must name a directory with --dataset=folder")
        return imagenet.load_folder(directory, name, size)


def check_size(model: keras.Model) -> None:
    """Raises ValueError if a model takes images of another size than the data's."""
    shape, side = model.inputs[0].shape, image_size()
    if shape.rank != 4 or any(n not in (None, side) for n in shape[1:3]):
        raise ValueError(
            f"--image_size={side}: the model takes images of shape {tuple(shape)}; "
            "give its size"
        )


def drawn(examples, count: int, seed: int):
    """Returns training examples drawn at random, the same and in the same order always.

    Args:
        examples: A split.
        count: How many, or all if there are fewer.
        seed: Of the choice.
    """
    if isinstance(examples, Examples):
        order = np.random.default_rng(seed).permutation(examples.num_examples)[:count]
        boxes = None if examples.boxes is None else examples.boxes[order]
        return dataclasses.replace(
            examples,
            images=examples.images[order],
            labels=examples.labels[order],
            boxes=boxes,
        )
    # Encoded images are kept in memory, in the order in which they came first.
    chosen = examples.elements(True, seed, None).take(count).cache()
    return dataclasses.replace(
        examples,
        elements=lambda shuffle, seed, shard: chosen,
        num_examples=min(count, examples.num_examples),
    )


def define_train_flags() -> None:
    """Defines the flags that `train` reads, but for --batch_size and --seed."""
    programs.define_log_flags("/tmp/feedforward/", 60, 120)
    flags.DEFINE_integer(
        "train_steps", 20000, "Steps of --mode=train, of the whole run.", lower_bound=1
    )
    flags.DEFINE_float(
        "learning_rate",
        0.1,
        "The largest of --mode=train, which rises in the first 5 % of the steps and "
        "then falls as a cosine.",
        lower_bound=0.0,
    )
    flags.DEFINE_enum(
        "mixed_precision",
        "float32",
        ["float32", "bfloat16"],
        "Type that training and fine-tuning compute in; weights, and files, are "
        "float32.",
    )
    flags.DEFINE_float(
        "dropout", None, "Of nin and alexnet; by default 0 and 0.5.", lower_bound=0.0
    )


def make_model(num_classes: int) -> keras.Model:
    """Builds --model with fresh weights."""
    options = {}
    if FLAGS.dropout is not None:
        if FLAGS.model not in ("nin", "alexnet"):
            raise ValueError(
                f"--dropout={FLAGS.dropout:g}: nin and alexnet have it; got "
                f"--model={FLAGS.model}"
            )
        options["dropout"] = FLAGS.dropout
    shape = (image_size(), image_size(), 3)
    return NETWORKS[FLAGS.model](num_classes, shape, **options)


def in_training_precision(model: keras.Model) -> keras.Model:
    """Returns a float32 model as it is to be trained, by --mixed_precision."""
    if FLAGS.mixed_precision == "float32":
        return model
    policy = distribution.PRECISIONS[FLAGS.mixed_precision]
    return classifiers.in_precision(model, policy)


def in_float32(model: keras.Model) -> keras.Model:
    """Returns a model of `in_training_precision` as it is used and kept."""
    if FLAGS.mixed_precision == "float32":
        return model
    return classifiers.in_precision(model, "float32")


def train(examples, log_dir: str) -> keras.Model:
    """Trains a new dense network as the flags say, or goes on training it.

    Returns:
        The network, which computes in float32.
    """
    model = in_training_precision(make_model(examples.num_classes))
    print(f"{FLAGS.model}: {model.count_params():,} parameters", flush=True)
    last = classifiers.train(
        model,
        examples,
        log_dir,
        FLAGS.train_steps,
        batch_size=FLAGS.batch_size,
        learning_rate=classifiers.cosine_rate(FLAGS.learning_rate, FLAGS.train_steps),
        save_interval_secs=FLAGS.save_interval_secs,
        save_summaries_secs=FLAGS.save_summaries_secs,
        seed=FLAGS.seed,
    )
    print(f"Trained to step {FLAGS.train_steps}: {last}")
    return in_float32(model)


def model_file(log_dir: str) -> str:
    """Returns the name of the Keras archive that --mode=train writes."""
    return os.path.join(log_dir, "model.keras")
