"""Evaluates a detector with pycocotools, or detections of any origin.

    python -m experiments.coco_eval --annotations=instances_val.json --images=DIR \\
        --model_type=sact --checkpoint_dir=/tmp/d --eval_dir=/tmp/d_eval
    python -m experiments.coco_eval --annotations=instances_val.json \\
        --detections=results.json --eval_dir=/tmp/other

Prints the twelve numbers of the COCO challenge, the average precision of every class
and the operations of the feature extractor, absolute and relative to an ordinary
network of the same depth, or of --reference_model (SACT, table 1). PACT is evaluated in
all modes. Writes `eval.json`, and all detections in COCO's format, in pixels of the
original images, to `detections.json`. Of networks whose images halt as a whole it also
prints how iterations go with number and mean size of an image's objects, and writes
that to `iterations.json` and `iterations.png`.
"""

from __future__ import annotations

import os
import sys

import numpy as np
from absl import flags

import sact_tf
from experiments.common import detection, evaluating, iterative, programs
from object_detection import evaluation
from object_detection.data import coco
from sact_tf import iterations, reading, visualization
from sact_tf.data.examples import DataError
from sact_tf.evaluation import units_of_images
from sact_tf.writing import write_json

FLAGS = flags.FLAGS

detection.define_checkpoint_flag("/tmp/faster_rcnn/")
flags.DEFINE_string("eval_dir", "/tmp/faster_rcnn_eval/", "Directory to write to.")
flags.DEFINE_integer("batch_size", 1, "Images per step.", lower_bound=1)
flags.DEFINE_string(
    "detections",
    None,
    "Evaluate this JSON file of COCO results against --annotations, and no detector.",
)
flags.DEFINE_string(
    "reference_model",
    None,
    "Depth, as of --model, of the ordinary network whose operations relative ones are "
    "divided by; by default that of --model. The SACT paper's table 1 has 101.",
)
detection.define_data_flags("validation")
detection.define_model_flags()
detection.define_detection_flags()
evaluating.define_sampling_flags()


def evaluate_detections() -> dict[str, float]:
    """Scores the file of --detections."""
    programs.require("annotations")
    ground_truth = coco.read_annotations(FLAGS.annotations)
    try:
        results = reading.read_json(FLAGS.detections)
        return evaluation.average_precision(ground_truth, results)
    except DataError as error:
        raise DataError(f"--detections={FLAGS.detections}: {error}") from error


def reference_network() -> sact_tf.ImagenetResNet | None:
    """Returns the network of --reference_model, whose weights do not matter."""
    if FLAGS.reference_model is None:
        return None
    name = FLAGS.reference_model
    channels = dict(num_classes=1, base_channels=FLAGS.base_channels)
    try:
        return sact_tf.imagenet_resnet(name, **channels)
    except ValueError as error:
        raise ValueError(f"--reference_model={name}: {error}") from error


def evaluate_detector(eval_dir: str) -> dict[str, object]:
    """Runs and scores the detector, and writes its detections."""
    checkpoint = detection.newest_checkpoint()
    reference = reference_network()
    examples = detection.load_examples()
    model = detection.make_model(examples.num_classes)
    sact_tf.load_slim_checkpoint(model, checkpoint)

    def progress(done):
        if sys.stdout.isatty() or done % 100 < FLAGS.batch_size:
            end = "\r" if sys.stdout.isatty() else "\n"
            print(f"{done} of {examples.num_examples} images", end=end, flush=True)

    units = []
    metrics, results = evaluation.evaluate(
        model,
        examples,
        FLAGS.batch_size,
        progress,
        reference,
        FLAGS.sampling_seed,
        watch=lambda end_points: units.append(units_of_images(end_points)),
    )
    write_json(os.path.join(eval_dir, "detections.json"), results)
    metrics.update(
        evaluation.evaluate_modes(
            model, examples, FLAGS.batch_size, FLAGS.num_samples, FLAGS.sampling_seed
        )
    )
    if units[0] is not None:
        metrics.update(write_iterations(eval_dir, examples, np.concatenate(units)))
    print(f"Evaluated {checkpoint} on {examples.num_examples} images")
    return {
        **evaluating.record(
            "coco_eval",
            model.network.options,
            checkpoint,
            image_size=[FLAGS.short_side, FLAGS.long_side],
            dataset=FLAGS.dataset,
            **iterative.about(),
        ),
        **evaluating.provenance(model, checkpoint),
        "class_names": detection.category_names(examples.categories),
        "parameters": evaluating.count_parameters(model),
        "num_examples": examples.num_examples,
        "reference_model": FLAGS.reference_model or model.network.options.model,
        **metrics,
    }


def write_iterations(eval_dir: str, examples, units: np.ndarray) -> dict[str, float]:
    """Writes iterations of images beside number and mean size of their objects.

    Args:
        eval_dir: Where iterations.json and iterations.png go.
        examples: Images with boxes.
        units: Int [images], in the order of the examples.

    Returns:
        Rank correlations of iterations with both.
    """
    objects = evaluation.objects_of_images(examples)
    rows = [{**row, "iterations": int(n)} for row, n in zip(objects, units)]
    write_json(os.path.join(eval_dir, "iterations.json"), rows)
    counts, sizes = (
        np.array([row[key] for row in rows], float)
        for key in ("objects", "relative_size")
    )
    figure = iterations.objects_figure(units, counts, sizes)
    visualization.save_figure(figure, os.path.join(eval_dir, "iterations.png"))
    there = np.isfinite(sizes)
    return {
        "Iterations/objects": iterations.rank_correlation(units, counts),
        "Iterations/size": iterations.rank_correlation(units[there], sizes[there]),
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
