"""Draws the ponder cost maps of an HDF5 file that `imagenet_export` wrote.

    python -m experiments.draw_ponder_maps --input_file=maps.hdf5 --output_dir=maps

Writes `<mean>_<number>_im.jpg` and `<mean>_<number>_ponder.png` of every image, where
<mean> is its mean ponder cost, and `colorbar.pdf`, as the original does; also
`<mean>_<number>_overlay.png`. All maps have the same colours, from the 0.1 to the 99.9
percentile of all their values. `grid.png` shows images sorted by their ponder cost, as
in SACT, figure 9.
"""

from __future__ import annotations

import os

import h5py
import numpy as np
from absl import flags

from experiments.common import programs
from sact_tf import reading, visualization
from sact_tf.data.examples import DataError
from sact_tf.data.images import require_finite

FLAGS = flags.FLAGS

flags.DEFINE_string("input_file", "", "HDF5 file of imagenet_export, of SACT.")
flags.DEFINE_string("output_dir", "", "Directory to write to.")

_PERCENTILES = (0.1, 99.9)


def read_maps(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns maps [n, height, width, 1] and images [n, height, width, 3] of a file.

    Raises:
        OSError: Naming the flag, if it is no HDF5 file.
        ValueError: Naming the flag, if it does not hold these, or NaN or infinity.
    """
    name = f"--input_file={path}"
    if not os.path.exists(path) or not h5py.is_hdf5(path):
        raise OSError(f"{name}: is no readable HDF5 file")
    try:
        arrays = reading.read_hdf5(
            path, {"ponder_cost_map": (4, "f"), "images": (4, "f")}
        )
    except DataError as error:
        raise ValueError(
            f"{name}: has no ponder cost maps; export a SACT network ({error})"
        ) from error
    maps, images = arrays["ponder_cost_map"], arrays["images"]
    expected = [*maps.shape[:3], 1], [*maps.shape[:3], 3]
    if ([*maps.shape], [*images.shape]) != expected or not maps.size:
        raise ValueError(
            f"{name}: maps and images must be [n, height, width, 1] and [n, height, "
            f"width, 3]; got {list(maps.shape)} and {list(images.shape)}"
        )
    for key, array in arrays.items():
        require_finite(array, f"{name}: {key}")
    return maps, images


def main() -> None:
    """Draws every map."""
    programs.require("input_file", "output_dir")
    path = os.path.expanduser(FLAGS.input_file)
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    maps, images = read_maps(path)
    low, high = map(float, np.percentile(maps, _PERCENTILES))
    for k, (image, values) in enumerate(zip(images, maps)):
        prefix = os.path.join(output_dir, f"{values.mean():.2f}_{k}")
        visualization.save_pictures(prefix, (image + 1) / 2, values, low, high)
    count = len(images)
    grid = visualization.sorted_grid(np.clip((images + 1) / 2, 0, 1), maps)
    visualization.save_figure(grid, os.path.join(output_dir, "grid.png"))
    bar = visualization.colour_bar(low, high)
    visualization.save_figure(bar, os.path.join(output_dir, "colorbar.pdf"))
    print(f"Drew {count} maps, ponder cost {low:.2f} to {high:.2f}, in {output_dir}")


if __name__ == "__main__":
    programs.run(main)
