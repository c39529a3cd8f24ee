"""What the ImageNet programs share: flags of data and model, and their meaning."""

from __future__ import annotations

import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import baseline, iterative, programs
from sact_tf.data import imagenet
from sact_tf.data.examples import DataError
from sact_tf.networks.iterative_block import VARIANTS

FLAGS = flags.FLAGS
_BLOCKS = [f"block{b}" for b in range(1, 5)]
# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()


def define_data_flags(split_name: str) -> None:
    """Defines --dataset, --dataset_dir, --split_name, --image_size."""
    flags.DEFINE_enum(
        "dataset",
        "tfrecord",
        ["tfrecord", "tfds", "folder", "shapes"],
        "tfrecord: ImageNet in the original's files; tfds: imagenet2012 of TensorFlow "
        "Datasets; folder: JPEG and PNG images, one directory per class; shapes: made "
        "on the fly, nothing to download.",
    )
    flags.DEFINE_string(
        "dataset_dir",
        None,
        "Directory with the files train-* and validation-* (default "
        f"{imagenet.DEFAULT_DIRECTORY}), TensorFlow Datasets' data directory, or the "
        "folder.",
    )
    flags.DEFINE_string(
        "split_name", split_name, "Split: train or validation (folder: any directory)."
    )
    flags.DEFINE_integer(
        "image_size", 224, "Side of the preprocessed images.", lower_bound=32
    )


def define_model_flags() -> None:
    """Defines --units_from, and the flags of networks' options."""
    programs.define_option("model_type", others=VARIANTS)
    iterative.define_flags()
    programs.define_option(
        "model",
        "101",
        "50, 101, 152, 200, residual units per block as in 3_4_23_3, or auto: see "
        "--units_from.",
    )
    programs.define_option("tau")
    programs.define_option("base_channels")
    programs.define_option("tile_size")
    programs.define_forms()
    baseline.define_flag()


def load_examples(split: str) -> imagenet.ImageExamples:
    """Opens the split of the data set that the flags name."""
    if "units_from" in FLAGS:
        baseline.units(
            _BLOCKS
        )  # what is wrong with it shows before images are read or made
    with programs.naming_dataset_dir():
        if FLAGS.dataset == "shapes":
            return imagenet.load_shapes(split, FLAGS.image_size)
        if FLAGS.dataset == "folder":
            if not FLAGS.dataset_dir:
                raise DataError("must name a directory with --dataset=folder")
            return imagenet.load_folder(FLAGS.dataset_dir, split, FLAGS.image_size)
        load = dict(tfrecord=imagenet.load_tfrecord, tfds=imagenet.load_tfds)
        return load[FLAGS.dataset](FLAGS.dataset_dir, split, FLAGS.image_size)


def make_model(num_classes: int) -> keras.Model:
    """Builds the network the flags describe."""
    iterative.check()
    if iterative.is_asked_for():
        return iterative.make_network(num_classes=num_classes)
    model = baseline.units(_BLOCKS)
    if FLAGS.model == "auto":
        print(f"Residual units per block: {model}")
    options = programs.network_options(model=model, num_classes=num_classes)
    network = sact_tf.imagenet_resnet(**options)
    return programs.check_group_grid(network, FLAGS.image_size)
