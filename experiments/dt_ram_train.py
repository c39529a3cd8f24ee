"""Trains recurrent visual attention: RAM, or DT-RAM, which decides when to stop.

First a RAM of a constant number of glimpses; then a DT-RAM that starts from it, of
which only the decider and the classifier are trained:

    python -m experiments.dt_ram_train --dataset=mnist_npz --dataset_dir=mnist.npz \\
        --steps=7 --nodynamic --train_log_dir=/tmp/ram
    python -m experiments.dt_ram_train --dataset=mnist_npz --dataset_dir=mnist.npz \\
        --steps=7 --gamma=0.98 --finetune_path=/tmp/ram --train_log_dir=/tmp/dt_ram

Without --finetune_path the RAM is trained first, in the directory phase1 of
--train_log_dir. Training that was stopped continues when you start it again.
"""

from __future__ import annotations

import math
import os

import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import attention, distribution, programs
from sact_tf import training
from sact_tf.summaries import RunningMeans

FLAGS = flags.FLAGS
_CURRICULUM_SHARE = 0.5  # of the steps, until all glimpses are taken
# The Torch optimizer dampens gradients by 1 - momentum: its 0.01 is 0.001 here.
_PUBLISHED_RATE, _PUBLISHED_LAST = 1e-3, 1e-6
_PUBLISHED_EPOCHS, _PUBLISHED_BATCH = 800, 20

programs.define_log_flags("/tmp/dt_ram/", 60, 120)
attention.define_data_flags("train")
attention.define_model_flags()
flags.DEFINE_integer(
    "max_number_of_steps",
    20000,
    "Training steps; of a DT-RAM those after the first phase.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "phase1_steps",
    20000,
    "Training steps of the RAM, of a DT-RAM without --finetune_path.",
    lower_bound=1,
)
flags.DEFINE_string(
    "finetune_path", "", "Checkpoint to start from, of a RAM; or its directory."
)
flags.DEFINE_bool(
    "intermediate_supervision", False, "The loss is that of all glimpses taken."
)
flags.DEFINE_bool(
    "curriculum",
    False,
    "A RAM takes one glimpse at first, and all of them after half of the steps.",
)
flags.DEFINE_enum(
    "recipe",
    "default",
    ["default", "published"],
    "default: Adam, whose rate falls as a cosine; published: momentum 0.9, batch 20, "
    "rate 0.001 that falls linearly over 800 epochs.",
)
flags.DEFINE_integer(
    "batch_size",
    None,
    "Images per step; by default 128, of --recipe=published 20.",
    lower_bound=1,
)
flags.DEFINE_float(
    "learning_rate", None, "At first; by default 0.001.", lower_bound=0.0
)
flags.DEFINE_integer("seed", None, "Of weights and data order.")
distribution.define_flags()


def make_optimizer(num_examples: int, max_number_of_steps: int):
    """Returns the optimizer of --recipe."""
    rate = FLAGS.learning_rate
    if FLAGS.recipe == "default":
        rate = 1e-3 if rate is None else rate
        return keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(rate, max_number_of_steps)
        )
    rate = _PUBLISHED_RATE if rate is None else rate
    steps = math.ceil(_PUBLISHED_EPOCHS * num_examples / batch_size())
    schedule = keras.optimizers.schedules.PolynomialDecay(rate, steps, _PUBLISHED_LAST)
    return keras.optimizers.SGD(schedule, momentum=0.9)


def batch_size() -> int:
    """Returns --batch_size."""
    default = 128 if FLAGS.recipe == "default" else _PUBLISHED_BATCH
    return default if FLAGS.batch_size is None else FLAGS.batch_size


def train(examples, strategy, log_dir: str, dynamic: bool, steps: int, start: str):
    """Trains a RAM or a DT-RAM; returns the prefix of its last checkpoint.

    Args:
        examples: Training examples.
        strategy: Of `tf.distribute`.
        log_dir: Of checkpoints and summaries.
        dynamic: Whether it is a DT-RAM.
        steps: Training steps.
        start: Checkpoint to start from, unless `log_dir` has one; empty: none.
    """
    curriculum = None
    if FLAGS.curriculum and not dynamic:
        curriculum = max(int(steps * _CURRICULUM_SHARE) // FLAGS.steps, 1)
    with strategy.scope():
        model = attention.make_model(
            examples.num_classes,
            dynamic=dynamic,
            intermediate_supervision=FLAGS.intermediate_supervision,
            curriculum_steps=curriculum,
        )
        if dynamic:
            model.freeze_attention()
        model.compile(
            make_optimizer(examples.num_examples, steps), jit_compile=FLAGS.jit_compile
        )
    if start and sact_tf.newest_checkpoint(log_dir) is None:
        loaded = sact_tf.load_slim_checkpoint(model, start, fresh_halting=None)
        print(f"Starting from {len(loaded)} variables of {start}")
    return training.fit(
        model,
        examples,
        log_dir,
        steps,
        batch_size(),
        lambda state: RunningMeans(state, log_dir, FLAGS.save_summaries_secs),
        FLAGS.save_interval_secs,
        FLAGS.seed,
        FLAGS.data_service,
    )


def main() -> None:
    """Trains, or goes on training."""
    strategy = distribution.make_strategy()
    if FLAGS.seed is not None:
        keras.utils.set_random_seed(FLAGS.seed)
    log_dir = programs.make_directory("train_log_dir", FLAGS.train_log_dir)
    attention.make_model(2)  # what is wrong with flags shows before data are read
    examples = attention.load_examples(FLAGS.split_name)
    start = os.path.expanduser(FLAGS.finetune_path)
    if FLAGS.dynamic and not start and sact_tf.newest_checkpoint(log_dir) is None:
        phase1 = os.path.join(log_dir, "phase1")
        print(f"First phase: a RAM of {FLAGS.steps} glimpses, in {phase1}", flush=True)
        start = train(examples, strategy, phase1, False, FLAGS.phase1_steps, "")
    last = train(
        examples, strategy, log_dir, FLAGS.dynamic, FLAGS.max_number_of_steps, start
    )
    print(f"Trained to step {FLAGS.max_number_of_steps}: {last}")


if __name__ == "__main__":
    programs.run(main)
