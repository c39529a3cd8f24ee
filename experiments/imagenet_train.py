"""Trains an ImageNet residual network, adaptive or not.

First an ordinary network from nothing; then, as in the SACT paper, an adaptive network
that starts from it:

    python -m experiments.imagenet_train --dataset_dir=DIR --train_log_dir=/tmp/vanilla
    python -m experiments.imagenet_train --dataset_dir=DIR --train_log_dir=/tmp/sact \\
        --model_type=sact --tau=0.005 --finetune_path=/tmp/vanilla

The SACT paper's baseline: an ordinary network, as deep as a trained SACT network is on
average:

    python -m experiments.imagenet_train --dataset_dir=DIR --train_log_dir=/tmp/base \\
        --model=auto --units_from=/tmp/sact/eval.json --finetune_path=/tmp/vanilla

An iterative network (docs/iterative.md):

    python -m experiments.imagenet_train --dataset_dir=DIR --train_log_dir=/tmp/iter \\
        --model_type=iterative --expansion=4 --tau=0.001 --batch_size=256

Fine-tuning with stored moments, which skips what has halted in training too:

    python -m experiments.imagenet_train --dataset_dir=DIR --train_log_dir=/tmp/tuned \\
        --model_type=sact --tau=0.005 --finetune_path=/tmp/sact --notrain_batch_norm \\
        --execution=perforated

Training that was stopped, for any reason, continues from its newest checkpoint when you
start it again.
"""

from __future__ import annotations

import tf_keras as keras
from absl import flags

from experiments.common import distribution, imagenet, iterative, programs
from sact_tf import optimization, training

FLAGS = flags.FLAGS
LABEL_SMOOTHING = 0.1

programs.define_log_flags("/tmp/resnet/")
flags.DEFINE_integer("batch_size", 32, "Images per training step.", lower_bound=1)
flags.DEFINE_float(
    "learning_rate",
    0.05,
    "Learning rate at first; of iterative networks 0.01 by default.",
    lower_bound=0.0,
)
flags.DEFINE_float("momentum", 0.9, "Of the optimizer.", 0.0, 1.0)
flags.DEFINE_float(
    "learning_rate_decay_factor", 0.1, "Factor of each decay of the rate.", 0.0, 1.0
)
flags.DEFINE_float("num_epochs_per_decay", 30.0, "Epochs between two decays.", 0.0)
flags.DEFINE_integer(
    "max_number_of_steps",
    None,
    "Training steps of the whole run; by default there is no end.",
    lower_bound=1,
)
programs.define_finetune_flags(
    "Halting variables start fresh, and --model=auto takes the first units of every "
    "block."
)
flags.DEFINE_integer(
    "seed", None, "Seed of initial weights, data order and augmentation."
)
flags.DEFINE_bool(
    "train_batch_norm",
    True,
    "Normalize with the moments of batches, and average them, rather than with those "
    "stored in --finetune_path, as may do for fine-tuning.",
)
imagenet.define_data_flags("train")
imagenet.define_model_flags()
programs.define_option(
    "execution",
    description="How units are computed in training; other than masked with "
    "--notrain_batch_norm: moments of batches are over all positions, so that none can "
    "be skipped.",
)
programs.define_option("halting_bias")
programs.define_target()
distribution.define_flags()
programs.define_unused_flags(
    *("master", "ps_tasks", "task", "startup_delay_steps"),
    *("worker_replicas", "replicas_to_aggregate", "moving_average_decay"),
)


def initial_learning_rate() -> float:
    """Returns --learning_rate, or what the network asked for is trained with."""
    is_default = FLAGS["learning_rate"].using_default_value
    return 0.01 if is_default and iterative.is_asked_for() else FLAGS.learning_rate


def check_execution() -> None:
    """Refuses to skip positions that batch normalization has to see."""
    if FLAGS.train_batch_norm and FLAGS.execution != "masked":
        raise ValueError(
            f"--execution={FLAGS.execution}: must be masked with --train_batch_norm; "
            "--notrain_batch_norm normalizes with stored moments"
        )


def main() -> None:
    """Trains, or goes on training."""
    programs.note_unused_flags()
    check_execution()
    strategy = distribution.make_strategy()
    if FLAGS.seed is not None:
        keras.utils.set_random_seed(FLAGS.seed)
    log_dir = programs.make_directory("train_log_dir", FLAGS.train_log_dir)
    examples = imagenet.load_examples(FLAGS.split_name)
    with strategy.scope():
        model = imagenet.make_model(examples.num_classes)
    programs.start_from_finetune_path(
        log_dir,
        lambda path: (
            iterative.load_weights(model, path)
            if iterative.is_asked_for()
            else programs.load_weights(model, path, first_units=FLAGS.model == "auto")
        ),
    )
    target = programs.target()
    last = training.train(
        model,
        examples,
        log_dir,
        FLAGS.max_number_of_steps,
        batch_size=FLAGS.batch_size,
        learning_rate=optimization.imagenet_learning_rate(
            examples.num_examples,
            FLAGS.batch_size,
            initial_learning_rate(),
            FLAGS.learning_rate_decay_factor,
            FLAGS.num_epochs_per_decay,
        ),
        momentum=FLAGS.momentum,
        label_smoothing=LABEL_SMOOTHING,
        save_interval_secs=FLAGS.save_interval_secs,
        save_summaries_secs=FLAGS.save_summaries_secs,
        seed=FLAGS.seed,
        target=target,
        freeze_moments=not FLAGS.train_batch_norm,
        **distribution.training_options(model),
    )
    programs.print_target(target)
    print(f"Trained to step {FLAGS.max_number_of_steps}: {last}")


if __name__ == "__main__":
    programs.run(main)
