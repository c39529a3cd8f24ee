"""Perforation of trained models: other layers in the places of their convolutions."""

from __future__ import annotations

import dataclasses
import warnings
import zlib
from collections.abc import Mapping

import numpy as np
import tf_keras as keras

from sact_tf.domains import SEED, brief
from sact_tf.perforation import graph, impact, masks
from sact_tf.perforation.implicit import PerforatedModel
from sact_tf.perforation.layer import PerforatedConv2D
from sact_tf.perforation.survey import Survey, survey


@dataclasses.dataclass(frozen=True)
class LayerMask:
    """What a layer's mask is made of.

    Attributes:
        mask: Its kind, one of `masks.KINDS`.
        keep_fraction: Share of positions to keep.
        seed: Of the mask and of ties.
        scores: Of impact masks.
        pool: Of structure masks.
    """

    mask: str
    keep_fraction: float
    seed: int
    scores: np.ndarray | None = None
    pool: masks.Pool | None = None

    def num_kept(self, height: int, width: int) -> int:
        """Returns how many positions it keeps."""
        return masks.num_kept(height, width, self.keep_fraction, self.mask)

    def make(self, height: int, width: int) -> np.ndarray:
        """Returns the mask, bool [height, width]."""
        return masks.make_mask(
            self.mask,
            height,
            width,
            self.keep_fraction,
            self.seed,
            scores=self.scores,
            pool=self.pool,
        )


class Rates(dict):
    """Keep fractions of layers by their names, with what else makes the same masks.

    Attributes:
        kinds: Kind of the mask, by layer.
        seed: Of the masks.
        scores: Of impact masks, by layer; None: there are no such masks.
    """

    def __init__(
        self,
        fractions: Mapping[str, float],
        kinds: Mapping[str, str],
        seed: int,
        scores: Mapping[str, np.ndarray] | None = None,
    ):
        super().__init__(fractions)
        self.kinds, self.seed, self.scores = dict(kinds), seed, scores


def layer_seed(seed: int, name: str) -> int:
    """Returns a layer's own seed, whatever other layers there are."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return int(sequence.generate_state(1)[0])


def layer_masks(
    found: Survey,
    fractions: Mapping[str, float],
    kinds: Mapping[str, str],
    seed: int,
    scores: Mapping[str, np.ndarray] | None = None,
) -> dict[str, LayerMask]:
    """Returns what the masks of layers are made of.

    Args:
        found: Of the model.
        fractions: Keep fractions by layer; layers that keep all stay dense.
        kinds: Kinds of masks by layer. Where a structure mask does not apply, since
            another convolution comes before the pooling, it is the grid.
        seed: Of all masks.
        scores: Of impact masks, by layer.
    """
    made = {}
    for name, fraction in fractions.items():
        if fraction >= 1:
            continue
        kind, pool = kinds[name], found.convolutions[name].pool
        if kind == "structure" and pool is None:
            kind = "grid"
        made[name] = LayerMask(
            kind,
            fraction,
            layer_seed(seed, name),
            scores[name] if kind == "impact" else None,
            pool if kind == "structure" else None,
        )
    return made


def check_kind(kind: str) -> str:
    """Returns a kind of masks; ValueError on others."""
    if kind not in masks.KINDS:
        raise ValueError(f"mask must be one of {', '.join(masks.KINDS)}; got {kind!r}")
    return kind


def _fractions(found, keep_fraction):
    """Returns checked keep fractions by layer."""
    if not isinstance(keep_fraction, Mapping):
        masks.KEEP_FRACTION.check(keep_fraction, "keep_fraction")
        return dict.fromkeys(found.convolutions, keep_fraction)
    for name, fraction in keep_fraction.items():
        if name in found.dense:
            raise ValueError(
                f"keep_fraction names {name}, which stays dense: it {found.dense[name]}"
            )
        if name not in found.convolutions:
            raise ValueError(
                f"keep_fraction names {brief(name)}; expected some of "
                f"{', '.join(found.convolutions)}"
            )
        masks.KEEP_FRACTION.check(fraction, f"keep_fraction of {name}")
    return dict(keep_fraction)


def perforate(
    model: keras.Model,
    keep_fraction: float | Mapping[str, float] = 0.5,
    mask: str = "grid",
    examples: object = None,
    seed: int = 0,
) -> keras.Model:
    """Makes a model faster by computing its convolutions at some positions only.

    Replaced are the convolutions larger than 1x1 that some pooling follows (see
    `survey`). They keep their names and weights. Warnings tell which convolutions stay
    dense and where a grid takes the place of a structure mask.

    Args:
        model: Functional or Sequential, of images of one size. It is not changed.
            Models within it become part of the result.
        keep_fraction: In (0, 1], for all layers or by their names; others stay dense.
            What `search_rates` finds brings its own masks and seed.
        mask: One of `masks.KINDS`.
        examples: Preprocessed images and labels, or batches of them; impact masks need
            some, 5000 in the paper.
        seed: Of the masks.

    Returns:
        A Functional model of the same weights, of which the replaced layers are
        `PerforatedConv2D`. In inference it interpolates implicitly.

    Raises:
        ValueError: An argument is none of these, or there is nothing to perforate.
    """
    SEED.check(seed, "seed")
    check_kind(mask)
    found = survey(model)
    fractions = _fractions(found, keep_fraction)
    kinds = dict.fromkeys(fractions, mask)
    scores = None
    if isinstance(keep_fraction, Rates):
        kinds, seed = keep_fraction.kinds, keep_fraction.seed
        scores = keep_fraction.scores
    wanting = [n for n, kind in kinds.items() if kind == "impact" and fractions[n] < 1]
    if wanting and scores is None:
        if examples is None:
            raise ValueError(
                "examples must be given for impact masks: images and labels; got None"
            )
        scores = impact.impact_scores(model, examples, wanting)
    made = layer_masks(found, fractions, kinds, seed, scores)
    _warn(found, made, kinds)
    return replace(model, made)


def _warn(found, made, kinds):
    if found.dense:
        stay = "; ".join(f"{name} {reason}" for name, reason in found.dense.items())
        warnings.warn(f"these convolutions stay dense: {stay}", stacklevel=3)
    others = [name for name, one in made.items() if one.mask != kinds[name]]
    if others:
        warnings.warn(
            "another convolution comes before the next pooling, so these layers have "
            f"a grid rather than a structure mask: {', '.join(others)}",
            stacklevel=3,
        )


def replace(model: keras.Model, made: Mapping[str, LayerMask]) -> keras.Model:
    """Returns a copy of a model with perforated convolutions.

    Args:
        model: Functional or Sequential.
        made: Masks of the layers to replace, by name.
    """

    def perforated(layer):
        if layer.name not in made:
            return None
        config = layer.get_config()
        del config["groups"]
        return PerforatedConv2D(**config, **vars(made[layer.name]))

    return graph.rebuild(
        model,
        perforated,
        lambda inputs, outputs, name: PerforatedModel(inputs, outputs, name=name),
    )


def realised(model: keras.Model) -> dict[str, float]:
    """Returns the share of positions that each perforated convolution computes.

    By name; a grid keeps less than it is asked for.
    """
    return {
        step.layer.name: step.layer.kept_fraction
        for step in graph.graph_of(model).steps
        if isinstance(step.layer, PerforatedConv2D)
    }
