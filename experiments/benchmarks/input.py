"""Tells how much of ImageNet training waits for its input.

    python -m experiments.benchmarks.input --dataset_dir=DIR --model=50

Times three things, by turns and in one process: training steps on a batch that is
ready, steps that fetch their batch, and the fetching of batches alone. The input-bound
share of training is how much longer the second take than the first, relative to the
second.
"""

from __future__ import annotations

import json

import tensorflow as tf
import tf_keras as keras
from absl import flags

from experiments.benchmarks.tools import time_by_turns
from experiments.common import imagenet, programs
from sact_tf import optimization

FLAGS = flags.FLAGS
_PREFETCHED = 16  # more batches than tf.data keeps ready

imagenet.define_data_flags("train")
imagenet.define_model_flags()
flags.DEFINE_integer("batch_size", 32, "Images per step.", lower_bound=1)
flags.DEFINE_integer("steps", 4, "Steps at a time.", lower_bound=1)
flags.DEFINE_integer("repetitions", 7, "Times of each kind.", lower_bound=1)


def main() -> None:
    """Times the three, and prints medians."""
    examples = imagenet.load_examples(FLAGS.split_name)
    if examples.num_examples < FLAGS.batch_size:
        raise ValueError(
            f"--batch_size={FLAGS.batch_size}: is larger than the "
            f"{examples.num_examples} examples"
        )
    model = imagenet.make_model(examples.num_classes)
    model.compile(optimization.Momentum(0.001, 0.9), optimization.CrossEntropy())
    step = tf.function(model.train_step)
    batches = iter(examples.training_batches(FLAGS.batch_size, seed=0))
    kept = next(batches)

    def train(fetch):
        for _ in range(FLAGS.steps):
            loss = step(next(batches) if fetch else kept)["loss"]
        keras.backend.get_value(loss)

    # Those that are ready, whatever they took to make, and more.
    num_fetched = FLAGS.steps + _PREFETCHED

    def fetch():
        for _ in range(num_fetched):
            next(batches)

    kinds = {
        "step": lambda: train(fetch=False),
        "step_and_input": lambda: train(fetch=True),
        "input": fetch,
    }
    with examples.explained_errors():
        seconds = time_by_turns(kinds, FLAGS.repetitions)
    counts = {"step": FLAGS.steps, "step_and_input": FLAGS.steps, "input": num_fetched}
    medians = {kind: seconds[kind] / count for kind, count in counts.items()}
    share = 1 - medians["step"] / medians["step_and_input"]
    results = {"seconds_per_batch": medians, "input_bound_share": max(share, 0.0)}
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    programs.run(main)
