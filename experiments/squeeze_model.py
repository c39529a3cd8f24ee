"""Copies a checkpoint without the optimizer's accumulators, for half the size.

python -m experiments.squeeze_model --input_dir=/tmp/sact --output_dir=/tmp/small
"""

from __future__ import annotations

import glob
import os

from absl import flags

import sact_tf
from experiments.common import programs

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "input_dir", "", "Directory, its newest checkpoint is taken, or a checkpoint."
)
flags.DEFINE_string("output_dir", "", "Directory to write to.")
for _name in ("model", "model_type", "dataset"):
    flags.DEFINE_string(
        _name, None, "Not needed: what to copy shows in the variables' names."
    )


def main() -> None:
    """Copies the checkpoint."""
    programs.require("input_dir", "output_dir")
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    input_dir = os.path.expanduser(FLAGS.input_dir)
    try:
        path = sact_tf.squeeze_checkpoint(input_dir, output_dir)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"--input_dir={input_dir}: {error}") from error
    size = sum(map(os.path.getsize, glob.glob(f"{glob.escape(path)}.*")))
    print(f"Wrote {path}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    programs.run(main)
