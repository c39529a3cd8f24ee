"""Classes of pixels as pictures: painted maps, legends, and a sheet of all."""

from __future__ import annotations

import colorsys

import numpy as np

from sact_tf.optional import lazy
from sact_tf.segmentation.losses import VOID

figures = lazy("matplotlib.figure")
patches = lazy("matplotlib.patches")

_GOLDEN = 0.61803398875  # of the hue: near numbers get far colours
_BLACK = np.zeros([1, 3], np.uint8)


def palette(num_classes: int) -> np.ndarray:
    """Returns a colour for every class, uint8 [num_classes, 3], the same every time."""
    colours = [
        colorsys.hsv_to_rgb(
            k * _GOLDEN % 1.0, (0.85, 0.55)[k % 2], (0.95, 0.7)[k % 3 > 1]
        )
        for k in range(num_classes)
    ]
    return np.round(np.asarray(colours) * 255).astype(np.uint8)


def paint(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Paints classes by `palette`, void black.

    Args:
        classes: Integers [height, width], below `num_classes` or `VOID`.
        num_classes: Number of classes.

    Returns:
        uint8 [height, width, 3].
    """
    colours = np.concatenate([palette(num_classes), _BLACK])
    classes = np.asarray(classes)
    return colours[np.where(classes == VOID, num_classes, classes)]
