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
            "convolve": one that reads rows and gives a map; "pointwise": a 1x1
            convolution that maps rows to rows; "pool" and "global": poolings that read
            rows and give a map; "rows": any other layer that maps rows to rows;
            "dense": any layer, of maps.
        rows: Name of the convolution whose mask the inputs' rows have; None: they are
            maps.
        batch_norm: The normalization that follows a convolution, alone, and is computed
            with it.
        slope: Of the ReLU that follows, alone, or is the convolution's own activation:
            max(v, slope * v).
        is_folded: Whether this is such a normalization or ReLU.
    """

    step: Step
    action: str
    rows: str | None = None
    batch_norm: keras.layers.BatchNormalization | None = None
    slope: float = 1.0
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
        elif action in ("rows", "pointwise"):
            of_rows.update({token: rows for token in step.outputs})
        plan.append(Planned(step, action, rows))
    return _fold(plan, graph)


def _action(layer, rows, perforated):
    if layer.name in perforated:
        return "perforate"
    if rows is None or isinstance(layer, PerforatedConv2D):
        return "dense"
    if is_pointwise_convolution(layer):
        return "rows" if refusal(layer) else "pointwise"
    if works_by_position(layer):
        return "rows"
    if type(layer) is layers.Conv2D and refusal(layer) is None:
        return "convolve"
    if getattr(layer, "data_format", None) != "channels_last":
        return "dense"
    if isinstance(layer, POOLINGS):
        return "pool"
    return "global" if isinstance(layer, GLOBAL_POOLINGS) else "dense"


def slope_of(activation: object) -> float | None:
    """Returns the slope of an activation max(v, slope * v), None of others.

    Args:
        activation: None, a function or a layer.
    """
    if activation in (None, keras.activations.linear):
        return 1.0
    if activation in (keras.activations.relu, tf.nn.relu):
        return 0.0
    kind, slope = type(activation), None
    if kind is layers.Activation:
        return slope_of(activation.activation)
    if kind is layers.ReLU:
        is_bent = activation.max_value is not None or activation.threshold
        slope = None if is_bent else float(activation.negative_slope)
    elif kind is layers.LeakyReLU:
        slope = float(activation.alpha)
    return slope if slope is not None and 0 <= slope <= 1 else None


def _fold(plan, graph):
    """Finds normalizations and ReLUs to compute with the convolution before them."""
    readers = graph.readers()
    returned = {id(token) for token in tf.nest.flatten(graph.outputs)}
    by_step = {id(planned.step): planned for planned in plan}
    folded, changed = set(), {}

    def next_of(step, action):
        """The step that alone reads another's result, position by position."""
        token = step.outputs[0]
        if len(readers[token]) != 1 or id(token) in returned:
            return None
        reader = readers[token][0]
        wanted = "dense" if action == "convolve" else "rows"
        fits = by_step[id(reader)].action == wanted and works_by_position(reader.layer)
        return reader if fits else None

    for planned in plan:
        if planned.action not in ("perforate", "convolve", "pointwise"):
            continue
        step = planned.step
        slope = slope_of(step.layer.activation)
        if slope != 1.0:
            changed[id(step)] = {"slope": 1.0 if slope is None else slope}
            continue
        own = changed[id(step)] = {}
        follower = next_of(step, planned.action)
        if follower and type(follower.layer) is layers.BatchNormalization:
            own["batch_norm"] = follower.layer
            folded.add(id(follower))
            follower = next_of(follower, planned.action)
        slope = slope_of(follower.layer) if follower else None
        if slope is not None:
            own["slope"] = slope
            folded.add(id(follower))
    return [
        dataclasses.replace(
            planned,
            is_folded=id(planned.step) in folded,
            **changed.get(id(planned.step), {}),
        )
        for planned in plan
    ]


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
    elif planned.action in ("rows", "pointwise"):
        positions = kept[planned.rows]
    elif isinstance(layer, PerforatedConv2D):  # of zeros
        positions = layer.kept.shape[0]
    elif isinstance(layer, layers.Conv2DTranspose):
        positions = math.prod(step.inputs[0].shape[1:3])
    else:
        positions = math.prod(shape[1:3])
    return positions * sum(math.prod(kernel.shape) for kernel in kernels)
