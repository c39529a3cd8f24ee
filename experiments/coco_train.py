"""Trains Faster R-CNN with ordinary or adaptive features on data in COCO's format.

As in the SACT paper, blocks 1 to 4 start from a classification network:

    python -m experiments.coco_train --annotations=instances_train.json --images=DIR \\
        --model_type=sact --tau=0.005 --finetune_path=/tmp/resnet --train_log_dir=/tmp/d

To train from nothing, batch normalization has to train too:

    python -m experiments.coco_train --dataset=shapes --short_side=128 \\
        --model=1_1_2_1 --base_channels=8 --anchor_sizes=16,32,64 --train_batch_norm \\
        --batch_size=4 --learning_rate=0.01 --max_number_of_steps=2000 \\
        --train_log_dir=/tmp/shapes

Training that was stopped, for any reason, continues from its newest checkpoint when you
start it again.
"""

from __future__ import annotations

import tf_keras as keras
from absl import flags

from experiments.common import detection, distribution, programs
from object_detection import training
from sact_tf.data.examples import DataError
from sact_tf.pretrained import load_first_weights

FLAGS = flags.FLAGS

programs.define_log_flags("/tmp/faster_rcnn/")
flags.DEFINE_integer("batch_size", 1, "Images per training step.", lower_bound=1)
flags.DEFINE_integer(
    "max_number_of_steps",
    1200000,
    "Training steps of the whole run; the rate falls to a tenth after 2/3 of them, and "
    "again after 5/6.",
    lower_bound=1,
)
flags.DEFINE_float("learning_rate", 3e-4, "Learning rate at first.", lower_bound=0.0)
flags.DEFINE_integer(
    "warmup_steps", 0, "Steps in which the learning rate grows from 0.", lower_bound=0
)
flags.DEFINE_float("momentum", 0.9, "Of the optimizer.", 0.0, 1.0)
flags.DEFINE_float(
    "clip_norm", None, "Largest norm of all gradients together.", lower_bound=0.0
)
flags.DEFINE_bool(
    "train_batch_norm",
    False,
    "Normalize with the moments of batches, and average them, rather than with those "
    "stored in --finetune_path; for training from nothing.",
)
flags.DEFINE_integer(
    "num_region_samples", 256, "Proposals per image to learn from.", lower_bound=1
)
flags.DEFINE_bool(
    "flip_vertically", False, "Also flip images upside down, as suits microscopy."
)
flags.DEFINE_bool("cache_images", False, "Keep resized images in memory.")
programs.define_finetune_flags(
    "Of a classification network, without what it classifies images with; or the "
    "checkpoint of a detector. Halting variables it does not have start fresh."
)
flags.DEFINE_integer("seed", None, "Seed of initial weights and data order.")
detection.define_data_flags("train")
detection.define_model_flags()
programs.define_option(
    "execution",
    description="How units are computed; other than masked with --batch_size=1 and "
    "without --train_batch_norm: moments of batches are over all positions, so that "
    "none can be skipped.",
)
programs.define_option("halting_bias")
distribution.define_flags()


def main() -> None:
    """Trains, or goes on training."""
    strategy = distribution.make_strategy()
    if FLAGS.seed is not None:
        keras.utils.set_random_seed(FLAGS.seed)
    log_dir = programs.make_directory("train_log_dir", FLAGS.train_log_dir)
    examples = detection.load_examples(
        flip_vertically=FLAGS.flip_vertically, cache=FLAGS.cache_images
    )
    if examples.num_boxes == 0:
        raise DataError(
            f"{examples.name}: there are no boxes to learn from; crowds and boxes "
            "without area are left out"
        )
    with strategy.scope():
        model = detection.make_model(
            examples.num_classes,
            train_batch_norm=FLAGS.train_batch_norm,
            num_region_samples=FLAGS.num_region_samples,
        )
    programs.start_from_finetune_path(
        log_dir,
        lambda path: load_first_weights(model, path, FLAGS.finetune_without_classifier),
    )
    last = training.train(
        model,
        examples,
        log_dir,
        FLAGS.max_number_of_steps,
        batch_size=FLAGS.batch_size,
        rate=training.learning_rate(
            FLAGS.max_number_of_steps, FLAGS.learning_rate, FLAGS.warmup_steps
        ),
        momentum=FLAGS.momentum,
        clip_norm=FLAGS.clip_norm,
        save_interval_secs=FLAGS.save_interval_secs,
        save_summaries_secs=FLAGS.save_summaries_secs,
        seed=FLAGS.seed,
        **distribution.training_options(model),
    )
    print(f"Trained to step {FLAGS.max_number_of_steps}: {last}")


if __name__ == "__main__":
    programs.run(main)
