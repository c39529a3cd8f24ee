"""Grid search, scores and bounds on fixations whose density is known."""

import math

import numpy as np
import pytest

from sact_tf.saliency import maps, metrics, tuning
from sact_tf.saliency.data import Stimulus

SIZE = (60, 80)


def stimulus(name, xy, half="tune", size=SIZE, subjects=None):
    return Stimulus(name, "", size, np.asarray(xy, float), half, subjects)


def fixate(rng, mean, deviation, count=40, size=SIZE):
    upper = np.array(size[::-1]) - 1e-6
    return np.clip(rng.normal(mean, deviation, [count, 2]), 0, upper)


def density(mean, deviation, size=SIZE):
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    squares = (columns - mean[0]) ** 2 + (rows - mean[1]) ** 2
    return np.exp(-squares / (2 * deviation**2))


def test_random_maps_need_the_centre(rng):
    stimuli = [stimulus(f"{k}", fixate(rng, [40, 30], 10)) for k in range(8)]
    noise = {s.name: rng.random([30, 40]) for s in stimuli}
    grid = tuning.grid_search(stimuli, noise)
    sigma, gamma = grid.best()
    assert gamma > 0.1
    assert grid.mean.max() > grid.mean[0, 0] + 0.2


def test_true_densities_do_not(rng):
    means = rng.uniform([10, 10], [70, 50], [12, 2])
    stimuli = [stimulus(f"{k}", fixate(rng, mean, 6)) for k, mean in enumerate(means)]
    true = {s.name: density(mean, 6) for s, mean in zip(stimuli, means)}
    grid = tuning.grid_search(stimuli, true)
    sigma, gamma = grid.best()
    # A little blur of a Gaussian leaves the ranks nearly as they are.
    assert gamma <= 0.02 and sigma <= 5
    assert grid.mean.max() < grid.mean[0, 0] + 0.003
    centre = tuning.score(stimuli, {"centre": tuning.centre_only})["centre"]
    assert grid.mean.max() > centre["auc_judd"].mean() + 0.1


def test_corners_of_the_grid(rng):
    stimuli = [stimulus(f"{k}", fixate(rng, [35, 35], 15)) for k in range(4)]
    values = {s.name: rng.random([30, 40]) for s in stimuli}
    grid = tuning.grid_search(stimuli, values, [0, 3], [0, 0.1, math.inf], None)
    centre = maps.resize(maps.centre_prior(30, 40), *SIZE)
    for k, s in enumerate(stimuli):
        raw = metrics.auc_judd(maps.resize(values[s.name], *SIZE), s.fixation_map())
        assert grid.scores[k, 0, 0] == pytest.approx(raw, abs=1e-12)
        centre_score = metrics.auc_judd(centre, s.fixation_map())
        np.testing.assert_allclose(grid.scores[k, :, 2], centre_score, atol=1e-12)
        blended = maps.resize(maps.saliency_map(values[s.name], 3, 0.1), *SIZE)
        expected = metrics.auc_judd(blended, s.fixation_map())
        assert grid.scores[k, 1, 1] == pytest.approx(expected, abs=1e-9)
    only = tuning.score(stimuli, {"centre": tuning.centre_only}, None)["centre"]
    np.testing.assert_allclose(grid.scores[:, 0, 2], only["auc_judd"], atol=0.01)


def test_best_is_the_first_of_equals():
    grid = tuning.Grid((1.0, 2.0), (0.0, 0.5), np.array([[[0.1, 0.7], [0.7, 0.7]]]))
    assert grid.best() == (1.0, 0.5)
    assert grid.best(gamma=0.0) == (2.0, 0.0)


def test_jitter_is_repeatable_and_needs_no_order(rng):
    stimuli = [stimulus(f"{k}", fixate(rng, [40, 30], 15)) for k in range(5)]
    steps = {s.name: rng.integers(0, 3, [6, 8]) for s in stimuli}
    first = tuning.grid_search(stimuli, steps, [0], [0], 7, workers=1).scores
    again = tuning.grid_search(stimuli, steps, [0], [0], 7, workers=4).scores
    np.testing.assert_array_equal(first, again)
    assert (first != tuning.grid_search(stimuli, steps, [0], [0], 8).scores).any()
    without = tuning.grid_search(stimuli, steps, [0], [0], None).scores
    assert (without < first).all()  # ties count against the map


def test_constant_maps_score_chance(rng):
    stimuli = [stimulus("a", fixate(rng, [40, 30], 10))]
    grid = tuning.grid_search(stimuli, {"a": np.ones(SIZE)}, [0, 5], [0, 1], None)
    assert (grid.scores[0, :, 0] == 0.5).all()
    assert (grid.scores[0, :, 1] > 0.7).all()


def test_scores_of_images_of_several_sizes(rng):
    sizes = [(60, 80), (30, 40), (80, 60)]
    stimuli = [
        stimulus(
            f"{k}", fixate(rng, [size[1] / 2, size[0] / 2], 8, 30, size), size=size
        )
        for k, size in enumerate(sizes)
    ]
    predictors = {"centre": tuning.centre_only, "human": lambda s: s.human_map()}
    scores = tuning.score(stimuli, predictors)
    human = scores["human"]
    assert set(human) == set(tuning.METRICS)
    np.testing.assert_allclose(human["cc"], 1)
    np.testing.assert_allclose(human["sim"], 1)
    np.testing.assert_allclose(human["kl"], 0, atol=1e-9)
    assert (human["nss"] > scores["centre"]["nss"]).all()
    # Negatives are the others' fixations at their relative places.
    others = [stimuli[1].fixations * 2, stimuli[2].fixations * (80 / 60, 60 / 80)]
    expected = metrics.auc_shuffled(
        maps.centre_prior(60, 80),
        stimuli[0].fixation_map(),
        maps.fixation_counts(np.concatenate(others), 60, 80),
    )
    assert scores["centre"]["auc_shuffled"][0] == pytest.approx(expected)


def test_one_image_has_no_shuffled_score(rng):
    alone = stimulus("a", [[1, 2]])
    scores = tuning.score([alone], {"centre": tuning.centre_only})
    assert np.isnan(scores["centre"]["auc_shuffled"]).all()
    expected = metrics.auc_judd(maps.centre_prior(60, 80), alone.fixation_map())
    np.testing.assert_allclose(scores["centre"]["auc_judd"], [expected])


def test_people_who_agree_bound_higher(rng):
    people = np.repeat(np.arange(6), 8)
    agreed = fixate(rng, [20, 15], 3, 48)
    apart = np.concatenate([fixate(rng, rng.uniform(8, 55, 2), 3, 8) for _ in range(6)])
    values = tuning.humans(
        [
            stimulus("agreed", agreed, subjects=people),
            stimulus("apart", apart, subjects=people),
            stimulus("alone", agreed, subjects=people * 0),
        ],
        human_sigma=3,
    )
    assert values[0] > 0.95 and values[1] < values[0] - 0.1
    assert np.isnan(values[2])
    with pytest.raises(ValueError, match="^a: it is not known who looked"):
        tuning.humans([stimulus("a", agreed)])


def test_one_against_the_rest_by_hand():
    # Both look at two places of their own: the other's blurred fixations predict one's.
    xy = np.array([[10.5, 10.5], [60.5, 40.5], [12.5, 10.5], [60.5, 44.5]])
    people = np.array([0, 0, 1, 1])
    (value,) = tuning.humans([stimulus("a", xy, subjects=people)], None, 4.0)
    parts = [
        metrics.auc_judd(
            maps.human_map(maps.fixation_map(xy[people != k], *SIZE), 4.0),
            maps.fixation_map(xy[people == k], *SIZE),
        )
        for k in (0, 1)
    ]
    assert value == pytest.approx(np.mean(parts), abs=1e-12)


def test_errors(rng):
    stimuli = [stimulus("a", [[1, 1]])]
    good = {"a": np.ones(SIZE)}
    with pytest.raises(ValueError, match="grid is empty: 1 images, 0 sigmas, 1 gammas"):
        tuning.grid_search(stimuli, good, [], [0])
    with pytest.raises(ValueError, match="^map of a: is missing"):
        tuning.grid_search(stimuli, {})
    with pytest.raises(ValueError, match="^map of a: is 50x50, which is no scaled"):
        tuning.grid_search(stimuli, {"a": np.ones([50, 50])})
    with pytest.raises(ValueError, match="^map of a: has NaN"):
        tuning.grid_search(stimuli, {"a": np.full(SIZE, np.nan)})
    with pytest.raises(ValueError, match=r"^map of a: must be \[height, width\]"):
        tuning.grid_search(stimuli, {"a": np.ones([60, 80, 3])})
    with pytest.raises(ValueError, match="sigma must be a finite number >= 0; got -1"):
        tuning.grid_search(stimuli, good, [-1], [0])
