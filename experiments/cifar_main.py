"""Trains or evaluates a CIFAR residual network, adaptive or not.

Train, and evaluate the newest checkpoint:

    python -m experiments.cifar_main --model=5 --model_type=sact --tau=0.01 \\
        --dataset_dir=DIR --train_log_dir=/tmp/sact
    python -m experiments.cifar_main --mode=eval --evaluate_once --model=5 \\
        --model_type=sact --tau=0.01 --dataset_dir=DIR --checkpoint_dir=/tmp/sact \\
        --eval_dir=/tmp/sact

The SACT paper's baseline, an ordinary network that is as deep as a trained adaptive
network is on average:

    python -m experiments.cifar_main --model=auto --units_from=/tmp/sact/eval.json \\
        --dataset_dir=DIR --train_log_dir=/tmp/baseline

An iterative network, with flips as its only augmentation (docs/iterative.md):

    python -m experiments.cifar_main --model_type=iterative --max_iterations=5,5,5,5 \\
        --tau=0.001 --dataset_dir=DIR --train_log_dir=/tmp/iterative

Training that was stopped, for any reason, continues from its newest checkpoint when you
start it again.
"""

from __future__ import annotations

import tf_keras as keras
from absl import flags

from experiments.common import (
    baseline,
    cifar_recipe,
    distribution,
    evaluating,
    iterative,
    programs,
)
from sact_tf import training
from sact_tf.data import cifar, shapes
from sact_tf.networks.iterative_block import VARIANTS

FLAGS = flags.FLAGS
_BLOCKS = [f"block_{b}" for b in range(1, 5)]

flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")

# Training
flags.DEFINE_integer("batch_size", 128, "Images per training step.", lower_bound=1)
programs.define_log_flags(
    "/tmp/resnet_act_cifar/", save_summaries_secs=30, save_interval_secs=60
)
flags.DEFINE_integer(
    "max_number_of_steps", 100000, "Training steps of the whole run.", lower_bound=1
)
cifar_recipe.define_flags()
programs.define_finetune_flags("Halting variables start fresh.")
flags.DEFINE_integer(
    "seed", None, "Seed of initial weights, data order and augmentation."
)

# Data
flags.DEFINE_enum(
    "dataset",
    "tfrecord",
    ["tfrecord", "tfds", "shapes"],
    "tfrecord: CIFAR-10 in the original's files; tfds: CIFAR-10 through TensorFlow "
    "Datasets; shapes: made on the fly, nothing to download.",
)
flags.DEFINE_string(
    "dataset_dir",
    None,
    f"Directory with cifar10_train.tfrecord and cifar10_test.tfrecord (default "
    f"{cifar.DEFAULT_DIRECTORY}), or TensorFlow Datasets' data directory.",
)
flags.DEFINE_integer(
    "image_size",
    32,
    "Side of the images of --dataset=shapes.",
    lower_bound=shapes.MIN_SIZE,
)

# Evaluation
flags.DEFINE_string(
    "checkpoint_dir",
    "/tmp/resnet_act_cifar/",
    "Directory of the checkpoints to evaluate, or one checkpoint.",
)
flags.DEFINE_string(
    "eval_dir",
    "/tmp/resnet_act_cifar/",
    "Directory for evaluation summaries and eval.json.",
)
flags.DEFINE_integer(
    "eval_batch_size", 100, "Images per evaluation step.", lower_bound=1
)
flags.DEFINE_float(
    "eval_interval_secs",
    60,
    "Seconds between looks for a new checkpoint.",
    lower_bound=0,
)
flags.DEFINE_enum("split_name", "test", list(cifar.SPLITS), "Split to evaluate.")
flags.DEFINE_bool(
    "evaluate_once",
    False,
    "Evaluate the newest checkpoint and exit, rather than follow new ones.",
)

evaluating.define_evaluation_flags()

# Model
flags.DEFINE_enum(
    "network",
    "cifar",
    ["cifar", "cifar_bottleneck"],
    "cifar: three blocks of basic units; cifar_bottleneck: four of bottleneck units, "
    "which iterative networks are measured against.",
)
programs.define_option("model_type", others=VARIANTS)
programs.define_option("tau")
programs.define_target()
programs.define_option("base_channels", 16)
programs.define_option("tile_size")
programs.define_option("halting_bias")
programs.define_option(
    "model",
    "5",
    "Residual units per block: one number for all blocks (5 is ResNet-32, 18 "
    "ResNet-110), one for each joined by underscores, or auto: see --units_from.",
)
baseline.define_flag()
iterative.define_flags()

distribution.define_flags()
programs.define_unused_flags("master", "ps_tasks", "task")


def load_examples(split: str):
    """Loads a split of the data set the flags name."""
    if FLAGS.dataset == "shapes":
        return shapes.load(split, FLAGS.image_size)
    load = cifar.load_tfrecord if FLAGS.dataset == "tfrecord" else cifar.load_tfds
    with programs.naming_dataset_dir():
        return load(FLAGS.dataset_dir, split)


def make_model(num_classes: int):
    """Builds the network the flags describe."""
    iterative.check()
    if iterative.is_asked_for():
        return iterative.make_network(num_classes=num_classes)
    model = baseline.units(_BLOCKS if _has_four_blocks() else _BLOCKS[:3])
    if FLAGS.model == "auto":
        print(f"Residual units per block: {model}")
    options = programs.network_options(model=model, num_classes=num_classes)
    side = FLAGS.image_size if FLAGS.dataset == "shapes" else 32
    return programs.check_group_grid(programs.FAMILIES[FLAGS.network](**options), side)


def _has_four_blocks():
    return FLAGS.network == "cifar_bottleneck"


def load_finetune_path(model, path: str):
    """Loads --finetune_path; returns the names of the variables loaded."""
    if iterative.is_asked_for():
        return iterative.load_weights(model, path)
    return programs.load_weights(model, path, first_units=FLAGS.model == "auto")


def train() -> None:
    """Trains, or goes on training."""
    if FLAGS.execution != "masked":
        raise ValueError(
            f"--execution={FLAGS.execution}: needs --mode=eval; training runs masked"
        )
    strategy = distribution.make_strategy()
    if FLAGS.seed is not None:
        keras.utils.set_random_seed(FLAGS.seed)
    rate = cifar_recipe.learning_rate()
    log_dir = programs.make_directory("train_log_dir", FLAGS.train_log_dir)
    with strategy.scope():
        model = make_model(cifar.NUM_CLASSES)
    examples = cifar_recipe.augmented(load_examples("train"))
    programs.start_from_finetune_path(
        log_dir, lambda path: load_finetune_path(model, path)
    )
    target = programs.target()
    last = training.train(
        model,
        examples,
        log_dir,
        FLAGS.max_number_of_steps,
        batch_size=FLAGS.batch_size,
        learning_rate=rate,
        save_interval_secs=FLAGS.save_interval_secs,
        save_summaries_secs=FLAGS.save_summaries_secs,
        seed=FLAGS.seed,
        target=target,
        **cifar_recipe.training_options(),
        **distribution.training_options(model),
    )
    programs.print_target(target)
    print(f"Trained to step {FLAGS.max_number_of_steps}: {last}")


def evaluate() -> None:
    """Evaluates the newest checkpoint once, or every new one, without end."""
    evaluating.evaluate_newest(
        make_model(cifar.NUM_CLASSES),
        lambda: load_examples(FLAGS.split_name),
        FLAGS.checkpoint_dir,
        FLAGS.eval_dir,
        FLAGS.evaluate_once,
        FLAGS.eval_interval_secs,
        about=dict(
            program="cifar_main",
            dataset=FLAGS.dataset,
            split_name=FLAGS.split_name,
            image_size=FLAGS.image_size
            if FLAGS.dataset == "shapes"
            else cifar.IMAGE_SHAPE[0],
            baseline_of=baseline.baseline_of(),
            network=FLAGS.network if _has_four_blocks() else None,
            **iterative.about(),
        ),
        batch_size=FLAGS.eval_batch_size,
        **evaluating.evaluation_options(),
    )


def main() -> None:
    """Runs the mode asked for."""
    programs.note_unused_flags()
    train() if FLAGS.mode == "train" else evaluate()


if __name__ == "__main__":
    programs.run(main)
