"""Detects objects in photographs of any size, and draws them and the computation.

    python -m experiments.coco_detect --images_pattern='photos/*.jpg' \\
        --categories=instances_val.json --model_type=sact --checkpoint_dir=/tmp/d \\
        --output_dir=/tmp/drawn

Writes `<name>_detections.png` of every JPEG or PNG file, for SACT networks also
`<name>_map.png`, `<name>_overlay.png` and `<name>_blocks.png` (the ponder cost of
blocks 1 to 3), and `detections.json`: all detections in COCO's format of results, in
pixels of the original images, with `file_name` beside `image_id`. A file that cannot be
read is named and skipped; the exit status is then not zero.
"""

from __future__ import annotations

import collections
import itertools
import os
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import flags

import sact_tf
from experiments.common import detection, programs
from object_detection import evaluation
from object_detection.data.examples import resized_input
from object_detection.visualization import draw_detections
from sact_tf import visualization
from sact_tf.data.examples import DataError
from sact_tf.data.images import read_image
from sact_tf.writing import write_json

FLAGS = flags.FLAGS

flags.DEFINE_string("images_pattern", "", "Files to look at, with * and ?.")
flags.DEFINE_string("output_dir", "", "Directory to write to.")
detection.define_checkpoint_flag()
detection.define_category_flags()
flags.DEFINE_float(
    "min_score", 0.5, "Detections of lower probability are not drawn.", 0.0, 1.0
)
detection.define_size_flags()
detection.define_model_flags()
detection.define_detection_flags()


def image_ids(paths: Sequence[str], ids: Mapping[str, int | str]) -> list[int | str]:
    """Returns the id of every file, as the annotations have it.

    A file is the image whose `file_name` its path ends in, or else the only one of
    that last name. No two files are the same image; others get numbers of no image.

    Args:
        paths: Of the files.
        ids: By `file_name`.
    """
    last = collections.defaultdict(set)
    for name, image_id in ids.items():
        last[os.path.basename(name)].add(image_id)
    found: dict[str, int | str] = {}

    def give(path, candidates):
        left = [i for i in candidates if i not in found.values()]
        if path not in found and len(left) == len(candidates) == 1:
            found[path] = left[0]

    for path in paths:
        parts = os.path.abspath(path).split(os.sep)
        ends = ("/".join(parts[k:]) for k in range(len(parts)))
        give(path, [ids[end] for end in ends if end in ids][:1])
    for path in paths:
        give(path, last[os.path.basename(path)])
    taken = set(ids.values())
    free = (number for number in itertools.count(1) if number not in taken)
    return [found[path] if path in found else next(free) for path in paths]


def detect(model, path: str) -> tuple[np.ndarray, evaluation.Detections, dict]:
    """Runs the detector on one file.

    Returns:
        The image, uint8 [height, width, 3]; detections in its pixels; the end points.

    Raises:
        DataError: It cannot be read.
    """
    image = read_image(path)
    inputs, scale = resized_input(image, FLAGS.short_side, FLAGS.long_side)
    detections = model(inputs[tf.newaxis])
    original = evaluation.to_original(detections, scale[tf.newaxis])[0]
    return image.numpy(), original, detections["end_points"]


def write_pictures(start: str, image, found, end_points, names) -> None:
    """Writes what was found in an image, and where computation was spent."""
    drawn = draw_detections(image, *found, names, FLAGS.min_score)
    visualization.save_picture(f"{start}_detections.png", drawn)
    if not visualization.has_maps(end_points):
        return
    values = visualization.sact_map(end_points)[0].numpy()
    colours = visualization.colour_map(values)
    visualization.save_picture(f"{start}_map.png", colours)
    size = (image.shape[1], image.shape[0])
    enlarged = np.asarray(tf.image.resize(colours, size[::-1], "nearest"))
    overlay = visualization.overlay(image, enlarged)
    drawn = draw_detections(overlay, *found, names, FLAGS.min_score)
    visualization.save_picture(f"{start}_overlay.png", drawn)
    maps = {
        block: end_points[f"{block}/ponder_cost"][0].numpy()
        for block in end_points["block_scopes"]
    }
    figure = visualization.block_figure(image, maps)
    visualization.save_figure(figure, f"{start}_blocks.png")


def main() -> None:
    """Looks at all files."""
    programs.require("checkpoint_dir", "images_pattern", "output_dir")
    detection.data_options()
    paths = programs.named_files("images_pattern")
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    categories, ids = detection.categories_and_ids()
    names = detection.category_names(categories)
    checkpoint = detection.newest_checkpoint()
    model = detection.make_model(len(categories))
    sact_tf.load_slim_checkpoint(model, checkpoint)
    run = model.compiled()
    results, failed = [], 0
    for path, image_id in zip(paths, image_ids(paths, ids)):
        name = os.path.basename(path)
        try:
            image, found, end_points = detect(run, path)
        except DataError as error:
            failed += 1
            print(error, file=sys.stderr, flush=True)
            continue
        start = os.path.join(output_dir, os.path.splitext(name)[0])
        write_pictures(start, image, found, end_points, names)
        for row in evaluation.to_coco(image_id, found, categories):
            results.append({**row, "file_name": name})
        relative = float(end_points["flops"][0] / end_points["dense_flops"][0])
        count = int(np.sum(found[1] >= FLAGS.min_score))
        print(
            f"{path}: {count} objects, {int(end_points['flops'][0]):.4g} FLOPs of the "
            f"feature extractor, {100 * relative:.1f} % of the ordinary network's",
            flush=True,
        )
    write_json(os.path.join(output_dir, "detections.json"), results)
    if failed:
        raise ValueError(
            f"--images_pattern={FLAGS.images_pattern}: {failed} of {len(paths)} files "
            "cannot be read"
        )


if __name__ == "__main__":
    programs.run(main)
