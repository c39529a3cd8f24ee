"""A Keras model as a list of steps, models inside it unfolded.

Whoever looks at, rebuilds or runs a model in another way does so by its steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf.networks.network import Network


class Token:
    """Stands for a tensor of a model; tokens differ by identity.

    Attributes:
        shape: Tuple of the tensor's shape, None where it is not known.
    """

    def __init__(self, shape: Sequence[int | None]):
        self.shape = tuple(shape)


@dataclasses.dataclass(frozen=True)
class Step:
    """A call of a layer.

    Attributes:
        layer: What is called.
        args: Its arguments, tokens among them.
        kwargs: Its named arguments, tokens among them.
        inputs: The tokens among the arguments.
        outputs: Tokens of what it returns.
        structure: Nested as what it returns, of tokens.
    """

    layer: keras.layers.Layer
    args: tuple
    kwargs: Mapping[str, object]
    inputs: tuple[Token, ...]
    outputs: tuple[Token, ...]
    structure: object

    def call(self, values: Callable[[Token], object]) -> tuple[tuple, dict]:
        """Returns the arguments with values in their tokens' places."""

        def put(argument):
            return values(argument) if isinstance(argument, Token) else argument

        args = tf.nest.map_structure(put, tuple(self.args))
        return args, tf.nest.map_structure(put, dict(self.kwargs))


@dataclasses.dataclass(frozen=True)
class Graph:
    """A model.

    Attributes:
        inputs: A token for each of the model's inputs.
        steps: In an order in which they can be run.
        outputs: Nested as the model's output, of tokens.
    """

    inputs: tuple[Token, ...]
    steps: tuple[Step, ...]
    outputs: object

    def readers(self) -> dict[Token, list[Step]]:
        """Returns the steps that read each token."""
        found = {token: [] for token in self.inputs}
        for step in self.steps:
            found.update({token: [] for token in step.outputs})
            for token in step.inputs:
                found[token].append(step)
        return found

    def run(
        self,
        inputs: Sequence[object],
        call: Callable[[Step, Callable[[Token], object]], object],
    ) -> object:
        """Runs a model by any means.

        Args:
            inputs: Values of the model's inputs.
            call: Maps a step, and the function from its tokens to their values, to
                what the step returns, values nested as in `Step.structure`.

        Returns:
            Values nested as the model's output.
        """
        values = dict(zip(self.inputs, inputs))
        for step in self.steps:
            result = call(step, values.__getitem__)
            values.update(zip(step.outputs, tf.nest.flatten(result)))
        return tf.nest.map_structure(values.__getitem__, self.outputs)


def check_model(model: object) -> None:
    """Raises ValueError unless a model is a Functional or built Sequential one."""
    if isinstance(model, Network):
        raise ValueError(
            f"model is a {type(model).__name__}, whose blocks choose positions for "
            "each image (execution='perforated'); a static mask would drop some that "
            "they choose. Perforation takes Functional and Sequential models of "
            "tf_keras"
        )
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"model must be a Functional or Sequential model of tf_keras; got "
            f"{type(model).__module__}.{type(model).__name__}"
        )
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"model {model.name} has no input shape, and a static mask needs the size "
            "of images; give its first layer an input_shape"
        )
    if not getattr(model, "_is_graph_network", False):
        raise ValueError(
            f"model {model.name} is of the class {type(model).__name__}, whose layers "
            "are called by code of its own; expected a Functional or Sequential model"
        )


def graph_of(model: keras.Model) -> Graph:
    """Returns the steps of a model and of those within it.

    Raises:
        ValueError: The model is neither Functional nor a Sequential one with an input
            shape.
    """
    check_model(model)
    inputs = tuple(Token(x.shape) for x in model.inputs)
    steps: list[Step] = []
    outputs = _unfold(model, inputs, steps)
    return Graph(inputs, tuple(steps), outputs)


def _unfold(model, inputs, steps):
    """Appends a model's steps; returns its output, of tokens."""
    tokens = {id(x): token for x, token in zip(model.inputs, inputs)}

    def token_of(value):
        return tokens[id(value)] if id(value) in tokens else value

    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args = tf.nest.map_structure(token_of, tuple(node.call_args))
            kwargs = tf.nest.map_structure(token_of, dict(node.call_kwargs))
            read = tuple(
                x for x in tf.nest.flatten((args, kwargs)) if isinstance(x, Token)
            )
            if _is_foldable(node.layer):
                made = tf.nest.flatten(_unfold(node.layer, read, steps))
            else:
                structure = tf.nest.map_structure(
                    lambda x: Token(x.shape), node.outputs
                )
                made = tf.nest.flatten(structure)
                steps.append(
                    Step(node.layer, args, kwargs, read, tuple(made), structure)
                )
            tokens.update(zip(map(id, tf.nest.flatten(node.outputs)), made))
    return tf.nest.map_structure(lambda x: tokens[id(x)], model._nested_outputs)


def _is_foldable(layer):
    return isinstance(layer, keras.Model) and getattr(layer, "_is_graph_network", False)


def rebuild(
    model: keras.Model,
    replace: Callable[[keras.layers.Layer], keras.layers.Layer | None],
    make_model: Callable[..., keras.Model] = keras.Model,
    begin: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> keras.Model:
    """Makes a copy of a model in which other layers take the places of some.

    Models within the model become part of it.

    Args:
        model: Functional or Sequential.
        replace: Maps a layer to a new one of the same weights, but for those beside
            `kernel` and `bias`; None: it is copied.
        make_model: Makes the copy, of inputs, outputs and name.
        begin: Put before the model's first layer; None: nothing.

    Returns:
        The copy, with the model's weights.

    Raises:
        ValueError: Two layers have the same name.
    """
    graph = graph_of(model)
    copies: dict[int, keras.layers.Layer] = {}
    originals = {}

    def call(step, values):
        layer = step.layer
        if id(layer) not in copies:
            if layer.name in originals:
                raise ValueError(
                    f"model {model.name} has two layers {layer.name}, one in a model "
                    "within it; give them names that differ"
                )
            originals[layer.name] = layer
            new = replace(layer)
            if new is None:
                new = type(layer).from_config(layer.get_config())
            copies[id(layer)] = new
        args, kwargs = step.call(values)
        return copies[id(layer)](*args, **kwargs)

    inputs = [
        keras.Input(x.shape[1:], x.shape[0], dtype=x.dtype, name=_input_name(x))
        for x in model.inputs
    ]
    outputs = graph.run(inputs if begin is None else [*map(begin, inputs)], call)
    copy = make_model(inputs[0] if len(inputs) == 1 else inputs, outputs, model.name)
    for layer in originals.values():
        copy_weights(layer, copies[id(layer)])
    return copy


def _input_name(tensor):
    return tensor._keras_history.layer.name


def copy_weights(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Gives a layer another's weights, to one of another class its kernel and bias."""
    if type(source) is type(target):
        target.set_weights(source.get_weights())
        return
    target.kernel.assign(source.kernel)
    if source.use_bias:
        target.bias.assign(source.bias)
