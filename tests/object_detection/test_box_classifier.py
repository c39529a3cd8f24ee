"""Region features against samples computed by hand."""

import numpy as np
import pytest
import tensorflow as tf

from object_detection.box_classifier import crop_regions

# Features that tell where they are: channel 0 is the row, channel 1 the column.
ROWS, COLUMNS = np.meshgrid(np.arange(5.0), np.arange(7.0), indexing="ij")
FEATURES = tf.constant(np.stack([ROWS, COLUMNS], -1)[np.newaxis], tf.float32)


def crop(box, sizes=(5, 7), features=FEATURES, crop_size=4, pool_size=4):
    boxes = tf.constant([[box]], tf.float32)
    sizes = tf.constant([sizes])
    return crop_regions(features, boxes, sizes, 16, crop_size, pool_size)[0].numpy()


def test_samples_go_from_edge_to_edge():
    # Pixel 8 is the centre of position 0, pixel 56 of position 3.
    regions = crop([8, 24, 56, 72])
    np.testing.assert_allclose(regions[:, 0, 0], [0, 1, 2, 3], atol=1e-5)
    np.testing.assert_allclose(regions[0, :, 1], [1, 2, 3, 4], atol=1e-5)


def test_bilinear_between_positions():
    regions = crop([16, 24, 40, 72])
    np.testing.assert_allclose(regions[:, 0, 0], [0.5, 1.0, 1.5, 2.0], atol=1e-5)


def test_boxes_end_at_the_outermost_positions():
    regions = crop([-100, 0, 80, 1000])
    np.testing.assert_allclose(regions[[0, -1], 0, 0], [0, 4], atol=1e-5)
    np.testing.assert_allclose(regions[0, [0, -1], 1], [0, 6], atol=1e-5)


def test_max_pooling_takes_the_last_samples_of_a_ramp():
    regions = crop([8, 8, 56, 56], pool_size=2)
    np.testing.assert_allclose(regions[:, 0, 0], [1, 3], atol=1e-5)


def test_padding_is_not_read():
    padded = tf.pad(FEATURES, [[0, 0], [0, 4], [0, 3], [0, 0]], constant_values=99.0)
    for box in ([8, 24, 56, 72], [-100, 0, 80, 1000], [40, 40, 79, 111]):
        np.testing.assert_allclose(crop(box, features=padded), crop(box), atol=1e-4)


@pytest.mark.parametrize(
    "pixel, position", [(-1, 0.0), (5, 0.0), (24, 1.0), (30, 1.375)]
)
def test_boxes_without_area_and_features_of_one_position(pixel, position):
    box = [pixel] * 4
    one = tf.ones([1, 1, 1, 2])
    np.testing.assert_allclose(crop(box, (1, 1), one), np.ones([4, 4, 2]))
    np.testing.assert_allclose(crop(box), np.full([4, 4, 2], position), atol=1e-5)
