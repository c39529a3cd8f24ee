"""The loss, weights of classes, confusion and IoU."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from sact_tf.segmentation import VOID, losses, metrics


def test_cross_entropy_of_hand():
    logits = np.log([[[[0.5, 0.25, 0.25]], [[0.1, 0.8, 0.1]], [[1, 1, 1]]]])
    labels = tf.constant([[[0], [2], [VOID]]])
    sums, weights = losses.cross_entropy(tf.constant(logits, tf.float32), labels)
    np.testing.assert_allclose(sums, [-np.log(0.5) - np.log(0.1)], rtol=1e-5)
    np.testing.assert_allclose(weights, [2.0])
    sums, weights = losses.cross_entropy(
        tf.constant(logits, tf.float32), labels, tf.constant([2.0, 7.0, 3.0])
    )
    np.testing.assert_allclose(sums, [-2 * np.log(0.5) - 3 * np.log(0.1)], rtol=1e-5)
    np.testing.assert_allclose(weights, [5.0])


def test_void_has_neither_loss_nor_gradient():
    logits = tf.random.stateless_normal([2, 3, 4, 5], [1, 2])
    labels = tf.fill([2, 3, 4], VOID)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        sums, weights = losses.cross_entropy(logits, labels)
    assert not np.any(sums) and not np.any(weights)
    assert not np.any(tape.gradient(sums, logits))


def test_class_weights():
    pixels = np.array([600, 300, 100, 0])
    assert losses.class_weights("none", pixels) is None
    for kind in ("median", "log"):
        weights = losses.class_weights(kind, pixels)
        assert np.all(np.diff(weights) > 0)
        np.testing.assert_allclose((weights * pixels).sum() / 1000, 1, rtol=1e-5)
    median = losses.class_weights("median", pixels)
    np.testing.assert_allclose(median[:3] * pixels[:3], median[0] * 600, rtol=1e-5)
    log = losses.class_weights("log", pixels)
    expected = np.log(1.02 + 0.6) / np.log(1.02 + 0.1)
    np.testing.assert_allclose(log[2] / log[0], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="class_weighting must be one of .*; got 'x'"):
        losses.class_weights("x", pixels)


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2)), min_size=1))
def test_confusion_counts_pairs(pairs):
    labels, classes = (tf.constant(x, tf.int32) for x in zip(*pairs))
    found = metrics.confusion(labels, classes, 3).numpy()
    expected = np.zeros([3, 3], int)
    for label, predicted in pairs:
        if label != VOID:
            expected[label, predicted] += 1
    np.testing.assert_array_equal(found, expected)


def test_scores_of_hand():
    matrix = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]])
    iou = metrics.class_iou(matrix)
    np.testing.assert_allclose(iou[[0, 1, 3]], [6 / 11, 3 / 6, 0])
    assert np.isnan(iou[2])  # neither labelled nor predicted
    scores = metrics.scores(matrix)
    np.testing.assert_allclose(scores["Mean IoU"], (6 / 11 + 0.5 + 0) / 3)
    np.testing.assert_allclose(scores["Pixel Accuracy"], 9 / 14)
    np.testing.assert_allclose(scores["Mean Accuracy"], (6 / 8 + 3 / 4 + 0) / 3)
    running = metrics.MeanIoU(4)
    running.matrix.assign(matrix)
    np.testing.assert_allclose(running.result(), scores["Mean IoU"])
    running.reset_state()
    assert running.result() == 0
    with pytest.raises(ValueError, match="all pixels are void"):
        metrics.scores(np.zeros([2, 2]))
