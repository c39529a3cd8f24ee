"""Segments photographs of any size, and draws classes and computation.

    python -m experiments.segmentation_predict --images_pattern='photos/*.jpg' \\
        --model_type=sact --checkpoint_dir=/tmp/seg_sact --output_dir=/tmp/drawn \\
        --class_names=sky,building,road

Writes of every JPEG or PNG file `<name>_classes.png` (one channel: the class of each
pixel), `<name>_overlay.png` (classes over the photograph), and `<name>_figure.png`: the
photograph, its classes with a legend and, of SACT networks, the ponder cost. Of SACT
networks also `<name>_blocks.png`, the ponder cost of every block. A file that cannot be
read is named and skipped; the exit status is then not zero.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import tensorflow as tf
from absl import flags

from experiments.common import programs, segmentation
from sact_tf import visualization
from sact_tf.data.examples import DataError
from sact_tf.data.images import read_image
from sact_tf.segmentation import pictures
from sact_tf.segmentation.data import limit, network_input
from sact_tf.writing import write_bytes

FLAGS = flags.FLAGS

flags.DEFINE_string("images_pattern", "", "Files to segment, with * and ?.")
flags.DEFINE_string("output_dir", "", "Directory to write to.")
segmentation.define_checkpoint_flag()
segmentation.define_class_flags()
segmentation.define_long_side()
segmentation.define_model_flags()
segmentation.define_execution()


def segment(run, path: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """Runs the network on one file.

    Args:
        run: What `compiled` returns of it.
        path: JPEG or PNG file.

    Returns:
        The image, uint8 [height, width, 3]; classes, int32 [height, width]; the end
        points.

    Raises:
        DataError: It cannot be read.
    """
    image = read_image(path)
    inputs = network_input(limit(image, FLAGS.long_side))[tf.newaxis]
    logits, end_points = run(inputs, output_size=tf.shape(image)[:2])
    classes = tf.argmax(logits[0], -1, tf.int32).numpy()
    return image.numpy(), classes, end_points


def write_pictures(start: str, image, classes, end_points, names) -> None:
    """Writes what an image shows, and where computation was spent."""
    dtype = np.uint8 if len(names) <= 256 else np.uint16
    encoded = tf.io.encode_png(classes[..., np.newaxis].astype(dtype))
    write_bytes(f"{start}_classes.png", encoded.numpy())
    overlay = pictures.overlay(image, classes, len(names))
    visualization.save_picture(f"{start}_overlay.png", overlay)
    costs = None
    if visualization.has_maps(end_points):
        costs = visualization.sact_map(end_points)[0, ..., 0].numpy()
        maps = {
            block: end_points[f"{block}/ponder_cost"][0].numpy()
            for block in end_points["block_scopes"]
        }
        figure = visualization.block_figure(image, maps)
        visualization.save_figure(figure, f"{start}_blocks.png")
    figure = pictures.sheet(image, classes, names, costs)
    visualization.save_figure(figure, f"{start}_figure.png")


def main() -> None:
    """Segments all files."""
    programs.require("checkpoint_dir", "images_pattern", "output_dir")
    paths = programs.named_files("images_pattern")
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    model, names = segmentation.trained_model()
    run = model.compiled()
    failed = 0
    for path in paths:
        try:
            image, classes, end_points = segment(run, path)
        except DataError as error:
            failed += 1
            print(error, file=sys.stderr, flush=True)
            continue
        name = os.path.splitext(os.path.basename(path))[0]
        start = os.path.join(output_dir, name)
        write_pictures(start, image, classes, end_points, names)
        spent = int(end_points["flops"][0])
        relative = spent / int(end_points["dense_flops"][0])
        shares = np.bincount(classes.ravel(), minlength=len(names)) / classes.size
        most = [f"{names[k]} {100 * shares[k]:.0f} %" for k in np.argsort(-shares)[:3]]
        print(
            f"{path}: {', '.join(most)}; {spent:.4g} FLOPs of the backbone, "
            f"{100 * relative:.1f} % of an ordinary one's",
            flush=True,
        )
    if failed:
        raise ValueError(
            f"--images_pattern={FLAGS.images_pattern}: {failed} of {len(paths)} files "
            "cannot be read"
        )


if __name__ == "__main__":
    programs.run(main)
