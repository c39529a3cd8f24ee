"""Anchors, their samples and targets, and proposals, against small cases by hand."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from official.vision.ops import box_ops

from object_detection.anchors import anchor_grid, sample_anchors
from object_detection.proposals import propose

GRID = anchor_grid(2, 3, 16, [16], [1.0])


def test_grid():
    centres = (GRID[:, :2] + GRID[:, 2:]) / 2
    by_hand = [[8, 8], [8, 24], [8, 40], [24, 8], [24, 24], [24, 40]]
    np.testing.assert_allclose(centres, by_hand)
    np.testing.assert_allclose(GRID[0], [0, 0, 16, 16])


def test_sizes_and_ratios():
    grid = anchor_grid(1, 2, 16, [64, 128], [0.5, 1.0, 2.0]).numpy()
    assert grid.shape == (2 * 6, 4)
    shift = np.tile([0, 16, 0, 16], [6, 1])
    np.testing.assert_allclose(grid[6:] - grid[:6], shift, atol=1e-4)
    heights, widths = grid[:6, 2] - grid[:6, 0], grid[:6, 3] - grid[:6, 1]
    np.testing.assert_allclose(widths / heights, [0.5, 1, 2, 0.5, 1, 2], rtol=1e-5)
    np.testing.assert_allclose(
        np.sqrt(widths * heights), [64] * 3 + [128] * 3, rtol=1e-5
    )


def test_box_coding_by_hand():
    """A box 2 px lower and twice as wide as its anchor of 10x20."""
    anchor = tf.constant([[0.0, 0.0, 10.0, 20.0]])
    box = tf.constant([[2.0, -10.0, 12.0, 30.0]])
    encoded = box_ops.encode_boxes(box, anchor)
    np.testing.assert_allclose(encoded, [[0.2, 0.0, 0.0, np.log(2)]], atol=1e-6)
    np.testing.assert_allclose(box_ops.decode_boxes(encoded, anchor), box, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=2),
    st.lists(st.floats(1, 60), min_size=2, max_size=2),
)
def test_box_coding_round_trip(corner, sides):
    box = tf.constant([[*corner, corner[0] + sides[0], corner[1] + sides[1]]])
    anchor = tf.constant([[5.0, 6.0, 25.0, 46.0]])
    decoded = box_ops.decode_boxes(box_ops.encode_boxes(box, anchor), anchor)
    np.testing.assert_allclose(decoded, box, atol=2e-3)


def labels_of(boxes, allowed=None, num_samples=6):
    """Labels by anchor of GRID; -2 where it is not drawn."""
    allowed = tf.ones([1, 6], tf.bool) if allowed is None else tf.constant([allowed])
    boxes = tf.constant([boxes], tf.float32)
    indices, labels, targets = sample_anchors(GRID, allowed, boxes, num_samples)
    assert labels.shape == [1, num_samples] and targets.shape == [1, num_samples, 4]
    result = np.full([6], -2)
    for index, label, target in zip(indices[0], labels[0], targets[0].numpy()):
        if label >= 0:
            result[int(index)] = int(label)
        assert label == 1 or not target.any()
    return result.tolist(), targets.numpy()


def test_samples_by_hand():
    # Right on anchor 1, except for two pixels; anchor 0 and 2 overlap by little.
    labels, targets = labels_of([[0, 18, 16, 34], [-1] * 4])
    assert labels == [0, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(targets.max(), 2 / 16, rtol=1e-4)


def test_the_best_anchor_of_a_box_is_its_object():
    # IoU 1/3 with anchors 0 and 1 each, more with none.
    labels, _ = labels_of([[0, 8, 16, 24]])
    assert labels == [1, 1, 0, 0, 0, 0]


def test_neither_object_nor_background():
    # IoU 16/20 with anchor 0, and 12*16 / (256+320-192) = 0.5 with anchor 1.
    labels, _ = labels_of([[0, 0, 16, 16], [0, 12, 16, 32]])
    assert labels[0] == 1 and labels[1] == 1
    labels, _ = labels_of([[0, 8, 16, 24], [0, 2, 16, 18]])
    # Anchor 0: 14/18 with the second box, anchor 1 is the best of the first.
    assert labels == [1, 1, 0, 0, 0, 0]
    labels, _ = labels_of([[0, 5, 16, 21]])
    # Anchor 0: 11/21, the best; anchor 1: 5/27, background.
    assert labels == [1, 0, 0, 0, 0, 0]
    labels, _ = labels_of([[0, 7, 16, 23]])
    # Anchor 0: 9/23, the best; anchor 1: 7/25 = 0.28.
    assert labels == [1, 0, 0, 0, 0, 0]
    labels, _ = labels_of([[0, 7.5, 16, 23.5]])
    # Anchor 1: 7.5/24.5 = 0.306: neither.
    assert labels == [1, -2, 0, 0, 0, 0]


def test_anchors_outside_of_the_image_are_not_drawn():
    allowed = [True, True, False, True, True, False]
    labels, _ = labels_of([[0, 34, 16, 48]], allowed)
    assert labels == [0, 0, -2, 0, 0, -2]


def test_no_boxes_and_few_anchors():
    labels, _ = labels_of([[-1] * 4], num_samples=9)
    assert labels == [0] * 6


def test_at_most_half_are_objects():
    boxes = [GRID[k].numpy().tolist() for k in range(6)]
    labels, _ = labels_of(boxes, num_samples=4)
    assert (
        sorted(labels) == [-2] * 4 + [1] * 2
    )  # there is no background to fill up with


def test_proposals_by_hand():
    logits = tf.constant([[3.0, 2.0, 1.0, 0.0, -1.0, -2.0]])
    encoded = np.zeros([1, 6, 4], np.float32)
    encoded[0, 1, 1] = -1.0  # anchor 1 moves onto anchor 0
    allowed = tf.constant([[True, True, True, False, True, True]])
    sizes = tf.constant([[28, 40]])
    boxes, scores = propose(
        logits, tf.constant(encoded), GRID, allowed, sizes, 5, nms_iou=0.6
    )
    # Anchor 1 is suppressed, anchor 3 not allowed; boxes end at the image's border.
    expected = [[0, 0, 16, 16], [0, 32, 16, 40], [16, 16, 28, 32], [16, 32, 28, 40]]
    np.testing.assert_allclose(boxes[0], [*expected, [-1] * 4], atol=1e-5)
    np.testing.assert_allclose(scores[0, :2], tf.sigmoid([3.0, 1.0]), atol=1e-6)


@pytest.mark.parametrize("kept", [1, 3])
def test_as_many_proposals_as_asked_for(kept):
    boxes, _ = propose(
        tf.zeros([2, 6]),
        tf.zeros([2, 6, 4]),
        GRID,
        tf.ones([2, 6], tf.bool),
        tf.constant([[32, 48]] * 2),
        kept,
    )
    assert boxes.shape == [2, kept, 4] and np.min(boxes) >= 0
