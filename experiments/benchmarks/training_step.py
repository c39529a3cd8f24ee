"""Times a training step of an adaptive network against that of the ordinary one.

    python -m experiments.benchmarks.training_step
    python -m experiments.benchmarks.training_step --network=imagenet --model=101 \\
        --image_size=600x1000 --batch_size=1 --units_per_block=2,3.2,11 \\
        --stored_moments --execution=perforated

Both run in one process, by turns, on random images; prints the medians and their ratio.
--against=sact compares with another adaptive network instead. By default networks halt
as they do with fresh weights; --units_per_block imposes halting as in
`experiments.benchmarks.network`, and of fewer blocks than there are trains these alone,
as they are in a detector.
"""

from __future__ import annotations

import json
import time

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

from experiments.benchmarks import tools
from experiments.common import programs
from sact_tf import halting, optimization

FLAGS = flags.FLAGS

flags.DEFINE_enum("network", "cifar", list(programs.FAMILIES), "Family of networks.")
programs.define_model_type("sact")
programs.define_option("model", "5")
programs.define_option("tile_size")
programs.define_option(
    "execution", description="Of the adaptive network; see --stored_moments."
)
flags.DEFINE_enum(
    "against", "vanilla", halting.model_types(), "Model type to compare with."
)
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_string("image_size", "32", "Side of the images, or HEIGHTxWIDTH.")
flags.DEFINE_list(
    "units_per_block",
    [],
    "Mean residual units run at a position, for each block to train; by default heads "
    "decide.",
)
flags.DEFINE_enum(
    "pattern",
    "blob",
    ["blob", "random", "full", "empty"],
    "Which positions run more units; see experiments.benchmarks.network.",
)
flags.DEFINE_bool(
    "stored_moments",
    False,
    "Normalize with stored moments, as in fine-tuning, so that --execution can skip.",
)
flags.DEFINE_integer("repetitions", 30, "Timed steps of each network.", lower_bound=1)


def make_model(model_type: str) -> keras.Model:
    """Builds a network, its halting imposed where that is asked for."""
    options = programs.network_options(model_type=model_type, tau=0.01)
    if model_type != FLAGS.model_type:  # what the flags say is not for this one
        options = {name: options[name] for name in ("model", "model_type", "tau")}
    model = programs.FAMILIES[FLAGS.network](num_classes=10, **options)
    if FLAGS.units_per_block:
        means = tools.parse_numbers("units_per_block", FLAGS.units_per_block, 1, 1000)
        if len(means) > len(model.blocks):
            raise ValueError(
                f"--units_per_block: at most {len(model.blocks)} numbers, one per "
                f"block; got {','.join(FLAGS.units_per_block)}"
            )
        tools.impose_halting(model.blocks, means, FLAGS.pattern, FLAGS.tile_size)
    if FLAGS.stored_moments:
        model.freeze_moments()
    return model


def make_step(model_type: str):
    """Returns a function that makes a training step and waits for its loss.

    And one that counts the operations of inference.
    """
    text = FLAGS.image_size
    sides = tools.parse_sides("image_size", text if "x" in text else f"{text}x{text}")
    images = tf.random.normal([FLAGS.batch_size, *sides, 3])
    labels = tf.random.uniform([FLAGS.batch_size], 0, 10, tf.int64)
    model = make_model(model_type)
    model.compile(
        # A network from scratch whose units are imposed diverges at any other rate.
        optimization.Momentum(0.0 if FLAGS.units_per_block else 0.001, 0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    count = len(FLAGS.units_per_block) or len(model.blocks)
    if count == len(model.blocks):
        step = tf.function(lambda: model.train_step((images, labels))["loss"])
    else:
        step = _step_of_blocks(model, images, count)

    def flops():
        end_points = model.with_end_points(images, training=False)[1]
        names = model.block_scopes[:count]
        return float(sum(np.mean(end_points[f"{name}/flops"]) for name in names))

    return lambda: float(step()), flops


def _step_of_blocks(model, images, num_blocks):
    """Returns a step of the first blocks, that makes features smaller."""
    layers = [model.stem, *model.blocks[:num_blocks]]
    variables = [v for layer in layers for v in layer.trainable_variables]
    options = {"trains_rule": True} if FLAGS.stored_moments else {}

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            features, _ = model.run_blocks(
                images, not FLAGS.stored_moments, True, num_blocks=num_blocks, **options
            )
            loss = tf.reduce_mean(tf.square(features))
        model.optimizer.minimize(loss, variables, tape=tape)
        return loss

    return step


def main() -> None:
    """Times both networks and prints the result."""
    if FLAGS.execution != "masked" and not FLAGS.stored_moments:
        raise ValueError(
            f"--execution={FLAGS.execution}: must be masked without --stored_moments"
        )
    sides = {name: make_step(name) for name in (FLAGS.against, FLAGS.model_type)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(FLAGS.repetitions + 3):
        for name, (step, _) in sides.items():
            start = time.perf_counter()
            loss = step()
            if not np.isfinite(loss):
                raise ValueError(f"the loss of {name} is {loss}: nothing to time")
            if repetition >= 3:  # the first ones trace and warm up
                times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = np.divide(times[FLAGS.model_type], times[FLAGS.against])
    flops = {name: count() for name, (_, count) in sides.items()}
    print(
        json.dumps(
            {
                "seconds_per_step": medians,
                "ratio": medians[FLAGS.model_type] / medians[FLAGS.against],
                "median_of_pairwise_ratios": float(np.median(ratios)),
                "relative_flops": flops[FLAGS.model_type] / flops[FLAGS.against],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    programs.run(main)
