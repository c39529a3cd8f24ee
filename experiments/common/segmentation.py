"""What the segmentation programs share: flags of data and network, their meaning."""

from __future__ import annotations

import os

from absl import flags

import sact_tf
from experiments.common import evaluating, iterative, programs
from sact_tf.checkpoint_files import open_checkpoint
from sact_tf.executions import EXECUTIONS
from sact_tf.networks.iterative_block import VARIANTS
from sact_tf.segmentation import SegmentationNetwork, sources
from sact_tf.segmentation.data import SCALES, SegmentationExamples
from sact_tf.segmentation.network import HEAD

FLAGS = flags.FLAGS
# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()


def define_data_flags(split_name: str) -> None:
    """Defines --dataset, --images, --labels, --void_label and others of data."""
    flags.DEFINE_enum(
        "dataset",
        "folders",
        ["folders", "tfds", "shapes"],
        "folders: see --images and --labels; tfds: see --tfds_name; shapes: scenes "
        "made on the fly, nothing to download.",
    )
    flags.DEFINE_string("images", None, "Folder of JPEG and PNG images.")
    flags.DEFINE_string(
        "labels",
        None,
        "Folder of PNG files of the same names, of one channel: the class of each "
        "pixel, from 0.",
    )
    flags.DEFINE_integer(
        "void_label", sources.VOID_LABEL, "Label of pixels that are not counted."
    )
    flags.DEFINE_enum(
        "tfds_name",
        "scene_parse150",
        list(sources.TFDS_NAMES),
        "Data set of TensorFlow Datasets; scene_parse150 is ADE20K.",
    )
    flags.DEFINE_string(
        "dataset_dir", None, "TensorFlow Datasets' data directory, if not the default."
    )
    flags.DEFINE_string("split_name", split_name, "Split of tfds and shapes.")
    flags.DEFINE_integer(
        "num_examples",
        None,
        "Use only this many images, the first ones.",
        lower_bound=1,
    )
    define_class_flags()


def define_class_flags() -> None:
    """Defines --num_classes and --class_names."""
    flags.DEFINE_integer(
        "num_classes",
        None,
        "Number of classes, without void; by default that of the data set or the "
        "checkpoint.",
        lower_bound=2,
    )
    flags.DEFINE_string(
        "class_names",
        "",
        "Names of the classes, joined by commas, or a file with one on each line.",
    )


def define_crop_flags() -> None:
    """Defines --crop_height, --crop_width, --min_scale, --max_scale, --cache_images."""
    for side in ("height", "width"):
        flags.DEFINE_integer(
            f"crop_{side}", 320, f"{side.capitalize()} of crops.", lower_bound=1
        )
    for name, value in zip(("min_scale", "max_scale"), SCALES):
        flags.DEFINE_float(
            name, value, "Training resizes images at random by factors between these."
        )
    flags.DEFINE_bool("flip", True, "Flip every second image sideways.")
    flags.DEFINE_bool("cache_images", False, "Keep decoded images in memory.")


def define_model_flags() -> None:
    """Defines the flags of the backbone, and of the head."""
    programs.define_option("model_type", others=VARIANTS)
    iterative.define_flags()
    programs.define_option(
        "model", "50", "50, 101, 152, 200, or residual units per block as in 3_4_23_3."
    )
    programs.define_option("base_channels")
    programs.define_option("tau", 0.005)
    programs.define_option("tile_size")
    programs.define_forms()
    flags.DEFINE_integer(
        "head_channels", 64, "Channels of the head's features.", lower_bound=1
    )


def define_checkpoint_flag(default: str = "") -> None:
    """Defines --checkpoint_dir."""
    flags.DEFINE_string(
        "checkpoint_dir",
        default,
        "Directory, its newest checkpoint is taken, or a checkpoint.",
    )


def define_execution() -> None:
    """Defines --execution."""
    flags.DEFINE_enum(
        "execution",
        "masked",
        EXECUTIONS,
        "masked: blocks run densely; perforated: at active positions only; tiled: on "
        "active tiles only, with a --tile_size above 1.",
    )


def define_long_side() -> None:
    """Defines --long_side."""
    flags.DEFINE_integer(
        "long_side",
        0,
        "The network sees larger images resized to this long side, and its result is "
        "enlarged; 0: images are seen as they are.",
        lower_bound=0,
    )


def load_examples(num_classes: int | None = None) -> SegmentationExamples:
    """Opens the images and labels that the flags name, and prints what was left out.

    Args:
        num_classes: Of a checkpoint; None: by flags or data.
    """
    options = {}
    if "crop_height" in FLAGS:
        options = dict(
            crop_size=(FLAGS.crop_height, FLAGS.crop_width),
            scales=(FLAGS.min_scale, FLAGS.max_scale),
            flip=FLAGS.flip,
            cache=FLAGS.cache_images,
        )
    if "long_side" in FLAGS:
        options["long_side"] = FLAGS.long_side
    given = FLAGS.num_classes or num_classes
    if FLAGS.dataset == "folders":
        programs.require("images", "labels")
        examples = sources.load_folders(
            FLAGS.images, FLAGS.labels, given, FLAGS.void_label, **options
        )
    elif FLAGS.dataset == "shapes":
        examples = sources.load_shapes(FLAGS.split_name, FLAGS.num_examples, **options)
    else:
        with programs.naming_dataset_dir():
            examples = sources.load_tfds(
                FLAGS.tfds_name, FLAGS.split_name, FLAGS.dataset_dir, **options
            )
    if given not in (None, examples.num_classes):
        raise ValueError(
            f"--dataset={FLAGS.dataset}: has {examples.num_classes} classes; "
            f"{given} are asked for, by --num_classes or by the checkpoint"
        )
    if FLAGS.num_examples is not None:
        examples = examples.first(FLAGS.num_examples)
    for note in examples.notes:
        print(f"{examples.name}: {note}")
    return examples


def names_of_classes(num_classes: int, known: list[str] | None = None) -> list[str]:
    """Returns --class_names, or what is known, or numbers.

    Args:
        num_classes: How many there must be.
        known: Names that the data set has.
    """
    if FLAGS.class_names:
        try:
            return list(sources.class_names(FLAGS.class_names, num_classes))
        except ValueError as error:
            raise ValueError(f"--class_names: {error}") from error
    return known or [f"class {k}" for k in range(num_classes)]


def make_model(num_classes: int) -> SegmentationNetwork:
    """Builds the segmentation network that the flags describe."""
    iterative.check()
    if FLAGS.group_grid not in (None, 1):
        raise ValueError(
            f"--group_grid={FLAGS.group_grid}: must be 1, if given, since images have "
            "several sizes"
        )
    if iterative.is_asked_for():
        network = iterative.make_network(num_classes=0)
    else:
        network = sact_tf.imagenet_resnet(**programs.network_options(num_classes=0))
    return SegmentationNetwork(network, num_classes, FLAGS.head_channels)


def newest_checkpoint() -> str:
    """Returns the checkpoint that --checkpoint_dir names.

    Raises:
        FileNotFoundError: There is none.
    """
    path = os.path.expanduser(FLAGS.checkpoint_dir)
    checkpoint = evaluating.newest_checkpoint(path)
    if checkpoint is None:
        raise FileNotFoundError(
            f"--checkpoint_dir={FLAGS.checkpoint_dir}: holds no checkpoint"
        )
    return checkpoint


def classes_in(checkpoint: str) -> int | None:
    """Returns how many classes a segmentation network's checkpoint has.

    Args:
        checkpoint: Prefix; of another kind of network: None.
    """
    _, reader = open_checkpoint(checkpoint)
    name = f"{HEAD}/logits/biases"
    shapes = reader.get_variable_to_shape_map()
    return int(shapes[name][0]) if name in shapes else None


def trained_model() -> tuple[SegmentationNetwork, list[str]]:
    """Builds the network of the flags, and loads --checkpoint_dir.

    Returns:
        The network, and the names of its classes.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: It is another network's, or of another number of classes.
    """
    checkpoint = newest_checkpoint()
    classes = classes_in(checkpoint)
    if FLAGS.num_classes not in (None, classes) and classes is not None:
        raise ValueError(
            f"--num_classes={FLAGS.num_classes}: {checkpoint} has {classes} classes"
        )
    # A checkpoint of another kind has none; loading it says which it is.
    model = make_model(classes or FLAGS.num_classes or 2)
    sact_tf.load_slim_checkpoint(model, checkpoint)
    return model, names_of_classes(model.num_classes)
