"""Draws the ponder cost maps of an HDF5 file that `imagenet_export` wrote.

    python -m experiments.draw_ponder_maps --input_file=maps.hdf5 --output_dir=maps

Writes `<number>_image.png`, `<number>_map.png` and `<number>_overlay.png` of every
image, and `colour_bar.png`: all maps have the same colours, from the 0.1 to the 99.9
percentile of all their values. `grid.png` shows images sorted by their ponder cost, as
in SACT, figure 9.
"""

from __future__ import annotations

import os

import h5py
import numpy as np
from absl import flags

from experiments.common import programs
from sact_tf import visualization

FLAGS = flags.FLAGS

flags.DEFINE_string("input_file", "", "HDF5 file of imagenet_export, of SACT.")
flags.DEFINE_string("output_dir", "", "Directory to write to.")

_PERCENTILES = (0.1, 99.9)


def main() -> None:
    """Draws every map."""
    programs.require("input_file", "output_dir")
    path = os.path.expanduser(FLAGS.input_file)
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise OSError(f"--input_file={path}: is no readable HDF5 file") from error
    with file:
        if "ponder_cost_map" not in file or "images" not in file:
            raise ValueError(
                f"--input_file={path}: has no ponder cost maps; export a SACT network"
            )
        maps, images = file["ponder_cost_map"], file["images"]
        low, high = map(float, np.percentile(maps[:], _PERCENTILES))
        for k, (image, values) in enumerate(zip(images, maps)):
            prefix = os.path.join(output_dir, f"{k:05d}")
            visualization.save_pictures(prefix, (image + 1) / 2, values, low, high)
        count = len(images)
        grid = visualization.sorted_grid(np.clip((images[:] + 1) / 2, 0, 1), maps[:])
    grid.savefig(os.path.join(output_dir, "grid.png"), dpi=120)
    bar = os.path.join(output_dir, "colour_bar.png")
    visualization.colour_bar(low, high).savefig(bar, dpi=120)
    print(f"Drew {count} maps, ponder cost {low:.2f} to {high:.2f}, in {output_dir}")


if __name__ == "__main__":
    programs.run(main)
