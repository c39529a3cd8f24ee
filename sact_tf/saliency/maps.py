"""From a ponder cost map to a saliency map (SACT, sections 4.3 and A.3)."""

from __future__ import annotations

import functools
import math

import numpy as np

from sact_tf.domains import AT_LEAST_0, POSITIVE, SIGMA
from sact_tf.optional import lazy

ndimage = lazy("scipy.ndimage")
sparse = lazy("scipy.sparse")
special = lazy("scipy.special")

_MAX_ASPECT_DIFFERENCE = 0.02


def centre_prior(height: int, width: int) -> np.ndarray:
    """Returns the centre map B of the MIT saliency benchmark at a size.

    The published map is 100x100, B[i, j] = 1 - ((i - 49)^2 + (j - 49)^2) / 5000 with
    indices from 0. Another size samples that paraboloid at its pixels' centres; at the
    border of a large map it reads down to -0.02.

    Returns:
        float64 [height, width], at most 1.

    >>> float(centre_prior(100, 100)[49, 49])
    1.0
    """
    i = (np.arange(height) + 0.5) * (100 / height) - 0.5
    j = (np.arange(width) + 0.5) * (100 / width) - 0.5
    return 1 - (np.square(i - 49)[:, np.newaxis] + np.square(j - 49)) / 5000


def normalise(values: np.ndarray) -> np.ndarray:
    """Maps a map's values to [0, 1], a constant map to zeros.

    Args:
        values: [height, width], finite.

    Returns:
        float64 [height, width].

    Raises:
        ValueError: It is not a map, or has values that are not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"a map must be [height, width]; got shape {values.shape}")
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise ValueError("a map must be finite; got NaN or infinite values")
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs with a Gaussian; the map goes on beyond its border as its mirror image.

    Args:
        values: [height, width].
        sigma: Standard deviation in pixels of this map; 0 changes nothing.

    Raises:
        ValueError: `sigma` is negative, not finite, or more than 10000.
    """
    sigma = SIGMA.check(AT_LEAST_0.check(sigma, "sigma"), "sigma")
    return ndimage.gaussian_filter(np.asarray(values, np.float64), sigma)


def blend(values: np.ndarray, centre: np.ndarray, gamma: float) -> np.ndarray:
    """Returns `values + gamma * centre`; with gamma = infinity its limit, `centre`.

    Raises:
        ValueError: `gamma` is negative or NaN.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be >= 0; got {gamma}")
    return centre if gamma == math.inf else values + gamma * centre


def saliency_map(ponder_cost: np.ndarray, sigma: float, gamma: float) -> np.ndarray:
    """Normalises, blurs and adds the centre prior (SACT, section A.3).

    Args:
        ponder_cost: [height, width], summed over blocks at the network's input size, or
            any other map.
        sigma: Of the blur, in pixels of this map.
        gamma: Weight of the centre prior; infinity leaves nothing else.

    Returns:
        float64 [height, width]. A constant map becomes `gamma * centre_prior`.

    Raises:
        ValueError: On any other map, sigma or gamma.
    """
    blurred = blur(normalise(ponder_cost), sigma)
    return blend(blurred, centre_prior(*blurred.shape), gamma)


def check_aspect(size: tuple[int, int], wanted: tuple[int, int], name: str) -> None:
    """Checks that one (height, width) is the other scaled, so that resizing is meant.

    Args:
        size: (height, width) of what is named.
        wanted: (height, width) that it will be resized to.
        name: What the error calls it.

    Raises:
        ValueError: The ratios of the sides differ by more than 2 % and by more than a
            pixel of rounding explains.
    """
    (height, width), (wanted_height, wanted_width) = size, wanted
    scale = (height + width) / (wanted_height + wanted_width)
    difference = abs(height * wanted_width - width * wanted_height)
    allowed = _MAX_ASPECT_DIFFERENCE * height * wanted_width
    rounding = max(wanted_height, wanted_width) * max(1.0, scale)
    if difference > max(allowed, rounding):
        raise ValueError(
            f"{name}: is {width}x{height}, which is no scaled version of "
            f"{wanted_width}x{wanted_height}"
        )


def resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes bilinearly with half-pixel centres, which is linear in the values.

    A map that shrinks is blurred first, by half of (scale - 1) pixels.

    Args:
        values: [any height, any width].
        height: Of the result.
        width: Of the result.

    Returns:
        float64 [height, width].
    """
    values = np.asarray(values, np.float64)
    if values.shape == (height, width):
        return values
    rows = _resize_matrix(values.shape[0], height)
    columns = _resize_matrix(values.shape[1], width)
    return np.ascontiguousarray((columns @ (rows @ values).T).T)


@functools.lru_cache(maxsize=64)
def _resize_matrix(size, new_size):
    """Resizing of one axis as a sparse matrix [new_size, size], faster than zooming."""
    identity = np.eye(size)
    if new_size < size:
        sigma = (size / new_size - 1) / 2
        identity = ndimage.gaussian_filter1d(identity, sigma, axis=0, mode="nearest")
    factors = (new_size / size, 1)
    return sparse.csr_array(
        ndimage.zoom(identity, factors, order=1, mode="nearest", grid_mode=True)
    )


def display_softmax(values: np.ndarray, temperature: float = 0.2) -> np.ndarray:
    """Sharpens a map for display, as the figures of the SACT paper do.

    Args:
        values: [height, width].
        temperature: Of the softmax over all positions of the normalised map, > 0.

    Returns:
        float64 [height, width] that sums to 1.

    Raises:
        ValueError: It is no map, or `temperature` is not positive.
    """
    POSITIVE.check(temperature, "temperature")
    return special.softmax(normalise(values) / temperature)


def fixation_counts(xy: np.ndarray, height: int, width: int) -> np.ndarray:
    """Counts the fixations on every pixel.

    Args:
        xy: [n, 2] in pixels, x to the right and y down; pixel (row, column) covers
            [column, column + 1) x [row, row + 1). All lie inside.
        height: Of the result.
        width: Of the result.

    Returns:
        int64 [height, width].
    """
    column, row = np.floor(np.asarray(xy)).astype(int).reshape(-1, 2).T
    counts = np.bincount(row * width + column, minlength=height * width)
    return counts.reshape(height, width)


def fixation_map(xy: np.ndarray, height: int, width: int) -> np.ndarray:
    """Marks the pixels of `fixation_counts` that have any, bool [height, width]."""
    return fixation_counts(xy, height, width) > 0


def human_sigma(height: int, width: int) -> float:
    """Returns the blur that makes the MIT benchmark's human maps, in pixels.

    Its low-pass filter halves 8 cycles per image, padded to a square whose side is a
    power of two: exp(-f^2 ln 2 / 8^2), in space a Gaussian of this standard deviation.

    >>> round(human_sigma(600, 800), 2)
    23.99
    """
    side = 2 ** math.ceil(math.log2(max(height, width)))
    return side * math.sqrt(math.log(2) / 2) / (8 * math.pi)


def human_map(fixations: np.ndarray, sigma: float | None = None) -> np.ndarray:
    """Blurs fixations to a density, as the MIT benchmark does; nothing lies outside.

    Args:
        fixations: [height, width], marked pixels or numbers of fixations.
        sigma: Of the Gaussian in pixels; None: `human_sigma`.

    Returns:
        float64 [height, width], at least 0.

    Raises:
        ValueError: `sigma` is negative, not finite, or more than 10000.
    """
    if sigma is None:
        sigma = human_sigma(*fixations.shape)
    SIGMA.check(sigma, "sigma")
    values = np.asarray(fixations, np.float64)
    return ndimage.gaussian_filter(values, sigma, mode="constant")
