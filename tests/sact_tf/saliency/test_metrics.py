"""Metrics against their definitions and tiny cases."""

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sact_tf.saliency import load_npz, maps, metrics, tuning


def judd_by_definition(saliency, fixations, noise=0.0):
    """AUC-Judd as the benchmark defines it, one threshold at a time."""
    values = np.asarray(saliency, np.float64) + noise
    values = (values - values.min()) / (values.max() - values.min())
    thresholds = sorted(values[fixations].tolist(), reverse=True)
    pixels, count = values.size, len(thresholds)
    points = [(0.0, 0.0)]
    for i, threshold in enumerate(thresholds, 1):
        at_least = int((values >= threshold).sum())
        points.append(((at_least - i) / (pixels - count), i / count))
    points.append((1.0, 1.0))
    return sum(
        (x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in zip(points, points[1:])
    )


def case(seed, height=12, width=17, count=9, levels=None):
    """A random map and fixations; `levels` makes ties."""
    rng = np.random.default_rng(seed)
    saliency = rng.random([height, width])
    if levels:
        saliency = np.floor(saliency * levels)
    fixations = np.zeros(height * width, bool)
    fixations[rng.permutation(height * width)[:count]] = True
    return saliency, fixations.reshape(height, width)


def judd_by_mann_whitney(saliency, fixations):
    """AUC-Judd of distinct values by the identity of ranks."""
    positive, negative = saliency[fixations], saliency[~fixations]
    wins = stats.mannwhitneyu(positive, negative).statistic
    last = (negative >= positive.min()).mean()
    return wins / (positive.size * negative.size) + last / (2 * positive.size)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from([None, 2, 5, 40]))
def test_judd_is_the_definition_with_and_without_ties(seed, count, levels):
    saliency, fixations = case(seed, count=count, levels=levels)
    expected = judd_by_definition(saliency, fixations)
    assert metrics.auc_judd(saliency, fixations) == pytest.approx(expected, abs=1e-12)
    jittered = metrics.auc_judd(saliency, fixations, np.random.default_rng(5))
    noise = np.random.default_rng(5).random(saliency.shape) / 1e7
    expected = judd_by_definition(saliency, fixations, noise)
    assert jittered == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_judd_is_mann_whitney_plus_half_a_fixation(seed):
    saliency, fixations = case(seed)
    expected = judd_by_mann_whitney(saliency, fixations)
    assert metrics.auc_judd(saliency, fixations) == pytest.approx(expected, abs=1e-12)


def test_judd_by_hand():
    saliency = np.array([[3.0, 2.0, 1.0, 0.0]])
    fixations = np.array([[True, False, True, False]])
    # (0, 0), (0, 1/2), (1/2, 1), (1, 1)
    assert metrics.auc_judd(saliency, fixations) == 0.875
    assert metrics.auc_judd(saliency, np.ones([1, 4], bool)) == 1.0


def test_judd_of_perfect_and_reversed_maps():
    _, fixations = case(0, count=9)
    ranks = np.arange(fixations.size).reshape(fixations.shape) / 1e4
    assert metrics.auc_judd(ranks + fixations, fixations) == 1
    assert metrics.auc_judd(ranks - fixations, fixations) == pytest.approx(1 / 18)


def test_judd_of_a_constant_map():
    _, fixations = case(0, 40, 50, count=20)
    constant = np.full([40, 50], 3.0)
    assert math.isnan(metrics.auc_judd(constant, fixations))
    rng = np.random.default_rng(0)
    values = [metrics.auc_judd(constant, fixations, rng) for _ in range(300)]
    error = np.std(values) / math.sqrt(300)
    last = 20 / 21  # expected share of others above the lowest of 20 fixated pixels
    assert np.mean(values) == pytest.approx(0.5 + last / 40, abs=4 * error)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([None, 4]))
def test_ranks_are_all_that_counts(seed, levels):
    saliency, fixations = case(seed, levels=levels)
    order = np.random.default_rng(seed + 1).permutation(saliency.size)
    others = case(seed + 2, count=30)[1]
    shuffled = [x.ravel()[order].reshape(17, 12) for x in (saliency, fixations, others)]
    judd = metrics.auc_judd(saliency, fixations)
    assert metrics.auc_judd(*shuffled[:2]) == pytest.approx(judd, abs=1e-12)
    area = metrics.auc_shuffled(saliency, fixations, others)
    assert metrics.auc_shuffled(*shuffled) == pytest.approx(area, abs=1e-12)
    for transform in (lambda x: 3 * x - 7, np.exp, np.cbrt, lambda x: x**3):
        transformed = transform(saliency)
        assert metrics.auc_judd(transformed, fixations) == pytest.approx(judd, abs=1e-9)
        assert metrics.auc_shuffled(transformed, fixations, others) == pytest.approx(
            area, abs=1e-9
        )


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_counting_is_exact(data):
    numbers = st.floats(-1e300, 1e300) | st.sampled_from([0.0, 1.0, 1 + 2**-52, 5e-324])
    values = np.array(data.draw(st.lists(numbers, min_size=1, max_size=50)))
    thresholds = np.array(data.draw(st.lists(numbers, min_size=1, max_size=9)))
    expected = [(values >= threshold).sum() for threshold in thresholds]
    np.testing.assert_array_equal(
        metrics.count_at_least([values], thresholds), expected
    )


def test_counting_many_values_is_exact(rng):
    values = np.round(rng.normal(size=200_000), 4)
    thresholds = values[:50]
    parts = np.array_split(values, 7)
    expected = [(values >= threshold).sum() for threshold in thresholds]
    np.testing.assert_array_equal(metrics.count_at_least(parts, thresholds), expected)


def test_blends_are_those_of_maps(rng):
    saliency, fixations = case(3, 300, 400, count=50)  # several parts
    centre = maps.centre_prior(300, 400)
    gammas = [0, 0.01, 0.7, math.inf]
    areas = metrics.auc_judd_of_blends(saliency, centre, gammas, fixations)
    expected = [
        judd_by_definition(maps.blend(saliency, centre, gamma), fixations)
        for gamma in gammas
    ]
    np.testing.assert_allclose(areas, expected, atol=1e-9)


def test_shuffled_by_hand():
    saliency = np.array([[4.0, 3.0, 3.0, 1.0]])
    fixations = np.array([[True, False, True, False]])
    others = np.array([[False, True, False, True]])
    # 4 beats both; 3 ties with one and beats the other. Then three of four tie.
    assert metrics.auc_shuffled(saliency, fixations, others) == 3.5 / 4
    assert metrics.auc_shuffled(np.ones([1, 4]), fixations, others) == 0.5
    assert metrics.auc_shuffled(saliency, fixations, [[0, 3, 0, 1]]) == 6.5 / 8


def test_shuffled_of_a_prior_that_all_images_share_is_chance(rng):
    # Fixations of this image and of others come from one Gaussian in the centre.
    def fixate(count):
        xy = np.clip(rng.normal([500, 400], [120, 100], [count, 2]), 0, [999, 799])
        return maps.fixation_counts(xy, 800, 1000)

    centre, fixations, others = maps.centre_prior(800, 1000), fixate(400), fixate(9000)
    assert metrics.auc_judd(centre, fixations > 0) > 0.8
    assert abs(metrics.auc_shuffled(centre, fixations, others) - 0.5) < 0.04


def test_nss_by_hand():
    saliency = np.array([[1.0, 2.0], [3.0, 6.0]])
    fixations = np.array([[False, True], [False, True]])
    deviation = math.sqrt((4 + 1 + 0 + 9) / 3)
    assert metrics.nss(saliency, fixations) == pytest.approx(1 / deviation)
    assert metrics.nss(np.ones([2, 2]), fixations) == 0


def test_correlation_by_hand():
    saliency, human = np.array([[1.0, 2.0, 3.0]]), np.array([[0.0, 0.0, 3.0]])
    assert metrics.correlation(saliency, human) == pytest.approx(3 / math.sqrt(12))
    assert metrics.correlation(saliency, -2 * saliency) == pytest.approx(-1)
    assert metrics.correlation(np.ones([1, 3]), human) == 0


def test_kl_by_hand():
    human, saliency = np.array([[3.0, 1.0]]), np.array([[1.0, 1.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert metrics.kl_divergence(saliency, human) == pytest.approx(expected)
    assert metrics.kl_divergence(np.zeros([1, 2]), human) == pytest.approx(expected)
    assert metrics.kl_divergence(human, human) == pytest.approx(0, abs=1e-12)
    # A map that rules out where people look is punished, but finitely.
    assert 30 < metrics.kl_divergence(np.array([[0.0, 1.0]]), human * [1, 0]) < 40


def test_similarity_by_hand():
    human, saliency = np.array([[0.0, 3.0, 1.0]]), np.array([[5.0, 6.0, 6.0]])
    assert metrics.similarity(saliency, human) == pytest.approx(0.5 + 0.25)
    assert metrics.similarity(human, human) == pytest.approx(1)
    assert metrics.similarity(np.ones([1, 3]), human) == pytest.approx(1 / 3 + 0.25)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(0, 1e2))
def test_scale_does_not_matter(seed, scale, offset):
    saliency, fixations = case(seed)
    human = maps.human_map(fixations, 2.0)
    scaled = scale * saliency
    for metric, reference, moved in (
        (metrics.nss, fixations, scaled + offset),
        (metrics.correlation, human, scaled + offset),
        (metrics.similarity, human, scaled + offset),
        (metrics.kl_divergence, human, scaled),
    ):
        assert metric(moved, reference) == pytest.approx(
            metric(saliency, reference), abs=1e-6
        )


def test_errors():
    saliency, fixations = case(0)
    with pytest.raises(ValueError, match="no pixel is fixated"):
        metrics.auc_judd(saliency, np.zeros_like(fixations))
    with pytest.raises(ValueError, match=r"shape \(12, 17\); got \(2, 2\)"):
        metrics.nss(np.ones([2, 2]), fixations)
    with pytest.raises(ValueError, match="must be finite"):
        metrics.auc_judd(np.full_like(saliency, np.nan), fixations)
    with pytest.raises(ValueError, match="must have one shape"):
        metrics.similarity(saliency, np.ones([2, 2]))


def test_centre_of_osie_by_two_ways():
    directory = os.environ.get("SACT_OSIE_DIR")
    if not directory:
        pytest.skip("SACT_OSIE_DIR does not name a directory with OSIE's fixations.npz")
    stimuli = load_npz(directory).stimuli
    ours, theirs = [], []
    rows, columns = np.mgrid[:600, :800]
    # Any map that falls with the distance from the published centre, in its aspect.
    row, column = (rows + 0.5) / 6 - 0.5, (columns + 0.5) / 8 - 0.5
    gaussian = np.exp(-((row - 49) ** 2 + (column - 49) ** 2) / 2000)
    for stimulus in stimuli:
        ours.append(
            metrics.auc_judd(tuning.centre_only(stimulus), stimulus.fixation_map())
        )
        fixations = np.zeros([600, 800], bool)
        for x, y in stimulus.fixations:
            fixations[int(y), int(x)] = True
        theirs.append(judd_by_mann_whitney(gaussian, fixations))
    print(f"centre only on OSIE: {np.mean(ours):.6f} and {np.mean(theirs):.6f}")
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=1e-5)
