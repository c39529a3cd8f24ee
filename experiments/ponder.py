"""Tells how much a network computes on every image of a folder, and where.

    python -m experiments.ponder --images=photos --model_type=sact \\
        --checkpoint_dir=/tmp/sact --output_dir=ponder

Goes through all JPEG and PNG files in the folder and the folders in it. Writes
`ponder.csv` and `ponder.json`, with operations, units per block and ponder cost of
every image, and of SACT networks `<name>_map.png` and `<name>_overlay.png`. A file that
cannot be read is named and skipped; the exit status is then not zero.
"""

from __future__ import annotations

import csv
import io
import os
import sys

import tensorflow as tf
import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import programs
from sact_tf import visualization
from sact_tf.data.examples import DataError
from sact_tf.writing import write_bytes, write_json

FLAGS = flags.FLAGS
_ENDINGS = (".jpg", ".jpeg", ".png")

flags.DEFINE_string("images", "", "Folder of JPEG and PNG files, or one such file.")
flags.DEFINE_string("output_dir", "", "Directory to write to.")
flags.DEFINE_bool("pictures", True, "Also draw the maps of SACT networks.")
programs.define_network_flags()
programs.define_model_type("sact", with_iterative=True)


def find_images(path: str) -> list[str]:
    """Returns the images in a folder and those below it, sorted.

    Raises:
        FileNotFoundError: There are none.
    """
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return [path]
    found = sorted(
        os.path.join(directory, name)
        for directory, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(_ENDINGS) and not name.startswith(".")
    )
    if not found:
        raise FileNotFoundError(f"--images={path}: holds no JPEG or PNG file")
    return found


def _names(paths: list[str]) -> list[str]:
    """Names files below the folder that holds all of them, without extension."""
    folder = os.path.dirname(paths[0]) if len(paths) == 1 else os.path.commonpath(paths)
    names = [os.path.splitext(os.path.relpath(path, folder))[0] for path in paths]
    names = [name.replace(os.sep, "_") for name in names]
    if len(set(names)) < len(names):
        raise ValueError(
            f"--images={FLAGS.images}: two files would be written as "
            f"{max(names, key=names.count)}; rename one"
        )
    return names


def row_of(path: str, result: sact_tf.Ponder) -> dict[str, object]:
    """Returns what is written of an image."""
    height, width, _ = result.image.shape
    return {
        "image": path,
        "height": height,
        "width": width,
        "flops": result.flops,
        "relative_flops": result.flops / result.dense_flops,
        "ponder_cost": result.ponder_cost,
        **{f"{block}/units": units for block, units in result.units.items()},
    }


def write(output_dir: str, rows: list[dict[str, object]]) -> None:
    """Writes the table as CSV and JSON."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(os.path.join(output_dir, "ponder.csv"), text.getvalue().encode())
    write_json(os.path.join(output_dir, "ponder.json"), rows)


def main() -> None:
    """Goes through all images."""
    programs.require("images", "checkpoint_dir", "output_dir")
    paths = find_images(FLAGS.images)
    names = _names(paths)
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    model = programs.make_network()
    sact_tf.load_pretrained(model, FLAGS.checkpoint_dir, fresh_halting=False)
    bar = keras.utils.Progbar(len(paths), unit_name="image")
    rows, failed = [], []
    for name, path in zip(names, paths):
        try:
            result = sact_tf.ponder(model, path)
        except DataError as error:
            failed.append(str(error))
        except tf.errors.OpError as error:
            reason = error.message.splitlines()[-1]
            failed.append(f"{path}: cannot be run on ({reason})")
        else:
            rows.append(row_of(path, result))
            if FLAGS.pictures and result.map is not None:
                start = os.path.join(output_dir, name)
                colours = visualization.colour_map(result.map)
                visualization.save_picture(f"{start}_map.png", colours)
                visualization.save_picture(f"{start}_overlay.png", result.overlay)
        bar.add(1)
    print("\n".join(failed), end="\n" if failed else "", file=sys.stderr, flush=True)
    if rows:
        write(output_dir, rows)
        share = sum(row["relative_flops"] for row in rows) / len(rows)
        print(f"{len(rows)} images took {share:.1%} of the operations of all units")
    if failed:
        raise ValueError(
            f"--images={FLAGS.images}: {len(failed)} of {len(paths)} files cannot be "
            "read"
        )


if __name__ == "__main__":
    programs.run(main)
