"""How much each layer may skip: greedy search (Figurnov et al., 2016)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tf_keras as keras

from sact_tf.domains import COUNT, POSITIVE, SEED
from sact_tf.perforation import impact
from sact_tf.perforation.candidates import Candidate, Scorer
from sact_tf.perforation.masks import KINDS
from sact_tf.perforation.search_file import SearchFile
from sact_tf.perforation.surgery import Rates, check_kind
from sact_tf.perforation.survey import survey
from sact_tf.progress import StatusLine

LEVELS = (1.0, 1 / 1.5, *(1 / k for k in range(2, 21)))
"""Keep fractions that a layer goes through, one after the other."""

COSTS = ("multiplies", "time")
_FINALISTS = 3


class Scored(NamedTuple):
    """A candidate and what it costs.

    Attributes:
        candidate: The candidate.
        cost: Its multiplications, or its time.
        loss: Its mean cross-entropy.
        price: What the loss gains for each part of the cost saved, both as compared
            with the dense network; infinite where nothing is saved.
    """

    candidate: Candidate
    cost: float
    loss: float
    price: float


def proposals(
    current: Candidate, kinds: Sequence[str], redraws: int, num_levels: int, step: int
) -> list[Candidate]:
    """Returns what may come next: one layer goes on by one level, all masks are new.

    Args:
        current: Where the search is.
        kinds: Of masks that the layer may get.
        redraws: Masks drawn for each.
        num_levels: Layers at the last level go no further.
        step: Number of the greedy step, so that each draws its own masks.
    """
    made = []
    for layer, level in enumerate(current.levels):
        if level + 1 >= num_levels:
            continue
        levels = _with(current.levels, layer, level + 1)
        for kind in kinds:
            for draw in range(redraws):
                entropy = [current.root, step, draw]
                seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
                made.append(
                    current._replace(
                        levels=levels,
                        kinds=_with(current.kinds, layer, kind),
                        seed=seed,
                    )
                )
    return made


def _with(values, place, value):
    return (*values[:place], value, *values[place + 1 :])


def price(loss: float, cost: float, dense_loss: float, dense_cost: float) -> float:
    """Returns loss gained per cost saved, as compared with the dense network.

    Not with the step before: one cheap step cannot hide a bad one before it.
    """
    if not cost < dense_cost or not math.isfinite(loss):
        return math.inf
    return (loss - dense_loss) / (dense_cost - cost)


def choose(
    candidates: Iterable[Candidate],
    cost: Callable[[Candidate], float],
    loss: Callable[[Candidate, bool], float],
    dense: Candidate,
) -> Scored | None:
    """Returns the candidate of the lowest price, None if none is cheaper than dense.

    Args:
        candidates: To choose from; of equal ones the first is taken.
        cost: Of a candidate.
        loss: Of a candidate; first of few images, then, of the best three, of many
            (True).
        dense: The dense network.
    """

    def scored(candidate, is_thorough):
        its_cost = cost(candidate)
        if not its_cost < cost(dense):
            return Scored(candidate, its_cost, math.inf, math.inf)
        its_loss = loss(candidate, is_thorough)
        reference = loss(dense, is_thorough)
        its_price = price(its_loss, its_cost, reference, cost(dense))
        return Scored(candidate, its_cost, its_loss, its_price)

    def cheapest(found, count):
        cheaper = [one for one in found if one.price < math.inf]
        return sorted(cheaper, key=lambda one: one.price)[:count]

    best = cheapest([scored(c, False) for c in candidates], _FINALISTS)
    best = cheapest([scored(one.candidate, True) for one in best], 1)
    return best[0] if best else None


def search_rates(
    model: keras.Model,
    examples: object,
    *,
    steps: int = 50,
    target_speedup: float | None = None,
    mask: str | Sequence[str] = "grid",
    redraws: int = 2,
    cost: str = "multiplies",
    num_images: int = 2000,
    num_recheck: int = 10000,
    num_impact: int = 5000,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    batch_size: int = 100,
    path: str | None = None,
    verbose: bool = False,
) -> Rates:
    """Finds how much each layer may skip, greedily.

    Every step lets each layer in turn keep one level less, with new masks, and takes
    the candidate that raises the loss least for what it saves, both as compared with
    the dense network. Candidates are scored on some images, the best three again on
    more.

    Args:
        model: Functional or Sequential classifier.
        examples: Preprocessed training images and labels in random order, or batches of
            them. Not those on which the result is judged.
        steps: Greedy steps at most.
        target_speedup: Stops at a speed-up of at least this, by `cost`; None: never.
        mask: Kind of the masks, or several to choose from for each layer.
        redraws: Masks drawn for each candidate.
        cost: "multiplies", which is reproducible, or "time": seconds of a batch, the
            dense network's less what each layer by itself saves.
        num_images: Images that score candidates.
        num_recheck: Images that score the best three; not more than there are.
        num_impact: Images for impact masks.
        levels: Keep fractions, descending from 1.
        seed: Of all masks.
        batch_size: Images at a time, also of `cost="time"`.
        path: JSON file of the whole path. A search that was stopped goes on from it.
        verbose: Whether to show steps, candidates and what was chosen.

    Returns:
        Keep fractions by layer, to be passed to `perforate`. The layers that stay dense
        have 1. Fewer steps than asked for were made if no candidate was cheaper than
        the dense network.

    Raises:
        ValueError: An argument is none of these, or the file is of another search.
        DataError: The file is none of a search.
    """
    kinds = (mask,) if isinstance(mask, str) else tuple(mask)
    if not kinds:
        raise ValueError(f"mask must name one of {', '.join(KINDS)}; got none")
    for kind in kinds:
        check_kind(kind)
    if cost not in COSTS:
        raise ValueError(f"cost must be one of {', '.join(COSTS)}; got {cost!r}")
    counts = dict(
        steps=steps, redraws=redraws, num_images=num_images, num_recheck=num_recheck
    )
    for name, value in {**counts, "batch_size": batch_size}.items():
        COUNT.check(value, name)
    COUNT.check(num_impact, "num_impact")
    if target_speedup is not None:
        POSITIVE.check(target_speedup, "target_speedup")
    SEED.check(seed, "seed")
    levels = _check_levels(levels)
    found = survey(model)
    names = tuple(found.convolutions)
    settings = dict(
        layers=list(names),
        maps=[[c.height, c.width] for c in found.convolutions.values()],
        weights=weights_sum(model),
        mask=list(kinds),
        redraws=redraws,
        cost=cost,
        num_images=num_images,
        num_recheck=max(num_recheck, num_images),
        num_impact=num_impact,
        levels=list(levels),
        seed=seed,
        batch_size=batch_size,
    )
    dense = Candidate((0,) * len(names), (kinds[0],) * len(names), 0, seed)
    file = SearchFile(path, settings)
    batches = impact.batches_of(examples, batch_size)
    scorer = Scorer(model, found, levels, batches, settings, file, num_impact)
    line = StatusLine()
    current, done = dense, file.committed(dense)
    if done:
        current = done[-1]
        if verbose:
            print(f"Going on after step {len(done)} of {path}", flush=True)
    for step in range(len(done), steps):
        if target_speedup and _speedup(scorer, dense, current) >= target_speedup:
            break
        candidates = proposals(current, kinds, redraws, len(levels), step)
        best = choose(
            _shown(candidates, line if verbose else None, step, steps),
            scorer.cost,
            scorer.loss,
            dense,
        )
        if best is None:
            break
        current = best.candidate
        speedup = _speedup(scorer, dense, current)
        fractions = dict(scorer.rates(current))
        file.commit(best, fractions, speedup)
        if verbose:
            line.end()
            kept = ", ".join(f"{n} {f:.3g}" for n, f in fractions.items() if f < 1)
            print(
                f"step {step + 1}: {speedup:.2f}x, loss {best.loss:.4f} (dense "
                f"{scorer.loss(dense, True):.4f}); {kept}",
                flush=True,
            )
    return scorer.rates(current)


def _speedup(scorer, dense, candidate):
    return scorer.cost(dense) / scorer.cost(candidate)


def _shown(candidates, line, step, steps):
    """Gives candidates one by one, and shows how many were scored."""
    for k, candidate in enumerate(candidates, 1):
        yield candidate
        if line is not None:
            text = f"step {step + 1}/{steps}, candidate {k}/{len(candidates)}"
            line.show(lambda text=text: text)


def _check_levels(levels):
    levels = tuple(float(level) for level in levels)
    is_descending = all(a > b for a, b in zip(levels, levels[1:]))
    if not levels or levels[0] != 1 or not is_descending or not levels[-1] > 0:
        raise ValueError(
            f"levels must be keep fractions descending from 1; got {levels}"
        )
    return levels


def weights_sum(model: keras.Model) -> int:
    """Returns a checksum of a model's weights."""
    total = 0
    for weight in model.get_weights():
        total = zlib.crc32(np.ascontiguousarray(weight).tobytes(), total)
    return total
