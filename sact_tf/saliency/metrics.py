"""Agreement of a saliency map with fixations.

Definitions follow the MIT saliency benchmark: Judd et al., "A benchmark of
computational models of saliency to predict human fixations" (2012), and Bylinskii et
al., "What do different evaluation metrics tell us about saliency models?" (2016). Maps
have the size of the fixation map here; `maps.resize` makes them so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sact_tf.optional import lazy
from sact_tf.saliency import maps

integrate = lazy("scipy.integrate")
stats = lazy("scipy.stats")

_JITTER = 1e-7
_NUM_BINS = 2**14
_MIN_SPREAD = 1e-250  # of thresholds, for bins to be told apart
_CHUNK = 2**16  # values that stay in the cache
_EPSILON = np.finfo(np.float64).eps


def auc_judd(
    saliency: np.ndarray,
    fixations: np.ndarray,
    jitter: np.random.Generator | None = None,
) -> float:
    """Area under the ROC curve, thresholds at the fixated pixels (Judd et al., 2012).

    At the i-th largest of N values at fixated pixels, i/N are true positives, and false
    positives are the share of the P - N other pixels among all pixels at least as large
    less i. Equal values at fixated pixels so count against the map. For distinct values
    this is the Mann-Whitney statistic plus FP_N / 2N, FP_N the last of the shares.

    Args:
        saliency: [height, width].
        fixations: bool [height, width], with at least one pixel marked.
        jitter: Draws `jitter_noise`, which breaks ties as the benchmark does; None: no
            noise.

    Returns:
        The area; NaN of a constant map without jitter, as in the benchmark, and 1 if
        all pixels are fixated.

    Raises:
        ValueError: Shapes differ, nothing is fixated, or a value is not finite.

    >>> auc_judd(np.array([[3.0, 2.0, 1.0, 0.0]]), np.array([[1, 0, 1, 0]], bool))
    0.875
    """
    saliency, fixations = _checked(saliency, fixations)
    if jitter is not None:
        saliency = saliency + jitter_noise(saliency.shape, jitter)
    return float(auc_judd_of_blends(saliency, saliency, [0.0], fixations)[0])


def auc_judd_of_blends(
    saliency: np.ndarray,
    centre: np.ndarray,
    gammas: Sequence[float],
    fixations: np.ndarray,
) -> np.ndarray:
    """AUC-Judd of `maps.blend(saliency, centre, gamma)` for every gamma, without noise.

    Blends are made in parts that stay in the processor's cache, as memory is what many
    scores of large maps wait for.

    Args:
        saliency: [height, width].
        centre: [height, width].
        gammas: [g], at least 0.
        fixations: bool [height, width], with at least one pixel marked.

    Returns:
        float64 [g], each as `auc_judd`.

    Raises:
        ValueError: As `auc_judd`.
    """
    saliency, fixations = _checked(saliency, fixations)
    centre, _ = _checked(centre, fixations)
    _spread(saliency), _spread(centre)
    at_fixations = saliency[fixations], centre[fixations]
    saliency, centre = saliency.ravel(), centre.ravel()
    parts = [slice(k, k + _CHUNK) for k in range(0, saliency.size, _CHUNK)]
    areas = np.empty([len(gammas)])
    for g, gamma in enumerate(gammas):
        thresholds = np.sort(maps.blend(*at_fixations, gamma))[::-1]
        blends = (maps.blend(saliency[p], centre[p], gamma) for p in parts)
        areas[g] = _judd_area(blends, thresholds, saliency.size)
    return areas


def _judd_area(parts, thresholds, size):
    """Area under the curve from a map in parts and its N values at fixated pixels."""
    if thresholds[0] == thresholds[-1]:
        values = np.concatenate(list(parts))
        if not _spread(values):
            return np.nan
        parts = [values]
    count, others = len(thresholds), size - len(thresholds)
    if not others:
        return 1.0
    hits = np.arange(1, count + 1)
    false_alarms = count_at_least(parts, thresholds) - hits
    tp = np.concatenate([[0.0], hits / count, [1.0]])
    fp = np.concatenate([[0.0], false_alarms / others, [1.0]])
    return integrate.trapezoid(tp, fp)


def jitter_noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draws the benchmark's noise, uniform in [0, 1e-7), that breaks a map's ties."""
    return _JITTER * rng.random(shape)


def count_at_least(parts: Iterable[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """Counts the values that are at least as large as each of a few thresholds.

    Exact. Values are counted in bins, and only those that share a bin with a threshold
    are sorted, so the time does not hang on a fast sort.

    Args:
        parts: The values in arrays [any length], finite.
        thresholds: [n], n >= 1.

    Returns:
        int64 [n].
    """
    low = thresholds.min()
    with np.errstate(over="ignore"):
        spread = thresholds.max() - low
    if not _MIN_SPREAD < spread < 1 / _MIN_SPREAD:
        values = np.sort(np.concatenate(list(parts)))
        return values.size - np.searchsorted(values, thresholds)
    scale = _NUM_BINS / spread

    def bins(x):  # never decreases with x
        with np.errstate(over="ignore"):
            x = x - low
            x *= scale
        x += 1
        return np.clip(x, 0, _NUM_BINS + 1, out=x).astype(np.intp)

    threshold_bins = bins(thresholds)
    has_threshold = np.zeros(_NUM_BINS + 2, bool)
    has_threshold[threshold_bins] = True
    per_bin, near = np.zeros(_NUM_BINS + 2, np.intp), []
    for part in parts:
        binned = bins(part)
        per_bin += np.bincount(binned, minlength=_NUM_BINS + 2)
        near.append(part[has_threshold.take(binned)])
    near = np.sort(np.concatenate(near))
    beyond = per_bin.sum() - np.cumsum(per_bin)[threshold_bins]
    near_so_far = np.cumsum(np.where(has_threshold, per_bin, 0))[threshold_bins]
    return beyond + near_so_far - np.searchsorted(near, thresholds)


def auc_shuffled(
    saliency: np.ndarray, fixations: np.ndarray, other_fixations: np.ndarray
) -> float:
    """Area under the ROC curve against where other images are fixated.

    Zhang et al. (2008), Borji et al. (2013): negatives are pixels fixated in other
    images, so that a prior for the centre earns nothing. The benchmark samples them and
    steps thresholds by 0.1; this is the exact area over all of them, ties counting
    half, and a pixel fixated twice in other images being two negatives.

    Args:
        saliency: [height, width].
        fixations: bool [height, width], with at least one pixel marked.
        other_fixations: [height, width], numbers of fixations of other images, not all
            zero.

    Returns:
        The area; 0.5 of a constant map.

    Raises:
        ValueError: As `auc_judd`.
    """
    saliency, fixations = _checked(saliency, fixations)
    _, others = _checked(saliency, other_fixations)
    _spread(saliency)
    counts = np.asarray(other_fixations, int)[others]
    positive, negative = saliency[fixations], np.repeat(saliency[others], counts)
    ranks = stats.rankdata(np.concatenate([positive, negative]))[: len(positive)]
    wins = ranks.sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))


def nss(saliency: np.ndarray, fixations: np.ndarray) -> float:
    """Normalised scanpath saliency (Peters et al., 2005).

    The mean, over fixated pixels, of the map in standard deviations (unbiased) from its
    mean.

    Args:
        saliency: [height, width].
        fixations: bool [height, width], with at least one pixel marked.

    Returns:
        The mean; 0 of a constant map, where the benchmark returns NaN.

    Raises:
        ValueError: As `auc_judd`.
    """
    saliency, fixations = _checked(saliency, fixations)
    if not _spread(saliency):
        return 0.0
    return float((saliency[fixations].mean() - saliency.mean()) / saliency.std(ddof=1))


def correlation(saliency: np.ndarray, human: np.ndarray) -> float:
    """Pearson's correlation coefficient CC with the human map.

    Args:
        saliency: [height, width].
        human: [height, width], fixations blurred.

    Returns:
        The coefficient; 0 if either map is constant, where the benchmark returns NaN.

    Raises:
        ValueError: Shapes differ.
    """
    saliency, human = _checked_pair(saliency, human)
    if not (_spread(saliency) and _spread(human)):
        return 0.0
    return float(np.corrcoef(saliency.ravel(), human.ravel())[0, 1])


def kl_divergence(saliency: np.ndarray, human: np.ndarray) -> float:
    """Kullback-Leibler divergence KL of the map from the human map; 0 is best.

    sum Q log(eps + Q / (P + eps)) in nats, P and Q being saliency and human map divided
    by their sums, eps = 2.2e-16.

    Args:
        saliency: [height, width]; a map with negative values is shifted to start at 0.
        human: [height, width], fixations blurred.

    Returns:
        The divergence. A map of zeros counts as uniform.

    Raises:
        ValueError: Shapes differ.
    """
    saliency, human = _checked_pair(saliency, human)
    p = _distribution(saliency - min(saliency.min(), 0.0))
    q = _distribution(human)
    return float(np.sum(q * np.log(_EPSILON + q / (p + _EPSILON))))


def similarity(saliency: np.ndarray, human: np.ndarray) -> float:
    """Similarity SIM, the intersection of two histograms (Judd et al., 2012).

    Both maps are shifted to start at 0 and divided by their sums; the smaller of both
    is summed over pixels.

    Args:
        saliency: [height, width].
        human: [height, width], fixations blurred.

    Returns:
        From 0 to 1, the same map. A constant map counts as uniform, where the benchmark
        returns NaN.

    Raises:
        ValueError: Shapes differ.
    """
    saliency, human = _checked_pair(saliency, human)
    p = _distribution(saliency - saliency.min())
    q = _distribution(human - human.min())
    return float(np.minimum(p, q).sum())


def _distribution(values):
    total = values.sum()
    return values / total if total > 0 else np.full(values.shape, 1 / values.size)


def _checked_pair(saliency, human):
    saliency, human = (np.asarray(x, np.float64) for x in (saliency, human))
    if saliency.shape != human.shape:
        raise ValueError(
            f"maps must have one shape; got {saliency.shape} and {human.shape}"
        )
    _spread(saliency), _spread(human)
    return saliency, human


def _checked(saliency, fixations):
    saliency, marked = np.asarray(saliency, np.float64), np.asarray(fixations, bool)
    if saliency.shape != marked.shape:
        raise ValueError(
            f"a map must have the fixation map's shape {marked.shape}; got "
            f"{saliency.shape}"
        )
    if not marked.any():
        raise ValueError("no pixel is fixated; an image needs a fixation to score")
    return saliency, marked


def _spread(saliency):
    """Largest less smallest value; raises ValueError if any is not finite."""
    spread = saliency.max() - saliency.min()
    if not np.isfinite(spread):
        raise ValueError("a map must be finite; got NaN or infinite values")
    return spread
