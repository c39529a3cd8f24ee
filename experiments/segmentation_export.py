"""Exports a segmentation network as a SavedModel for serving.

    python -m experiments.segmentation_export --checkpoint_dir=/tmp/seg_sact \\
        --model_type=sact --execution=perforated --output_dir=/tmp/saved_seg

What it takes and returns stands in `sact_tf/segmentation/exporting.py`. Exported with
--implementation=native it loads after `custom_ops.load()`; otherwise anywhere.
`assets.extra/classes.json` tells the names of class 0, class 1, and so on.
"""

from __future__ import annotations

import os

from absl import flags

from experiments.common import programs, segmentation
from sact_tf.writing import atomic_directory, write_json

FLAGS = flags.FLAGS

segmentation.define_checkpoint_flag()
programs.define_export_flags()
segmentation.define_class_flags()
segmentation.define_long_side()
segmentation.define_model_flags()
segmentation.define_execution()


def main() -> None:
    """Exports the network."""
    programs.require("checkpoint_dir")
    output_dir = programs.empty_output_dir()
    model, names = segmentation.trained_model()
    with atomic_directory(output_dir) as temporary:
        model.export_saved_model(
            temporary,
            implementation=FLAGS.implementation,
            long_side=FLAGS.long_side,
        )
        # As TensorFlow Serving calls it.
        extra = os.path.join(temporary, "assets.extra")
        os.mkdir(extra)
        write_json(os.path.join(extra, "classes.json"), names)
    print(f"Wrote {output_dir}")


if __name__ == "__main__":
    programs.run(main)
