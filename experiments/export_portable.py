"""Exports a network for TensorFlow Lite or ONNX.

    python -m experiments.export_portable --checkpoint_dir=/tmp/sact \\
        --model_type=sact --output_file=/tmp/sact.tflite
    python -m experiments.export_portable --checkpoint_dir=/tmp/sact \\
        --model_type=sact --output_file=/tmp/sact.onnx

What it takes and returns stands in `sact_tf/exporting.py`. TensorFlow Lite files run at
one batch and image size, and masked; ONNX files at any size, masked or perforated.
"""

from __future__ import annotations

import os

from absl import flags

import sact_tf
from experiments.common import programs
from sact_tf import exporting
from sact_tf.executions import EXECUTIONS
from sact_tf.writing import atomic_file

FLAGS = flags.FLAGS

programs.define_network_flags()
programs.define_model_type(with_iterative=True)
flags.DEFINE_string("output_file", "", "File to write, ending in .tflite or .onnx.")
flags.DEFINE_enum("execution", "masked", EXECUTIONS, "How a network in ONNX runs.")
flags.DEFINE_integer(
    "image_size",
    None,
    "Side of the images that a .tflite file takes; by default 224 or 32.",
    lower_bound=32,
)
flags.DEFINE_integer("batch_size", 1, "Images that a .tflite file takes.", 1)


def main() -> None:
    """Exports the network."""
    programs.require("checkpoint_dir", "output_file")
    path = os.path.expanduser(FLAGS.output_file)
    suffix = os.path.splitext(path)[1]
    if suffix not in (".tflite", ".onnx"):
        raise ValueError(f"--output_file={path}: must end in .tflite or .onnx")
    if suffix == ".tflite" and FLAGS.execution != "masked":
        raise ValueError(
            f"--execution={FLAGS.execution}: must be masked in a .tflite file"
        )
    programs.make_directory("output_file", os.path.dirname(path) or ".")
    model = programs.make_network()
    sact_tf.load_slim_checkpoint(model, os.path.expanduser(FLAGS.checkpoint_dir))
    if suffix == ".onnx":
        try:
            with atomic_file(path) as temporary:
                exporting.export_onnx(model, temporary)
        except ImportError as error:
            raise ValueError(f"--output_file={path}: {error}") from error
    else:
        size = (FLAGS.image_size, FLAGS.image_size) if FLAGS.image_size else None
        with atomic_file(path) as temporary:
            exporting.export_tflite(model, temporary, size, FLAGS.batch_size)
    print(f"Wrote {path}, {os.path.getsize(path) / 1e6:.1f} MB")


if __name__ == "__main__":
    programs.run(main)
