"""Times a trained segmentation network on images, masked and perforated.

    python -m experiments.benchmarks.segmentation --images=DIR --labels=DIR \\
        --model_type=sact --checkpoint_dir=/tmp/seg_sact --num_examples=20

The sides are the ordinary network of the same depth and width (its weights do not
matter), and the trained one in masked and in perforated execution; each whole, and its
backbone alone. All run in one process on the same images, by turns, one image at a time
as they are. A side's time is the sum over images of the medians. `ratio` is the time
relative to the ordinary network, divided by the operations relative to it.
"""

from __future__ import annotations

import json

import tensorflow as tf
from absl import flags

import sact_tf
from experiments.benchmarks import tools
from experiments.common import iterative, programs, segmentation
from sact_tf.segmentation import SegmentationNetwork

FLAGS = flags.FLAGS

segmentation.define_checkpoint_flag()
segmentation.define_data_flags("validation")
segmentation.define_long_side()
segmentation.define_model_flags()
flags.DEFINE_integer("repetitions", 5, "Timed calls of each side and image.", 1)
flags.DEFINE_bool("json", False, "Print JSON lines, not a table.")


def reference() -> SegmentationNetwork:
    """Makes the ordinary network; of iterative ones, the same with all iterations."""
    if iterative.is_asked_for():
        # Gates that never stop anything.
        network = iterative.make_network(num_classes=0, halting_bias=-50.0)
    else:
        options = programs.network_options(
            num_classes=0, model_type="vanilla", tile_size=1
        )
        network = sact_tf.imagenet_resnet(**options)
    return SegmentationNetwork(network, 2, FLAGS.head_channels)


def make_functions(model: SegmentationNetwork) -> dict:
    """Returns functions of images that run a network, and its backbone.

    Each returns what forces all of it to be computed; the backbone's also its
    operations.
    """
    network = model.network

    @tf.function(reduce_retracing=True)
    def whole(images):
        logits = model(images, training=False)
        return tf.reduce_sum(logits[:, 0, 0])

    @tf.function(reduce_retracing=True)
    def backbone(images):
        features, end_points = network.run_blocks(images, False, True)
        return tf.reduce_sum(features[:, 0, 0]), end_points["flops"]

    return {"network": whole, "backbone": backbone}


def main() -> None:
    """Times all sides and prints one row for each."""
    programs.require("checkpoint_dir")
    trained, _ = segmentation.trained_model()
    sides = {
        "ordinary": reference(),
        "masked": trained,
        "perforated": trained.with_execution("perforated"),
    }
    sides = {side: make_functions(model) for side, model in sides.items()}
    examples = segmentation.load_examples(trained.num_classes)
    seconds, flops, count = {}, dict.fromkeys(sides, 0), 0
    with examples.explained_errors():
        for batch in examples.evaluation_batches(1):
            image, calls = batch["image"], {}
            for side, functions in sides.items():
                flops[side] += int(functions["backbone"](image)[1][0])
                for part, run in functions.items():
                    calls[side, part] = lambda run=run, image=image: (
                        tf.nest.map_structure(lambda x: x.numpy(), run(image))
                    )
            for key, time_ in tools.time_by_turns(calls, FLAGS.repetitions).items():
                seconds[key] = seconds.get(key, 0.0) + time_
            count += 1
    for (side, part), time_ in seconds.items():
        relative = flops[side] / flops["ordinary"]
        row = {
            "side": side,
            "part": part,
            "images": count,
            "backbone_flops": flops[side] / count,
            "relative_flops": relative,
            "seconds": time_ / count,
            "relative_time": time_ / seconds["ordinary", part],
        }
        if part == "backbone":
            row["ratio"] = row["relative_time"] / relative
        if FLAGS.json:
            print(json.dumps(row))
        else:
            shown = (
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in row.items()
            )
            print(*shown, flush=True)


if __name__ == "__main__":
    programs.run(main)
