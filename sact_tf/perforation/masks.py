"""Perforation masks: which positions of a convolution's output are computed.

Figurnov et al., "PerforatedCNNs: Acceleration through Elimination of Redundant
Convolutions" (NIPS 2016). The perforation rate of the paper is the share of positions
that is skipped; here everything is said by the share that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tf_keras as keras

from sact_tf.domains import COUNT, SEED, Domain, brief

KINDS = ("uniform", "grid", "structure", "impact")
"""Of masks, by what decides: chance; a grid; how many windows of the next pooling read
a position; how much the loss would change without it."""

KEEP_FRACTION = Domain(0, 1, above=True)
_SLACK = 1e-9  # of products that are whole numbers but for rounding


class Pool(NamedTuple):
    """A pooling layer, as structure masks see it.

    Attributes:
        size: Height and width of its windows.
        strides: Down and across.
        padding: "valid" or "same".
    """

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: str = "valid"


def _pair(value, name):
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be a number or two; got {brief(value)}")
    return tuple(COUNT.check(n, name) for n in pair)


def as_pool(pool: object) -> Pool:
    """Returns a pooling in its usual form.

    Args:
        pool: `(size, strides)` or `(size, strides, padding)`, where size and strides
            are numbers or pairs; a mapping of these names (`pool_size` is size too); or
            a pooling layer of Keras.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(pool, keras.layers.Layer) and hasattr(pool, "pool_size"):
        pool = (pool.pool_size, pool.strides, pool.padding)
    if isinstance(pool, Mapping):
        size = pool.get("pool_size", pool.get("size"))
        pool = (size, pool.get("strides") or size, pool.get("padding", "valid"))
    if not isinstance(pool, Sequence) or len(pool) not in (2, 3):
        raise ValueError(
            "pool must be (size, strides) or (size, strides, padding), or a pooling "
            f"layer; got {brief(pool)}"
        )
    padding = str(pool[2]).lower() if len(pool) == 3 else "valid"
    if padding not in ("valid", "same"):
        raise ValueError(f"pool must have padding valid or same; got {brief(pool[2])}")
    size = _pair(pool[0], "pool size")
    return Pool(size, _pair(size if pool[1] is None else pool[1], "strides"), padding)


def num_windows(size: int, window: int, stride: int, padding: str) -> tuple[int, int]:
    """Returns how many windows lie along an axis, and where the first one begins.

    These are TensorFlow's rules of padding: "same" begins before the first position
    where padding is needed.
    """
    if padding == "valid":
        return max((size - window) // stride + 1, 0), 0
    count = -(-size // stride)
    total = max((count - 1) * stride + window - size, 0)
    return count, -(total // 2)


def pooling_counts(height: int, width: int, pool: object) -> np.ndarray:
    """Returns how many windows of a pooling read each position, int64 [height, width].

    Args:
        height: Of the map that is pooled.
        width: Of the map.
        pool: As of `as_pool`.

    Raises:
        ValueError: `pool` is no pooling, or its windows do not fit into the map.

    >>> pooling_counts(1, 7, ((1, 3), (1, 2)))[0].tolist()
    [1, 1, 2, 1, 2, 1, 1]
    """
    pool = as_pool(pool)
    axes = []
    for size, window, stride in zip((height, width), pool.size, pool.strides):
        count, start = num_windows(size, window, stride, pool.padding)
        if not count:
            raise ValueError(
                f"pool of {pool.size[0]}x{pool.size[1]} is larger than the map, "
                f"{height}x{width}"
            )
        first = start + stride * np.arange(count)
        position = np.arange(size)[:, np.newaxis]
        axes.append(((first <= position) & (position < first + window)).sum(1))
    return np.outer(*axes)


def grid_lines(size: int, count: int, u: float) -> np.ndarray:
    """Returns the lines of a grid along an axis, int64 [count], ascending from 0.

    As in fractional max pooling: counted from 1, line i = 0, 1, ... is
    ceil(size / count * (i + u)).

    Args:
        size: Positions along the axis.
        count: Lines, at most `size`.
        u: In [0, 1), moves all lines.

    >>> (grid_lines(27, 13, 0.5) + 1).tolist()
    [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26]
    """
    lines = np.ceil(size / count * (np.arange(count) + u) - _SLACK)
    return np.clip(lines.astype(np.int64), 1, size) - 1


def num_grid_lines(size: int, keep_fraction: float) -> int:
    """Returns how many lines a grid has along an axis of so many positions.

    >>> num_grid_lines(14, 0.5)  # 9 * 9 of 14 * 14 positions are 0.413
    9
    """
    return min(max(1, math.floor(math.sqrt(keep_fraction) * size + _SLACK)), size)


def num_kept(height: int, width: int, keep_fraction: float, kind: str) -> int:
    """Returns how many positions a mask keeps, which is known without making it."""
    if kind == "grid":
        return num_grid_lines(height, keep_fraction) * num_grid_lines(
            width, keep_fraction
        )
    return max(1, math.floor(keep_fraction * height * width + _SLACK))


def _check_scores(scores, height, width):
    scores = np.asarray(scores, np.float64)
    if scores.shape != (height, width):
        raise ValueError(
            f"scores must be of shape {(height, width)}, the map's; got {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite; got NaN or infinity")
    return scores


def make_mask(
    kind: str,
    height: int,
    width: int,
    keep_fraction: float,
    seed: int = 0,
    *,
    scores: object = None,
    pool: object = None,
) -> np.ndarray:
    """Makes a perforation mask.

    All but the grid keep the floor(keep_fraction * height * width) positions of the
    largest scores, and at least one; chance decides between equal scores. The grid has
    max(1, floor(sqrt(keep_fraction) * side)) lines per axis, and so keeps less than
    asked for, where a map is not too thin; `mask.mean()` is what it keeps.

    Args:
        kind: One of `KINDS`.
        height: Of the convolution's output.
        width: Of the output.
        keep_fraction: Share of positions to keep, in (0, 1].
        seed: Of all that is drawn.
        scores: Of "impact", which needs them: [height, width], see `impact_scores`.
        pool: Of "structure", which needs it: the pooling that reads the output, as of
            `as_pool`. For 2x2 windows of stride 2 this mask is uniform.

    Returns:
        Bool [height, width], True where the convolution is computed.

    Raises:
        ValueError: An argument is none of these.

    >>> int(make_mask("uniform", 4, 4, 0.5).sum())
    8
    >>> make_mask("structure", 1, 7, 0.3, pool=((1, 3), (1, 2))).astype(int)
    array([[0, 0, 1, 0, 1, 0, 0]])
    """
    if kind not in KINDS:
        raise ValueError(f"mask must be one of {', '.join(KINDS)}; got {brief(kind)}")
    KEEP_FRACTION.check(keep_fraction, "keep_fraction")
    height, width = COUNT.check(height, "height"), COUNT.check(width, "width")
    rng = np.random.default_rng(SEED.check(seed, "seed"))
    if kind == "grid":
        mask = np.zeros([height, width], bool)
        rows, columns = (
            grid_lines(size, num_grid_lines(size, keep_fraction), rng.random())
            for size in (height, width)
        )
        mask[np.ix_(rows, columns)] = True
        return mask
    if kind == "uniform":
        values = np.zeros([height, width])
    elif kind == "structure":
        if pool is None:
            raise ValueError("pool must be given for structure masks; got None")
        values = pooling_counts(height, width, pool)
    else:
        if scores is None:
            raise ValueError("scores must be given for impact masks; got None")
        values = _check_scores(scores, height, width)
    order = np.lexsort([rng.random(height * width), -values.ravel()])
    mask = np.zeros(height * width, bool)
    mask[order[: num_kept(height, width, keep_fraction, kind)]] = True
    return mask.reshape(height, width)


def check_mask(mask: object, height: int, width: int) -> np.ndarray:
    """Returns a mask of one's own as bool [height, width].

    Raises:
        ValueError: It is of another shape or type, or keeps nothing.
    """
    mask = np.asarray(mask)
    if mask.shape != (height, width):
        raise ValueError(
            f"mask must be of shape {(height, width)}, that of the convolution's "
            f"output; got {mask.shape}"
        )
    if mask.dtype != bool:
        raise ValueError(f"mask must be bool; got {mask.dtype}")
    if not mask.any():
        raise ValueError("mask must keep at least one position; got none")
    return mask
