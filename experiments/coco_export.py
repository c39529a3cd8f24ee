"""Exports a detector as a SavedModel for serving.

    python -m experiments.coco_export --checkpoint_dir=/tmp/d --model_type=sact \\
        --categories=instances_val.json --output_dir=/tmp/saved_detector

What it takes and returns stands in `object_detection/exporting.py`. Exported with
--implementation=native it loads after `custom_ops.load()`; otherwise anywhere. Flags of
the detector and of image sizes are those of coco_detect. `assets.extra/categories.json`
tells name and id of class 1, class 2, and so on.
"""

from __future__ import annotations

import os

from absl import flags

import sact_tf
from experiments.common import detection, programs
from sact_tf.writing import atomic_directory, write_json

FLAGS = flags.FLAGS

detection.define_checkpoint_flag()
detection.define_category_flags()
programs.define_export_flags()
detection.define_size_flags()
detection.define_model_flags()
detection.define_detection_flags()


def main() -> None:
    """Exports the detector."""
    programs.require("checkpoint_dir")
    output_dir = programs.empty_output_dir()
    sizes = detection.data_options()
    categories, _ = detection.categories_and_ids()
    checkpoint = detection.newest_checkpoint()
    model = detection.make_model(len(categories))
    sact_tf.load_slim_checkpoint(model, checkpoint)
    with atomic_directory(output_dir) as temporary:
        model.export_saved_model(
            temporary, implementation=FLAGS.implementation, **sizes
        )
        extra = os.path.join(
            temporary, "assets.extra"
        )  # as TensorFlow Serving calls it
        os.mkdir(extra)
        write_json(os.path.join(extra, "categories.json"), categories)
    print(f"Wrote {output_dir}")


if __name__ == "__main__":
    programs.run(main)
