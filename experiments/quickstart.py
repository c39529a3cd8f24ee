"""Trains a small ordinary and a small SACT network, and shows the difference.

    python -m experiments.quickstart --output_dir=quickstart_output

Needs no data and some minutes. Writes checkpoints, `ponder_maps.png`, `results.json`
and a SavedModel to --output_dir.
"""

from __future__ import annotations

import os
import time

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import programs
from sact_tf import evaluation, training, visualization
from sact_tf.data import shapes
from sact_tf.writing import atomic_directory, write_json

FLAGS = flags.FLAGS

flags.DEFINE_string("output_dir", "quickstart_output", "Directory to write to.")
flags.DEFINE_integer(
    "image_size", 64, "Side of the generated images.", lower_bound=shapes.MIN_SIZE
)
flags.DEFINE_integer(
    "num_examples", 4000, "Training images; a fifth as many are for testing.", 64
)
flags.DEFINE_integer("steps", 400, "Training steps of each network.", lower_bound=1)
flags.DEFINE_integer("batch_size", 32, "Images per training step.", lower_bound=1)
programs.define_option("model", "3")
programs.define_option("base_channels", 8)
programs.define_option("tau", 0.05)
programs.define_option("tile_size")
flags.DEFINE_integer(
    "seed", 0, "Seed of the data, the initial weights and the data order."
)


def train(model_type: str, examples, finetune_path: str | None = None):
    """Trains one network; returns it and the directory of its checkpoints."""
    log_dir = programs.make_directory(
        "output_dir", os.path.join(FLAGS.output_dir, model_type)
    )
    print(f"\nTraining {model_type}, {FLAGS.steps} steps")
    keras.utils.set_random_seed(FLAGS.seed)
    options = programs.network_options(
        model_type=model_type, num_classes=examples.num_classes
    )
    if model_type != "sact":
        options["tile_size"] = 1
    model = sact_tf.cifar_resnet(**options)
    if finetune_path:
        sact_tf.load_slim_checkpoint(model, finetune_path, fresh_halting=True)
    training.train(
        model,
        examples,
        log_dir,
        FLAGS.steps,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
    )
    return model, log_dir


def ponder_inside_outside(maps: np.ndarray, boxes: np.ndarray) -> tuple[float, float]:
    """Returns the mean of the maps inside and outside the objects' boxes.

    Args:
        maps: [n, height, width].
        boxes: int [n, 4]: top, left, bottom, right; bottom and right exclusive.
    """
    rows, columns = np.mgrid[: maps.shape[1], : maps.shape[2]]
    top, left, bottom, right = boxes.T[..., np.newaxis, np.newaxis]
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return float(maps[inside].mean()), float(maps[~inside].mean())


def check_saved_model(model, path: str, images: tf.Tensor) -> float:
    """Exports and reloads a network; returns the largest difference of its logits."""
    with atomic_directory(path) as temporary:
        model.export_saved_model(temporary)
    serve = tf.saved_model.load(path).signatures["serving_default"]
    return float(
        tf.reduce_max(
            tf.abs(serve(images=images)["logits"] - model(images, training=False))
        )
    )


def main() -> None:
    """Trains, evaluates, draws and exports."""
    start = time.monotonic()
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    size = FLAGS.image_size
    print(f"Making {FLAGS.num_examples} training images of {size}x{size} pixels")
    examples = shapes.load("train", size, FLAGS.num_examples, FLAGS.seed)
    test = shapes.load("test", size, FLAGS.num_examples // 5, FLAGS.seed)

    vanilla, vanilla_dir = train("vanilla", examples)
    sact, _ = train("sact", examples, vanilla_dir)

    results = {}
    for name, model in (("vanilla", vanilla), ("sact", sact)):
        results[name] = evaluation.evaluate(model, test.evaluation_batches(100))
    full = results["vanilla"]["Total Flops/mean"]
    print("\nSACT starts from the trained vanilla network, as in the SACT paper.")
    print(f"{'network':10}{'accuracy':>10}{'FLOPs':>12}{'relative FLOPs':>16}")
    for name, values in results.items():
        mean = values["Total Flops/mean"]
        print(
            f"{name:10}{values['eval/Accuracy']:10.1%}{mean:12.4g}{mean / full:16.1%}"
        )

    maps = []
    for images, _ in test.evaluation_batches(100):
        _, end_points = sact.with_end_points(images, training=False)
        maps.append(visualization.sact_map(end_points)[..., 0].numpy())
    maps = np.concatenate(maps)
    inside, outside = ponder_inside_outside(maps, test.boxes)
    print(
        f"\nMean ponder cost inside the objects' boxes {inside:.2f}, outside "
        f"{outside:.2f}: {inside / outside:.2f} times as much"
    )
    results["ponder_cost"] = {"inside": inside, "outside": outside}

    picture = os.path.join(output_dir, "ponder_maps.png")
    titles = [shapes.CLASS_NAMES[label] for label in test.labels[:8]]
    figure = visualization.ponder_figure(test.images[:8], maps[:8], titles)
    visualization.save_figure(figure, picture)
    print(f"Wrote {picture}")

    images, _ = next(iter(test.evaluation_batches(4)))
    saved_model = os.path.join(output_dir, "saved_model")
    difference = check_saved_model(sact, saved_model, images)
    print(
        f"Wrote {saved_model}; reloaded, its logits differ by at most {difference:.1e}"
    )

    results["seconds"] = time.monotonic() - start
    write_json(os.path.join(output_dir, "results.json"), results)
    print(f"Done in {results['seconds']:.0f} s")


if __name__ == "__main__":
    programs.run(main)
