"""`shapes`: a small object of one of ten classes on a large cluttered background.

Images are made on the fly.

Needs no download, so that every program runs on a fresh machine. As objects cover
little of the image, it shows what spatially adaptive computation is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sact_tf import domains
from sact_tf.data.examples import Examples

MIN_SIZE = 16
MIN_DETAILS_SIZE = 64
MAX_BYTES = 2**36
"""Most memory for the images of a split."""
SPLIT_SIZES = {"train": 10000, "test": 2000}
SCENE_SPLIT_SIZES = {"train": 1000, "validation": 200}
"""How many scenes `draw_scenes` draws of a split, unless told."""


def _polygon(*corners: tuple[float, float]) -> Callable[..., np.ndarray]:
    """Distance function of a convex polygon, corners in clockwise order (y is down)."""
    starts = np.array(corners)
    edges = np.roll(starts, -1, axis=0) - starts
    normals = np.stack([edges[:, 1], -edges[:, 0]], 1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)

    def distance(x, y):
        return np.max(
            [
                (x - px) * nx + (y - py) * ny
                for (px, py), (nx, ny) in zip(starts, normals)
            ],
            axis=0,
        )

    return distance


def _star(x, y):
    sector = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) % sector) - sector / 2) / (sector / 2)
    return np.hypot(x, y) - (0.38 + 0.62 * angle)


def _box(x, y, half_width, half_height):
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


# Signed distance (negative inside, in units of the object's radius) of each class.
_CLASSES: dict[str, Callable[..., np.ndarray]] = {
    "disc": lambda x, y: np.hypot(x, y) - 1.0,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.22,
    "square": lambda x, y: _box(x, y, 0.82, 0.82),
    "frame": lambda x, y: np.abs(_box(x, y, 0.68, 0.68)) - 0.18,
    "triangle": _polygon((0.0, -1.0), (0.87, 0.6), (-0.87, 0.6)),
    "plus": lambda x, y: np.minimum(_box(x, y, 1.0, 0.26), _box(x, y, 0.26, 1.0)),
    "star": _star,
    "half_disc": lambda x, y: np.maximum(np.hypot(x, y + 0.4) - 1.0, -0.4 - y),
    "bar": lambda x, y: _box(x, y, 1.0, 0.28),
    "crescent": lambda x, y: np.maximum(
        np.hypot(x, y) - 1.0, 0.8 - np.hypot(x - 0.45, y)
    ),
}

CLASS_NAMES = tuple(_CLASSES)
_CARRIERS = ("disc", "square", "triangle")
_MARK_DISTANCE = 0.35  # from the centre of the large object, in its radii: inside of it


def load(
    split: str, image_size: int = 32, num_examples: int | None = None, seed: int = 0
) -> Examples:
    """Makes a split of the data set; the same arguments always give the same images.

    Args:
        split: "train" or "test".
        image_size: Side of the square images in pixels, at least 16.
        num_examples: How many; by default 10000 for training and 2000 for testing.
            Fewer are the first ones of more.
        seed: Another seed gives another data set.

    Returns:
        Examples with boxes. An object's radius is 11 to 16 % of the image side.

    Raises:
        ValueError: On any other split, or an image too small or too large.
    """
    return _load(split, image_size, num_examples, seed, _render)


def load_details(
    split: str, image_size: int = 128, num_examples: int | None = None, seed: int = 0
) -> Examples:
    """Makes images whose classes differ in a small detail of a large object.

    As in fine-grained recognition, the object tells nothing: it is a disc, square or
    triangle of a radius of 26 to 32 % of the image side, whatever the class. On it is a
    small mark of one of the ten classes, its radius 5 to 6.5 %.

    Args:
        split: As of `load`, and so are all others.
        image_size: The same.
        num_examples: The same.
        seed: The same.

    Returns:
        Examples with the boxes of the marks.

    Raises:
        ValueError: As `load`, and on images smaller than 64 pixels.
    """
    if domains.INPUT_SIDE.check(image_size, "image_size") < MIN_DETAILS_SIZE:
        raise ValueError(
            f"image_size must be at least {MIN_DETAILS_SIZE} for details to show; got "
            f"{image_size}"
        )
    return _load(split, image_size, num_examples, seed, _render_detail)


def _load(split, image_size, num_examples, seed, render):
    if split not in SPLIT_SIZES:
        raise ValueError(
            f"split must be one of {', '.join(SPLIT_SIZES)}; got {split!r}"
        )
    domains.INPUT_SIDE.check(image_size, "image_size")
    if image_size < MIN_SIZE:
        raise ValueError(f"image_size must be at least {MIN_SIZE}; got {image_size}")
    if num_examples is None:
        num_examples = SPLIT_SIZES[split]
    domains.SEED.check(seed, "seed")
    check_memory(domains.COUNT.check(num_examples, "num_examples"), image_size)
    images = np.empty([num_examples, image_size, image_size, 3], np.uint8)
    labels = np.empty([num_examples], np.int64)
    boxes = np.empty([num_examples, 4], np.int64)
    split_id = list(SPLIT_SIZES).index(split)
    for k in range(num_examples):
        rng = np.random.default_rng([seed, split_id, image_size, k])
        images[k], labels[k], boxes[k] = render(image_size, rng)
    return Examples(images, labels, len(_CLASSES), boxes)


def check_memory(num_examples: int, image_size: int) -> None:
    """Raises ValueError if so many images of that side can hardly be kept in memory."""
    if 3 * num_examples * image_size**2 > MAX_BYTES:
        raise ValueError(
            f"{num_examples} images of side {image_size} take more than "
            f"{MAX_BYTES >> 30} GiB; make fewer or smaller ones"
        )


def _render(size, rng):
    """Draws one image; returns it, its label and the object's box."""
    image = background(size, rng)
    label = int(rng.integers(len(_CLASSES)))
    radius = size * rng.uniform(0.11, 0.16)
    centre = rng.uniform(radius + 1, size - radius - 1, 2)
    image, mask = draw_object(image, label, radius, centre, rng)
    return to_pixels(image, rng), label, box_of(mask)


def _render_detail(size, rng):
    """Draws a mark on a large object; returns image, label and the mark's box."""
    image = background(size, rng)
    radius = size * rng.uniform(0.26, 0.32)
    centre = rng.uniform(radius + 1, size - radius - 1, 2)
    carrier = CLASS_NAMES.index(_CARRIERS[rng.integers(len(_CARRIERS))])
    image, _ = draw_object(image, carrier, radius, centre, rng)
    label = int(rng.integers(len(_CLASSES)))
    angle = rng.uniform(0, 2 * np.pi)
    away = _MARK_DISTANCE * radius * np.sqrt(rng.uniform())
    place = centre + away * np.array([np.sin(angle), np.cos(angle)])
    mark = size * rng.uniform(0.05, 0.065)
    # Dark around it, so that it shows whatever the colours of both.
    rows, columns = np.mgrid[:size, :size]
    around = np.hypot(rows - place[0], columns - place[1]) < 1.3 * mark
    image[around] = 0.1
    image, mask = draw_object(image, label, mark, place, rng)
    return to_pixels(image, rng), label, box_of(mask)


def draw_object(
    image: np.ndarray,
    label: int,
    radius: float,
    centre: Sequence[float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws an object, turned and coloured at random.

    Args:
        image: Float [height, width, 3] in [0, 1].
        label: Index of its class in `CLASS_NAMES`.
        radius: In pixels.
        centre: Row and column of its centre.
        rng: Of angle and colour.

    Returns:
        The image with the object, and where that is, bool [height, width].
    """
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = (rows - centre[0]) / radius, (columns - centre[1]) / radius
    turned = (
        np.cos(angle) * x - np.sin(angle) * y,
        np.sin(angle) * x + np.cos(angle) * y,
    )
    distance = _CLASSES[CLASS_NAMES[label]](*turned)
    coverage = np.clip(0.5 - distance * radius, 0, 1)[..., np.newaxis]
    colour = rng.uniform(0.0, 0.25, 3)
    colour[rng.permutation(3)[: rng.integers(1, 3)]] = rng.uniform(0.85, 1.0)
    return image * (1 - coverage) + colour * coverage, coverage[..., 0] > 0.5


def box_of(mask: np.ndarray) -> list[int]:
    """Returns the box around what is True, bottom and right exclusive.

    Args:
        mask: Bool [height, width].

    Returns:
        Top, left, bottom, right in pixels.
    """
    inside = np.argwhere(mask)
    return [*inside.min(0), *(inside.max(0) + 1)]


class Scene(NamedTuple):
    """An image of several objects.

    Attributes:
        image: uint8 [height, width, 3].
        labels: int64 [height, width]: 0 is background, 1 the first class, and so on.
        objects: Index of the class and mask, bool [height, width], of every object.
    """

    image: np.ndarray
    labels: np.ndarray
    objects: list[tuple[int, np.ndarray]]


MAX_OBJECTS = 4
"""Most objects of a scene."""
_RADIUS = (0.09, 0.2)  # by the side of the image
_TRIES = 20


def draw_scene(size: int, rng: np.random.Generator) -> Scene:
    """Draws one to four objects, apart from each other, on cluttered background.

    An object's radius is 9 to 20 % of the image's side.

    Args:
        size: Side of the image.
        rng: Of all that is drawn.
    """
    image, labels = background(size, rng), np.zeros([size, size], np.int64)
    taken, objects = [], []
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        label = int(rng.integers(len(CLASS_NAMES)))
        for _ in range(_TRIES):
            radius = size * rng.uniform(*_RADIUS)
            centre = rng.uniform(radius + 1, size - radius - 1, 2)
            distances = [np.hypot(*(centre - c)) - r - radius for c, r in taken]
            if not distances or min(distances) > 0:
                taken.append((centre, radius))
                image, mask = draw_object(image, label, radius, centre, rng)
                labels[mask] = label + 1
                objects.append((label, mask))
                break
    return Scene(to_pixels(image, rng), labels, objects)


def to_pixels(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds noise to a float image in [0, 1]; returns it as uint8."""
    image = image + rng.normal(0, 0.02, image.shape)
    return np.clip(image * 255, 0, 255).astype(np.uint8)


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws dull blotches of two scales, crossed by dull strokes.

    Args:
        size: Side of the image.
        rng: Of all that is drawn.

    Returns:
        Float [size, size, 3] in [0, 1].
    """
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    image = np.full([size, size, 3], 0.5) + rng.normal(0, 0.05, 3)
    for cell, contrast in ((size // 4, 0.06), (size // 8, 0.04)):
        blotches = rng.normal(0, contrast, [-(-size // cell)] * 2 + [3])
        image += np.repeat(np.repeat(blotches, cell, 0), cell, 1)[:size, :size]
    for _ in range(8):
        row, column = rng.uniform(0, size, 2)
        angle = rng.uniform(0, np.pi)
        along = np.cos(angle) * (columns - column) + np.sin(angle) * (rows - row)
        across = np.cos(angle) * (rows - row) - np.sin(angle) * (columns - column)
        stroke = (np.abs(along) < size * rng.uniform(0.1, 0.4)) & (
            np.abs(across) < size / 50
        )
        image[stroke] = rng.uniform(0.35, 0.65, 3)
    return image


def draw_scenes(
    split: str, num_examples: int | None, image_size: int, stream: int, first: int = 0
) -> list[Scene]:
    """Draws the scenes of a split; the same arguments always give the same.

    Args:
        split: "train" or "validation".
        num_examples: How many; None: `SCENE_SPLIT_SIZES`. Fewer are the first of more.
        image_size: Side of the square scenes.
        stream: Of random numbers; every use of scenes has its own.
        first: Number of the first scene in the stream.

    Raises:
        ValueError: On another split, or scenes too small.
    """
    if split not in SCENE_SPLIT_SIZES:
        raise ValueError(
            f"split must be one of {', '.join(SCENE_SPLIT_SIZES)}; got {split!r}"
        )
    domains.INPUT_SIDE.check(image_size, "image_size")
    if image_size < 2 * MIN_SIZE:
        raise ValueError(
            f"image_size must be at least {2 * MIN_SIZE}; got {image_size}"
        )
    if num_examples is None:
        num_examples = SCENE_SPLIT_SIZES[split]
    check_memory(domains.COUNT.check(num_examples, "num_examples"), image_size)
    split_id = list(SCENE_SPLIT_SIZES).index(split)
    return [
        draw_scene(image_size, np.random.default_rng([stream, split_id, image_size, k]))
        for k in range(first, first + num_examples)
    ]
