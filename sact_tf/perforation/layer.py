"""`PerforatedConv2D`: a convolution of which only some positions are computed."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf.domains import SEED, brief
from sact_tf.perforation import masks, tables

INTERPOLATIONS = ("nearest", "zeros")
"""What stands at a position that is not computed: the nearest value, or zero."""


def windows_of(layer: keras.layers.Layer, shape) -> tables.Windows:
    """Returns the windows of a convolution or pooling over a map.

    Args:
        layer: `Conv2D`, `MaxPooling2D` or `AveragePooling2D`.
        shape: Of its input, [batch, height, width, channels]; height and width are
            numbers.
    """
    size = getattr(layer, "kernel_size", None) or layer.pool_size
    return tables.Windows(
        int(shape[1]),
        int(shape[2]),
        tuple(size),
        tuple(layer.strides),
        layer.padding.lower(),
        tuple(getattr(layer, "dilation_rate", (1, 1))),
    )


def refusal(layer: keras.layers.Conv2D) -> str | None:
    """Returns why a convolution cannot be perforated, None where it can."""
    if layer.groups != 1:
        return f"groups={layer.groups} (a perforated convolution has one group)"
    if layer.data_format != "channels_last":
        return f"data_format={layer.data_format} (expected channels_last)"
    if layer.padding.lower() not in ("same", "valid"):
        return f"padding={layer.padding} (expected same or valid)"
    return None


@keras.utils.register_keras_serializable("sact_tf")
class PerforatedConv2D(keras.layers.Conv2D):
    """A convolution computed at a static mask's positions, and interpolated between.

    Takes the place of a `Conv2D`: it has its `kernel` and `bias` and maps shape
    [batch, height, width, channels] to the same shape, with height and width known when
    it is built. The mask is the same for all images.

    The kept positions and the interpolation are drawn once, when the layer is built,
    and kept as weights that are not trained (`kept`, `nearest`), so that checkpoints
    hold them.

    Args:
        filters: As of `Conv2D`.
        kernel_size: As of `Conv2D`.
        strides: As of `Conv2D`.
        padding: "same" or "valid".
        keep_fraction: Share of positions that is computed, in (0, 1].
        mask: One of `masks.KINDS`, or a mask, bool [output height, output width].
        interpolation: "nearest" (Figurnov et al., 2016), or "zeros", as SACT's
            perforated convolution has it.
        scores: Of impact masks, see `make_mask`.
        pool: Of structure masks, see `make_mask`.
        seed: Of the mask and of which of equally near positions is taken.
        **kwargs: All others of `Conv2D`; `groups` must be 1.

    Raises:
        ValueError: An argument is none of these. In `build`: the size of the input is
            not known, or mask or scores do not fit its output.

    >>> layer = PerforatedConv2D(8, 3, keep_fraction=0.25, mask="grid")
    >>> layer(tf.zeros([1, 6, 6, 3])).shape.as_list(), layer.kept.shape.as_list()
    ([1, 6, 6, 8], [9])
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = 1,
        padding: str = "same",
        keep_fraction: float = 0.5,
        mask: object = "grid",
        interpolation: str = "nearest",
        scores: object = None,
        pool: object = None,
        seed: int = 0,
        **kwargs,
    ):
        if kwargs.get("groups", 1) != 1:
            raise ValueError(
                f"groups must be 1 in a perforated convolution; got {kwargs['groups']}"
            )
        super().__init__(filters, kernel_size, strides, padding, **kwargs)
        reason = refusal(self)
        if reason:
            raise ValueError(f"{self.name}: cannot be perforated: {reason}")
        masks.KEEP_FRACTION.check(keep_fraction, "keep_fraction")
        if isinstance(mask, str) and mask not in masks.KINDS:
            raise ValueError(
                f"mask must be one of {', '.join(masks.KINDS)}, or bool [height, "
                f"width]; got {brief(mask)}"
            )
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}; got "
                f"{brief(interpolation)}"
            )
        self.keep_fraction = float(keep_fraction)
        self.mask = mask if isinstance(mask, str) else np.asarray(mask)
        self.interpolation = interpolation
        self.scores = None if scores is None else np.asarray(scores, np.float64)
        self.pool = None if pool is None else masks.as_pool(pool)
        self.seed = SEED.check(seed, "seed")

    def build(self, input_shape):
        shape = tf.TensorShape(input_shape)
        if shape.rank != 4 or None in shape[1:].as_list():
            raise ValueError(
                f"{self.name}: a static mask needs images of known size; got input of "
                f"shape {tuple(shape)}"
            )
        super().build(input_shape)
        self._windows = windows_of(self, shape)
        height, width = self._windows.output
        if not height or not width:
            raise ValueError(
                f"{self.name}: input of shape {tuple(shape)} is smaller than the "
                f"kernel, {self.kernel_size[0]}x{self.kernel_size[1]}"
            )
        mask = self._make_mask(height, width)
        for name, values in (
            ("kept", np.flatnonzero(mask)),
            ("nearest", tables.nearest_rows(mask, self.seed)),
        ):
            table = self.add_weight(
                name,
                values.shape,
                tf.int32,
                keras.initializers.Constant(values.astype(np.int32)),
                trainable=False,
            )
            setattr(self, name, table)

    def _make_mask(self, height, width):
        if not isinstance(self.mask, str):
            return masks.check_mask(self.mask, height, width)
        return masks.make_mask(
            self.mask,
            height,
            width,
            self.keep_fraction,
            self.seed,
            scores=self.scores,
            pool=self.pool,
        )

    def call(self, inputs):
        rows = self.compute_rows(_flatten(inputs), self._windows.taps(self.kept))
        if self.interpolation == "nearest":
            return custom_ops.nearest_interpolate(rows, self.nearest)
        return self._spread(rows)

    def compute_rows(
        self, rows: tf.Tensor, taps: tf.Tensor, implementation: str = "auto"
    ) -> tf.Tensor:
        """Computes the kept positions only.

        Args:
            rows: [batch, rows, channels], of the input.
            taps: int32 [kept, taps], what each reads; -1 is zero.
            implementation: As of `custom_ops`.

        Returns:
            [batch, kept, filters], activation applied.
        """
        rows = custom_ops.indexed_conv2d(
            rows,
            self.kernel,
            taps,
            bias=self.bias if self.use_bias else None,
            implementation=implementation,
        )
        return rows if self.activation is None else self.activation(rows)

    def _spread(self, rows):
        """Puts rows at their positions, and the activation of 0 elsewhere."""
        height, width = self._windows.output
        missing = tf.zeros_like(rows[:, :1])
        if self.activation is not None:
            missing = self.activation(missing)
        places = tf.scatter_nd(
            self.kept[:, tf.newaxis],
            tf.range(1, tf.size(self.kept) + 1),
            [height * width],
        )
        spread = tf.gather(tf.concat([missing, rows], 1), places, axis=1)
        return tf.reshape(spread, [-1, height, width, self.filters])

    @property
    def kept_fraction(self) -> float:
        """Share of positions that is computed, which a grid has less than asked for."""
        height, width = self._windows.output
        return self.kept.shape[0] / (height * width)

    def get_config(self):
        config = super().get_config()
        del config["groups"]
        own = ("keep_fraction", "mask", "interpolation", "scores", "seed")
        config.update({name: _plain(getattr(self, name)) for name in own})
        size_strides_padding = self.pool and [*map(list, self.pool[:2]), self.pool[2]]
        return {**config, "pool": size_strides_padding}


def _plain(value):
    """Returns what JSON can hold: arrays as lists."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _flatten(inputs):
    """Takes a map as rows, [batch, height * width, channels]."""
    shape = inputs.shape
    return tf.reshape(inputs, [-1, shape[1] * shape[2], shape[3]])
