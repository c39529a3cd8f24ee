"""Trains a segmentation network with an ordinary or adaptive backbone.

On folders of images and labels of the same names:

    python -m experiments.segmentation_train --images=DIR --labels=DIR \\
        --model=3_4_6_3 --base_channels=32 --train_log_dir=/tmp/seg

From a classification network, as imagenet_train writes it:

    python -m experiments.segmentation_train --images=DIR --labels=DIR \\
        --model_type=sact --tau=0.005 --finetune_path=/tmp/resnet \\
        --train_log_dir=/tmp/seg_sact

Nothing to download:

    python -m experiments.segmentation_train --dataset=shapes --model=1_1_1_1 \\
        --base_channels=8 --crop_height=128 --crop_width=128 --batch_size=8 \\
        --max_number_of_steps=1000 --train_log_dir=/tmp/shapes

Training that was stopped, for any reason, continues from its newest checkpoint when you
start it again.
"""

from __future__ import annotations

import tf_keras as keras
from absl import flags

from experiments.common import distribution, programs, segmentation
from sact_tf.pretrained import load_first_weights
from sact_tf.segmentation import training
from sact_tf.segmentation.losses import CLASS_WEIGHTINGS

FLAGS = flags.FLAGS
_RATES = {"momentum": 0.05, "adam": 1e-3}

programs.define_log_flags("/tmp/segmentation/")
flags.DEFINE_integer("batch_size", 8, "Crops per training step.", lower_bound=1)
flags.DEFINE_integer(
    "max_number_of_steps",
    40000,
    "Training steps of the whole run, in which the learning rate falls to 0.",
    lower_bound=1,
)
flags.DEFINE_enum("optimizer", "momentum", training.OPTIMIZERS, "Optimizer.")
flags.DEFINE_float(
    "learning_rate",
    None,
    "Learning rate at first; by default 0.05 (momentum) or 0.001 (adam).",
    lower_bound=0.0,
)
flags.DEFINE_integer(
    "warmup_steps", 0, "Steps in which the learning rate grows from 0.", lower_bound=0
)
flags.DEFINE_float("momentum", 0.9, "Of --optimizer=momentum.", 0.0, 1.0)
flags.DEFINE_float(
    "clip_norm", None, "Largest norm of all gradients together.", lower_bound=0.0
)
flags.DEFINE_enum(
    "class_weighting",
    "none",
    CLASS_WEIGHTINGS,
    "How much rare classes count in the loss: none, all pixels alike; median, as much "
    "as frequent ones; log, between both.",
)
programs.define_finetune_flags(
    "Of a classification network or a detector, whose backbone is taken; or the "
    "checkpoint of a segmentation network. Halting variables it does not have start "
    "fresh."
)
flags.DEFINE_integer("seed", None, "Seed of initial weights, data order, augmentation.")
segmentation.define_data_flags("train")
segmentation.define_crop_flags()
segmentation.define_model_flags()
programs.define_option("halting_bias")
programs.define_target()
distribution.define_flags()


def make_optimizer() -> keras.optimizers.Optimizer:
    """Makes what the flags describe."""
    initial = FLAGS.learning_rate
    if initial is None:
        initial = _RATES[FLAGS.optimizer]
    rate = training.learning_rate(
        FLAGS.max_number_of_steps, initial, FLAGS.warmup_steps
    )
    return training.make_optimizer(
        FLAGS.optimizer, rate, FLAGS.momentum, FLAGS.clip_norm
    )


def main() -> None:
    """Trains, or goes on training."""
    strategy = distribution.make_strategy()
    if FLAGS.seed is not None:
        keras.utils.set_random_seed(FLAGS.seed)
    log_dir = programs.make_directory("train_log_dir", FLAGS.train_log_dir)
    examples = segmentation.load_examples()
    segmentation.names_of_classes(examples.num_classes)
    print(
        f"{examples.name}: {examples.num_examples} images, {examples.num_classes} "
        "classes"
    )
    with strategy.scope():
        model = segmentation.make_model(examples.num_classes)
        optimizer = make_optimizer()
    programs.start_from_finetune_path(
        log_dir,
        lambda path: load_first_weights(model, path, FLAGS.finetune_without_classifier),
    )
    target = programs.target()
    last = training.train(
        model,
        examples,
        log_dir,
        FLAGS.max_number_of_steps,
        batch_size=FLAGS.batch_size,
        optimizer=optimizer,
        class_weighting=FLAGS.class_weighting,
        save_interval_secs=FLAGS.save_interval_secs,
        save_summaries_secs=FLAGS.save_summaries_secs,
        seed=FLAGS.seed,
        target=target,
        **distribution.training_options(model),
    )
    programs.print_target(target)
    print(f"Trained to step {FLAGS.max_number_of_steps}: {last}")


if __name__ == "__main__":
    programs.run(main)
