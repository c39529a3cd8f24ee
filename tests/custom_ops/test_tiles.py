"""Functions on the active tiles of an image."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import custom_ops


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(*[st.integers(low, 9) for low in (0, 1, 1)]),
    tile_size=st.integers(1, 5),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 100),
)
def test_is_the_convolution_on_active_tiles(shape, tile_size, share, seed):
    rng = np.random.default_rng(seed)
    batch, height, width = shape
    x = rng.normal(size=[*shape, 2])
    filters = rng.normal(size=[3, 3, 2, 2])
    tiles = rng.random([batch, -(-height // tile_size), -(-width // tile_size)]) < share
    mask = tiles.repeat(tile_size, 1).repeat(tile_size, 2)[:, :height, :width]

    def residual(tiles, inside):
        tiles = tf.where(inside, tiles, tf.zeros([], tiles.dtype))
        return tf.nn.conv2d(tiles, filters, 1, "VALID")

    y, sums = custom_ops.add_on_tiles(x, mask, tile_size, 1, residual)
    dense = mask[..., None] * tf.nn.conv2d(x, filters, 1, "SAME")
    np.testing.assert_allclose(y, x + dense, atol=1e-9)
    np.testing.assert_allclose(sums, np.sum(dense, (1, 2)), atol=1e-9)


def test_only_active_tiles_are_computed():
    mask = np.zeros([1, 8, 8], bool)
    mask[0, 4:, :4] = True

    def residual(tiles, inside):
        assert tiles.shape == [1, 6, 6, 1]
        np.testing.assert_array_equal(inside[0, :, :, 0].numpy().sum(1), [5] * 5 + [0])
        return tiles[:, 1:-1, 1:-1]

    custom_ops.add_on_tiles(tf.ones([1, 8, 8, 1]), mask, 4, 1, residual)


def test_bad_arguments():
    x = tf.ones([1, 4, 4, 1])
    with pytest.raises(ValueError, match="tile_size must be >= 1 .* got 0"):
        custom_ops.add_on_tiles(x, x[..., 0], 0, 1, lambda tiles, inside: tiles)
    with pytest.raises(ValueError, match="mask must be"):
        custom_ops.add_on_tiles(x, x, 2, 1, lambda tiles, inside: tiles)
