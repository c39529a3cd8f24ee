"""Masks and index tables of perforated convolutions."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from sact_tf.perforation import make_mask, masks, tables


def test_lines_of_grids():
    assert (masks.grid_lines(27, 13, 0.5) + 1).tolist() == list(range(2, 27, 2))
    assert (masks.grid_lines(28, 14, 0.3) + 1).tolist() == list(range(1, 28, 2))
    assert masks.grid_lines(5, 2, 0.0)[0] == 0  # 0 is no position, counted from 1


@pytest.mark.parametrize(
    "side, keep, lines",
    [(27, 1 / 1.5, 22), (27, 1 / 2, 19), (27, 1 / 3, 15), (27, 1 / 4, 13), (14, 0.5, 9)]
    # Square roots that are whole numbers but for rounding.
    + [(27, 1 / 9, 9), (30, 0.01, 3), (7, 1.0, 7), (9, 1e-9, 1)],
)
def test_grid_keeps_its_lines(side, keep, lines):
    mask = make_mask("grid", side, side, keep, seed=3)
    assert mask.sum() == lines**2
    assert masks.num_kept(side, side, keep, "grid") == lines**2
    assert mask.any(0).sum() == mask.any(1).sum() == lines


def test_grid_of_a_map_that_is_not_square():
    mask = make_mask("grid", 4, 40, 0.25)
    assert mask.any(1).sum() == 2 and mask.any(0).sum() == 20
    assert make_mask("grid", 1, 30, 0.01).sum() == 3


def test_pooling_counts():
    counts = masks.pooling_counts(13, 13, (3, 2))
    assert counts[0].tolist() == [1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 1]
    assert dict(zip(*np.unique(counts, return_counts=True))) == {1: 64, 2: 80, 4: 25}
    assert (masks.pooling_counts(8, 6, (2, 2)) == 1).all()


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size, stride", [(3, 2), (2, 2), (3, 1), (2, 3)])
def test_pooling_counts_are_gradients_of_pooling(size, stride, padding):
    layer = keras.layers.MaxPooling2D(size, stride, padding)
    x = tf.zeros([1, 7, 8, 1])
    ones = tf.ones([size, size, 1, 1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(tf.nn.conv2d(x, ones, stride, padding.upper()))
    expected = tape.gradient(y, x)[0, ..., 0].numpy()
    assert (masks.pooling_counts(7, 8, layer) == expected).all()


def test_structure_keeps_what_most_windows_read():
    mask = make_mask("structure", 13, 13, 25 / 169, pool=(3, 2))
    assert (mask == (masks.pooling_counts(13, 13, (3, 2)) == 4)).all()
    same = {"pool_size": (3, 3), "strides": (2, 2), "padding": "valid"}
    assert (make_mask("structure", 13, 13, 25 / 169, pool=same) == mask).all()


def test_impact_keeps_the_largest():
    scores = np.random.default_rng(0).random([6, 5])
    mask = make_mask("impact", 6, 5, 0.3, scores=scores)
    assert mask.sum() == 9
    assert scores[mask].min() > scores[~mask].max()


@settings(max_examples=40)
@given(
    kind=st.sampled_from(masks.KINDS),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    keep=st.floats(1e-6, 1),
    seed=st.integers(0, 1000),
)
def test_any_mask(kind, height, width, keep, seed):
    known = dict(scores=np.ones([height, width]), pool=(1, 1))
    mask = make_mask(kind, height, width, keep, seed, **known)
    assert mask.shape == (height, width) and mask.dtype == bool
    is_thin = kind == "grid" and keep * min(height, width) ** 2 < 1  # a line at least
    assert 1 <= mask.sum()
    assert is_thin or mask.sum() <= max(1, keep * height * width + 1e-6)
    assert mask.sum() == masks.num_kept(height, width, keep, kind)
    assert (mask == make_mask(kind, height, width, keep, seed, **known)).all()
    if keep == 1:
        assert mask.all()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(kind="random"), "mask must be one of uniform, grid, structure, impact"),
        (dict(keep_fraction=0), "keep_fraction must be a finite number > 0 and <= 1"),
        (dict(keep_fraction=1.5), "keep_fraction must .* got 1.5"),
        (dict(keep_fraction=float("nan")), "keep_fraction must .* got nan"),
        (dict(height=0), "height must be an integer >= 1"),
        (dict(seed=-1), "seed must be"),
        (dict(kind="structure"), "pool must be given"),
        (dict(kind="structure", pool=3), "pool must be .*got 3"),
        (dict(kind="structure", pool=(9, 1)), "pool of 9x9 is larger than the map"),
        (dict(kind="structure", pool=(2, 2, "full")), "padding valid or same"),
        (dict(kind="impact"), "scores must be given"),
        (dict(kind="impact", scores=np.ones([7, 6])), r"shape \(6, 6\).*got \(7, 6\)"),
        (dict(kind="impact", scores=np.full([6, 6], np.nan)), "scores must be finite"),
    ],
)
def test_refused(change, message):
    arguments = dict(kind="grid", height=6, width=6, keep_fraction=0.5)
    with pytest.raises(ValueError, match=message):
        make_mask(**{**arguments, **change})


@settings(max_examples=30)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_nearest_rows(height, width, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random([height, width]) < rng.random()
    mask[rng.integers(height), rng.integers(width)] = True
    nearest = tables.nearest_rows(mask, seed)
    kept = np.argwhere(mask)
    for y, x in np.ndindex(height, width):
        distances = np.square(kept - (y, x)).sum(1)
        assert distances[nearest[y, x]] == distances.min()
    assert (nearest[mask] == np.arange(len(kept))).all()
    assert (nearest == tables.nearest_rows(mask, seed)).all()


def test_ties_are_drawn_evenly():
    mask = np.zeros([3, 3], bool)
    mask[::2, ::2] = True  # the middle has four neighbours
    drawn = [tables.nearest_rows(mask, seed)[1, 1] for seed in range(400)]
    assert min(np.bincount(drawn, minlength=4)) > 70
