"""Index tables: what a perforated convolution reads, and who reads its rows.

A map [batch, height, width, channels] is taken as rows [batch, height * width,
channels]. A perforated convolution computes some rows of its output. The table
`nearest` tells for every position of the output the row that stands for it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sact_tf.perforation.masks import num_windows


class Windows(NamedTuple):
    """The windows that a convolution or pooling slides over a map.

    Attributes:
        height: Of the map that is read.
        width: Of the map.
        size: Height and width of a window in taps.
        strides: Down and across.
        padding: "valid" or "same", as TensorFlow means them.
        dilation: Distance of taps, down and across.
    """

    height: int
    width: int
    size: tuple[int, int]
    strides: tuple[int, int]
    padding: str
    dilation: tuple[int, int] = (1, 1)

    def _axis(self, axis):
        window = (self.size[axis] - 1) * self.dilation[axis] + 1
        side = (self.height, self.width)[axis]
        return num_windows(side, window, self.strides[axis], self.padding)

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of what the windows give."""
        return self._axis(0)[0], self._axis(1)[0]

    def taps(self, positions: tf.Tensor) -> tf.Tensor:
        """Returns what some windows read.

        Args:
            positions: int32 [n], flat indices into the output.

        Returns:
            int32 [n, taps], flat indices into the map, row by row; -1 in the padding.
        """
        positions = tf.convert_to_tensor(positions, tf.int32)
        output_width = self.output[1]
        places = (positions // output_width, positions % output_width)
        inside, index = True, 0
        for axis, side in enumerate((self.height, self.width)):
            taps = np.arange(self.size[axis], dtype=np.int32) * self.dilation[axis]
            taps = taps.reshape([1, -1, 1] if axis == 0 else [1, 1, -1])
            start = places[axis][:, np.newaxis, np.newaxis] * self.strides[axis]
            place = start + self._axis(axis)[1] + taps
            inside = (place >= 0) & (place < side) & inside
            index = index * side + place
        index = tf.where(inside, index, -1)
        return tf.reshape(index, [-1, self.size[0] * self.size[1]])

    def all_taps(self) -> tf.Tensor:
        """Returns what all windows read, int32 [output height * width, taps]."""
        height, width = self.output
        return self.taps(tf.range(height * width))


def compose(taps: tf.Tensor, nearest: tf.Tensor) -> tf.Tensor:
    """Returns taps that read compact rows as others read the interpolated map.

    Padding stays padding: it is zero, and not interpolated.

    Args:
        taps: int32 [n, taps], flat indices into a map, or -1.
        nearest: int32 [height, width] of the map: its rows.
    """
    rows = tf.gather(tf.reshape(nearest, [-1]), tf.maximum(taps, 0))
    return tf.where(taps < 0, -1, rows)


def _column_distances(mask):
    """Distance to the nearest kept position of the same column; large where none is."""
    height, width = mask.shape
    far = height + width + 1
    places = np.arange(height)[:, np.newaxis]
    above = np.maximum.accumulate(np.where(mask, places, -far), 0)
    below = np.minimum.accumulate(np.where(mask, places, height + far)[::-1], 0)[::-1]
    return np.minimum(places - above, below - places)


def squared_distances(mask: np.ndarray) -> np.ndarray:
    """Returns the squared distance of every position to the nearest kept one.

    Args:
        mask: bool [height, width], of which at least one is True.

    Returns:
        int64 [height, width].
    """
    columns = np.arange(mask.shape[1])
    across = np.square(columns[:, np.newaxis] - columns)  # [width, width]
    down = np.square(_column_distances(mask).astype(np.int64))
    return np.stack([(across + row).min(1) for row in down])


def nearest_rows(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the row of the nearest kept position, by Euclidean distance.

    Among equally near ones each is as likely as the others; it is drawn here, once.

    Args:
        mask: bool [height, width], of which at least one is True.
        seed: Of what is drawn.

    Returns:
        int32 [height, width], indices into the kept positions in their order.

    >>> nearest_rows(np.array([[True, False, False, False, True]])).tolist()[0][::4]
    [0, 1]
    """
    height, width = mask.shape
    rows = np.where(mask, np.cumsum(mask).reshape(mask.shape) - 1, -1)
    rng = np.random.default_rng([seed, 1])
    nearest = np.full([height, width], -1, np.int32)
    distances = squared_distances(mask)
    for distance in np.unique(distances):
        y, x = np.nonzero(distances == distance)
        count = np.zeros(len(y), np.int64)
        for dy, dx in _offsets(int(distance)):
            ny, nx = y + dy, x + dx
            is_near = (ny >= 0) & (ny < height) & (nx >= 0) & (nx < width)
            row = rows[np.where(is_near, ny, 0), np.where(is_near, nx, 0)]
            is_near &= row >= 0
            count += is_near
            # The k-th of equals takes the place of those before with chance 1/k.
            takes = is_near & (rng.random(len(y)) * count < 1)
            nearest[y[takes], x[takes]] = row[takes]
    return nearest


def _offsets(distance):
    """All whole (dy, dx) with dy^2 + dx^2 = distance."""
    reach = math.isqrt(distance)
    for dy in range(-reach, reach + 1):
        rest = distance - dy * dy
        dx = math.isqrt(rest)
        if dx * dx == rest:
            yield dy, dx
            if dx:
                yield dy, -dx
