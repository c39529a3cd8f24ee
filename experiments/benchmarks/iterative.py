"""Times iterative networks that stop early against all of their iterations.

    python -m experiments.benchmarks.iterative --batch_sizes=1,8 --shares=0.25,0.5,0.75

Halting is imposed: gates run as usual, and are then overridden, so that no trained
network is needed. Images of a batch stop at different iterations, whose mean over each
stage is the share of its limit. Both sides are the same function, which is run by
turns; images that have halted leave the batch. Prints multiply-accumulates and time,
both relative to all iterations, and the second divided by the first.
"""

from __future__ import annotations

import json

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

import custom_ops
from experiments.benchmarks.tools import parse_numbers, time_by_turns
from experiments.common import iterative, programs
from sact_tf.networks.iterative_block import VARIANTS

FLAGS = flags.FLAGS

flags.DEFINE_enum("model_type", "iterative", list(VARIANTS), "Iterative network.")
iterative.define_flags()
programs.define_option("base_channels")
programs.define_option("num_classes")
flags.DEFINE_enum("execution", "perforated", ["perforated", "masked"], "How it runs.")
flags.DEFINE_enum(
    "implementation",
    "auto",
    ["auto", "tensorflow"],
    "auto: compiled kernels, where there are some; tensorflow: its convolutions.",
)
flags.DEFINE_integer("image_size", 224, "Side of the images.", lower_bound=1)
flags.DEFINE_list("batch_sizes", ["1", "8"], "Images per call.")
flags.DEFINE_list("shares", ["0.25", "0.5", "0.75"], "Of each stage's limit.")
flags.DEFINE_integer("repetitions", 10, "Timed calls of each side.", lower_bound=1)
flags.DEFINE_bool("json", False, "Print JSON lines, not a table.")

_COLUMNS = ("batch_size", "share", "relative_macs", "relative_time", "ratio")


def iterations(limit: int, share: float, batch_size: int) -> np.ndarray:
    """Returns how many iterations every image of a batch runs, int32 [batch].

    Their mean is near the share of the limit; images of a batch differ, from half of it
    to one and a half.

    >>> iterations(36, 0.5, 4)
    array([ 9, 15, 21, 27], dtype=int32)
    """
    factors = np.linspace(0.5, 1.5, batch_size) if batch_size > 1 else np.ones(1)
    return np.clip(np.round(share * limit * factors), 1, limit).astype(np.int32)


def rows() -> list[dict[str, float]]:
    """Times every share at every batch size."""
    shares = parse_numbers("shares", FLAGS.shares, 0.0, 1.0)
    batches = parse_numbers("batch_sizes", FLAGS.batch_sizes, 1, 1024)
    keras.utils.set_random_seed(0)
    model = iterative.make_network()
    imposed = [tf.Variable([1], shape=[None], dtype=tf.int32) for _ in model.blocks]
    for block, units in zip(model.blocks, imposed):
        block.impose_units(lambda height, width, units=units: units.read_value())
    side = FLAGS.image_size

    @tf.function(input_signature=[tf.TensorSpec([None, side, side, 3])])
    def network(images):
        with custom_ops.default_implementation(FLAGS.implementation):
            logits, end_points = model.with_end_points(images, training=False)
        return logits, end_points["macs"]

    results = []
    for batch_size in map(int, batches):
        images = tf.random.stateless_uniform([batch_size, side, side, 3], [1, 2])

        def run(share, images=images, batch_size=batch_size):
            for block, units in zip(model.blocks, imposed):
                units.assign(iterations(len(block.units), share, batch_size))
            return float(np.mean(network(images)[1].numpy()))

        macs = {share: run(share) for share in (1.0, *shares)}
        calls = {s: lambda s=s: run(s) for s in (*shares, 1.0)}
        seconds = time_by_turns(calls, FLAGS.repetitions)
        for share in shares:
            relative = macs[share] / macs[1.0], seconds[share] / seconds[1.0]
            results.append(
                {
                    "batch_size": batch_size,
                    "share": share,
                    "relative_macs": relative[0],
                    "relative_time": relative[1],
                    "ratio": relative[1] / relative[0],
                    "seconds_of_all": seconds[1.0],
                }
            )
    return results


def main() -> None:
    """Times, and prints."""
    found = rows()
    if not FLAGS.json:
        print(*(f"{name:>14}" for name in (*_COLUMNS, "seconds_of_all")))
    for row in found:
        values = (f"{value:>14.4g}" for value in row.values())
        print(json.dumps(row) if FLAGS.json else " ".join(values), flush=True)


if __name__ == "__main__":
    programs.run(main)
