"""What the ImageNet programs share: flags of data and model, and their meaning."""

from __future__ import annotations

import os

import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import programs
from sact_tf import reading
from sact_tf.data import imagenet
from sact_tf.data.examples import DataError
from sact_tf.domains import MAX_UNITS, Domain

FLAGS = flags.FLAGS
_MEAN_UNITS = {
    f"block{b}/num_units_mean": reading.number(Domain(0, MAX_UNITS))
    for b in range(1, 5)
}
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
    """Defines --units_from and the flags of `NetworkOptions`."""
    programs.define_option("model_type")
    programs.define_option(
        "model",
        "101",
        "50, 101, 152, 200, residual units per block as in 3_4_23_3, or auto: see "
        "--units_from.",
    )
    programs.define_option("tau")
    programs.define_option("base_channels")
    programs.define_option("tile_size")
    flags.DEFINE_string(
        "units_from",
        "",
        "eval.json of an adaptive network, whose mean units per block, rounded, "
        "--model=auto takes: the SACT paper's non-adaptive baseline.",
    )


def load_examples(split: str) -> imagenet.ImageExamples:
    """Opens the split of the data set that the flags name."""
    if "units_from" in FLAGS:
        units()  # what is wrong with it shows before images are read or made
    with programs.naming_dataset_dir():
        if FLAGS.dataset == "shapes":
            return imagenet.load_shapes(split, FLAGS.image_size)
        if FLAGS.dataset == "folder":
            if not FLAGS.dataset_dir:
                raise DataError("must name a directory with --dataset=folder")
            return imagenet.load_folder(FLAGS.dataset_dir, split, FLAGS.image_size)
        load = dict(tfrecord=imagenet.load_tfrecord, tfds=imagenet.load_tfds)
        return load[FLAGS.dataset](FLAGS.dataset_dir, split, FLAGS.image_size)


def units() -> str:
    """Returns --model, or the units that --units_from stands for.

    Raises:
        ValueError: Naming the flag, if the file is no evaluation of an adaptive
            network.
    """
    if FLAGS.model != "auto":
        if FLAGS.units_from:
            raise ValueError(
                f"--units_from={FLAGS.units_from}: needs --model=auto; got "
                f"--model={FLAGS.model}"
            )
        return FLAGS.model
    path = os.path.expanduser(FLAGS.units_from)
    if not path:
        raise ValueError("--model=auto: needs --units_from, an eval.json")
    try:
        row = reading.checked_row(reading.read_json(path), _MEAN_UNITS, "it")
    except (DataError, OSError) as error:
        raise ValueError(
            f"--units_from={path}: is no eval.json of an adaptive network ({error})"
        ) from error
    return "_".join(str(max(round(row[name]), 1)) for name in _MEAN_UNITS)


def make_model(num_classes: int) -> keras.Model:
    """Builds the network the flags describe."""
    model = units()
    if FLAGS.model == "auto":
        print(f"Residual units per block: {model}")
    options = programs.network_options(model=model, num_classes=num_classes)
    network = sact_tf.imagenet_resnet(**options)
    return programs.check_group_grid(network, FLAGS.image_size)
