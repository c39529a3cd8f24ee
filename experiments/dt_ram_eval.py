"""Evaluates recurrent attention, and draws where it looks and when it stops.

    python -m experiments.dt_ram_eval --dataset=mnist_npz --dataset_dir=mnist.npz \\
        --steps=7 --checkpoint_dir=/tmp/dt_ram --eval_dir=/tmp/dt_ram --evaluate_once

Writes to --eval_dir: `eval.json`; `paths.png`, glimpses on images, sorted by the number
taken; `steps.png`, how many images took how many; `error.png`, the error after every
glimpse. With --image also `glimpses.gif` of a file of your own, with --export_dir a
SavedModel. --confidence_threshold stops a RAM (--nodynamic) once it is sure.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf
from absl import flags

import sact_tf
from experiments.common import attention, evaluating, programs
from sact_tf import glimpse_pictures, visualization
from sact_tf.data.images import read_image
from sact_tf.networks.attention import AttentionNetwork
from sact_tf.writing import atomic_file, write_json

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "checkpoint_dir",
    "/tmp/dt_ram/",
    "Directory of the checkpoints to evaluate, or one checkpoint.",
)
flags.DEFINE_string(
    "eval_dir", "/tmp/dt_ram/", "Directory for eval.json, pictures and summaries."
)
flags.DEFINE_float(
    "eval_interval_secs", 60, "Seconds between looks for a new checkpoint.", 0
)
flags.DEFINE_bool(
    "evaluate_once",
    False,
    "Evaluate the newest checkpoint and exit, rather than follow new ones.",
)
flags.DEFINE_integer("batch_size", 500, "Images per evaluation step.", lower_bound=1)
flags.DEFINE_float(
    "confidence_threshold",
    None,
    "A RAM stops once its likeliest class is likelier than that.",
)
flags.DEFINE_integer("num_figures", 32, "Images to draw.", lower_bound=0)
flags.DEFINE_string("image", "", "Image of your own, for glimpses.gif.")
flags.DEFINE_string("export_dir", "", "Directory of a SavedModel to write.")
flags.DEFINE_bool(
    "write_images",
    False,
    "Also write images.npz: for every image whether it was right, its log loss and "
    "operations; paired_bootstrap reads it.",
)
attention.define_data_flags("test")
attention.define_model_flags()


def run_all(model: AttentionNetwork, batches) -> dict[str, np.ndarray]:
    """Returns what the network makes of every image.

    Args:
        model: RAM or DT-RAM.
        batches: Of images and labels.

    Returns:
        By name, of all images: `answer`, `label`, `loss`, `num_units`, `flops`, and
        `is_wrong` [images, steps], had it stopped there.
    """

    @tf.function(reduce_retracing=True)
    def run(images, labels):
        logits, end_points = model(images, training=False, return_end_points=True)
        every = tf.argmax(model.unroll(images)["step_logits"], -1)
        labels = tf.cast(labels, tf.int64)
        return {
            "answer": tf.argmax(logits, -1),
            "label": labels,
            "loss": tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits),
            "num_units": end_points["num_units"],
            "flops": end_points["flops"],
            "is_wrong": every != labels[:, tf.newaxis],
        }

    parts = [run(images, labels) for images, labels in batches]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def results_of(model: AttentionNetwork, found) -> dict[str, object]:
    """Returns the entries of eval.json."""
    accuracy = float(np.mean(found["answer"] == found["label"]))
    units = found["num_units"]
    return {
        "eval/Accuracy": accuracy,
        "eval/Error": 1 - accuracy,
        "eval/Mean Loss": float(np.mean(found["loss"], dtype=np.float64)),
        "steps/mean": float(np.mean(units)),
        "steps/std": float(np.std(units)),
        "steps/histogram": np.bincount(units, minlength=model.steps + 1)[1:].tolist(),
        "error_by_step": np.mean(found["is_wrong"], 0).tolist(),
        "Total Flops/mean": float(np.mean(found["flops"], dtype=np.float64)),
        "Total Flops/std": float(np.std(found["flops"], dtype=np.float64)),
    }


def draw(model: AttentionNetwork, images, labels, found, results, eval_dir: str):
    """Writes the pictures of an evaluation.

    Args:
        model: RAM or DT-RAM.
        images: [n, height, width, channels], to draw glimpses on.
        labels: [n].
        found: As of `run_all`.
        results: As of `results_of`.
        eval_dir: Where to write.
    """
    figures = {
        "steps": glimpse_pictures.steps_figure(found["num_units"], model.steps),
        "error": glimpse_pictures.error_figure(
            results["error_by_step"], (results["steps/mean"], results["eval/Error"])
        ),
    }
    if len(images):
        logits, end_points = model(images, training=False, return_end_points=True)
        figures["paths"] = glimpse_pictures.path_figure(
            np.asarray(images),
            end_points["locations"].numpy(),
            end_points["num_units"].numpy(),
            np.argmax(logits, -1),
            np.asarray(labels),
            model.glimpse_size,
            model.looks_at_whole_first,
        )
    for name, figure in figures.items():
        visualization.save_figure(figure, os.path.join(eval_dir, f"{name}.png"))


def draw_own(model: AttentionNetwork, path: str, eval_dir: str) -> None:
    """Writes glimpses.gif of a file."""
    image = model.preprocess(read_image(os.path.expanduser(path)))
    logits, end_points = model(image[tf.newaxis], return_end_points=True)
    count = int(end_points["num_units"][0])
    glimpse_pictures.write_gif(
        os.path.join(eval_dir, "glimpses.gif"),
        image.numpy(),
        end_points["locations"][0, :count].numpy(),
        model.glimpse_size,
        whole_first=model.looks_at_whole_first,
    )
    print(f"{path}: class {int(tf.argmax(logits[0]))} after {count} glimpses")


def evaluate_checkpoint(model, examples, checkpoint: str, eval_dir: str) -> None:
    """Evaluates one checkpoint; prints, writes eval.json, pictures and summaries."""
    sact_tf.load_slim_checkpoint(model, checkpoint)
    step = sact_tf.checkpoint_step(checkpoint)
    with examples.explained_errors():
        found = run_all(model, examples.evaluation_batches(FLAGS.batch_size))
        count = max(FLAGS.num_figures, 1)
        images, labels = next(iter(examples.evaluation_batches(count)))
    results = results_of(model, found)
    print(f"Evaluated {checkpoint} on {examples.num_examples} images")
    for name, value in results.items():
        print(f"{name}[{value:.8g}]" if isinstance(value, float) else f"{name}{value}")
    about = {name: FLAGS[name].value for name in ("dataset", "split_name", "network")}
    of_model = "steps dynamic gamma stop stop_threshold confidence_threshold"
    about.update({name: getattr(model.options, name) for name in of_model.split()})
    about["glimpse_size"] = model.glimpse_size
    write_json(
        os.path.join(eval_dir, "eval.json"),
        {
            "program": "dt_ram_eval",
            "checkpoint": checkpoint,
            "global_step": step,
            **about,
            **evaluating.provenance(model, checkpoint),
            "num_examples": examples.num_examples,
            **results,
        },
    )
    if FLAGS.write_images:
        write_images(found, os.path.join(eval_dir, "images.npz"))
    shown = slice(FLAGS.num_figures)
    draw(model, images[shown], labels[shown], found, results, eval_dir)
    if FLAGS.image:
        draw_own(model, FLAGS.image, eval_dir)
    writer = tf.summary.create_file_writer(eval_dir)
    with writer.as_default(step):
        for name, value in results.items():
            if isinstance(value, float):
                tf.summary.scalar(name, value)
        tf.summary.histogram("steps", found["num_units"])
    writer.close()
    if FLAGS.export_dir:
        model.export_saved_model(os.path.expanduser(FLAGS.export_dir))
        print(f"Wrote {FLAGS.export_dir}")


def write_images(found, path: str) -> None:
    """Writes what paired_bootstrap reads."""
    values = {
        "Accuracy": found["answer"] == found["label"],
        "Log Loss": found["loss"],
        "Flops": found["flops"],
    }
    with atomic_file(path) as name, open(name, "wb") as file:
        np.savez(file, **{f"network/{k}": np.float32(v) for k, v in values.items()})


def main() -> None:
    """Evaluates the newest checkpoint once, or every new one, without end."""
    options = dict(confidence_threshold=FLAGS.confidence_threshold)
    attention.make_model(2, **options)  # what is wrong with flags shows first
    examples = attention.load_examples(FLAGS.split_name)
    evaluating.evaluate_newest(
        attention.make_model(examples.num_classes, **options),
        lambda: examples,
        FLAGS.checkpoint_dir,
        FLAGS.eval_dir,
        FLAGS.evaluate_once,
        FLAGS.eval_interval_secs,
        evaluate_checkpoint,
    )


if __name__ == "__main__":
    programs.run(main)
