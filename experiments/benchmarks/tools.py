"""What the benchmarks share: imposed halting, timing by turns, flags' values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tf_keras as keras

from sact_tf.timing import time_by_turns  # noqa: F401 (as which it was known here)


def parse_sides(flag: str, text: str) -> tuple[int, int]:
    """Reads "38x63"."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(
            f"--{flag}: expected two sizes >= 1 such as 38x63; got {text!r}"
        )
    return int(parts[0]), int(parts[1])


def parse_numbers(flag: str, texts: list[str], low: float, high: float) -> list[float]:
    """Reads numbers of an interval."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = []
    if not numbers or not all(low <= number <= high for number in numbers):
        raise ValueError(
            f"--{flag}: expected numbers in [{low:g}, {high:g}], joined by commas; got "
            f"{','.join(texts)!r}"
        )
    return numbers


def ranks(height: int, width: int, pattern: str) -> np.ndarray:
    """Orders positions: [height, width], ranks in [0, 1), small ones run longer."""
    if pattern == "random":
        field = np.random.default_rng(0).random([height, width])
    else:  # an ellipse off the centre
        y, x = np.mgrid[:height, :width]
        field = ((y / height - 0.55) / 0.8) ** 2 + (x / width - 0.4) ** 2
    order = np.argsort(field, axis=None, kind="stable")
    result = np.empty(height * width)
    result[order] = np.arange(height * width) / (height * width)
    return result.reshape(height, width)


def imposed_units(
    height: int, width: int, num_units: int, mean: float, pattern: str
) -> np.ndarray:
    """Returns how many of a block's units every position runs, int [height, width].

    Unit k of n runs at a share (1 - (k - 1) / n) ** g of the positions, with g such
    that positions run `mean` units on average.
    """
    if pattern in ("full", "empty"):
        return np.full([height, width], num_units if pattern == "full" else 1)
    low, high = -12.0, 12.0  # logarithm of g
    for _ in range(60):
        middle = (low + high) / 2
        shares = (1 - np.arange(num_units) / num_units) ** np.exp(middle)
        low, high = (middle, high) if shares.sum() > mean else (low, middle)
    shares[0] = 1.0
    return (ranks(height, width, pattern)[..., None] < shares).sum(-1)


def in_tiles(units: Callable, tile_size: int) -> Callable:
    """Makes a function of an image size to units per position the same within tiles."""

    def tiled(height, width):
        tiles = units(-(-height // tile_size), -(-width // tile_size))
        spread = tiles.repeat(tile_size, 0).repeat(tile_size, 1)
        return spread[:height, :width]

    return tiled


def impose_halting(
    blocks: Sequence[keras.layers.Layer],
    means: Sequence[float],
    pattern: str,
    tile_size: int = 1,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Makes adaptive blocks halt where a pattern says; their heads run all the same.

    Args:
        blocks: As many as there are means, or more, which stay as they are.
        means: Mean units run at a position, for each block.
        pattern: As in `imposed_units`.
        tile_size: Side of the tiles that halt together.
        sizes: Height and width of each block's output; None: they are known when the
            blocks are called.

    Raises:
        ValueError: Naming --units_per_block, if a block has fewer units.
    """
    for number, (block, mean) in enumerate(zip(blocks, means)):
        num_units = len(block.units)
        if not mean <= num_units:
            raise ValueError(
                f"--units_per_block: {block.name} has {num_units} units; got {mean:g}"
            )

        def units(height, width, num_units=num_units, mean=mean):
            return imposed_units(height, width, num_units, mean, pattern)

        if tile_size > 1:
            units = in_tiles(units, tile_size)
        if block.is_adaptive:
            block.impose_units(units if sizes is None else units(*sizes[number]))
