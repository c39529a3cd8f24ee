"""Writes images and what an adaptive network spends on them to an HDF5 file.

    python -m experiments.imagenet_export --dataset_dir=DIR --model_type=sact \\
        --checkpoint_dir=/tmp/sact --export_path=maps.hdf5

The file has the attribute `block_scopes` and the datasets `images` (in [-1, 1]),
`flops`, `<block>/{ponder_cost,num_units,halting_distribution,flops}`, and for SACT
networks `ponder_cost_map` and `num_units_map`; see `draw_ponder_maps`.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf
from absl import flags

import sact_tf
from experiments.common import imagenet, iterative, programs
from sact_tf import halting, visualization
from sact_tf.end_points import ADAPTIVE_METRICS
from sact_tf.writing import atomic_hdf5

FLAGS = flags.FLAGS

flags.DEFINE_integer(
    "num_examples", 1000, "Images to export, the first of the split.", lower_bound=1
)
flags.DEFINE_integer("batch_size", 32, "Images per step.", lower_bound=1)
flags.DEFINE_string(
    "checkpoint_dir",
    "",
    "Directory, its newest checkpoint is taken, or a checkpoint.",
)
flags.DEFINE_string("export_path", "", "HDF5 file to write; it must not exist.")
imagenet.define_data_flags("validation")
imagenet.define_model_flags()

_KEYS = (*ADAPTIVE_METRICS, "halting_distribution", "flops")


def export_values(end_points) -> dict[str, tf.Tensor]:
    """Returns what is written of a batch, by the name of its data set."""
    values = {"images": end_points["inputs"], "flops": end_points["flops"]}
    if visualization.has_maps(end_points):
        for key in ADAPTIVE_METRICS:
            values[f"{key}_map"] = visualization.sact_map(end_points, key)
    for block in end_points["block_scopes"]:
        values |= {f"{block}/{key}": end_points[f"{block}/{key}"] for key in _KEYS}
    return values


def main() -> None:
    """Exports the examples."""
    programs.require("checkpoint_dir", "export_path")
    path = os.path.expanduser(FLAGS.export_path)
    if os.path.exists(path):
        raise ValueError(f"--export_path={path}: exists; name a file that does not")
    programs.make_directory("export_path", os.path.dirname(os.path.abspath(path)))
    is_iterative = iterative.is_asked_for()
    if not is_iterative and not halting.model_type(FLAGS.model_type).is_adaptive:
        raise ValueError(
            f"--model_type={FLAGS.model_type}: must be adaptive: act or sact"
        )
    examples = imagenet.load_examples(FLAGS.split_name).first(FLAGS.num_examples)
    model = imagenet.make_model(examples.num_classes)
    sact_tf.load_slim_checkpoint(model, os.path.expanduser(FLAGS.checkpoint_dir))

    @tf.function(reduce_retracing=True)
    def run(images):
        return export_values(model.with_end_points(images, training=False)[1])

    written = 0
    with examples.explained_errors(), atomic_hdf5(path) as (file, check_disk):
        file.attrs["block_scopes"] = model.block_scopes
        for images, _ in examples.evaluation_batches(FLAGS.batch_size):
            for name, value in run(images).items():
                value = value.numpy().astype(np.float32)
                if name not in file:
                    shape = (examples.num_examples, *value.shape[1:])
                    file.create_dataset(name, shape, np.float32, compression="lzf")
                file[name][written : written + len(value)] = value
            written += len(images)
            check_disk()
            print(f"{written} of {examples.num_examples} images", flush=True)
    print(f"Wrote {path}")


if __name__ == "__main__":
    programs.run(main)
