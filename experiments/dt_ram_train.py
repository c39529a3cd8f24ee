"""Trains recurrent visual attention: RAM, or DT-RAM, which decides when to stop.

First a RAM of a constant number of glimpses; then a DT-RAM that starts from it, of
which only the decider and the classifier are trained:

    python -m experiments.dt_ram_train --dataset=mnist_npz --dataset_dir=mnist.npz \\
        --steps=7 --nodynamic --train_log_dir=/tmp/ram
    python -m experiments.dt_ram_train --dataset=mnist_npz --dataset_dir=mnist.npz \\
        --steps=7 --gamma=0.98 --finetune_path=/tmp/ram --train_log_dir=/tmp/dt_ram

Without --finetune_path the RAM is trained first, in the directory phase1 of
--train_log_dir. The fine-grained network, a residual network for every step, which with
--curriculum grows by one step after the other, in the directories steps1, steps2, ...:

    python -m experiments.dt_ram_train --network=fine_grained --dataset=folder \\
        --dataset_dir=DIR --image_size=224 --steps=3 --curriculum \\
        --train_log_dir=/tmp/fine

Training that was stopped continues when you start it again.
"""

from __future__ import annotations

import math
import os

import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import attention, distribution, programs
from sact_tf import training
from sact_tf.networks import attention_options
from sact_tf.pretrained import formats
from sact_tf.summaries import RunningMeans

FLAGS = flags.FLAGS
_CURRICULUM_SHARE = 0.5  # of the steps, until all glimpses are taken
# The Torch optimizer dampens gradients by 1 - momentum: its 0.01 is 0.001 here.
_PUBLISHED_RATE, _PUBLISHED_LAST = 1e-3, 1e-6
_PUBLISHED_EPOCHS, _PUBLISHED_BATCH = 800, 20
# Of the fine-grained network: the rate of the first step, and of later ones.
_FINE_RATES, _FINE_BATCH = (0.01, 0.001), 96
_FINE_EPOCHS_PER_DECAY, _FINE_DECAY = 30, 0.1
_FINE_EXPLORATION = 0.2

programs.define_log_flags("/tmp/dt_ram/", 60, 120)
attention.define_data_flags("train")
attention.define_model_flags()
flags.DEFINE_integer(
    "max_number_of_steps",
    20000,
    "Training steps; of a DT-RAM those after the first phase, of the fine-grained "
    "network's --curriculum those with every number of glimpses.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "phase1_steps",
    20000,
    "Training steps of the RAM, of a DT-RAM without --finetune_path.",
    lower_bound=1,
)
flags.DEFINE_string(
    "finetune_path",
    "",
    "Checkpoint to start from, of a RAM; or its directory. A fine-grained network may "
    "be of one step fewer.",
)
flags.DEFINE_string(
    "weights",
    "",
    f"Of --network=fine_grained: weights that its residual networks start from: "
    f"{formats.KNOWN}.",
)
flags.DEFINE_bool(
    "intermediate_supervision",
    None,
    "The loss is that of all glimpses taken; so by default of the fine-grained network "
    "alone.",
)
flags.DEFINE_bool(
    "curriculum",
    False,
    "A RAM takes one glimpse at first, and all of them after half of the steps. A "
    "fine-grained network is trained with one step, then grows.",
)
flags.DEFINE_enum(
    "reward_baseline",
    "scalar",
    attention_options.BASELINES,
    "What reward is expected: a number, or a linear function of the state for every "
    "step.",
)
flags.DEFINE_float(
    "exploration",
    None,
    "Probability with which a batch of a DT-RAM stops at random; by default 0, of the "
    "fine-grained network 0.2.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_enum(
    "recipe",
    "default",
    ["default", "published"],
    "default: Adam, whose rate falls as a cosine; published: momentum 0.9, batch 20, "
    "rate 0.001 that falls linearly over 800 epochs, of the fine-grained network batch "
    "96, rate 0.01 with one step, else 0.001, a tenth of it after every 30 epochs.",
)
flags.DEFINE_integer(
    "batch_size",
    None,
    "Images per step; by default 128, of --recipe=published 20 (fine-grained 96).",
    lower_bound=1,
)
flags.DEFINE_float(
    "learning_rate", None, "At first; by default 0.001.", lower_bound=0.0
)
flags.DEFINE_integer("seed", None, "Of weights and data order.")
distribution.define_flags()


def make_optimizer(
    num_examples: int, max_number_of_steps: int, num_glimpses: int
) -> keras.optimizers.Optimizer:
    """Returns the optimizer of --recipe.

    Args:
        num_examples: Of training.
        max_number_of_steps: Training steps.
        num_glimpses: That the network takes.
    """
    schedules = keras.optimizers.schedules
    rate = FLAGS.learning_rate
    if FLAGS.recipe == "default":
        rate = 1e-3 if rate is None else rate
        return keras.optimizers.Adam(schedules.CosineDecay(rate, max_number_of_steps))
    if attention.is_fine_grained():
        rate = _FINE_RATES[num_glimpses > 1] if rate is None else rate
        per_epoch = math.ceil(num_examples / batch_size())
        schedule = schedules.ExponentialDecay(
            rate, _FINE_EPOCHS_PER_DECAY * per_epoch, _FINE_DECAY, staircase=True
        )
        return keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
    rate = _PUBLISHED_RATE if rate is None else rate
    steps = math.ceil(_PUBLISHED_EPOCHS * num_examples / batch_size())
    schedule = schedules.PolynomialDecay(rate, steps, _PUBLISHED_LAST)
    return keras.optimizers.SGD(schedule, momentum=0.9)


def batch_size() -> int:
    """Returns --batch_size."""
    published = _FINE_BATCH if attention.is_fine_grained() else _PUBLISHED_BATCH
    default = 128 if FLAGS.recipe == "default" else published
    return default if FLAGS.batch_size is None else FLAGS.batch_size


def training_options(examples, dynamic: bool, steps: int) -> dict[str, object]:
    """Returns the options of the network that only training has.

    Args:
        examples: Training examples.
        dynamic: Whether it is a DT-RAM.
        steps: Training steps.
    """
    options = {
        "intermediate_supervision": FLAGS.intermediate_supervision,
        "baseline": FLAGS.reward_baseline,
    }
    is_fine = attention.is_fine_grained()
    if FLAGS.curriculum and not dynamic and not is_fine:
        share = int(steps * _CURRICULUM_SHARE)
        options["curriculum_steps"] = max(share // FLAGS.steps, 1)
    if dynamic:
        default = _FINE_EXPLORATION if is_fine else 0.0
        given = FLAGS.exploration
        options["exploration"] = default if given is None else given
        options["exploration_steps"] = max(examples.num_examples // batch_size(), 1)
    return options


def train(
    examples,
    strategy,
    log_dir: str,
    dynamic: bool,
    steps: int,
    start: str,
    num_glimpses: int,
) -> str:
    """Trains a RAM or a DT-RAM; returns the prefix of its last checkpoint.

    Args:
        examples: Training examples.
        strategy: Of `tf.distribute`.
        log_dir: Of checkpoints and summaries.
        dynamic: Whether it is a DT-RAM.
        steps: Training steps.
        start: Checkpoint to start from, unless `log_dir` has one; empty: none.
        num_glimpses: That it takes, at most.
    """
    is_fine = attention.is_fine_grained()
    is_fresh = sact_tf.newest_checkpoint(log_dir) is None
    with strategy.scope():
        model = attention.make_model(
            examples.num_classes,
            dynamic=dynamic,
            steps=num_glimpses,
            **training_options(examples, dynamic, steps),
        )
        if is_fine and FLAGS.weights and not start and is_fresh:
            for step in model.attention_steps:
                sact_tf.load_pretrained(
                    step.backbone, FLAGS.weights, without_classifier=True
                )
            print(f"Residual networks start from {FLAGS.weights}")
        if start and is_fresh:
            if is_fine:
                loaded = model.start_from(start)
            else:
                loaded = sact_tf.load_slim_checkpoint(model, start, fresh_halting=None)
            print(f"Starting from {len(loaded)} variables of {start}")
        if dynamic:
            model.freeze_attention()
        elif is_fine and FLAGS.curriculum and num_glimpses > 2:
            model.freeze_earlier_steps()
        model.compile(
            make_optimizer(examples.num_examples, steps, num_glimpses),
            jit_compile=FLAGS.jit_compile,
        )
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


def train_ram(examples, strategy, log_dir: str, steps: int, start: str) -> str:
    """Trains a RAM, with --curriculum a fine-grained one step by step.

    Arguments and result are those of `train`.
    """
    if attention.is_fine_grained() and FLAGS.curriculum and not start:
        for k in range(1, FLAGS.steps):
            print(f"Curriculum: {k} of {FLAGS.steps} steps", flush=True)
            stage = os.path.join(log_dir, f"steps{k}")
            start = train(examples, strategy, stage, False, steps, start, k)
    return train(examples, strategy, log_dir, False, steps, start, FLAGS.steps)


def check_flags() -> None:
    """Raises ValueError on what is wrong with flags, before data are read."""
    if FLAGS.weights and not attention.is_fine_grained():
        raise ValueError(f"--weights={FLAGS.weights}: needs --network=fine_grained")
    attention.make_model(2)


def main() -> None:
    """Trains, or goes on training."""
    strategy = distribution.make_strategy()
    if FLAGS.seed is not None:
        keras.utils.set_random_seed(FLAGS.seed)
    log_dir = programs.make_directory("train_log_dir", FLAGS.train_log_dir)
    check_flags()
    examples = attention.load_examples(FLAGS.split_name)
    start = os.path.expanduser(FLAGS.finetune_path)
    steps = FLAGS.max_number_of_steps
    if not FLAGS.dynamic:
        last = train_ram(examples, strategy, log_dir, steps, start)
    else:
        if not start and sact_tf.newest_checkpoint(log_dir) is None:
            phase1 = os.path.join(log_dir, "phase1")
            print(f"First phase: a RAM of {FLAGS.steps} glimpses, in {phase1}")
            start = train_ram(examples, strategy, phase1, FLAGS.phase1_steps, "")
        last = train(examples, strategy, log_dir, True, steps, start, FLAGS.steps)
    print(f"Trained to step {FLAGS.max_number_of_steps}: {last}")


if __name__ == "__main__":
    programs.run(main)
