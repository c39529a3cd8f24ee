"""Exports a network as a SavedModel for serving.

    python -m experiments.export_saved_model --checkpoint_dir=/tmp/sact \\
        --model_type=sact --execution=perforated --output_dir=/tmp/saved_model

What it takes and returns stands in `sact_tf/exporting.py`. Exported with
--implementation=native it loads after `custom_ops.load()`; otherwise anywhere.
"""

from __future__ import annotations

import os

from absl import flags

import sact_tf
from experiments.common import programs
from sact_tf.writing import atomic_directory

FLAGS = flags.FLAGS

programs.define_network_flags()
programs.define_model_type(with_iterative=True)
programs.define_export_flags()
programs.define_execution_flags("How the network runs.")
flags.DEFINE_integer(
    "image_size",
    None,
    "Side that encoded images are resized to; by default 224 or 32.",
    lower_bound=32,
)


def main() -> None:
    """Exports the network."""
    programs.require("checkpoint_dir")
    output_dir = programs.empty_output_dir()
    model = programs.make_network()
    sact_tf.load_slim_checkpoint(model, os.path.expanduser(FLAGS.checkpoint_dir))
    with atomic_directory(output_dir) as temporary:
        model.export_saved_model(
            temporary, implementation=FLAGS.implementation, image_size=FLAGS.image_size
        )
    print(f"Wrote {output_dir}")


if __name__ == "__main__":
    programs.run(main)
