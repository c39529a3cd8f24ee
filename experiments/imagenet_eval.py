"""Evaluates an ImageNet residual network: accuracy, recall@5, operations, units.

    python -m experiments.imagenet_eval --dataset_dir=DIR --checkpoint_dir=/tmp/sact \\
        --eval_dir=/tmp/sact --model_type=sact --tau=0.005 --evaluate_once

Without --evaluate_once it waits for new checkpoints and evaluates each of them. A
larger --image_size tests at a higher resolution than the network was trained at.
"""

from __future__ import annotations

from absl import flags

from experiments.common import baseline, evaluating, imagenet, iterative, programs

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "checkpoint_dir",
    "/tmp/resnet/",
    "Directory of the checkpoints to evaluate, or one checkpoint.",
)
flags.DEFINE_string(
    "eval_dir", "/tmp/resnet/", "Directory for evaluation summaries and eval.json."
)
flags.DEFINE_float(
    "eval_interval_secs",
    600,
    "Seconds between looks for a new checkpoint.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "num_examples", 50000, "Images to evaluate, the first of the split.", lower_bound=1
)
flags.DEFINE_integer("batch_size", 32, "Images per evaluation step.", lower_bound=1)
flags.DEFINE_bool(
    "evaluate_once",
    False,
    "Evaluate the newest checkpoint and exit, rather than follow new ones.",
)
evaluating.define_evaluation_flags()
imagenet.define_data_flags("validation")
imagenet.define_model_flags()
programs.define_unused_flags("master", "moving_average_decay")


def main() -> None:
    """Evaluates the newest checkpoint once, or every new one, without end."""
    programs.note_unused_flags()
    examples = imagenet.load_examples(FLAGS.split_name).first(FLAGS.num_examples)
    evaluating.evaluate_newest(
        imagenet.make_model(examples.num_classes),
        lambda: examples,
        FLAGS.checkpoint_dir,
        FLAGS.eval_dir,
        FLAGS.evaluate_once,
        FLAGS.eval_interval_secs,
        about=dict(
            program="imagenet_eval",
            dataset=FLAGS.dataset,
            split_name=FLAGS.split_name,
            image_size=FLAGS.image_size,
            baseline_of=baseline.baseline_of(),
            **iterative.about(),
        ),
        batch_size=FLAGS.batch_size,
        recall_at=5,
        **evaluating.evaluation_options(),
    )


if __name__ == "__main__":
    programs.run(main)
