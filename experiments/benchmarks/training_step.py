"""Times a training step of an adaptive CIFAR network against that of the ordinary one.

    python -m experiments.benchmarks.training_step

Both run in one process, by turns, on random images; prints the medians and their ratio.
--against=sact compares with another adaptive network instead.
"""

from __future__ import annotations

import json
import time

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import programs
from sact_tf import halting, optimization

FLAGS = flags.FLAGS

programs.define_model_type("sact")
programs.define_option("model", "5")
programs.define_option("tile_size")
flags.DEFINE_enum(
    "against", "vanilla", halting.model_types(), "Model type to compare with."
)
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_integer("image_size", 32, "Side of the images.", lower_bound=1)
flags.DEFINE_integer("repetitions", 30, "Timed steps of each network.", lower_bound=1)


def make_step(model_type: str):
    """Returns a function that makes one training step and waits for its loss."""
    size = FLAGS.image_size
    images = tf.random.normal([FLAGS.batch_size, size, size, 3])
    labels = tf.random.uniform([FLAGS.batch_size], 0, 10, tf.int64)
    options = programs.network_options(model_type=model_type, tau=0.01)
    if model_type != FLAGS.model_type:  # what the flags say is not for this one
        options = {name: options[name] for name in ("model", "model_type", "tau")}
    model = sact_tf.cifar_resnet(num_classes=10, **options)
    model.compile(
        optimization.Momentum(0.001, 0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    step = tf.function(model.train_step)
    return lambda: float(step((images, labels))["loss"])


def main() -> None:
    """Times both networks and prints the result."""
    steps = {name: make_step(name) for name in (FLAGS.against, FLAGS.model_type)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(FLAGS.repetitions + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repetition >= 3:  # the first ones trace and warm up
                times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = np.divide(times[FLAGS.model_type], times[FLAGS.against])
    print(
        json.dumps(
            {
                "seconds_per_step": medians,
                "ratio": medians[FLAGS.model_type] / medians[FLAGS.against],
                "median_of_pairwise_ratios": float(np.median(ratios)),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    programs.run(main)
