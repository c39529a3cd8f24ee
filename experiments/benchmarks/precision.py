"""Tells how far a network's results in bfloat16 are from those in float32.

    python -m experiments.benchmarks.precision --model_type=sact --model=101 \\
        --checkpoint_dir=/tmp/sact --images=images.npz

Runs the network on its own images in masked execution, which is float32, and in
perforated execution in float32 and bfloat16. Prints the largest and the mean difference
of logits (or of features, of a network without a classifier) to the masked ones,
relative to the largest of these; how many images get another class; and of adaptive
networks, for each block, the share of positions (or images) that run another number of
residual units, and the mean number.
"""

from __future__ import annotations

import json
import os

import numpy as np
import tensorflow as tf
from absl import flags

import sact_tf
from experiments.common import programs
from sact_tf import reading
from sact_tf.data.examples import DataError

FLAGS = flags.FLAGS

programs.define_network_flags()
programs.define_model_type()
flags.DEFINE_string(
    "images",
    "",
    "File .npz with `images`, float32 [images, height, width, 3], as the network "
    "takes them.",
)
flags.DEFINE_bool("json", False, "Print JSON lines, not a table.")


def read_images(path: str) -> np.ndarray:
    """Returns the images of a file.

    Raises:
        DataError: It holds none.
    """
    images = reading.read_npz(path, ["images"])["images"]
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(
            f"{path}: images must be float32 [images, height, width, 3]; got "
            f"{images.dtype} {list(images.shape)}"
        )
    if images.size == 0:
        raise DataError(f"{path}: there are no images")
    return images


def compare(network: sact_tf.Network, images: np.ndarray) -> list[dict]:
    """Returns the differences of the executions to masked execution, one row each."""

    def run(execution, precision):
        model = network.with_execution(execution, precision)
        outputs, end_points = tf.function(
            lambda x: _numbers(*model.with_end_points(x, training=False))
        )(images)
        return outputs.numpy(), {k: v.numpy() for k, v in end_points.items()}

    expected, masked = run("masked", "float32")
    largest = float(np.abs(expected).max())
    rows = []
    for precision in ("float32", "bfloat16"):
        outputs, end_points = run("perforated", precision)
        difference = np.abs(outputs - expected)
        row = {
            "precision": precision,
            "largest_difference": float(difference.max()) / largest,
            "mean_difference": float(difference.mean()) / largest,
        }
        if network.options.num_classes:
            other = outputs.argmax(-1) != expected.argmax(-1)
            row["other_class"] = int(other.sum())
        for name, units in end_points.items():
            row[f"{name}_differ"] = float(np.mean(units != masked[name]))
            row[name] = float(units.mean())
        rows.append(row)
    return rows


def _numbers(outputs, end_points):
    """Returns what is compared: outputs, and numbers of units by block."""
    units = {k: v for k, v in end_points.items() if k.endswith("/num_units")}
    return outputs, {k.replace("/", "_"): v for k, v in units.items()}


def main() -> None:
    """Prints the differences."""
    programs.require("checkpoint_dir", "images")
    path = os.path.expanduser(FLAGS.images)
    try:
        images = read_images(path)
    except (DataError, FileNotFoundError) as error:
        raise DataError(f"--images={FLAGS.images}: {error}") from error
    network = programs.make_network()
    sact_tf.load_slim_checkpoint(network, os.path.expanduser(FLAGS.checkpoint_dir))
    rows = compare(network, images)
    if FLAGS.json:
        for row in rows:
            print(json.dumps(row))
        return
    columns = list(rows[0])
    print("| " + " | ".join(column.replace("_", " ") for column in columns) + " |")
    print("|---" * len(columns) + "|")
    for row in rows:
        cells = [v if isinstance(v, str) else f"{v:.3g}" for v in row.values()]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    programs.run(main)
