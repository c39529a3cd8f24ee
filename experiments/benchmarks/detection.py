"""Times detection with SACT features against the ordinary network, and training.

    python -m experiments.benchmarks.detection --image_size=600x1000
    python -m experiments.benchmarks.detection --training --model=3_4_6_3 \\
        --base_channels=16 --image_size=300x400 --batch_size=2

Inference: the ordinary detector, the SACT detector in perforated execution with halting
imposed as in `experiments.benchmarks.network`, and the feature extractors of both
alone. Block 4 runs all of its units.
Training: a step, and forward and backward passes of its network alone: blocks 1 to 3 on
the images, block 4 on as many regions as a step classifies. All sides run in one
process, by turns, and are told apart by their medians.
"""

from __future__ import annotations

import json

import tensorflow as tf
import tf_keras as keras
from absl import flags

from experiments.benchmarks import tools
from experiments.common import programs
from object_detection.faster_rcnn import FasterRCNN, Options
from sact_tf.optimization import Momentum

FLAGS = flags.FLAGS
_STAND_IN_CLASSES = 80  # as COCO
_OBJECTS = 10  # in each image of a training step

flags.DEFINE_string("model", "101", "Residual units per block, as in the networks.")
programs.define_option("base_channels")
programs.define_option("tile_size")
flags.DEFINE_string("image_size", "600x1000", "HEIGHTxWIDTH of the images.")
flags.DEFINE_list(
    "units_per_block",
    ["2", "3.2", "11"],
    "Mean residual units run at a position, for blocks 1 to 3.",
)
flags.DEFINE_enum(
    "pattern",
    "blob",
    ["blob", "random", "full", "empty"],
    "Which positions run more units; see experiments.benchmarks.network.",
)
flags.DEFINE_bool("training", False, "Time training steps, not inference.")
flags.DEFINE_integer("batch_size", 1, "Images per training step.", lower_bound=1)
flags.DEFINE_integer(
    "num_region_samples", 256, "Regions per image of training.", lower_bound=1
)
flags.DEFINE_integer("crop_size", 28, "Samples along a region's side.", lower_bound=7)
flags.DEFINE_integer("block4_stride", 1, "Stride of block 4.", 1, 2)
flags.DEFINE_integer("repetitions", 11, "Timed calls of each side.", lower_bound=1)
flags.DEFINE_bool("json", False, "Print JSON lines, not a table.")


def make_detector(model_type: str, execution: str = "masked") -> FasterRCNN:
    """Builds a detector, its halting imposed where it has any."""
    keras.utils.set_random_seed(0)
    options = Options(
        crop_size=FLAGS.crop_size,
        block4_stride=FLAGS.block4_stride,
        num_region_samples=FLAGS.num_region_samples,
        train_batch_norm=FLAGS.training,
    )
    model = FasterRCNN(
        _STAND_IN_CLASSES,
        FLAGS.model,
        model_type,
        FLAGS.base_channels,
        execution=execution,
        options=options,
        tile_size=1 if model_type == "vanilla" else FLAGS.tile_size,
    )
    if model_type != "vanilla":
        means = tools.parse_numbers("units_per_block", FLAGS.units_per_block, 1, 1000)
        blocks = model.feature_extractor.blocks
        tools.impose_halting(blocks, means, FLAGS.pattern, FLAGS.tile_size)
        last = model.box_classifier.block  # where no tau makes it halt early
        tools.impose_halting([last], [len(last.units)], "full")
    return model


def inference_rows() -> list[dict]:
    """Times the detectors, and their feature extractors."""
    height, width = tools.parse_sides("image_size", FLAGS.image_size)
    images = tf.random.stateless_uniform([1, height, width, 3], [1, 2], -1, 1)
    sizes = tf.constant([[height, width]])
    calls, flops = {}, {}
    for side, execution in (("vanilla", "masked"), ("sact", "perforated")):
        model = make_detector(side, execution)
        detect = model.compiled()
        extract = tf.function(lambda model=model: model.extract(images, sizes)[0])
        calls[side, "detector"] = lambda detect=detect: detect(images, sizes)[
            "num_detections"
        ].numpy()
        calls[side, "features"] = lambda extract=extract: extract()[0, 0, 0].numpy()
        end_points = detect(images, sizes)["end_points"]
        flops[side] = int(end_points["flops"][0])
    seconds = tools.time_by_turns(calls, FLAGS.repetitions)
    return [
        {
            "what": what,
            "side": side,
            "feature_flops": flops[side],
            "relative_flops": flops[side] / flops["vanilla"],
            "seconds": time_,
            "relative_time": time_ / seconds["vanilla", what],
        }
        for (side, what), time_ in seconds.items()
    ]


def training_rows() -> list[dict]:
    """Times training steps, and passes through their networks alone."""
    height, width = tools.parse_sides("image_size", FLAGS.image_size)
    batch = FLAGS.batch_size
    corner = tf.random.stateless_uniform([batch, _OBJECTS, 2], [3, 4]) * 0.6
    limits = tf.constant([height, width], tf.float32)
    boxes = tf.concat([corner * limits, (corner + 0.3) * limits], -1)
    classes = tf.random.stateless_uniform([batch, _OBJECTS], [5, 6], 1, 5, tf.int32)
    data = {
        "image": tf.random.stateless_uniform([batch, height, width, 3], [1, 2], -1, 1),
        "size": tf.constant([[height, width]] * batch),
        "boxes": boxes,
        "classes": classes,
    }
    calls = {}
    for side in ("vanilla", "sact"):
        model = make_detector(side)
        model.compile(Momentum(0.0, momentum=0.9))
        calls[side, "step"] = _step(model, data)
        calls[side, "network"] = _network_passes(model, data)
    seconds = tools.time_by_turns(calls, FLAGS.repetitions)
    return [
        {
            "what": what,
            "side": side,
            "seconds": time_,
            "relative_time": time_ / seconds[side, "network"],
        }
        for (side, what), time_ in seconds.items()
    ]


def _step(model, data):
    step = tf.function(lambda: model.train_step(data)["loss"])
    return lambda: step().numpy()


def _network_passes(model, data):
    """Returns a function that runs the network forwards and backwards."""
    options = model.options
    count = FLAGS.batch_size * options.num_region_samples
    side = options.pool_size
    channels = model.box_classifier.block.units[0].preact.gamma.shape[0]
    regions = tf.random.stateless_normal([count, side, side, channels], [7, 8])
    layers = [model.feature_extractor, model.box_classifier]
    variables = [v for layer in layers for v in layer.trainable_variables]

    @tf.function
    def passes():
        with tf.GradientTape() as tape:
            tape.watch(regions)
            features, _ = model.extract(data["image"], data["size"], True)
            logits, encoded, _ = model.box_classifier(regions, training=True)
            total = tf.add_n([tf.reduce_mean(x) for x in (features, logits, encoded)])
        gradients = tape.gradient(total, [*variables, regions])
        # Everything has to be computed, and little is read.
        return tf.add_n([tf.reduce_sum(g) for g in gradients if g is not None])

    return lambda: passes().numpy()


def main() -> None:
    """Runs what the flags say."""
    rows = training_rows() if FLAGS.training else inference_rows()
    for row in rows:
        if FLAGS.json:
            print(json.dumps(row))
        else:
            print(
                *(
                    f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
                    for k, v in row.items()
                )
            )


if __name__ == "__main__":
    programs.run(main)
