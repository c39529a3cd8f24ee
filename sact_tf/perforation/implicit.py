"""Inference of perforated models on compact rows: implicit interpolation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf.perforation import tables
from sact_tf.perforation.graph import Graph, graph_of
from sact_tf.perforation.layer import PerforatedConv2D, windows_of
from sact_tf.perforation.plan import Planned, make_plan, multiplies, slope_of


class Perforation(NamedTuple):
    """Index tables of a perforated convolution.

    Attributes:
        kept: int32 [kept], flat indices of the positions that are computed.
        nearest: int32 [height, width], the row that stands for each position.
    """

    kept: np.ndarray | tf.Tensor
    nearest: np.ndarray | tf.Tensor


def perforation_of(mask: np.ndarray, seed: int = 0) -> Perforation:
    """Returns a mask's tables, bool [height, width]; the seed draws ties."""
    kept = np.flatnonzero(mask).astype(np.int32)
    return Perforation(kept, tables.nearest_rows(mask, seed))


class Rows:
    """A map of which only some positions were computed; a leaf where results nest.

    Attributes:
        rows: [batch, kept, channels].
        nearest: int32 [height, width], the row that stands for each position.
    """

    def __init__(self, rows: tf.Tensor, nearest: np.ndarray | tf.Tensor):
        self.rows, self.nearest = rows, nearest


def perforated_layers(graph: Graph) -> dict[str, PerforatedConv2D]:
    """Returns a model's perforated convolutions of nearest interpolation, by name."""
    return {
        step.layer.name: step.layer
        for step in graph.steps
        if isinstance(step.layer, PerforatedConv2D)
        and step.layer.interpolation == "nearest"
    }


class CompactNetwork:
    """A model as it runs in inference, on compact rows where it can.

    Its results are those of the model, to rounding. Weights are the model's, and
    changes to them are seen.

    Args:
        model: Functional or Sequential; its `PerforatedConv2D` are perforated.
        perforations: Further convolutions to perforate by name, without building
            another model.
        implementation: As of `custom_ops`.
        is_frozen: Whether index tables are read now, and are constants of whatever is
            traced, which then has no more to do with them. Otherwise they are read in
            every call.

    Attributes:
        outputs: The model's symbolic outputs.
    """

    def __init__(
        self,
        model: keras.Model,
        perforations: Mapping[str, Perforation] | None = None,
        implementation: str = "auto",
        is_frozen: bool = True,
    ):
        self.outputs = model.outputs
        self._references = model.inputs
        self._graph = graph_of(model)
        self._layers = perforated_layers(self._graph)
        self._given = dict(perforations or {})
        self._plan = make_plan(self._graph, {*self._layers, *self._given})
        self._implementation = implementation
        self._frozen = None
        if is_frozen:
            with tf.init_scope():
                self._frozen = tf.nest.map_structure(np.asarray, self._perforations())

    def _perforations(self):
        stored = {
            name: Perforation(*map(tf.convert_to_tensor, (layer.kept, layer.nearest)))
            for name, layer in self._layers.items()
        }
        return {**stored, **self._given}

    @property
    def multiplies(self) -> int:
        """Multiplications of an image, of convolutions and dense layers."""
        kept = {name: layer.kept.shape[0] for name, layer in self._layers.items()}
        kept.update({name: len(p.kept) for name, p in self._given.items()})
        return multiplies(self._plan, kept)

    def __call__(self, inputs: object, training: bool = False) -> object:
        """Runs the model.

        Args:
            inputs: As the model takes them.
            training: Must be False.
        """
        if training:
            raise ValueError(f"training must be False in inference; got {training!r}")
        found = self._perforations() if self._frozen is None else self._frozen
        run = _Run(found, self._implementation)
        plan = {id(planned.step): planned for planned in self._plan}
        inputs = [
            tf.cast(x, reference.dtype)
            for x, reference in zip(tf.nest.flatten(inputs), self._references)
        ]
        results = self._graph.run(
            inputs, lambda step, values: run.call(plan[id(step)], values)
        )
        return tf.nest.map_structure(run.expand, results)


def _constant(compute, *arguments):
    """Computes a table: a constant, if what it is made of are constants."""
    if any(isinstance(x, tf.Tensor) for x in arguments):
        return compute(*arguments)
    with tf.init_scope():
        return compute(*arguments).numpy()


class _Run:
    """One run of a plan."""

    def __init__(self, perforations, implementation):
        self._perforations = perforations
        self._implementation = implementation

    def call(self, planned: Planned, values):
        """Returns what a step returns: maps, or rows where it runs on these."""
        if planned.is_folded:
            return values(planned.step.inputs[0])
        method = getattr(self, f"_{planned.action}")
        return method(planned, values)

    def expand(self, value):
        """Returns a map, interpolated if it is of rows."""
        if not isinstance(value, Rows):
            return value
        return custom_ops.nearest_interpolate(
            value.rows, value.nearest, implementation=self._implementation
        )

    def _dense(self, planned, values):
        args, kwargs = planned.step.call(lambda token: self.expand(values(token)))
        return in_inference(planned.step.layer, args, kwargs)

    def _rows(self, planned, values):
        """Calls a layer with rows as maps of width 1."""

        def narrow(token):
            return values(token).rows[:, :, tf.newaxis]

        args, kwargs = planned.step.call(narrow)
        rows = in_inference(planned.step.layer, args, kwargs)
        return Rows(rows[:, :, 0], values(planned.step.inputs[0]).nearest)

    def _read(self, planned, values, positions=None):
        """Returns the rows that a layer reads, and which each of its windows reads."""
        token = planned.step.inputs[0]
        value = values(token)
        windows = windows_of(planned.step.layer, token.shape)
        if positions is None:
            taps = _constant(windows.all_taps)
        else:
            taps = _constant(windows.taps, positions)
        if isinstance(value, Rows):
            return value.rows, _constant(tables.compose, taps, value.nearest)
        height, width, channels = token.shape[1:]
        return tf.reshape(value, [-1, height * width, channels]), taps

    def _perforate(self, planned, values):
        perforation = self._perforations[planned.step.layer.name]
        rows, taps = self._read(planned, values, perforation.kept)
        return Rows(self._multiply(planned, rows, taps), perforation.nearest)

    def _pointwise(self, planned, values):
        value = values(planned.step.inputs[0])
        every = np.arange(value.rows.shape[1], dtype=np.int32)[:, np.newaxis]
        return Rows(self._multiply(planned, value.rows, every), value.nearest)

    def _convolve(self, planned, values):
        rows, taps = self._read(planned, values)
        return _as_map(planned, self._multiply(planned, rows, taps))

    def _multiply(self, planned, rows, taps):
        """Convolves rows, and does what is folded into the convolution."""
        layer = planned.step.layer
        dtype = layer.compute_dtype
        scale, bias = None, layer.bias if layer.use_bias else None
        if planned.batch_norm is not None:
            scale, bias = self._affine(planned.batch_norm, bias)
            scale = tf.cast(scale, dtype)
        rows = custom_ops.indexed_conv2d(
            tf.cast(rows, dtype),
            tf.cast(layer.kernel, dtype),
            taps,
            bias=None if bias is None else tf.cast(bias, dtype),
            implementation=self._implementation,
            scale=scale,
            slope=planned.slope,
        )
        is_done = slope_of(layer.activation) is not None
        return rows if is_done else layer.activation(rows)

    def _affine(self, layer, bias):
        """Scale and shift that a normalization in inference of biased values is."""
        mean, variance = map(
            tf.convert_to_tensor, (layer.moving_mean, layer.moving_variance)
        )
        scale, shift = custom_ops.fold_batch_norm(
            layer.gamma if layer.scale else tf.ones_like(mean),
            layer.beta if layer.center else tf.zeros_like(mean),
            mean,
            variance,
            layer.epsilon,
            self._implementation,
        )
        return scale, shift if bias is None else shift + bias * scale

    def _pool(self, planned, values):
        rows, taps = self._read(planned, values)
        is_max = isinstance(planned.step.layer, keras.layers.MaxPooling2D)
        pooled = custom_ops.indexed_pool(
            rows,
            taps,
            kind="max" if is_max else "average",
            implementation=self._implementation,
        )
        return _as_map(planned, pooled)

    def _global(self, planned, values):
        value = values(planned.step.inputs[0])
        layer, rows = planned.step.layer, value.rows
        axes = {"axis": 1, "keepdims": False}
        if isinstance(layer, keras.layers.GlobalMaxPooling2D):
            pooled = tf.reduce_max(rows, **axes)
        else:
            weights = _constant(_shares, value.nearest, np.int32(rows.shape[1]))
            weights = tf.cast(weights, rows.dtype)
            pooled = tf.reduce_sum(rows * weights[:, tf.newaxis], **axes)
        return pooled[:, tf.newaxis, tf.newaxis] if layer.keepdims else pooled


def _shares(nearest, count):
    """The share of positions that each of so many rows stands for."""
    counts = tf.math.bincount(tf.reshape(nearest, [-1]), minlength=count)
    return tf.cast(counts, tf.float32) / float(np.prod(nearest.shape))


def _as_map(planned, rows):
    shape = planned.step.outputs[0].shape
    return tf.reshape(rows, [-1, *shape[1:]])


def in_inference(layer: keras.layers.Layer, args: tuple, kwargs: dict) -> object:
    """Calls a layer as in inference."""
    if "training" in kwargs or layer._expects_training_arg:
        kwargs["training"] = False
    return layer(*args, **kwargs)


@keras.utils.register_keras_serializable("sact_tf")
class PerforatedModel(keras.Model):
    """A Functional model that interpolates implicitly in inference.

    In training every layer gives its interpolated map, so that all gradients are those
    of the layers.
    """

    def call(self, inputs, training=None, mask=None):
        is_symbolic = any(map(keras.backend.is_keras_tensor, tf.nest.flatten(inputs)))
        if not (tf.is_tensor(training) or training or is_symbolic):
            return self._compact_network()(inputs)
        return super().call(inputs, training=training, mask=mask)

    def _compact_network(self):
        network = vars(self).get("_compact")
        if network is None:
            network = CompactNetwork(self, is_frozen=False)
            # Past Keras' tracking: it has no weights of its own.
            object.__setattr__(self, "_compact", network)
        return network
