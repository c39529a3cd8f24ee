"""Counting under masks (SACT, section 4.1)."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage

import sact_tf
from sact_tf import flops
from sact_tf.layers import BatchNorm
from sact_tf.residual_units import BasicUnit, BottleneckUnit

masks = npst.arrays(bool, st.tuples(*[st.integers(1, 7)] * 3))


def batch_norm(name):
    return BatchNorm(0.9, 1e-3, name=name)


@settings(deadline=None, max_examples=50)
@given(masks)
def test_dilation_is_scipys(mask):
    """By a square of 3x3 positions (SACT, section 2.3)."""
    expected = ndimage.binary_dilation(mask, np.ones([1, 3, 3]))
    np.testing.assert_array_equal(flops.dilate(tf.constant(mask)), expected)


@settings(deadline=None, max_examples=10)
@given(masks)
def test_masked_unit(mask):
    dilated = ndimage.binary_dilation(mask, np.ones([1, 3, 3])).sum((1, 2))
    active = mask.sum((1, 2))
    x = tf.zeros([*mask.shape, 8])
    basic = BasicUnit(8, 1, batch_norm, batch_norm)
    basic.build(x.shape)
    per_position = 2 * 9 * 8 * 8
    np.testing.assert_array_equal(
        basic.flops(x, tf.constant(mask)), per_position * (dilated + active)
    )
    bottleneck = BottleneckUnit(8, 2, 1, batch_norm)
    bottleneck.build(x.shape)
    np.testing.assert_array_equal(
        bottleneck.flops(x, tf.constant(mask)),
        2 * 16 * dilated + (2 * 36 + 2 * 16) * active,
    )


def test_all_active_equals_no_mask():
    x = tf.zeros([2, 5, 6, 8])
    unit = BasicUnit(8, 1, batch_norm, batch_norm)
    unit.build(x.shape)
    full = unit.flops(x, tf.ones([2, 5, 6], tf.bool))
    np.testing.assert_array_equal(full, unit.flops(x))


@pytest.mark.long
def test_the_papers_depths():
    """Table 1 of the SACT paper: a detector's features of ResNet-50, of ResNet-101.

    It prints 46.6 %, of images of several sizes.
    """
    image, sizes = tf.zeros([1, 224, 224, 3]), tf.constant([[224, 224]])
    fifty, hundred = (
        int(sact_tf.imagenet_resnet(depth).dense_flops_of_blocks(image, sizes, 3)[0])
        for depth in ("50", "101")
    )
    stem = 2 * 112**2 * 49 * 3 * 64
    assert hundred == stem + 1335885824 + 2055208960 + 10353115136
    assert round(100 * fifty / hundred, 1) == 46.9
