"""Pictures of saliency maps, as figure 11 of the SACT paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sact_tf.optional import lazy
from sact_tf.saliency import maps

mpl_figure = lazy("matplotlib.figure")


def saliency_figure(
    rows: Sequence[tuple[str, np.ndarray, Sequence[np.ndarray]]],
    titles: Sequence[str],
    temperature: float = 0.2,
) -> mpl_figure.Figure:
    """Draws images, and beside each its human map and saliency maps.

    Args:
        rows: Name, image [height, width, 3] (uint8, or float in [0, 1]) and maps
            [height, width] of any size.
        titles: Of the columns of maps.
        temperature: Of the softmax that sharpens every map for display.

    Returns:
        The figure; `visualization.save_figure` writes it.
    """
    columns = len(titles) + 1
    aspects = [np.shape(image)[0] / np.shape(image)[1] for _, image, _ in rows]
    figure = mpl_figure.Figure(
        figsize=(2.4 * columns, 2.4 * sum(aspects) + 0.4), layout="constrained"
    )
    axes = figure.subplots(
        len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": aspects}
    )
    for axis, title in zip(axes[0], ["image", *titles]):
        axis.set_title(title, fontsize=9)
    for (name, image, values), row in zip(rows, axes):
        row[0].imshow(image)
        row[0].set_ylabel(name, fontsize=7)
        height, width = np.shape(image)[:2]
        for axis, value in zip(row[1:], values):
            shown = maps.display_softmax(value, temperature)
            axis.imshow(shown, "gray", extent=(0, width, height, 0), vmin=0)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    return figure
