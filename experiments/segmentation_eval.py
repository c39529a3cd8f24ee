"""Evaluates a segmentation network: IoU, accuracy of pixels, operations, units.

    python -m experiments.segmentation_eval --images=DIR --labels=DIR \\
        --model_type=sact --checkpoint_dir=/tmp/seg_sact --eval_dir=/tmp/seg_sact \\
        --evaluate_once

Prints and writes `eval.json` to --eval_dir; `confusion.json` holds pixels by label
(rows) and predicted class (columns). Without --evaluate_once it waits for new
checkpoints and evaluates each of them.
"""

from __future__ import annotations

import os
import sys

import tensorflow as tf
from absl import flags

import sact_tf
from experiments.common import evaluating, iterative, programs, segmentation
from sact_tf import visualization
from sact_tf.end_points import ADAPTIVE_METRICS
from sact_tf.segmentation.evaluation import evaluate
from sact_tf.writing import write_json

FLAGS = flags.FLAGS

segmentation.define_checkpoint_flag("/tmp/segmentation/")
flags.DEFINE_string(
    "eval_dir", "/tmp/segmentation/", "Directory for eval.json and summaries."
)
flags.DEFINE_float(
    "eval_interval_secs", 600, "Seconds between looks for a new checkpoint.", 0
)
flags.DEFINE_bool(
    "evaluate_once",
    False,
    "Evaluate the newest checkpoint and exit, rather than follow new ones.",
)
flags.DEFINE_integer("batch_size", 1, "Images of one size per step.", lower_bound=1)
flags.DEFINE_integer("sampling_seed", 0, "Of networks that stop by chance.", 0)
segmentation.define_data_flags("validation")
segmentation.define_long_side()
segmentation.define_model_flags()
segmentation.define_execution()


def show_progress(total: int):
    """Returns a function that prints how many images are done."""

    def progress(done):
        if sys.stdout.isatty() or done % 100 < FLAGS.batch_size:
            end = "\r" if sys.stdout.isatty() else "\n"
            print(f"{done} of {total} images", end=end, flush=True)

    return progress


def write_summaries(model, examples, results, eval_dir: str, step: int) -> None:
    """Writes results, and heat maps of three images, for TensorBoard."""
    writer = tf.summary.create_file_writer(eval_dir)
    with writer.as_default(step):
        for name, value in results.items():
            tf.summary.scalar(name, value)
        for k, batch in enumerate(examples.first(3).evaluation_batches(1)):
            seed = tf.constant([FLAGS.sampling_seed, k])
            _, end_points = model.with_end_points(batch["image"], False, seed)
            if visualization.has_maps(end_points):
                for key in ADAPTIVE_METRICS:
                    heatmap = visualization.heatmap(end_points, key)
                    tf.summary.image(f"heatmaps/{key}/{k}", heatmap)
    writer.close()


def evaluate_checkpoint(model, examples, checkpoint, eval_dir, names) -> None:
    """Evaluates one checkpoint; prints, writes eval.json and summaries.

    Args:
        model: The checkpoint's network.
        examples: The split to evaluate.
        checkpoint: TF-Slim checkpoint.
        eval_dir: Where to write.
        names: Of the classes.
    """
    sact_tf.load_slim_checkpoint(model, checkpoint)
    results, matrix = evaluate(
        model,
        examples,
        FLAGS.batch_size,
        names,
        FLAGS.sampling_seed,
        show_progress(examples.num_examples),
    )
    print(f"Evaluated {checkpoint} on {examples.num_examples} images")
    for name, value in results.items():
        print(f"{name:<32} {value:>12.6g}", flush=True)
    about = evaluating.record(
        "segmentation_eval",
        model.options,
        checkpoint,
        image_size=FLAGS.long_side,
        dataset=FLAGS.dataset,
        head_channels=FLAGS.head_channels,
        execution=FLAGS.execution,
        **iterative.about(),
    )
    rows = {"labels": names, "predictions": names, "pixels": matrix.tolist()}
    write_json(os.path.join(eval_dir, "confusion.json"), rows)
    write_json(
        os.path.join(eval_dir, "eval.json"),
        {**about, "num_examples": examples.num_examples, **results},
    )
    step = sact_tf.checkpoint_step(checkpoint)
    write_summaries(model, examples, results, eval_dir, step)


def main() -> None:
    """Evaluates the newest checkpoint once, or every new one, without end."""
    checkpoint = segmentation.newest_checkpoint() if FLAGS.evaluate_once else None
    classes = segmentation.classes_in(checkpoint) if checkpoint else None
    examples = segmentation.load_examples(classes)
    names = segmentation.names_of_classes(examples.num_classes, examples.names())
    model = segmentation.make_model(examples.num_classes)
    evaluating.evaluate_newest(
        model,
        lambda: examples,
        FLAGS.checkpoint_dir,
        FLAGS.eval_dir,
        FLAGS.evaluate_once,
        FLAGS.eval_interval_secs,
        evaluate_checkpoint,
        names=names,
    )


if __name__ == "__main__":
    programs.run(main)
