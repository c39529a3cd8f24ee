"""From ponder cost to saliency."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sact_tf.saliency import maps


def test_centre_prior_is_the_published_map():
    published = [
        [1 - ((i - 49) ** 2 + (j - 49) ** 2) / 5000 for j in range(100)]
        for i in range(100)
    ]
    centre = maps.centre_prior(100, 100)
    np.testing.assert_allclose(centre, published, atol=1e-12)
    corners = centre[49, 49], centre[0, 0], centre[0, 99], centre[99, 0], centre[99, 99]
    np.testing.assert_allclose(corners, (1, 0.0396, 0.0198, 0.0198, 0), atol=1e-12)


@pytest.mark.parametrize("size", [(200, 200), (180, 320), (1080, 1920)])
def test_centre_prior_of_another_size_is_the_published_one_rescaled(size):
    rescaled = maps.resize(maps.centre_prior(100, 100), *size)
    centre = maps.centre_prior(*size)
    inside = tuple(slice(side // 100, -(side // 100)) for side in size)
    np.testing.assert_allclose(centre[inside], rescaled[inside], atol=1e-4)
    np.testing.assert_allclose(centre, rescaled, atol=0.02)


def test_saliency_map_in_its_steps(rng):
    ponder_cost = rng.normal(size=[20, 30])
    low, high = ponder_cost.min(), ponder_cost.max()
    rho = (ponder_cost - low) / (high - low)
    np.testing.assert_allclose(maps.saliency_map(ponder_cost, 0, 0), rho, atol=1e-12)
    centre = maps.centre_prior(20, 30)
    np.testing.assert_allclose(
        maps.saliency_map(ponder_cost, 0, 0.25), rho + 0.25 * centre, atol=1e-12
    )
    np.testing.assert_array_equal(maps.saliency_map(ponder_cost, 3, math.inf), centre)
    np.testing.assert_allclose(maps.saliency_map(np.ones([20, 30]), 5, 1), centre)


def test_blur_is_a_gaussian_and_keeps_the_mean():
    impulse = np.zeros([41, 41])
    impulse[20, 20] = 1
    blurred = maps.blur(impulse, 2.0)
    distance = np.square(np.arange(41) - 20.0)
    expected = np.exp(-(distance[:, None] + distance) / 8)
    np.testing.assert_allclose(blurred, expected / expected.sum(), atol=1e-5)
    corner = np.zeros([10, 10])
    corner[0, 0] = 1
    np.testing.assert_allclose(maps.blur(corner, 4.0).sum(), 1)


@settings(deadline=None, max_examples=30)
@given(*[st.integers(1, 12)] * 2, *[st.integers(1, 30)] * 2, st.integers(0, 99))
def test_resizing_is_linear_and_keeps_the_range(h, w, height, width, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random([2, h, w])
    resized = maps.resize(a + 0.3 * b, height, width)
    assert resized.shape == (height, width)
    parts = maps.resize(a, height, width) + 0.3 * maps.resize(b, height, width)
    np.testing.assert_allclose(resized, parts, atol=1e-12)
    assert (a + 0.3 * b).min() - 1e-12 <= resized.min()
    assert resized.max() <= (a + 0.3 * b).max() + 1e-12


def test_resizing_has_half_pixel_centres():
    row = maps.resize([[0.0, 1.0]], 1, 4)
    np.testing.assert_allclose(row, [[0, 0.25, 0.75, 1]])


def test_fixations_collapse_to_pixels():
    marked = maps.fixation_map([[0.0, 0.9], [2.99, 1.0], [2.1, 1.9]], 2, 3)
    np.testing.assert_array_equal(marked, [[1, 0, 0], [0, 0, 1]])


def test_human_sigma_halves_eight_cycles_per_image():
    sigma = maps.human_sigma(600, 800)
    frequency = 8 / 1024  # cycles per pixel of the padded image
    response = math.exp(-2 * (math.pi * sigma * frequency) ** 2)
    assert response == pytest.approx(0.5)


def test_display_softmax_of_the_papers_temperature():
    values = np.array([[0.0, 5.0, 10.0]])
    expected = np.exp([[0.0, 2.5, 5.0]])
    np.testing.assert_allclose(maps.display_softmax(values), expected / expected.sum())


@pytest.mark.parametrize("size", [(300, 400), (240, 320), (75, 100), (7, 10)])
def test_scaled_versions_may_be_resized(size):
    maps.check_aspect(size, (600, 800), "map")


@pytest.mark.parametrize("size", [(400, 300), (600, 780), (600, 600), (240, 240)])
def test_other_aspect_ratios_may_not(size):
    with pytest.raises(ValueError, match="^map: is .* no scaled version of 800x600"):
        maps.check_aspect(size, (600, 800), "map")


def test_errors():
    with pytest.raises(ValueError, match="sigma must be a finite number >= 0; got -1"):
        maps.blur(np.ones([2, 2]), -1)
    with pytest.raises(ValueError, match="gamma must be >= 0; got nan"):
        maps.saliency_map(np.ones([2, 2]), 0, math.nan)
    with pytest.raises(ValueError, match=r"\[height, width\]; got shape \(2,\)"):
        maps.normalise([1.0, 2.0])
    with pytest.raises(ValueError, match="must be finite"):
        maps.normalise([[1.0, math.nan]])
