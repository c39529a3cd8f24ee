"""Which convolutions of a model can be perforated, and what reads them."""

from __future__ import annotations

import dataclasses

import tf_keras as keras

from sact_tf.perforation import graph, masks
from sact_tf.perforation.layer import PerforatedConv2D, refusal, windows_of

layers = keras.layers

POOLINGS = (layers.MaxPooling2D, layers.AveragePooling2D)
GLOBAL_POOLINGS = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
_CONVOLUTIONS = (
    layers.Conv2D,  # PerforatedConv2D and Conv2DTranspose are such too
    layers.DepthwiseConv2D,
    layers.SeparableConv2D,
)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution that can be perforated.

    Attributes:
        name: Of the layer.
        height: Of its output.
        width: Of its output.
        pool: The pooling that alone reads it, 1x1 convolutions and whatever else works
            position by position in between; None: something else reads it.
    """

    name: str
    height: int
    width: int
    pool: masks.Pool | None


@dataclasses.dataclass(frozen=True)
class Survey:
    """What can be perforated in a model.

    Attributes:
        convolutions: By name, those that can, in the model's order.
        dense: By name, why other convolutions that are not 1x1 stay dense.
    """

    convolutions: dict[str, Convolution]
    dense: dict[str, str]


def is_pointwise_convolution(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a 1x1 convolution of stride 1."""
    return (
        type(layer) is layers.Conv2D
        and tuple(layer.kernel_size) == (1, 1)
        and tuple(layer.strides) == (1, 1)
    )


def survey(model: keras.Model) -> Survey:
    """Finds the convolutions that can be perforated.

    They are those, larger than 1x1, that some pooling follows anywhere later (global
    pooling counts). Depthwise, separable, transposed and grouped ones stay dense.

    Args:
        model: Functional or Sequential.

    Raises:
        ValueError: `model` is of another kind, its images have no known size, or there
            is no convolution that a pooling follows.
    """
    steps = graph.graph_of(model)
    readers = steps.readers()
    found: dict[str, Convolution] = {}
    dense: dict[str, str] = {}
    for step in steps.steps:
        layer = step.layer
        if not isinstance(layer, _CONVOLUTIONS) or _is_1x1(layer):
            continue
        reason = _why_dense(step, readers)
        if layer.name in found or layer.name in dense:
            found.pop(layer.name, None)
            reason = "is called several times"
        if reason:
            dense[layer.name] = reason
            continue
        shape = step.inputs[0].shape
        if None in shape[1:]:
            raise ValueError(
                f"model {model.name} gives {layer.name} input of shape {shape}, and a "
                "static mask needs images of known size; build the model with an "
                "input_shape of numbers"
            )
        height, width = windows_of(layer, shape).output
        pool = _next_pool(step.outputs[0], readers)
        found[layer.name] = Convolution(layer.name, height, width, pool)
    if not found and not _has_perforated(steps):
        raise ValueError(
            f"model {model.name} has no convolution larger than 1x1 that a pooling "
            "follows" + _listed(dense)
        )
    return Survey(found, dense)


def _listed(dense):
    reasons = [f"{name} {reason}" for name, reason in dense.items()]
    return f" ({'; '.join(reasons)})" if reasons else ""


def _has_perforated(steps):
    return any(isinstance(step.layer, PerforatedConv2D) for step in steps.steps)


def _is_1x1(layer):
    return tuple(layer.kernel_size) == (1, 1)


def _why_dense(step, readers):
    """Returns why a convolution stays dense, None if it can be perforated."""
    layer = step.layer
    if isinstance(layer, PerforatedConv2D):
        return "is perforated already"
    if isinstance(layer, layers.Conv2DTranspose):
        return "is transposed"
    if isinstance(layer, layers.DepthwiseConv2D):
        return "is depthwise"
    if isinstance(layer, layers.SeparableConv2D):
        return "is depthwise separable"
    if type(layer) is not layers.Conv2D:
        return f"is of the class {type(layer).__name__}"
    reason = refusal(layer)
    if reason:
        return f"has {reason}"
    return None if _meets_pool(step, readers, set()) else "has no pooling after it"


def _meets_pool(step, readers, seen):
    """Whether a pooling layer comes anywhere after a step."""
    stack = [step]
    while stack:
        for token in stack.pop().outputs:
            for reader in readers[token]:
                if isinstance(reader.layer, POOLINGS + GLOBAL_POOLINGS):
                    return True
                if id(reader) not in seen:
                    seen.add(id(reader))
                    stack.append(reader)
    return False


def _next_pool(token, readers):
    """Returns the pooling which, alone, is the next that reads several positions."""
    found, stack = set(), [token]
    while stack:
        for reader in readers[stack.pop()]:
            layer = reader.layer
            if isinstance(layer, POOLINGS):
                found.add(masks.as_pool(layer))
            elif isinstance(layer, GLOBAL_POOLINGS):
                found.add(masks.Pool(token.shape[1:3], token.shape[1:3]))
            elif works_by_position(layer) or is_pointwise_convolution(layer):
                stack.extend(reader.outputs)
            else:
                return None
    return found.pop() if len(found) == 1 else None


_ANY_ACTIVATION = (
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.ThresholdedReLU,
    layers.Dropout,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.AlphaDropout,
    layers.SpatialDropout2D,
    layers.Rescaling,
)
_MERGES = (
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)


def works_by_position(layer: keras.layers.Layer) -> bool:
    """Whether an output of a layer, in inference, reads the inputs there and no others.

    So it may be computed of compact rows, one for many positions. Of layers not known
    here the answer is no. 1x1 convolutions are another matter:
    `is_pointwise_convolution`.

    Args:
        layer: Called with maps [batch, height, width, channels].
    """
    kind = type(layer)
    if kind in _ANY_ACTIVATION or kind in _MERGES:
        return True
    if kind is layers.Activation:
        return getattr(layer.activation, "__module__", "").startswith("tf_keras.")
    if kind is layers.BatchNormalization:
        axis = layer.axis if isinstance(layer.axis, int) else list(layer.axis)
        return axis in (3, -1, [3])
    if kind is layers.Softmax:
        return layer.axis in (3, -1)
    if kind is layers.Concatenate:
        return layer.axis in (3, -1)
    return False
