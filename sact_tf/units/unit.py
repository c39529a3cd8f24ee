"""What every residual unit of a block promises, and ordinary Keras layers as units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf.layers import restored, saved


class Unit(keras.layers.Layer):
    """Base class of residual units: a layer that can leave positions as they are.

    A unit maps x [batch, height, width, channels] to features of the same rank; units
    after the first of a block keep the shape. It is called as

        unit(x, active=..., training=...)

    and, if it says so in the attributes below, with more. Only `call` has to be
    defined. Attributes:

    * `takes_valid`: `call` and `flops` have the argument `valid`.
    * `takes_step`: `call` has the argument `step`, how often the block has run units
      before (an int). For a unit that stands in a block several times.
    * `takes_inputs`: `call` has the argument `inputs`, the input of the block.
    * `takes_precision`: `run_active` has the argument `precision`, one of
      `custom_ops.PRECISIONS`, which is given unless it is "float32".
    * `starts_at_zero`: What it adds in the first step, it adds to 0 and not to x.

    Arguments of `call`:

    * `active`: Bool [batch, height, width] of the output, or None: everywhere. Where it
      is False, the output is x (SACT, section 2.3).
    * `training`: As in every layer.
    * `valid`: Bool [batch, height, width] of the input, False in the padding of images
      of several sizes in one batch, or None. There, convolutions must read zeros, as
      beyond the border of an image alone.
    """

    takes_valid: bool = False
    takes_step: bool = False
    takes_inputs: bool = False
    takes_precision: bool = False
    starts_at_zero: bool = False

    def run_active(
        self, x: tf.Tensor, active, sums: tf.Tensor | None, **options
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs the unit in inference, computing active positions only.

        By default it is run everywhere.

        Args:
            x: [batch, height, width, channels].
            active: Bool [batch, height, width] or `custom_ops.ActivePositions`, or
                None: everywhere.
            sums: Sums of x over positions, [batch, channels], or None.
            **options: `step`, `inputs` and `precision`, for a unit that takes them.

        Returns:
            The output, and its sums over positions.
        """
        mask = None if active is None else custom_ops.mask_of(active)
        x = self(x, active=mask, training=False, **options)
        return x, tf.reduce_sum(x, [1, 2])

    def run_tiled(
        self, x: tf.Tensor, active, sums: tf.Tensor, tile_size: int, **options
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """As `run_active`, where `active` is constant in tiles of that size."""
        return self.run_active(x, active, sums, **options)

    def block_parameters(self) -> custom_ops.UnitParameters | None:
        """Returns what `custom_ops.perforated_block` runs it by; None: it cannot."""
        return None

    def flops_at(self, runs: tf.Tensor, reads: tf.Tensor) -> tf.Tensor:
        """Counts operations as `flops`, of a unit that has `block_parameters`.

        Args:
            runs: int64 [batch], at how many positions it runs.
            reads: The same of what a 3x3 convolution reads there.
        """
        raise NotImplementedError(f"{type(self).__name__} must define flops_at")

    def flops(self, x: tf.Tensor, active: tf.Tensor | None = None) -> tf.Tensor | None:
        """Counts operations on inputs shaped like x; int64 [batch].

        None, unless a unit says otherwise: it does not count. Blocks of such units tell
        no operations.

        Args:
            x: Only its shape counts.
            active: As in a call.
        """
        return None

    def output_stride(self) -> int:
        """Returns how many positions of the input there are for one of the output."""
        return 1

    def valid_after(self, valid: tf.Tensor | None) -> tf.Tensor | None:
        """Returns `valid` of the output, given that of the input."""
        stride = self.output_stride()
        return valid if valid is None or stride == 1 else valid[:, ::stride, ::stride]


class OrdinaryUnit:
    """A Keras layer that knows nothing of masks, with what a `Unit` promises.

    The layer is run everywhere, and positions that are not active keep their value. Its
    own method `flops(x, active=None)` counts, if there is one.

    Args:
        layer: Any layer that keeps the shape of its input, but for a block's first.
    """

    takes_valid = takes_step = takes_inputs = takes_precision = False
    starts_at_zero = False

    def __init__(self, layer: keras.layers.Layer):
        self._layer = layer
        self._count = getattr(layer, "flops", None)

    @property
    def name(self) -> str:
        """The layer's name."""
        return self._layer.name

    def __call__(self, x, active=None, training=None):
        # Keras hands `training` on to layers that take it.
        y = self._layer(x)
        return y if active is None else tf.where(active[..., tf.newaxis], y, x)

    run_active = Unit.run_active
    run_tiled = Unit.run_tiled
    block_parameters = Unit.block_parameters
    output_stride = Unit.output_stride
    valid_after = Unit.valid_after

    def flops(self, x, active=None):
        """As `Unit.flops`."""
        if self._count is None:
            return None
        return self._count(x) if active is None else self._count(x, active=active)


def is_own(layer: keras.layers.Layer, base: type, *methods: str) -> bool:
    """Whether a layer's methods are those of a class, and of none derived from it."""
    return all(getattr(type(layer), m) is getattr(base, m) for m in methods)


def as_unit(layer: keras.layers.Layer) -> Unit | OrdinaryUnit:
    """Returns a layer as a unit: itself, or an adapter of it."""
    return layer if isinstance(layer, Unit) else OrdinaryUnit(layer)


def saved_unit(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns what `restored_unit` makes the layer of again.

    Raises:
        NotImplementedError: The layer cannot be made again; tells its name.
    """
    try:
        config = saved(layer)
        type(layer).from_config(config["config"])
    except Exception as error:
        raise NotImplementedError(
            f"unit {layer.name!r} of class {type(layer).__name__} cannot be saved; "
            "give it get_config() that returns all arguments of its constructor, and "
            f"let that pass **kwargs on to its base class ({error})"
        ) from error
    return config


def restored_unit(config: Mapping[str, Any]) -> keras.layers.Layer:
    """Makes a unit of what `saved_unit` returned.

    Raises:
        ValueError: That cannot be done; tells its name.
    """
    try:
        return restored(config)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"unit {config['config'].get('name')!r} of class {config['class_name']} "
            f"cannot be made again: {error}"
        ) from error
