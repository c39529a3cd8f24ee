"""Draws where a SACT network spends computation on photographs of any size.

    python -m experiments.imagenet_ponder_map --checkpoint_dir=/tmp/sact \\
        --images_pattern='photos/*.jpg' --image_size=600 --output_dir=maps

Writes `<name>_im.jpg`, `<name>_ponder.jpg` and `<name>_colorbar.pdf` of every JPEG or
PNG file, as the original does; also `<name>_overlay.png`, `<name>_figure.png` (these
side by side) and `<name>_blocks.png` (the map of every block, as in SACT, figure 8).
Of a detector's checkpoint, as coco_train writes it, blocks 1 to 3 are drawn and
counted. A file that cannot be read is named and skipped; the exit status is then not
zero.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import tensorflow as tf
from absl import flags

import sact_tf
from experiments.common import maps, programs
from object_detection.feature_extractor import FeatureExtractor
from sact_tf import halting, visualization
from sact_tf.data import imagenet, inception
from sact_tf.data.examples import DataError

FLAGS = flags.FLAGS

programs.define_model_type("sact")
programs.define_option(
    "model", "101", "50, 101, 152, 200, or residual units per block as in 3_4_23_3."
)
flags.DEFINE_string(
    "checkpoint_dir",
    "",
    "Directory, its newest checkpoint is taken, or a checkpoint.",
)
flags.DEFINE_string("images_pattern", "", "Files to draw, with * and ?.")
flags.DEFINE_string("output_dir", "", "Directory to write to.")
flags.DEFINE_integer(
    "image_size", 0, "Longer edge that images are resized to; 0: as they are.", 0
)
programs.define_option("num_classes")
programs.define_option("base_channels")
programs.define_option("tile_size")
programs.define_forms()


def draw(model, path: str, output_dir: str) -> str:
    """Draws one file; returns a line about it.

    Raises:
        DataError: It cannot be read.
        tf.errors.InvalidArgumentError: It is too small.
    """
    decoded = imagenet.read_image(path)
    image = inception.longer_edge(decoded, FLAGS.image_size)
    _, end_points = model.with_end_points(image[tf.newaxis] * 2.0 - 1.0, training=False)
    values = visualization.sact_map(end_points)[0].numpy()
    low, high = float(values.min()), float(values.max())
    shown = np.clip(image.numpy(), 0, 1)
    start = os.path.join(output_dir, os.path.splitext(os.path.basename(path))[0])
    visualization.save_pictures(start, shown, values, low, high, map_format="jpg")
    bar = visualization.colour_bar(low, high)
    visualization.save_figure(bar, f"{start}_colorbar.pdf")
    figure = visualization.side_by_side(shown, values)
    visualization.save_figure(figure, f"{start}_figure.png")
    of_blocks = {
        block: end_points[f"{block}/ponder_cost"][0].numpy()
        for block in end_points["block_scopes"]
    }
    figure = visualization.block_figure(shown, of_blocks)
    visualization.save_figure(figure, f"{start}_blocks.png")
    spent = f"{int(end_points['flops'][0]):.4g} FLOPs"
    if isinstance(model, FeatureExtractor):
        spent += f" of blocks 1 to {len(of_blocks)}"
    return f"{path}: ponder cost {low:.2f} to {high:.2f}, {spent}"


def main() -> None:
    """Draws all files."""
    programs.require("checkpoint_dir", "images_pattern", "output_dir")
    kind = halting.model_type(FLAGS.model_type)
    if not kind.is_adaptive or kind.domain != "position":
        raise ValueError(
            f"--model_type={FLAGS.model_type}: must be one whose positions halt, such "
            "as sact or pact"
        )
    paths = programs.named_files("images_pattern")
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    options = programs.network_options(execution="perforated")
    model = sact_tf.imagenet_resnet(**options)
    model = maps.load_network(model)
    failed = 0
    for path in paths:
        try:
            print(draw(model, path, output_dir), flush=True)
        except DataError as error:
            failed += 1
            print(error, file=sys.stderr, flush=True)
        except tf.errors.OpError as error:
            failed += 1
            reason = error.message.splitlines()[-1]
            print(f"{path}: cannot be drawn ({reason})", file=sys.stderr, flush=True)
    if failed:
        raise ValueError(
            f"--images_pattern={FLAGS.images_pattern}: {failed} of {len(paths)} files "
            "cannot be drawn"
        )


if __name__ == "__main__":
    programs.run(main)
