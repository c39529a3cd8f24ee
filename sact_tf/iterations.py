"""What goes with the number of iterations an image takes: error, looks, objects.

For networks whose images halt as a whole: ACT, IterativeNet and IamNN (Leroux et al.,
2022, whose error rises with the iterations an image took).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sact_tf.optional import lazy

figures = lazy("matplotlib.figure")
stats = lazy("scipy.stats")


def error_by_iterations(
    iterations: np.ndarray, correct: np.ndarray
) -> list[dict[str, float]]:
    """Returns the error of the images of every number of iterations, the least first.

    >>> error_by_iterations(np.array([3, 2, 3]), np.array([0, 1, 1]))
    [{'iterations': 2, 'images': 1, 'error': 0.0}, {'iterations': 3, 'images': 2, \
'error': 0.5}]

    Args:
        iterations: Int [images], of all blocks together.
        correct: [images], 1 where the network was right and 0 elsewhere.
    """
    rows = []
    for count in np.unique(iterations):
        right = correct[iterations == count]
        error = 1.0 - float(np.mean(right))
        rows.append(dict(iterations=int(count), images=len(right), error=error))
    return rows


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Returns Spearman's rank correlation; 0 where x or y never changes."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(stats.spearmanr(x, y).statistic)


def spread(iterations: np.ndarray, count: int) -> np.ndarray:
    """Returns numbers of images, evenly spread over all sorted by iterations.

    Args:
        iterations: [images].
        count: How many, at most all of them.
    """
    places = np.linspace(0, len(iterations) - 1, min(count, len(iterations)))
    return np.argsort(iterations, kind="stable")[np.round(places).astype(int)]


def error_figure(rows: Sequence[dict[str, float]]) -> figures.Figure:
    """Draws error, and how many images there are, over the number of iterations.

    Args:
        rows: Of `error_by_iterations`.
    """
    figure = figures.Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    counts = [row["iterations"] for row in rows]
    bars = axis.twinx()
    bars.bar(counts, [row["images"] for row in rows], color="0.85")
    bars.set_ylabel("images")
    axis.plot(counts, [100 * row["error"] for row in rows], "o-")
    axis.set_zorder(bars.get_zorder() + 1)
    axis.set_frame_on(False)
    axis.set_xlabel("iterations of all stages")
    axis.set_ylabel("error, %")
    return figure


def images_figure(
    images: np.ndarray, iterations: np.ndarray, columns: int = 10
) -> figures.Figure:
    """Draws images in the order given, each under its number of iterations.

    Args:
        images: [n, height, width, 3] in [0, 1].
        iterations: [n].
        columns: Images side by side.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = figures.Figure(
        figsize=(0.9 * columns, 1.1 * rows + 0.1), layout="constrained"
    )
    axes = np.reshape(figure.subplots(rows, columns), [-1])
    for axis in axes:
        axis.set_axis_off()
    for axis, image, count in zip(axes, images, iterations):
        axis.imshow(image)
        axis.set_title(f"{count:g}", fontsize=8)
    return figure


def objects_figure(
    iterations: np.ndarray, counts: np.ndarray, sizes: np.ndarray
) -> figures.Figure:
    """Draws iterations over the number and the mean size of an image's objects.

    Args:
        iterations: [images].
        counts: [images], how many objects.
        sizes: [images], mean side of objects for one of the image; NaN without any.
    """
    figure = figures.Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    there = np.isfinite(sizes)
    for axis, x, y, label in (
        (axes[0], counts, iterations, "objects"),
        (axes[1], sizes[there], iterations[there], "mean side of objects / image"),
    ):
        axis.scatter(x, y, s=12, alpha=0.6)
        axis.set_xlabel(f"{label} (rank correlation {rank_correlation(x, y):+.2f})")
    axes[0].set_ylabel("iterations")
    return figure
