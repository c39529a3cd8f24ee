"""Ponder cost maps as pictures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from sact_tf import reading
from sact_tf.domains import AT_LEAST_0, FRACTION
from sact_tf.optional import lazy
from sact_tf.writing import atomic_file

matplotlib = lazy("matplotlib")
cm = lazy("matplotlib.cm")
colors = lazy("matplotlib.colors")
figures = lazy("matplotlib.figure")
mpl_image = lazy("matplotlib.image")

_JPEG = dict(quality=100, subsampling=0)


def has_maps(end_points: Mapping[str, object]) -> bool:
    """Whether these end points hold a ponder cost per position (SACT networks do)."""
    block = end_points["block_scopes"][0]
    ponder_cost = end_points.get(f"{block}/ponder_cost")
    return ponder_cost is not None and ponder_cost.shape.rank == 3


def sact_map(
    end_points: Mapping[str, object],
    key: str = "ponder_cost",
    sizes: tf.Tensor | None = None,
) -> tf.Tensor:
    """Sums the maps of all blocks at the size of the input (SACT, section 4.1).

    Args:
        end_points: Of a SACT network.
        key: "ponder_cost" or "num_units".
        sizes: int32 [batch, 2], heights and widths of images of several sizes; an image
            then gets the map that it would get alone, and its padding zero. None: no
            image is padded.

    Returns:
        float32 [batch, height, width, 1]; block maps are enlarged by nearest neighbour.
    """
    size = tf.shape(end_points["inputs"])[1:3]
    maps = []
    for block in end_points["block_scopes"]:
        values = tf.cast(end_points[f"{block}/{key}"], tf.float32)[..., tf.newaxis]
        if sizes is None:
            maps.append(tf.raw_ops.ResizeNearestNeighbor(images=values, size=size))
        else:
            inside = end_points[f"{block}/num_units"] > 0  # which padding never is
            maps.append(_enlarge_inside(values, inside, size, sizes))
    return tf.add_n(maps)


def _enlarge_inside(values, inside, size, sizes):
    """Enlarges what of each map lies inside of its image to the size of that.

    Args:
        values: [batch, rows, columns, 1].
        inside: Bool [batch, rows, columns].
        size: int32 [2], of the padded images.
        sizes: int32 [batch, 2], without padding.
    """

    def places(inside, length, sizes):
        count = tf.reduce_sum(tf.cast(inside, tf.float32), 1, keepdims=True)
        scale = count / tf.cast(sizes, tf.float32)[:, tf.newaxis]
        found = tf.floor(tf.range(tf.cast(length, tf.float32)) * scale)
        return tf.cast(tf.minimum(found, count - 1), tf.int32)

    rows = places(tf.reduce_any(inside, 2), size[0], sizes[:, 0])
    columns = places(tf.reduce_any(inside, 1), size[1], sizes[:, 1])
    values = tf.gather(values, rows, axis=1, batch_dims=1)
    values = tf.gather(values, columns, axis=2, batch_dims=1)
    is_row = tf.sequence_mask(sizes[:, 0], size[0])[:, :, tf.newaxis, tf.newaxis]
    is_column = tf.sequence_mask(sizes[:, 1], size[1])[:, tf.newaxis, :, tf.newaxis]
    return tf.where(is_row & is_column, values, tf.zeros_like(values))


def heatmap(
    end_points: Mapping[str, object],
    key: str = "ponder_cost",
    num_images: int = 5,
    alpha: float = 0.75,
    border: int = 5,
) -> tf.Tensor:
    """Draws each image beside itself under its map in red, as the original does.

    Args:
        end_points: Of a SACT network.
        key: "ponder_cost" or "num_units".
        num_images: How many images of the batch are drawn at most.
        alpha: Opacity of the map. Full red is the largest value possible.
        border: Width of the black strip between both, in pixels.

    Returns:
        float32 [images, height, 2 * width + border, 3] in [0, 1].
    """
    images = tf.cast(end_points["inputs"][:num_images], tf.float32)
    images -= tf.reduce_min(images, [1, 2, 3], keepdims=True)
    images = tf.math.divide_no_nan(
        images, tf.reduce_max(images, [1, 2, 3], keepdims=True)
    )
    largest = sum(end_points["block_num_units"])
    if key == "ponder_cost":
        largest += len(end_points["block_num_units"])
    red = sact_map(end_points, key)[:num_images] / largest
    overlay = images * (1 - alpha) + alpha * tf.pad(red, [[0, 0]] * 3 + [[0, 2]])
    strip = tf.zeros_like(images[:, :, :1]) + tf.zeros([1, 1, border, 1])
    return tf.concat([images, strip, overlay], axis=2)


def ponder_figure(
    images: np.ndarray, maps: np.ndarray, titles: Sequence[str] | None = None
) -> figures.Figure:
    """Draws images above their ponder cost maps, in viridis, with one colour bar.

    Args:
        images: [n, height, width, 3], uint8, or float in [0, 1].
        maps: [n, height, width] or [n, height, width, 1].
        titles: One for each image.

    Returns:
        The figure; `save_figure` writes it.
    """
    count = len(images)
    maps = np.reshape(maps, [count, *np.shape(maps)[1:3]])
    figure = figures.Figure(figsize=(1.5 * count + 0.8, 3.4), layout="constrained")
    axes = np.reshape(figure.subplots(2, count), [2, count])
    options = dict(cmap="viridis", vmin=float(maps.min()), vmax=float(maps.max()))
    for k in range(count):
        axes[0, k].imshow(images[k])
        drawn = axes[1, k].imshow(maps[k], interpolation="nearest", **options)
        if titles is not None:
            axes[0, k].set_title(titles[k], fontsize=9)
        for axis in axes[:, k]:
            axis.set_axis_off()
    figure.colorbar(drawn, ax=axes[1, :].tolist(), label="ponder cost")
    return figure


def colour_map(
    values: np.ndarray, low: float | None = None, high: float | None = None
) -> np.ndarray:
    """Paints a map in viridis.

    Args:
        values: [height, width] or [height, width, 1].
        low: The value that gets the first colour, and all below; None: the smallest.
        high: The value that gets the last colour, and all above; None: the largest.

    Returns:
        uint8 [height, width, 3].
    """
    values = np.reshape(values, np.shape(values)[:2])
    norm = colors.Normalize(low, high, clip=True)
    colours = matplotlib.colormaps["viridis"](norm(values), bytes=True)
    return np.ascontiguousarray(colours[..., :3])


def overlay(image: np.ndarray, colours: np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """Lays a painted map over the grey version of its image.

    Args:
        image: uint8 [height, width, 3].
        colours: uint8 [height, width, 3].
        alpha: Opacity of the colours.

    Returns:
        uint8 [height, width, 3].
    """
    grey = np.asarray(image, np.float32).mean(-1, keepdims=True)
    mixed = (1 - alpha) * grey + alpha * np.asarray(colours, np.float32)
    return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


def save_pictures(
    prefix: str,
    image: np.ndarray,
    values: np.ndarray,
    low: float,
    high: float,
    map_format: str = "png",
) -> None:
    """Writes `<prefix>_im.jpg`, `<prefix>_ponder.png` and `<prefix>_overlay.png`.

    The first two have the original's names.

    Args:
        prefix: Path that the files' names begin with.
        image: [height, width, 3] in [0, 1]; what lies outside is cut off.
        values: Map of the same height and width.
        low: As in `colour_map`.
        high: As in `colour_map`.
        map_format: Extension of the map's file.
    """
    image = np.clip(np.asarray(image) * 255 + 0.5, 0, 255).astype(np.uint8)
    colours = colour_map(values, low, high)
    save_picture(f"{prefix}_im.jpg", image)
    save_picture(f"{prefix}_ponder.{map_format}", colours)
    save_picture(f"{prefix}_overlay.png", overlay(image, colours))


def save_picture(path: str, pixels: np.ndarray) -> None:
    """Writes a picture, whole or not at all.

    Args:
        path: The file; its extension tells the format. JPEG is of the highest quality.
        pixels: uint8 [height, width, 3].

    Raises:
        WritingError: Naming the file.
    """
    is_jpeg = path.lower().endswith((".jpg", ".jpeg"))
    with atomic_file(path) as temporary:
        mpl_image.imsave(temporary, pixels, pil_kwargs=_JPEG if is_jpeg else None)


def save_figure(figure: figures.Figure, path: str, dpi: int = 120) -> None:
    """Writes a figure, whole or not at all.

    Args:
        figure: Any.
        path: The file; its extension tells the format.
        dpi: Pixels per inch.

    Raises:
        WritingError: Naming the file.
        ValueError: The extension is of no format.
    """
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def colour_bar(low: float, high: float, label: str = "ponder cost") -> figures.Figure:
    """Draws the colours of `colour_map` beside their values."""
    figure = figures.Figure(figsize=(1.1, 4.0), layout="constrained")
    axis = figure.subplots()
    figure.colorbar(
        cm.ScalarMappable(colors.Normalize(low, high), "viridis"), cax=axis, label=label
    )
    return figure


def block_figure(
    image: np.ndarray, maps: Mapping[str, np.ndarray], title: str = "ponder cost"
) -> figures.Figure:
    """Draws an image and the map of every block, with colour bars (SACT, figure 8).

    Args:
        image: uint8, or float in [0, 1], [height, width, 3].
        maps: Block name to [block height, block width].
        title: What the maps show.
    """
    height, width = np.shape(image)[:2]
    aspect = float(np.clip(height / width, 0.3, 3.0))
    count = len(maps) + 1
    figure = figures.Figure(
        figsize=(3.0 * count, 2.6 * aspect + 0.6), layout="constrained"
    )
    axes = figure.subplots(1, count)
    axes[0].imshow(image)
    axes[0].set_title("image", fontsize=9)
    for axis, (name, values) in zip(axes[1:], maps.items()):
        extent = (0, width, height, 0)
        drawn = axis.imshow(values, "viridis", interpolation="nearest", extent=extent)
        axis.set_title(f"{name}: {title}", fontsize=9)
        bar = figure.colorbar(drawn, ax=axis, shrink=0.8)
        bar.formatter.set_useOffset(False)  # values, not differences from one
    for axis in axes:
        axis.set_axis_off()
    return figure


def side_by_side(image: np.ndarray, values: np.ndarray) -> figures.Figure:
    """Draws an image, its ponder cost map, and one over the other, with a colour bar.

    Args:
        image: uint8, or float in [0, 1], [height, width, 3].
        values: Map [height, width] or [height, width, 1].
    """
    height, width = np.shape(image)[:2]
    values = np.reshape(values, [height, width])
    if np.asarray(image).dtype != np.uint8:
        image = np.clip(np.asarray(image) * 255 + 0.5, 0, 255).astype(np.uint8)
    aspect = float(np.clip(height / width, 0.3, 3.0))
    figure = figures.Figure(figsize=(9.8, 3.0 * aspect + 0.4), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].imshow(image)
    drawn = axes[1].imshow(values, "viridis", interpolation="nearest")
    axes[2].imshow(overlay(image, colour_map(values)))
    for axis, title in zip(axes, ("image", "ponder cost", "both")):
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    bar = figure.colorbar(drawn, ax=axes.tolist(), label="ponder cost")
    bar.formatter.set_useOffset(False)  # values, not differences from one
    return figure


def sorted_grid(
    images: np.ndarray, maps: np.ndarray, rows: int = 4, columns: int = 8
) -> figures.Figure:
    """Draws images, from the least to the largest mean ponder cost (SACT, figure 9).

    Args:
        images: [n, height, width, 3], uint8, or float in [0, 1].
        maps: [n, height, width] or [n, height, width, 1].
        rows: Of images, each above its map.
        columns: Of images. If there are more images than places, those drawn are
            evenly spread over all.
    """
    maps = np.reshape(maps, np.shape(maps)[:3])
    means = maps.mean((1, 2))
    places = np.linspace(0, len(means) - 1, min(rows * columns, len(means)))
    chosen = np.argsort(means, kind="stable")[np.round(places).astype(int)]
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    aspect = maps.shape[1] / maps.shape[2]
    figure = figures.Figure(
        figsize=(1.2 * columns + 0.8, rows * (2.4 * aspect + 0.25)),
        layout="constrained",
    )
    axes = np.reshape(figure.subplots(2 * rows, columns), [rows, 2, columns])
    options = dict(cmap="viridis", vmin=float(maps.min()), vmax=float(maps.max()))
    for axis in axes.flat:
        axis.set_axis_off()
    for place, k in enumerate(chosen):
        above, below = axes[place // columns, :, place % columns]
        above.imshow(images[k])
        above.set_title(f"{means[k]:.2f}", fontsize=8)
        drawn = below.imshow(maps[k], interpolation="nearest", **options)
    figure.colorbar(drawn, ax=axes.ravel().tolist(), label="ponder cost")
    return figure


TRADEOFF = {
    "Total Flops/mean": reading.number(AT_LEAST_0),
    "eval/Accuracy": reading.number(FRACTION),
    "Total Flops/std": reading.number(AT_LEAST_0),
}
"""What `tradeoff_figure` reads of an evaluation."""


def tradeoff_figure(
    curves: Mapping[str, Sequence[Mapping[str, float]]],
) -> figures.Figure:
    """Draws accuracy over operations, one line per kind of network (SACT, figure 7).

    Args:
        curves: Label of a line to evaluations, as `sact_tf.evaluation.evaluate` returns
            and `eval.json` holds them. Horizontal bars are one standard deviation over
            images.

    Raises:
        DataError: An evaluation lacks accuracy or FLOPs, or they cannot be such.
    """
    points = {}
    for label, evaluations in curves.items():
        points[label] = []
        for row in reading.checked_rows(evaluations, TRADEOFF, label):
            flops, accuracy, deviation = (row[name] for name in TRADEOFF)
            points[label].append((flops, 100 * accuracy, deviation))
    return curves_figure(points, "FLOPs per image", "accuracy, %")


def curves_figure(
    curves: Mapping[str, Sequence[tuple[float, float, float]]], x: str, y: str
) -> figures.Figure:
    """Draws lines through points; a line of one point is its marker.

    Args:
        curves: Label of a line to its points in any order, each with the deviation of
            its first number, which a horizontal bar shows (0: none).
        x: What the first number is.
        y: What the second is.
    """
    return curves_side_by_side({x: curves}, y)


def curves_side_by_side(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]], y: str
) -> figures.Figure:
    """Draws the curves of `curves_figure` in panels that share what is upward.

    Args:
        panels: What is to the right in a panel, to its curves.
        y: What is upward in all of them.
    """
    figure = figures.Figure(figsize=(5.6 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (x, curves) in zip(axes, panels.items()):
        markers = itertools.cycle("osD^vP*X")
        for (label, points), marker in zip(curves.items(), markers):
            xs, ys, deviations = np.transpose(sorted(points))
            bars = deviations if deviations.any() else None
            axis.errorbar(xs, ys, xerr=bars, marker=marker, capsize=3, label=label)
        axis.set_xlabel(x)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel(y)
    return figure
