"""Chooses blur and centre weight on half of the images, and scores on the other."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sact_tf.saliency import maps, metrics
from sact_tf.saliency.data import Stimulus

SIGMAS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0)
"""Blurs that are tried by default; the SACT paper found 10."""
GAMMAS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Weights of the centre prior that are tried by default; the SACT paper found 0.005."""

METRICS = ("auc_judd", "auc_shuffled", "nss", "cc", "kl", "sim")
"""What `score` returns; of `kl` less is better, of all others more."""

_CHANCE = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """AUC-Judd of every blur and centre weight.

    Attributes:
        sigmas: [s], in pixels of the maps.
        gammas: [g].
        scores: float64 [images, s, g].
    """

    sigmas: Sequence[float]
    gammas: Sequence[float]
    scores: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean over images, [s, g]."""
        return self.scores.mean(0)

    def best(self, gamma: float | None = None) -> tuple[float, float]:
        """Returns sigma and gamma of the highest mean, the smallest of equals.

        Args:
            gamma: Looks at this one only.
        """
        mean = self.mean
        if gamma is not None:
            mean = np.where(np.asarray(self.gammas) == gamma, mean, -np.inf)
        s, g = np.unravel_index(np.argmax(mean), mean.shape)
        return float(self.sigmas[s]), float(self.gammas[g])


def _in_parallel(function: Callable, count: int, workers: int | None) -> list:
    """Calls `function(k)` for every k below `count`; NumPy lets threads run at once."""
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return list(pool.map(function, range(count)))


def _noise(stimulus: Stimulus, seed: int | None, k: int) -> np.ndarray | float:
    """The jitter of image k, the same for all of its maps; 0 without."""
    if seed is None:
        return 0.0
    return metrics.jitter_noise(stimulus.size, np.random.default_rng([seed, k]))


def _auc(saliency, fixations):
    value = metrics.auc_judd(saliency, fixations)
    return _CHANCE if np.isnan(value) else value


def grid_search(
    stimuli: Sequence[Stimulus],
    ponder_costs: Mapping[str, np.ndarray],
    sigmas: Sequence[float] = SIGMAS,
    gammas: Sequence[float] = GAMMAS,
    jitter_seed: int | None = 0,
    workers: int | None = None,
) -> Grid:
    """Scores `saliency_map` with every blur and centre weight.

    Resizing is linear, so every blur is made and resized once for all weights.

    Args:
        stimuli: Images and fixations.
        ponder_costs: By the stimulus's name, [height, width] of any scale.
        sigmas: In pixels of these maps.
        gammas: At least 0.
        jitter_seed: Of the noise that breaks ties, as in `metrics.auc_judd`; None: no
            noise, and a constant map scores 0.5.
        workers: Threads; None: as many as there are processors.

    Raises:
        ValueError: A map is no scaled version of its image, or not finite, or a grid is
            empty or has bad values.
    """
    if not stimuli or not len(sigmas) or not len(gammas):
        raise ValueError(
            f"the grid is empty: {len(stimuli)} images, {len(sigmas)} sigmas, "
            f"{len(gammas)} gammas"
        )

    def score(k):
        stimulus = stimuli[k]
        height, width = stimulus.size
        fixations = stimulus.fixation_map()
        ponder_cost = maps.normalise(_checked_map(stimulus, ponder_costs))
        centre = maps.resize(maps.centre_prior(*ponder_cost.shape), height, width)
        noise = _noise(stimulus, jitter_seed, k)
        scores = np.empty([len(sigmas), len(gammas)])
        for s, sigma in enumerate(sigmas):
            blurred = maps.resize(maps.blur(ponder_cost, sigma), height, width)
            scores[s] = metrics.auc_judd_of_blends(
                blurred + noise, centre, gammas, fixations
            )
        scores[np.isnan(scores)] = _CHANCE
        return scores

    scores = _in_parallel(score, len(stimuli), workers)
    return Grid(tuple(sigmas), tuple(gammas), np.stack(scores))


def _checked_map(stimulus, ponder_costs):
    name = f"map of {stimulus.name}"
    if stimulus.name not in ponder_costs:
        raise ValueError(f"{name}: is missing")
    values = np.asarray(ponder_costs[stimulus.name])
    if values.ndim != 2:
        raise ValueError(f"{name}: must be [height, width]; got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: has NaN or infinite values")
    maps.check_aspect(values.shape, stimulus.size, name)
    return values


def predictions(
    ponder_costs: Mapping[str, np.ndarray], sigma: float, gamma: float
) -> Callable[[Stimulus], np.ndarray]:
    """Returns a function from a stimulus to its saliency map, for `score`.

    Args:
        ponder_costs: As in `grid_search`.
        sigma: In pixels of these maps.
        gamma: Weight of the centre prior.
    """

    def predict(stimulus):
        ponder_cost = _checked_map(stimulus, ponder_costs)
        return maps.saliency_map(ponder_cost, sigma, gamma)

    return predict


def centre_only(stimulus: Stimulus) -> np.ndarray:
    """Predicts the centre prior for every image, the baseline that `score` takes."""
    return maps.centre_prior(*stimulus.size)


def score(
    stimuli: Sequence[Stimulus],
    predictors: Mapping[str, Callable[[Stimulus], np.ndarray]],
    jitter_seed: int | None = 0,
    human_sigma: float | None = None,
    workers: int | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Scores saliency maps by every metric.

    The negatives of the shuffled AUC are the fixations of all other images given,
    scaled to the image.

    Args:
        stimuli: Images and fixations.
        predictors: Functions that return the map of a stimulus, of any scale of its
            image; it is resized to the size that fixations refer to.
        jitter_seed: Of the noise that breaks ties in AUC-Judd, as in `grid_search`.
        human_sigma: Blur of the human maps in pixels, where the data set has none of
            its own; None: as the MIT benchmark does.
        workers: Threads; None: as many as there are processors.

    Returns:
        By predictor, by `METRICS`, float64 [images] each. `auc_shuffled` is NaN of a
        single image.
    """
    places = [s.fixations / (s.size[1], s.size[0]) for s in stimuli]
    owners = np.repeat(np.arange(len(stimuli)), [len(p) for p in places])
    places = np.concatenate(places)

    def score_one(k):
        stimulus = stimuli[k]
        height, width = stimulus.size
        fixations, human = stimulus.fixation_map(), stimulus.human_map(human_sigma)
        others = places[owners != k] * (width, height)
        other_fixations = maps.fixation_counts(others, height, width)
        noise = _noise(stimulus, jitter_seed, k)
        rows = []
        for predict in predictors.values():
            saliency = maps.resize(predict(stimulus), height, width)
            shuffled = np.nan
            if len(others):
                shuffled = metrics.auc_shuffled(saliency, fixations, other_fixations)
            rows.append(
                [
                    _auc(saliency + noise, fixations),
                    shuffled,
                    metrics.nss(saliency, fixations),
                    metrics.correlation(saliency, human),
                    metrics.kl_divergence(saliency, human),
                    metrics.similarity(saliency, human),
                ]
            )
        return rows

    values = np.array(_in_parallel(score_one, len(stimuli), workers))
    return {
        name: dict(zip(METRICS, values[:, k].T)) for k, name in enumerate(predictors)
    }


def humans(
    stimuli: Sequence[Stimulus],
    jitter_seed: int | None = 0,
    human_sigma: float | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """AUC-Judd of the others' fixations as a map for one person's: an upper bound.

    Args:
        stimuli: Images and fixations, with subjects.
        jitter_seed: As in `grid_search`.
        human_sigma: As in `score`.
        workers: As in `score`.

    Returns:
        float64 [images], the mean over who looked at an image. NaN where that was one
        person.

    Raises:
        ValueError: Subjects are not known.
    """
    for stimulus in stimuli:
        if stimulus.subjects is None:
            raise ValueError(f"{stimulus.name}: it is not known who looked")

    def score_one(k):
        stimulus = stimuli[k]
        noise = _noise(stimulus, jitter_seed, k)
        people = np.unique(stimulus.subjects)
        if len(people) < 2:
            return np.nan
        values = []
        for person in people:
            is_one = stimulus.subjects == person
            one, others = (
                maps.fixation_map(stimulus.fixations[rows], *stimulus.size)
                for rows in (is_one, ~is_one)
            )
            values.append(_auc(maps.human_map(others, human_sigma) + noise, one))
        return np.mean(values)

    return np.array(_in_parallel(score_one, len(stimuli), workers))
