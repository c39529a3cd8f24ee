"""What of a perforated model runs on compact rows, and how much is multiplied then.

A perforated convolution gives rows, one for every kept position. Layers that work
position by position run on the rows. The next convolution or pooling reads them through
its taps, composed with the table of nearest rows, so that the interpolated map is never
formed (Figurnov et al., 2016: implicit interpolation).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping

import tensorflow as tf
import tf_keras as keras

from sact_tf.perforation.graph import Graph, Step
from sact_tf.perforation.layer import PerforatedConv2D, refusal
from sact_tf.perforation.survey import (
    GLOBAL_POOLINGS,
    POOLINGS,
    is_pointwise_convolution,
    works_by_position,
)

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class Planned:
    """How a step runs.

    Attributes:
        step: The step.
        action: "perforate": a convolution that gives rows, of a map or of rows;
            "convolve": one that reads rows and gives a map; "pool" and "global": the
            same of poolings; "rows": a layer that maps rows to rows; "dense": any
            layer, of maps.
        rows: Name of the convolution whose mask the inputs' rows have; None: they are
            maps.
        batch_norm: The normalization that follows, alone, and is folded into this
            convolution.
        is_folded: Whether this is such a normalization.
    """

    step: Step
    action: str
    rows: str | None = None
    batch_norm: keras.layers.BatchNormalization | None = None
    is_folded: bool = False


def make_plan(graph: Graph, perforated: Collection[str]) -> list[Planned]:
    """Decides how each step of a model runs in inference.

    Args:
        graph: The model.
        perforated: Names of the convolutions to perforate, with nearest interpolation.
    """
    of_rows = {}  # token -> the convolution whose mask its rows have
    plan = []
    for step in graph.steps:
        found = {of_rows.get(token) for token in step.inputs}
        rows = found.pop() if len(found) == 1 else None
        action = _action(step.layer, rows, perforated)
        if action == "perforate":
            of_rows[step.outputs[0]] = step.layer.name
        elif action == "rows":
            of_rows.update({token: rows for token in step.outputs})
        plan.append(Planned(step, action, rows))
    return _fold(plan, graph)


def _action(layer, rows, perforated):
    if layer.name in perforated:
        return "perforate"
    if rows is None or isinstance(layer, PerforatedConv2D):
        return "dense"
    if works_by_position(layer) or is_pointwise_convolution(layer):
        return "rows"
    if type(layer) is layers.Conv2D and refusal(layer) is None:
        return "convolve"
    if getattr(layer, "data_format", None) != "channels_last":
        return "dense"
    if isinstance(layer, POOLINGS):
        return "pool"
    return "global" if isinstance(layer, GLOBAL_POOLINGS) else "dense"


def _fold(plan, graph):
    """Finds normalizations that can be folded into the convolution before them."""
    readers = graph.readers()
    returned = {id(token) for token in tf.nest.flatten(graph.outputs)}
    by_step = {id(planned.step): planned for planned in plan}
    folded, into = set(), {}
    for planned in plan:
        layer = planned.step.layer
        if planned.action not in ("perforate", "convolve"):
            continue
        token = planned.step.outputs[0]
        is_linear = layer.activation in (None, keras.activations.linear)
        if len(readers[token]) != 1 or id(token) in returned or not is_linear:
            continue
        reader = readers[token][0]
        is_norm = type(reader.layer) is layers.BatchNormalization
        if is_norm and by_step[id(reader)].action == _norm_action(planned.action):
            folded.add(id(reader))
            into[id(planned.step)] = reader.layer
    return [
        dataclasses.replace(
            planned,
            batch_norm=into.get(id(planned.step)),
            is_folded=id(planned.step) in folded,
        )
        for planned in plan
    ]


def _norm_action(action):
    """How a normalization runs after a convolution that gives rows, or a map."""
    return "rows" if action == "perforate" else "dense"


def multiplies(plan: list[Planned], kept: Mapping[str, int]) -> int:
    """Counts the multiplications of an image: of convolutions and dense layers.

    Args:
        plan: Of the model.
        kept: Positions that each perforated convolution computes, by its name.
    """
    return sum(_of_layer(planned, kept) for planned in plan)


def _of_layer(planned, kept):
    layer, step = planned.step.layer, planned.step
    shape = step.outputs[0].shape
    if isinstance(layer, layers.Dense):
        return math.prod(shape[1:]) * layer.kernel.shape[0]
    if isinstance(layer, layers.DepthwiseConv2D):
        kernels = [layer.depthwise_kernel]
    elif isinstance(layer, layers.SeparableConv2D):
        kernels = [layer.depthwise_kernel, layer.pointwise_kernel]
    elif isinstance(layer, layers.Conv2D):
        kernels = [layer.kernel]
    else:
        return 0
    if planned.action == "perforate":
        positions = kept[layer.name]
    elif planned.action == "rows":
        positions = kept[planned.rows]
    elif isinstance(layer, PerforatedConv2D):  # of zeros
        positions = layer.kept.shape[0]
    elif isinstance(layer, layers.Conv2DTranspose):
        positions = math.prod(step.inputs[0].shape[1:3])
    else:
        positions = math.prod(shape[1:3])
    return positions * sum(math.prod(kernel.shape) for kernel in kernels)
