"""Evaluates a detector with pycocotools, or detections of any origin.

    python -m experiments.coco_eval --annotations=instances_val.json --images=DIR \\
        --model_type=sact --checkpoint_dir=/tmp/d --eval_dir=/tmp/d_eval
    python -m experiments.coco_eval --annotations=instances_val.json \\
        --detections=results.json --eval_dir=/tmp/other

Prints the twelve numbers of the COCO challenge, the average precision of every class
and the operations of the feature extractor, absolute and relative to the ordinary
network (SACT, table 1). Writes `eval.json`, and all detections in COCO's format,
in pixels of the original images, to `detections.json`.
"""

from __future__ import annotations

import os
import sys

from absl import flags

import sact_tf
from experiments.common import detection, evaluating, programs
from object_detection import evaluation
from object_detection.data import coco
from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.writing import write_json

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "checkpoint_dir",
    "/tmp/faster_rcnn/",
    "Directory, its newest checkpoint is taken, or a checkpoint.",
)
flags.DEFINE_string("eval_dir", "/tmp/faster_rcnn_eval/", "Directory to write to.")
flags.DEFINE_integer("batch_size", 1, "Images per step.", lower_bound=1)
flags.DEFINE_string(
    "detections",
    None,
    "Evaluate this JSON file of COCO results against --annotations, and no detector.",
)
detection.define_data_flags("validation")
detection.define_model_flags()
detection.define_detection_flags()


def evaluate_detections() -> dict[str, float]:
    """Scores the file of --detections."""
    programs.require("annotations")
    ground_truth = coco.read_annotations(FLAGS.annotations)
    try:
        results = reading.read_json(FLAGS.detections)
        return evaluation.average_precision(ground_truth, results)
    except DataError as error:
        raise DataError(f"--detections={FLAGS.detections}: {error}") from error


def evaluate_detector(eval_dir: str) -> dict[str, object]:
    """Runs and scores the detector, and writes its detections."""
    checkpoint = evaluating.newest_checkpoint(os.path.expanduser(FLAGS.checkpoint_dir))
    if checkpoint is None:
        raise FileNotFoundError(
            f"--checkpoint_dir={FLAGS.checkpoint_dir}: holds no checkpoint"
        )
    examples = detection.load_examples()
    model = detection.make_model(examples.num_classes)
    sact_tf.load_slim_checkpoint(model, checkpoint)

    def progress(done):
        if sys.stdout.isatty() or done % 100 < FLAGS.batch_size:
            end = "\r" if sys.stdout.isatty() else "\n"
            print(f"{done} of {examples.num_examples} images", end=end, flush=True)

    metrics, results = evaluation.evaluate(model, examples, FLAGS.batch_size, progress)
    write_json(os.path.join(eval_dir, "detections.json"), results)
    print(f"Evaluated {checkpoint} on {examples.num_examples} images")
    return {
        **evaluating.record(
            "coco_eval",
            model.network.options,
            checkpoint,
            image_size=[FLAGS.short_side, FLAGS.long_side],
            dataset=FLAGS.dataset,
        ),
        "num_examples": examples.num_examples,
        **metrics,
    }


def main() -> None:
    """Evaluates, prints and writes."""
    eval_dir = programs.make_directory("eval_dir", FLAGS.eval_dir)
    if FLAGS.detections:
        results = evaluate_detections()
    else:
        results = evaluate_detector(eval_dir)
    for name, value in results.items():
        if isinstance(value, float):
            title = evaluation.METRICS.get(name, "")
            print(f"{name:<32} {value:>12.6g}  {title}".rstrip(), flush=True)
    write_json(os.path.join(eval_dir, "eval.json"), results)


if __name__ == "__main__":
    programs.run(main)
