"""What candidates of the search cost, and how well they do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import classifiers
from sact_tf.perforation import impact
from sact_tf.perforation.graph import graph_of
from sact_tf.perforation.implicit import CompactNetwork, Perforation, perforation_of
from sact_tf.perforation.plan import make_plan, multiplies
from sact_tf.perforation.surgery import Rates, layer_masks
from sact_tf.perforation.survey import Survey
from sact_tf.timing import time_by_turns

_REPETITIONS = 5  # of time; the paper has as many


class Candidate(NamedTuple):
    """A network: how much each layer keeps, and by which masks.

    Attributes:
        levels: Of each layer, its place among the keep fractions.
        kinds: Of each layer's mask.
        seed: Of all masks.
        root: Seed of the search.
    """

    levels: tuple[int, ...]
    kinds: tuple[str, ...]
    seed: int
    root: int

    @property
    def key(self) -> str:
        """Names it in files."""
        parts = [f"{level}{kind}" for level, kind in zip(self.levels, self.kinds)]
        return f"{','.join(parts)};{self.seed}"


class Scorer:
    """Cost and loss of candidates, each measured once.

    Args:
        model: The dense classifier.
        found: What can be perforated in it.
        levels: Keep fractions.
        batches: Of training images and labels.
        settings: Of the search: `cost`, `num_images`, `num_recheck`, `batch_size`.
        file: Remembers what was measured.
        num_impact: Images for impact masks.
    """

    def __init__(
        self,
        model: keras.Model,
        found: Survey,
        levels: Sequence[float],
        batches: Iterable,
        settings: Mapping[str, object],
        file,
        num_impact: int,
    ):
        self._model, self._found, self._levels = model, found, levels
        self._names = tuple(found.convolutions)
        self._batches, self._settings, self._file = batches, settings, file
        self._num_impact = num_impact
        self._graph = graph_of(model)
        self._scores = self._probe = None

    def _fractions(self, candidate):
        return {
            name: self._levels[level]
            for name, level in zip(self._names, candidate.levels)
        }

    def _impact(self, candidate):
        """Scores of impact masks by layer, None if there are no such masks."""
        if "impact" not in candidate.kinds:
            return None
        if self._scores is None:
            first = take(self._batches, self._num_impact)
            self._scores = impact.impact_scores(self._model, first, self._names)
        return self._scores

    def rates(self, candidate: Candidate) -> Rates:
        """Returns what makes a candidate's masks."""
        kinds = dict(zip(self._names, candidate.kinds))
        return Rates(
            self._fractions(candidate), kinds, candidate.seed, self._impact(candidate)
        )

    def _perforations(self, candidate) -> dict[str, Perforation]:
        rates = self.rates(candidate)
        made = layer_masks(self._found, rates, rates.kinds, rates.seed, rates.scores)
        tables = {}
        for name, mask in made.items():
            place = self._found.convolutions[name]
            made_mask = mask.make(place.height, place.width)
            tables[name] = perforation_of(made_mask, mask.seed)
        return tables

    def _network(self, candidate):
        perforations = self._perforations(candidate)
        if not perforations:
            return self._model
        return CompactNetwork(self._model, perforations)

    def cost(self, candidate: Candidate) -> float:
        """Returns multiplications of an image, or seconds of a batch."""
        if self._settings["cost"] == "multiplies":
            return self._multiplies(candidate)
        dense = self._file.remember("time", "dense", self._dense_time)
        return dense * (1 - sum(self._savings(candidate)))

    def _multiplies(self, candidate):
        kept = {}
        for name, level, kind in zip(self._names, candidate.levels, candidate.kinds):
            if level:
                place = self._found.convolutions[name]
                kept[name] = self._num_kept(place, self._levels[level], kind)
        return multiplies(make_plan(self._graph, kept), kept)

    def _num_kept(self, place, fraction, kind):
        kinds, fractions = {place.name: kind}, {place.name: fraction}
        scores = {place.name: np.zeros([place.height, place.width])}
        made = layer_masks(self._found, fractions, kinds, 0, scores)[place.name]
        return made.num_kept(place.height, place.width)

    def _savings(self, candidate):
        """Shares of the dense network's time that each layer by itself saves."""
        for layer, (level, kind) in enumerate(zip(candidate.levels, candidate.kinds)):
            if not level:
                continue
            alone = candidate._replace(
                levels=tuple(level * (k == layer) for k in range(len(self._names))),
                seed=candidate.root,
            )
            name = f"{self._names[layer]} {kind} {self._levels[level]:.4f}"
            yield self._file.remember("time", name, lambda one=alone: self._saving(one))

    def _dense_time(self):
        return time_by_turns({"dense": self._caller(self._model)}, 2 * _REPETITIONS)[
            "dense"
        ]

    def _saving(self, candidate):
        calls = {"dense": self._model, "perforated": self._network(candidate)}
        calls = {name: self._caller(network) for name, network in calls.items()}
        times = time_by_turns(calls, _REPETITIONS)
        return 1 - times["perforated"] / times["dense"]

    def _caller(self, network):
        if self._probe is None:
            self._probe = next(iter(self._batches))[0]
        function = tf.function(lambda images: network(images, training=False))
        return lambda: function(self._probe)

    def loss(self, candidate: Candidate, is_thorough: bool) -> float:
        """Returns the mean cross-entropy of images.

        Args:
            candidate: Of the search.
            is_thorough: Whether of `num_recheck` images, rather than `num_images`.
        """
        count = self._settings["num_recheck" if is_thorough else "num_images"]

        def measure():
            network = self._network(candidate)
            return classifiers.score(network, take(self._batches, count))["loss"]

        return self._file.remember(f"loss of {count}", candidate.key, measure)


def take(batches: Iterable, count: int) -> Iterable:
    """Gives batches of so many examples altogether, or all if there are fewer."""
    left = count
    for images, labels in batches:
        yield images[:left], labels[:left]
        left -= len(labels)
        if left <= 0:
            return
