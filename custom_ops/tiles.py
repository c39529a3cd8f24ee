"""Dense computation on the active tiles of an image, in plain TensorFlow operations.

Where masks are constant in k x k tiles, whole tiles can be gathered, and what runs on
them is an ordinary dense convolution (SACT, section 2.3). The price is that a tile
brings along its surroundings, as far as the convolutions read.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from custom_ops.positions import as_mask


def add_on_tiles(
    x: tf.Tensor,
    mask: tf.Tensor,
    tile_size: int,
    halo: int,
    residual: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Adds a function of x to x, computed on the active tiles.

    Tiles begin at the top left corner; those at the bottom and right may be cut off.

    Args:
        x: [batch, height, width, channels].
        mask: [batch, height, width], bool or numbers (non-zero: compute); a tile is
            active if its top left position is.
        tile_size: Side k of the tiles, at least 1.
        halo: How many positions around a tile the function needs.
        residual: Maps tiles [n, k + 2 * halo, k + 2 * halo, channels] and which of
            their positions lie in the image (bool, the same without channels, with a
            last axis of 1) to [n, k, k, channels]. Positions outside hold anything.

    Returns:
        The sum, shaped like x, and the residuals summed over positions,
        [batch, channels].

    Raises:
        ValueError: If `tile_size`, `halo`, or the mask's type or rank does not fit.
    """
    if tile_size < 1 or halo < 0:
        raise ValueError(
            f"tile_size must be >= 1 and halo >= 0; got {tile_size} and {halo}"
        )
    x = tf.convert_to_tensor(x)
    mask = as_mask(mask, (3,))
    batch, height, width, channels = tf.unstack(tf.shape(x, out_type=tf.int64))
    tiles = tf.where(mask[:, ::tile_size, ::tile_size])  # [n, 3]
    image = tiles[:, 0, tf.newaxis, tf.newaxis]
    side = tf.range(-halo, tile_size + halo, dtype=tf.int64)
    y = (tiles[:, 1, tf.newaxis] * tile_size + side)[:, :, tf.newaxis]
    x_ = (tiles[:, 2, tf.newaxis] * tile_size + side)[:, tf.newaxis, :]
    inside = (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
    index = tf.where(inside, (image * height + y) * width + x_, 0)
    rows = tf.reshape(x, [batch * height * width, channels])

    def compute():
        residuals = residual(tf.gather(rows, index), inside[..., tf.newaxis])
        centre = slice(halo, halo + tile_size)
        kept = tf.where(inside[:, centre, centre])
        residuals = tf.gather_nd(residuals, kept)
        to = tf.gather_nd(index[:, centre, centre], kept)[:, tf.newaxis]
        images = tf.gather(tiles[:, 0], kept[:, 0])
        sums = tf.math.unsorted_segment_sum(residuals, images, tf.cast(batch, tf.int32))
        return tf.tensor_scatter_nd_add(rows, to, residuals), sums

    # Not without tiles: TensorFlow's convolutions may not take an empty batch.
    rows, sums = tf.cond(
        tf.size(tiles) > 0,
        compute,
        lambda: (tf.identity(rows), tf.zeros([batch, channels], x.dtype)),
    )
    return tf.reshape(rows, tf.shape(x)), sums
