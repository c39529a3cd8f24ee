"""Pictures of recurrent attention: where it looked, how long, and what it gained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sact_tf.optional import lazy
from sact_tf.writing import atomic_file

mpl_figure = lazy("matplotlib.figure")
patches = lazy("matplotlib.patches")
pil_image = lazy("PIL.Image")
pil_draw = lazy("PIL.ImageDraw")

_SHOWN_SIDE = 320  # of a GIF, in pixels
_COLUMNS = 8


def windows(locations: np.ndarray, side: Sequence[int], size: int) -> np.ndarray:
    """Returns the top left corners of glimpses, in pixels of the image.

    Args:
        locations: [..., 2], y and x in [-1, 1].
        side: Height and width of the image.
        size: Of the glimpse.

    >>> windows(np.zeros([1, 2]), (28, 28), 8).tolist()
    [[10, 10]]
    """
    width = (size - 1) // 2
    free = np.array(side) + 2 * width - size
    corner = np.clip((np.asarray(locations) + 1) / 2 * free, 0, free)
    return corner.astype(int) - width


def shown(image: np.ndarray) -> np.ndarray:
    """Returns a network's input as a picture, uint8 [height, width, 3].

    Args:
        image: [height, width, channels]: grey in [0, 1], of colours in [-1, 1], or
            standardised, which is shown from its darkest value to its lightest.
    """
    image = np.asarray(image, np.float32)
    if image.shape[-1] == 1:
        image = np.repeat(image, 3, -1)
    elif np.abs(image).max() <= 1:
        image = (image + 1) / 2
    else:
        image = (image - image.min()) / (image.max() - image.min())
    return np.clip(image * 255, 0, 255).astype(np.uint8)


def path_figure(
    images: np.ndarray,
    locations: np.ndarray,
    num_units: np.ndarray,
    answers: np.ndarray,
    labels: np.ndarray,
    size: int,
    whole_first: bool = False,
) -> mpl_figure.Figure:
    """Draws glimpses on images, numbered, sorted by when the network stopped.

    Args:
        images: [n, height, width, channels], as a network takes them.
        locations: [n, steps, 2].
        num_units: int [n], glimpses taken.
        answers: int [n], classes that the network tells.
        labels: int [n].
        size: Of the glimpse.
        whole_first: Whether the first is the whole image, which is not drawn.

    Returns:
        The figure; `visualization.save_figure` writes it.
    """
    rows = -(-len(images) // _COLUMNS)
    figure = mpl_figure.Figure(
        figsize=(1.7 * _COLUMNS, 1.9 * rows), layout="constrained"
    )
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    first, side = int(whole_first), np.array(images.shape[1:3])
    paths = [
        windows(locations[k, first : num_units[k]], side, size)
        for k in range(len(images))
    ]
    # All are drawn at the same scale, with room for windows that look past the edge.
    corners = np.concatenate(paths)
    reach = max([0, *(-corners).ravel(), *(corners + size - side).ravel()])
    for axis, k in zip(axes, np.argsort(num_units, kind="stable")):
        axis.imshow(shown(images[k]))
        axis.set_xlim(-reach - 1, side[1] + reach)
        axis.set_ylim(side[0] + reach, -reach - 1)
        corners = paths[k]
        for step, (y, x) in enumerate(corners, 1 + first):
            axis.add_patch(
                patches.Rectangle(
                    (x - 0.5, y - 0.5), size, size, fill=False, edgecolor="orange"
                )
            )
            axis.text(x, y, str(step), color="cyan", fontsize=7, va="top")
        centres = corners + (size - 1) / 2
        axis.plot(centres[:, 1], centres[:, 0], color="cyan", linewidth=0.8)
        colour = "green" if answers[k] == labels[k] else "red"
        title = f"{num_units[k]}: {answers[k]} ({labels[k]})"
        axis.set_title(title, fontsize=7, color=colour)
    return figure


def steps_figure(num_units: np.ndarray, steps: int) -> mpl_figure.Figure:
    """Draws how many images took how many glimpses.

    Args:
        num_units: int [n].
        steps: The most there can be.
    """
    figure = mpl_figure.Figure(figsize=(4, 3), layout="constrained")
    axis = figure.subplots()
    axis.bar(range(1, steps + 1), np.bincount(num_units, minlength=steps + 1)[1:])
    axis.set_xticks(range(1, steps + 1))
    axis.set_xlabel("glimpses")
    axis.set_ylabel("images")
    return figure


def error_figure(
    errors: Sequence[float], stopped: tuple[float, float] | None = None
) -> mpl_figure.Figure:
    """Draws the error after every glimpse, if all images stopped there.

    Args:
        errors: From 0 to 1, of 1, 2, ... glimpses.
        stopped: Mean number of glimpses and error where the network stops itself.
    """
    figure = mpl_figure.Figure(figsize=(4, 3), layout="constrained")
    axis = figure.subplots()
    steps = range(1, len(errors) + 1)
    axis.plot(steps, [100 * e for e in errors], "o-", label="after so many")
    if stopped is not None:
        axis.plot(stopped[0], 100 * stopped[1], "r*", markersize=10, label="stopping")
        axis.legend()
    axis.set_xlabel("glimpses")
    axis.set_ylabel("error, %")
    axis.set_xticks(steps)
    axis.set_yscale("log")
    for numbers in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        numbers("{x:g}")
    return figure


def write_gif(
    path: str,
    image: np.ndarray,
    locations: np.ndarray,
    size: int,
    milliseconds: int = 700,
    whole_first: bool = False,
) -> None:
    """Writes an animated GIF of one image: what is seen so far, glimpse by glimpse.

    Args:
        path: The file.
        image: [height, width, channels], as a network takes it.
        locations: [n, 2], of the glimpses taken.
        size: Of the glimpse.
        milliseconds: That a frame lasts.
        whole_first: Whether the first is the whole image, which is shown half dark.

    Raises:
        WritingError: Naming the file.
    """
    picture = shown(image)
    height, width = picture.shape[:2]
    zoom = max(_SHOWN_SIDE // max(height, width), 1)
    seen = picture // 4  # dark where it has not looked
    frames = [_frame(seen, [], size, zoom)]
    first = int(whole_first)
    if whole_first:
        seen = picture // 2
        frames.append(_frame(seen, [], size, zoom))
    corners = windows(locations[first:], (height, width), size)
    for n, (y, x) in enumerate(corners, 1):
        inside = (
            slice(max(y, 0), max(y + size, 0)),
            slice(max(x, 0), max(x + size, 0)),
        )
        seen[inside] = picture[inside]
        frames.append(_frame(seen, corners[:n], size, zoom, 1 + first))
    with atomic_file(path) as temporary:
        frames[0].save(
            temporary,
            "GIF",
            save_all=True,
            append_images=frames[1:],
            duration=milliseconds,
            loop=0,
        )


def _frame(picture, corners, size, zoom, first=1):
    height, width = picture.shape[:2]
    frame = pil_image.fromarray(picture).resize((width * zoom, height * zoom), 0)
    draw = pil_draw.Draw(frame)
    for n, (y, x) in enumerate(corners, first):
        colour = "orange" if n == len(corners) + first - 1 else "gray"
        box = [x * zoom, y * zoom, (x + size) * zoom - 1, (y + size) * zoom - 1]
        draw.rectangle(box, outline=colour)
        place = (max(box[0], 0) + 2, max(box[1], 0))
        draw.text(place, str(n), fill="cyan")
    return frame
