"""What the detection programs share: flags of data and detector, and their meaning."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from absl import flags

from experiments.common import evaluating, iterative, programs
from object_detection.data import coco, datasets, scenes
from object_detection.data.examples import LONG_SIDE, SHORT_SIDE, DetectionExamples
from object_detection.faster_rcnn import FasterRCNN
from object_detection.options import Options
from sact_tf.data.examples import DataError

FLAGS = flags.FLAGS
# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()

_DEFAULTS = Options()


def define_data_flags(split_name: str) -> None:
    """Defines --dataset, --annotations, --images, --split_name and others of data."""
    flags.DEFINE_enum(
        "dataset",
        "coco",
        ["coco", *datasets.NAMES, "shapes"],
        "coco: any data set in the format of COCO, see --annotations and --images; "
        "tfds_coco, tfds_voc: coco/2017 and voc/2007 of TensorFlow Datasets; shapes: "
        "scenes made on the fly, nothing to download.",
    )
    flags.DEFINE_string("annotations", None, "COCO annotation file.")
    flags.DEFINE_string("images", None, "Folder of the images of --annotations.")
    flags.DEFINE_string(
        "dataset_dir", None, "TensorFlow Datasets' data directory, if not the default."
    )
    flags.DEFINE_string("split_name", split_name, "Split of tfds_* and shapes.")
    flags.DEFINE_integer(
        "num_examples",
        None,
        "Use only this many images, the first ones.",
        lower_bound=1,
    )
    define_size_flags()


def define_size_flags() -> None:
    """Defines --short_side and --long_side."""
    flags.DEFINE_integer(
        "short_side",
        SHORT_SIDE,
        "Short side that images are resized to; their aspect is kept.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "long_side",
        LONG_SIDE,
        "Largest long side. Where resizing by --short_side would exceed it, the long "
        "side becomes this size instead. 0: there is no limit but 8192, which every "
        "input has.",
        lower_bound=0,
    )


def define_checkpoint_flag(default: str = "") -> None:
    """Defines --checkpoint_dir."""
    flags.DEFINE_string(
        "checkpoint_dir",
        default,
        "Directory, its newest checkpoint is taken, or a checkpoint.",
    )


def define_category_flags() -> None:
    """Defines --categories and --num_classes."""
    flags.DEFINE_string(
        "categories",
        "",
        "COCO annotation file whose categories the detector was trained on, for their "
        "names and ids, and for the ids of its images.",
    )
    flags.DEFINE_integer(
        "num_classes", None, "Of the detector, without --categories.", lower_bound=1
    )


def define_model_flags() -> None:
    """Defines the flags of `NetworkOptions`, and others of the detector."""
    programs.define_model_type(with_iterative=True)
    programs.define_option(
        "model", "101", "50, 101, 152, 200, or residual units per block as in 3_4_23_3."
    )
    programs.define_option("base_channels")
    programs.define_option(
        "tau",
        0.005,
        "Weight of the feature extractor's ponder cost in the loss; of iterative "
        "networks 0.001 by default.",
    )
    programs.define_option("tile_size")
    programs.define_forms()
    flags.DEFINE_list(
        "anchor_sizes",
        [f"{size:g}" for size in _DEFAULTS.anchor_sizes],
        "Sides of square anchors, in pixels of resized images.",
    )
    flags.DEFINE_list(
        "anchor_ratios",
        [f"{ratio:g}" for ratio in _DEFAULTS.aspect_ratios],
        "Width divided by height of anchors.",
    )
    flags.DEFINE_integer(
        "num_proposals",
        _DEFAULTS.num_proposals,
        "Regions that are classified in each image.",
        lower_bound=1,
    )
    flags.DEFINE_float(
        "proposal_nms_iou",
        _DEFAULTS.proposal_nms_iou,
        "Where two proposals overlap with a larger IoU, only the one with the higher "
        "score is kept.",
        0.0,
        1.0,
    )
    flags.DEFINE_integer(
        "crop_size",
        _DEFAULTS.crop_size,
        "Samples of the features along each side of a region, a multiple of 7.",
        lower_bound=7,
    )
    flags.DEFINE_integer(
        "block4_stride",
        _DEFAULTS.block4_stride,
        "Stride of block 4, which classifies regions of 7x7 features. 1 keeps them, as "
        "usual in detection; 2 is the network's own and takes a third of the time.",
        1,
        2,
    )


def define_detection_flags() -> None:
    """Defines --nms_iou, --score_threshold, --max_detections, and how blocks run."""
    flags.DEFINE_float(
        "nms_iou",
        _DEFAULTS.nms_iou,
        "Where two detections of a class overlap with a larger IoU, only the one with "
        "the higher score is kept.",
        0.0,
        1.0,
    )
    flags.DEFINE_float(
        "score_threshold",
        _DEFAULTS.score_threshold,
        "Detections with a lower probability are dropped.",
        0.0,
        1.0,
    )
    flags.DEFINE_integer(
        "max_detections",
        _DEFAULTS.max_detections,
        "Largest number of detections in an image.",
        lower_bound=1,
    )
    programs.define_execution_flags(
        "masked: blocks run densely; perforated: at active positions only; tiled: on "
        "active tiles only, with a --tile_size above 1."
    )


def data_options() -> dict[str, int]:
    """Returns the image sizes that the flags give.

    Raises:
        ValueError: --short_side is larger than --long_side.
    """
    if FLAGS.long_side and FLAGS.short_side > FLAGS.long_side:
        raise ValueError(
            f"--short_side={FLAGS.short_side}: must be at most --long_side, "
            f"{FLAGS.long_side}"
        )
    return dict(short_side=FLAGS.short_side, long_side=FLAGS.long_side)


def load_examples(**options) -> DetectionExamples:
    """Opens the images with boxes that the flags name, and prints what is in them.

    Args:
        **options: Of `DetectionExamples`.
    """
    options.update(data_options())
    if FLAGS.dataset == "coco":
        programs.require("annotations", "images")
        try:
            examples = coco.load(FLAGS.annotations, FLAGS.images, **options)
        except (DataError, FileNotFoundError) as error:
            flag = "images" if "image directory" in str(error) else "annotations"
            raise DataError(f"--{flag}={FLAGS[flag].value}: {error}") from error
    elif FLAGS.dataset == "shapes":
        examples = scenes.load(FLAGS.split_name, FLAGS.num_examples, **options)
    else:
        with programs.naming_dataset_dir():
            examples = datasets.load(
                datasets.NAMES[FLAGS.dataset],
                FLAGS.split_name,
                FLAGS.dataset_dir,
                **options,
            )
    if FLAGS.num_examples is not None:
        examples = examples.first(FLAGS.num_examples)
    for note in examples.notes:
        print(f"{examples.name}: {note}")
    return examples


def _numbers(flag: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(text) for text in FLAGS[flag].value)
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise ValueError(
            f"--{flag}: expected numbers > 0, joined by commas; got "
            f"{','.join(FLAGS[flag].value)!r}"
        )
    return numbers


def make_model(num_classes: int, **options) -> FasterRCNN:
    """Builds the detector the flags describe.

    Args:
        num_classes: Without background.
        **options: Of `Options`, for what no flag says.
    """
    names = ("num_proposals", "proposal_nms_iou", "crop_size", "block4_stride")
    if "nms_iou" in FLAGS:
        names += ("nms_iou", "score_threshold", "max_detections")
    options.update({name: FLAGS[name].value for name in names})
    if FLAGS.group_grid not in (None, 1):
        raise ValueError(
            f"--group_grid={FLAGS.group_grid}: must be 1, if given, since images have "
            "several sizes"
        )
    options["anchor_sizes"] = _numbers("anchor_sizes")
    options["aspect_ratios"] = _numbers("anchor_ratios")
    return FasterRCNN(options=Options(**options), **_network(num_classes))


def _network(num_classes):
    """Returns what the flags say of the network."""
    iterative.check()
    if not iterative.is_asked_for():
        return programs.network_options(num_classes=num_classes)
    options = {"tau": 0.001, **iterative.network_options(), "num_classes": num_classes}
    return dict(model_type=FLAGS.model_type, **options)


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


def categories_and_ids() -> tuple[list, dict[str, int | str]]:
    """Returns the categories, and ids of images by the names of their files."""
    if not FLAGS.categories:
        if FLAGS.num_classes is None:
            raise ValueError("--categories or --num_classes: one must be given")
        numbers = range(1, FLAGS.num_classes + 1)
        return [{"id": k, "name": f"class {k}"} for k in numbers], {}
    content = coco.read_annotations(FLAGS.categories)
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    return coco.sorted_categories(content), ids


def category_names(categories: Sequence[Mapping]) -> list[str]:
    """Returns the names of class 1, class 2, and so on."""
    return [str(category["name"]) for category in categories]
