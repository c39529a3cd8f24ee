"""Classes of pixels as pictures: painted maps, and a sheet with legend and costs."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

from sact_tf import visualization
from sact_tf.optional import lazy
from sact_tf.segmentation.losses import VOID

figures = lazy("matplotlib.figure")
patches = lazy("matplotlib.patches")

_GOLDEN = 0.61803398875  # of the hue: near numbers get far colours
_SATURATIONS = (0.85, 0.5)
_VALUES = (0.95, 0.95, 0.6)
_BLACK = np.zeros([1, 3], np.uint8)
_MOST_NAMES = 30  # in a legend


def palette(num_classes: int) -> np.ndarray:
    """Returns a colour for every class, uint8 [num_classes, 3], the same every time."""
    colours = [
        colorsys.hsv_to_rgb(k * _GOLDEN % 1.0, _SATURATIONS[k % 2], _VALUES[k % 3])
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


def sheet(
    image: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
    ponder_cost: np.ndarray | None = None,
) -> figures.Figure:
    """Draws an image, its classes with a legend, and where computation was spent.

    Args:
        image: uint8 [height, width, 3].
        classes: Integers [height, width].
        names: Of all classes. The legend has those that occur, the most frequent first,
            at most 30.
        ponder_cost: Map [height, width] or [height, width, 1]; None: there is none.
    """
    height, width = image.shape[:2]
    aspect = float(np.clip(height / width, 0.3, 3.0))
    count = 2 if ponder_cost is None else 3
    figure = figures.Figure(
        figsize=(3.6 * count + 1.6, max(3.6 * aspect, 2.0) + 0.3), layout="constrained"
    )
    axes = figure.subplots(1, count)
    axes[0].imshow(image)
    axes[1].imshow(paint(classes, len(names)))
    titles = ["image", "classes", "ponder cost"]
    if ponder_cost is not None:
        values = np.reshape(ponder_cost, np.shape(ponder_cost)[:2])
        drawn = axes[2].imshow(
            values,
            "viridis",
            interpolation="nearest",
            extent=(0, width, height, 0),
        )
        bar = figure.colorbar(drawn, ax=axes[2], shrink=0.8)
        bar.formatter.set_useOffset(False)  # values, not differences from one
    for axis, title in zip(axes, titles):
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    found, pixels = np.unique(classes[classes != VOID], return_counts=True)
    found = found[np.argsort(-pixels, kind="stable")][:_MOST_NAMES]
    colours = palette(len(names)) / 255
    handles = [patches.Patch(color=colours[k], label=names[k]) for k in found]
    figure.legend(handles=handles, loc="outside right center", fontsize=8)
    return figure


def overlay(image: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Lays painted classes over the grey version of their image.

    Args:
        image: uint8 [height, width, 3].
        classes: Integers [height, width].
        num_classes: Number of classes.

    Returns:
        uint8 [height, width, 3].
    """
    return visualization.overlay(image, paint(classes, num_classes))
