"""What perforation is compared with: larger strides, smaller input, one rate."""

from __future__ import annotations

from collections.abc import Callable, Collection

import tf_keras as keras

from sact_tf.domains import COUNT, POSITIVE, Domain, first_line
from sact_tf.perforation import graph
from sact_tf.perforation.layer import windows_of
from sact_tf.perforation.masks import num_kept
from sact_tf.perforation.plan import make_plan, multiplies
from sact_tf.perforation.surgery import check_kind
from sact_tf.perforation.survey import POOLINGS, Survey, survey
from sact_tf.perforation.tables import Windows

_SCALE = Domain(0, 1, above=True)


def count_multiplies(model: keras.Model) -> int:
    """Returns the multiplications of an image: of convolutions and dense layers."""
    return multiplies(make_plan(graph.graph_of(model), ()), {})


def _rebuilt(model, replace, begin=None):
    """Rebuilds a model whose maps become smaller."""
    try:
        return graph.rebuild(
            model,
            replace,
            lambda inputs, outputs, name: keras.Model(inputs, outputs, name=name),
            begin,
        )
    except ValueError as error:
        raise ValueError(
            f"model {model.name} has layers that take maps of one size only, such as "
            f"dense ones ({first_line(error)})"
        ) from error


def with_larger_stride(
    model: keras.Model, names: Collection[str], factor: int = 2
) -> keras.Model:
    """Makes convolutions compute at fewer positions by larger strides.

    Where a pooling comes next whose strides can be divided by the factor, they are, so
    that later maps keep their size; its padding changes where that needs it.

    Args:
        model: Functional or Sequential.
        names: Of convolutions that `survey` finds.
        factor: Of their strides.

    Returns:
        A model with the same weights.

    Raises:
        ValueError: A name is of no such convolution, or the model takes no smaller
            maps.
    """
    COUNT.check(factor, "factor")
    found = survey(model)
    unknown = [name for name in names if name not in found.convolutions]
    if unknown or not names:
        raise ValueError(
            f"layers must be some of {', '.join(found.convolutions)}; got "
            f"{', '.join(unknown) or 'none'}"
        )
    pools = _next_pools(model, names, factor)

    def replace(layer):
        times = {name: factor for name in names}.get(layer.name)
        if times is None and layer.name not in pools:
            return None
        config = layer.get_config()
        if times:
            config["strides"] = [s * factor for s in layer.strides]
        else:
            config["strides"] = [s // factor for s in layer.strides]
            config["padding"] = pools[layer.name]
        return type(layer).from_config(config)

    return _rebuilt(model, replace)


def _next_pools(model, names, factor):
    """Poolings that come next, whose strides can be divided; new padding by name."""
    steps = graph.graph_of(model)
    readers = steps.readers()
    pools = {}
    for step in steps.steps:
        if step.layer.name not in names:
            continue
        windows = windows_of(step.layer, step.inputs[0].shape)
        strides = tuple(s * factor for s in windows.strides)
        sides = windows._replace(strides=strides).output
        stack = [step]
        while stack:
            for token in stack.pop().outputs:
                for reader in readers[token]:
                    layer = reader.layer
                    if not isinstance(layer, POOLINGS):
                        stack += [] if _reads_several(layer) else [reader]
                    elif all(s % factor == 0 for s in layer.strides):
                        pools[layer.name] = _padding(reader, sides, factor)
    return pools


def _padding(pool, sides, factor):
    """The padding with which a pooling of smaller stride gives what it gave before."""
    layer, before = pool.layer, pool.outputs[0].shape[1:3]
    strides = tuple(s // factor for s in layer.strides)
    for padding in (layer.padding, "same", "valid"):
        windows = Windows(*sides, tuple(layer.pool_size), strides, padding)
        if windows.output == tuple(before):
            return padding
    return layer.padding


def _reads_several(layer):
    size = getattr(layer, "kernel_size", (1, 1))
    return tuple(size) != (1, 1) or isinstance(
        layer, (keras.layers.Flatten, keras.layers.Dense)
    )


def with_smaller_input(model: keras.Model, scale: float) -> keras.Model:
    """Runs a model on smaller images, to which it resizes its own.

    Args:
        model: Functional or Sequential, of one input, that ends in global pooling.
        scale: Of their sides, in (0, 1].

    Returns:
        A model with the same weights, for images of the same size as before.

    Raises:
        ValueError: The model has dense layers for maps of one size.
    """
    _SCALE.check(scale, "scale")
    graph.check_model(model)
    shape = model.inputs[0].shape
    if len(model.inputs) != 1 or shape.rank != 4 or None in shape[1:3]:
        raise ValueError(
            f"model {model.name} must have one input, images of known size; got "
            f"{[tuple(x.shape) for x in model.inputs]}"
        )
    height, width = (max(1, round(scale * side)) for side in shape[1:3])
    resize = keras.layers.Resizing(height, width, name="smaller_input")
    return _rebuilt(model, lambda layer: None, resize)


def _largest(fits: Callable[[float], bool], steps: int = 1000) -> float | None:
    """Returns the largest of k / steps that fits, None if none does."""
    low, high = 0, steps + 1  # fits or nothing; does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle / steps) else (low, middle)
    return low / steps if low else None


def uniform_rate(
    model: keras.Model, target_speedup: float, mask: str = "grid"
) -> float:
    """Returns the largest keep fraction, one for all layers, of a speed-up.

    Args:
        model: Functional or Sequential.
        target_speedup: Dense multiplications over those with these masks, at least.
        mask: Kind of the masks.

    Raises:
        ValueError: The speed-up is out of reach.
    """
    POSITIVE.check(target_speedup, "target_speedup")
    check_kind(mask)
    found = survey(model)
    steps = graph.graph_of(model)
    dense = multiplies(make_plan(steps, ()), {})

    def fits(fraction):
        kept = _kept(found, fraction, mask)
        return dense >= target_speedup * multiplies(make_plan(steps, kept), kept)

    return _reached(_largest(fits), target_speedup)


def _kept(found: Survey, fraction, mask):
    if fraction == 1:
        return {}
    return {
        name: num_kept(
            place.height,
            place.width,
            fraction,
            "grid" if mask == "structure" and place.pool is None else mask,
        )
        for name, place in found.convolutions.items()
    }


def input_scale(model: keras.Model, target_speedup: float) -> float:
    """Returns the largest scale of images of a speed-up by multiplications.

    Raises:
        ValueError: The speed-up is out of reach, or as of `with_smaller_input`.
    """
    POSITIVE.check(target_speedup, "target_speedup")
    dense = count_multiplies(model)
    known = {}

    def fits(scale):
        if scale not in known:
            smaller = with_smaller_input(model, scale)
            known[scale] = dense >= target_speedup * count_multiplies(smaller)
        return known[scale]

    side = min(model.inputs[0].shape[1:3])
    return _reached(_largest(fits, side), target_speedup)


def _reached(found, target_speedup):
    if found is None:
        raise ValueError(f"target_speedup {target_speedup:g} is out of reach")
    return found
