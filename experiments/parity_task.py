"""Trains recurrent networks that choose how often to update their state, on parity.

A vector holds 1 and -1 in its first k places, k at random, and 0 after; the network
tells whether the number of 1 is odd (Graves, 2016). It needs several updates for one
input, and no training data:

    python -m experiments.parity_task --model_type=act --tau=0.01 --output_dir=/tmp/act
    python -m experiments.parity_task --model_type=vanilla --repetitions=2

`vanilla` makes a constant number of updates: the baseline of every adaptive network. A
run ends when it has solved the task, or after --max_number_of_steps.
"""

from __future__ import annotations

import os
import time

import tensorflow as tf
import tf_keras as keras
from absl import flags

from experiments.common import programs
from sact_tf.networks.adaptive_rnn import AdaptiveRNN
from sact_tf.writing import write_json

FLAGS = flags.FLAGS
SOLVED = 0.98
_MODEL_TYPES = ("act", "pact_image", "pondernet", "vanilla")

flags.DEFINE_enum(
    "model_type",
    "act",
    _MODEL_TYPES,
    "act; pact_image: PACT; pondernet; vanilla: --repetitions updates, always.",
)
flags.DEFINE_integer("size", 64, "Length of the vectors.", lower_bound=1)
flags.DEFINE_integer("units", 128, "Size of the network's state.", lower_bound=1)
flags.DEFINE_integer(
    "max_updates",
    None,
    "The most updates; by default 100 for act, 10 for the others.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "repetitions", 1, "Updates of --model_type=vanilla.", lower_bound=1
)
flags.DEFINE_float("tau", 0.001, "Weight of the ponder cost.", lower_bound=0.0)
flags.DEFINE_float("beta", 0.01, "Weight of PonderNet's divergence.", lower_bound=0.0)
flags.DEFINE_float(
    "lambda_p", 0.2, "PonderNet's prior probability of stopping.", 0.0, 1.0
)
flags.DEFINE_enum(
    "estimator", "relaxation", ["relaxation", "reinforce"], "Of PACT's gradients."
)
flags.DEFINE_float("temperature", 2 / 3, "Of PACT's relaxation.", lower_bound=0.0)
flags.DEFINE_float(
    "halting_bias",
    None,
    "Initial bias of the halting score; by default 1 for act, as Graves has it, and 0 "
    "for the others.",
)
flags.DEFINE_integer("batch_size", 128, "Vectors per step.", lower_bound=1)
flags.DEFINE_float("learning_rate", 1e-3, "Of Adam.", lower_bound=0.0)
flags.DEFINE_integer("max_number_of_steps", 100_000, "Steps at most.", lower_bound=1)
flags.DEFINE_integer(
    "eval_every", 1000, "Training steps between two evaluations.", lower_bound=1
)
flags.DEFINE_integer("num_examples", 10_000, "Vectors to evaluate.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of weights, data and samples.")
flags.DEFINE_string("output_dir", "", "Directory for parity.json; empty: none.")


def parity_batch(
    seed: tf.Tensor, batch_size: int, size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws vectors, and whether their number of 1 is odd.

    Args:
        seed: int32 [2].
        batch_size: How many.
        size: Their length; k of them are not 0, k uniform in 1..size.

    Returns:
        float32 [batch, 1, size] and float32 [batch, 1, 1].

    >>> x, y = parity_batch(tf.constant([1, 2]), 3, 4)
    >>> ones = tf.reduce_sum(tf.cast(x > 0, tf.float32), 2)
    >>> bool(tf.reduce_all(ones % 2 == y[..., 0]))
    True
    """
    seeds = [tf.random.experimental.stateless_fold_in(seed, k) for k in (0, 1)]
    count = tf.random.stateless_uniform(
        [batch_size, 1], seeds[0], 1, size + 1, tf.int32
    )
    sign = tf.random.stateless_uniform([batch_size, size], seeds[1], 0, 2, tf.int32)
    is_one = (sign == 1) & (tf.range(size) < count)
    x = tf.where(tf.range(size) < count, tf.cast(2 * sign - 1, tf.float32), 0.0)
    odd = tf.reduce_sum(tf.cast(is_one, tf.int32), 1) % 2
    return x[:, tf.newaxis], tf.cast(odd, tf.float32)[:, tf.newaxis, tf.newaxis]


def make_model() -> AdaptiveRNN:
    """Builds the network that the flags describe."""
    options, kind = {}, FLAGS.model_type
    if kind == "pact_image":
        options = dict(estimator=FLAGS.estimator, temperature=FLAGS.temperature)
    elif kind == "pondernet":
        options = dict(beta=FLAGS.beta, lambda_p=FLAGS.lambda_p)
    bias = FLAGS.halting_bias
    if bias is None:
        bias = 1.0 if kind == "act" else 0.0
    updates = FLAGS.max_updates or (100 if kind == "act" else 10)
    return AdaptiveRNN(
        keras.layers.SimpleRNNCell(FLAGS.units),
        model_type=kind,
        max_steps=FLAGS.repetitions if kind == "vanilla" else updates,
        tau=FLAGS.tau,
        halting_bias=bias,
        **options,
    )


def make_functions(model: AdaptiveRNN):
    """Returns functions that train for some steps, and that evaluate."""

    @tf.function(autograph=False)
    def train(first, count):
        def step(n):
            seed = tf.stack([FLAGS.seed, n])
            batch = parity_batch(seed, FLAGS.batch_size, FLAGS.size)
            with tf.control_dependencies(tf.nest.flatten(model.train_step(batch))):
                return n + 1

        tf.while_loop(lambda n: n < first + count, step, [first], parallel_iterations=1)

    @tf.function(autograph=False)
    def evaluate(seed):
        x, y = parity_batch(seed, FLAGS.num_examples, FLAGS.size)
        logits, end_points = model(x, training=False, return_end_points=True, seed=seed)
        correct = tf.equal(logits > 0, y > 0.5)
        count = tf.reduce_sum(tf.abs(x), [1, 2])
        return correct[:, 0, 0], end_points["num_units"][:, 0], count

    return train, evaluate


def measure(evaluate) -> dict[str, float]:
    """Evaluates on vectors that training never sees."""
    correct, units, count = evaluate(tf.constant([FLAGS.seed, 2**31 - 1]))
    is_long = count > FLAGS.size / 2
    units = tf.cast(units, tf.float32)
    return {
        "accuracy": float(tf.reduce_mean(tf.cast(correct, tf.float32))),
        "updates": float(tf.reduce_mean(units)),
        "updates_short": float(tf.reduce_mean(units[~is_long])),
        "updates_long": float(tf.reduce_mean(units[is_long])),
    }


def main() -> None:
    """Trains until the task is solved."""
    output_dir = ""
    if FLAGS.output_dir:
        output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    keras.utils.set_random_seed(FLAGS.seed)
    model = make_model()
    model.compile(
        keras.optimizers.Adam(FLAGS.learning_rate),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    model(tf.zeros([1, 1, FLAGS.size]))
    model.optimizer.build(model.trainable_variables)
    train, evaluate = make_functions(model)
    curve, start = [], time.monotonic()
    step, best = 0, 0.0
    while step < FLAGS.max_number_of_steps and best < SOLVED:
        count = min(FLAGS.eval_every, FLAGS.max_number_of_steps - step)
        train(tf.constant(step), tf.constant(count))
        step += count
        results = measure(evaluate)
        best = results["accuracy"]
        seconds = time.monotonic() - start
        curve.append({"step": step, **results, "seconds": seconds})
        print(
            f"step {step}: "
            + ", ".join(f"{name} {value:.4g}" for name, value in results.items())
            + f", {seconds:.0f} s",
            flush=True,
        )
    solved = best >= SOLVED
    print(f"{'Solved' if solved else 'Not solved'} after {step} steps")
    if output_dir:
        names = ("model_type", "repetitions", "tau", "beta", "estimator", "seed")
        settings = {name: FLAGS[name].value for name in names}
        path = os.path.join(output_dir, "parity.json")
        write_json(path, {**settings, "solved": solved, "curve": curve})


if __name__ == "__main__":
    programs.run(main)
