"""Times a training step of an adaptive CIFAR network against that of the ordinary one.

    python -m experiments.benchmarks.training_step

Both run in one process, by turns, on random images; prints the medians and their ratio.
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
from sact_tf import optimization

FLAGS = flags.FLAGS

programs.define_model_type("sact")
flags.DEFINE_string("model", "5", "Residual units per block.")
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_integer("image_size", 32, "Side of the images.", lower_bound=1)
flags.DEFINE_integer("repetitions", 30, "Timed steps of each network.", lower_bound=1)


def make_step(model_type: str):
    """Returns a function that makes one training step and waits for its loss."""
    size = FLAGS.image_size
    images = tf.random.normal([FLAGS.batch_size, size, size, 3])
    labels = tf.random.uniform([FLAGS.batch_size], 0, 10, tf.int64)
    model = sact_tf.cifar_resnet(FLAGS.model, model_type, tau=0.01)
    model.compile(
        optimization.Momentum(0.001, 0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    step = tf.function(model.train_step)
    return lambda: float(step((images, labels))["loss"])


def main() -> None:
    """Times both networks and prints the result."""
    steps = {name: make_step(name) for name in ("vanilla", FLAGS.model_type)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(FLAGS.repetitions + 3):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repetition >= 3:  # the first ones trace and warm up
                times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = np.divide(times[FLAGS.model_type], times["vanilla"])
    print(
        json.dumps(
            {
                "seconds_per_step": medians,
                "ratio": medians[FLAGS.model_type] / medians["vanilla"],
                "median_of_pairwise_ratios": float(np.median(ratios)),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    programs.run(main)
