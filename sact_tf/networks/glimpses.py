"""Glimpses: small windows into images, and the Gaussian policy that places them.

Places are (y, x) in [-1, 1]; (-1, -1) is the top left corner. Around images are zeros,
so that a window there is centred on the corner pixel. Nothing is differentiated through
places: they are learned from the log density of what was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def pad(images: tf.Tensor, size: int) -> tf.Tensor:
    """Pads images [batch, height, width, channels] by zeros for glimpses of a size.

    Places (-1, -1) to (1, 1) are then those whose glimpse's centre is in the image.
    """
    width = (size - 1) // 2
    return tf.pad(images, [[0, 0], [width, width], [width, width], [0, 0]])


def crop(
    padded: tf.Tensor, rows: tf.Tensor, locations: tf.Tensor, size: int
) -> tf.Tensor:
    """Cuts windows out of padded images.

    Args:
        padded: [batch, height, width, channels].
        rows: int32 [n], which image each window is of.
        locations: float32 [n, 2], y and x in [-1, 1]; not differentiated through.
        size: Side of the windows.

    Returns:
        [n, size, size, channels].
    """
    shape = tf.shape(padded)
    free = tf.cast(shape[1:3] - size, tf.float32)
    corner = tf.clip_by_value((locations + 1) / 2 * free, 0.0, free)
    corner = tf.cast(corner, tf.int32)  # towards 0
    # Where training has diverged, NaN became any number; the loss shall tell.
    corner = tf.clip_by_value(corner, 0, shape[1:3] - size)
    y = corner[:, :1] + tf.range(size)
    x = corner[:, 1:] + tf.range(size)
    flat = (rows[:, tf.newaxis, tf.newaxis] * shape[1] + y[:, :, tf.newaxis]) * shape[2]
    pixels = tf.reshape(padded, [-1, padded.shape[-1]])
    return tf.gather(pixels, flat + x[:, tf.newaxis, :])


def look(
    padded: Sequence[tf.Tensor], rows: tf.Tensor, locations: tf.Tensor, size: int
) -> tf.Tensor:
    """Takes glimpses of one or several scales, each of half the resolution.

    Args:
        padded: Images padded for windows of `size`, 2 * `size`, 4 * `size`, ... pixels.
        rows: As of `crop`, and so are the locations.
        locations: The same.
        size: Side of what is returned.

    Returns:
        [n, size, size, scales * channels].
    """
    windows = []
    for k, images in enumerate(padded):
        window = crop(images, rows, locations, size * 2**k)
        windows.append(tf.nn.avg_pool2d(window, 2**k, 2**k, "VALID") if k else window)
    return tf.concat(windows, -1)


def glimpse(
    images: tf.Tensor, locations: tf.Tensor, size: int = 8, scales: int = 1
) -> tf.Tensor:
    """Looks at every image in one place; zeros surround it.

    Args:
        images: float [batch, height, width, channels].
        locations: float32 [batch, 2], y and x in [-1, 1]; (-1, -1) is the top left
            corner.
        size: Side of the window.
        scales: How many; the second window is twice as wide at half the resolution.

    Returns:
        [batch, size, size, scales * channels].

    >>> image = tf.reshape(tf.range(784.0), [1, 28, 28, 1])
    >>> float(glimpse(image, tf.zeros([1, 2]))[0, 0, 0, 0]) == 28 * 10 + 10
    True
    """
    padded = [pad(images, size * 2**k) for k in range(scales)]
    return look(padded, tf.range(tf.shape(images)[0]), locations, size)


def log_density(sample: tf.Tensor, mean: tf.Tensor, std: float) -> tf.Tensor:
    """Log density of independent Gaussians, summed over the last axis.

    The sample is taken as a constant: d log p / d mean = (sample - mean) / std^2.
    """
    scaled = (tf.stop_gradient(sample) - mean) / std
    constant = float(np.log(std * np.sqrt(2 * np.pi)))
    return tf.reduce_sum(-0.5 * tf.square(scaled) - constant, -1)


def choose(
    mean: tf.Tensor, noise: tf.Tensor | None, std: float, scale: float
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Draws where to look next.

    Args:
        mean: What a locator tells, [n, 2]; it is clipped to [-1, 1].
        noise: Standard normal, float32 [n, 2]; None: the mean is taken.
        std: Of the Gaussian.
        scale: Of places: they lie in [-scale, scale].

    Returns:
        The places, float32 [n, 2], and their log density [n], None without noise.
    """
    mean = tf.clip_by_value(tf.cast(mean, tf.float32), -1.0, 1.0)
    if noise is None:
        return mean * scale, None
    sample = tf.stop_gradient(mean + std * noise)
    place = tf.clip_by_value(sample, -1.0, 1.0) * scale
    return place, log_density(sample, mean, std)


def check_windows(image_shape: Sequence[int], glimpse_size: int, scales: int) -> None:
    """Raises ValueError where images are smaller than glimpses of them.

    Args:
        image_shape: Height, width and channels.
        glimpse_size: Side of the smallest window.
        scales: How many there are.
    """
    height, width, _ = image_shape
    largest = glimpse_size * 2 ** (scales - 1)
    side = min(height, width)
    if side < glimpse_size:
        raise ValueError(
            f"glimpse_size must be at most the images' {height} x {width} pixels; got "
            f"{glimpse_size}"
        )
    padded = side + 2 * ((largest - 1) // 2)
    if largest > padded:
        raise ValueError(
            f"glimpse_size must be such that windows fit the padded images' {padded} "
            f"pixels; got {glimpse_size} at {scales} scales, {largest} pixels"
        )
    if largest > 2 * max(height, width):
        raise ValueError(
            f"scales must be such that windows are at most twice as wide as images of "
            f"{height} x {width} pixels, which shows all of them from anywhere; got "
            f"{scales}, {largest} pixels"
        )
