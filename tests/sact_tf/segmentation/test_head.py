"""The head: pooling of any size, its parts, its operations."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from sact_tf.segmentation.head import SegmentationHead, adaptive_average, resize

FEATURES = [(9, 13, 4), (5, 7, 8), (3, 4, 8), (2, 2, 16)]


def features(batch=2):
    return [
        tf.random.stateless_normal([batch, *shape], [k, 1])
        for k, shape in enumerate(FEATURES)
    ]


def make(channels=6, bins=(1, 2, 3)):
    head = SegmentationHead(5, channels, bins)
    head.build([tf.TensorShape([None, *shape]) for shape in FEATURES])
    return head


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_averages_are_of_rectangles(height, width, bins):
    x = np.random.default_rng(0).normal(size=[1, height, width, 2])
    pooled = adaptive_average(tf.constant(x), bins).numpy()
    for i in range(bins):
        for j in range(bins):
            rows = slice(i * height // bins, -(-(i + 1) * height // bins))
            columns = slice(j * width // bins, -(-(j + 1) * width // bins))
            expected = x[:, rows, columns].mean((1, 2))
            np.testing.assert_allclose(pooled[:, i, j], expected, rtol=1e-6)


def test_one_average_is_that_of_all():
    x = features()[0]
    np.testing.assert_allclose(
        adaptive_average(x, 1)[:, 0, 0], tf.reduce_mean(x, [1, 2]), rtol=1e-4, atol=1e-6
    )


def test_parameters_are_counted_by_hand():
    """Convolutions, gamma and beta of each but pyramids, which have a bias; logits."""
    head, n = make(), 6
    own = 3 * (16 * n) + 9 * (16 + 3 * n) * n  # pyramids and top
    own += sum(c * n for c in (4, 8, 8)) + 3 * 9 * n * n  # laterals and outputs
    own += 9 * 4 * n * n  # fusion
    norms = n * 3 + 2 * n * (1 + 3 + 3 + 1)
    logits = 5 * n + 5
    found = sum(int(np.prod(v.shape)) for v in head.trainable_variables)
    assert found == own + norms + logits


def test_operations_are_counted_by_hand():
    head, n = make(), 6
    sizes = [h * w for h, w, _ in FEATURES]
    expected = (1 + 4 + 9) * 16 * n + sizes[3] * 9 * (16 + 3 * n) * n
    for size, channels in zip(sizes, (4, 8, 8)):
        expected += size * (channels * n + 9 * n * n)
    expected += sizes[0] * (9 * 4 * n * n + n * 5)
    assert head.flops(features()).numpy().tolist() == [2 * expected] * 2


def test_coarse_features_reach_every_logit():
    """The pyramid's single average makes each position see all of the image."""
    head = make(bins=(1,))
    fine = features(1)
    with tf.GradientTape() as tape:
        tape.watch(fine[3])
        corner = tf.reduce_sum(head(fine, training=False)[0, 0, 0])
    assert np.all(np.abs(tape.gradient(corner, fine[3])).sum(-1) > 0)


def test_resizing_keeps_the_type_and_constants():
    x = tf.fill([1, 3, 5, 2], tf.constant(0.25, tf.float16))
    y = resize(x, [7, 4])
    assert y.dtype == tf.float16 and y.shape == [1, 7, 4, 2]
    np.testing.assert_array_equal(y, np.full([1, 7, 4, 2], 0.25))


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(channels=0), "head_channels must be an integer from 1 to 4096; got 0"),
        (dict(bins=(0,)), "bins must be an integer >= 1"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        SegmentationHead(3, **values)
