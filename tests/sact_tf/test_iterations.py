"""What goes with the number of iterations."""

import numpy as np
import pytest

from sact_tf import iterations


def test_error_by_iterations():
    units = np.array([5, 4, 5, 4, 9])
    rows = iterations.error_by_iterations(units, np.array([1, 1, 0, 1, 0]))
    assert [row["iterations"] for row in rows] == [4, 5, 9]
    assert [row["images"] for row in rows] == [2, 2, 1]
    np.testing.assert_allclose([row["error"] for row in rows], [0.0, 0.5, 1.0])


def test_images_are_spread_from_the_least_to_the_most():
    units = np.random.default_rng(0).permutation(100)
    chosen = iterations.spread(units, 5)
    np.testing.assert_array_equal(units[chosen], [0, 25, 50, 74, 99])
    assert len(iterations.spread(units[:3], 5)) == 3


def test_rank_correlation():
    x = np.arange(10)
    assert iterations.rank_correlation(x, x**3) == pytest.approx(1.0)
    assert iterations.rank_correlation(x, -np.exp(x)) == pytest.approx(-1.0)
    assert iterations.rank_correlation(x, 0 * x) == 0.0
    assert iterations.rank_correlation(x[:1], x[:1]) == 0.0


def test_figures():
    rows = iterations.error_by_iterations(np.array([1, 2]), np.array([1, 0]))
    axes = iterations.error_figure(rows).axes
    np.testing.assert_allclose(axes[0].lines[0].get_xydata(), [[1, 0], [2, 100]])
    figure = iterations.images_figure(np.zeros([12, 4, 4, 3]), np.arange(12))
    titles = [axis.get_title() for axis in figure.axes if axis.images]
    assert titles == [str(k) for k in range(12)]
    sizes = np.array([0.1, np.nan, 0.4])
    figure = iterations.objects_figure(np.array([3, 4, 5]), np.array([1, 0, 2]), sizes)
    points = [axis.collections[0].get_offsets() for axis in figure.axes]
    assert [len(one) for one in points] == [3, 2]
    assert "+1.00" in figure.axes[1].get_xlabel()
