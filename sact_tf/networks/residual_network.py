"""What every residual network here is: a stem, adaptive blocks, and a classifier."""

from __future__ import annotations

import types
from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf import flops
from sact_tf.blocks import EXECUTIONS, ACTBlock, PlainBlock, SACTBlock
from sact_tf.layers import BatchNorm, conv2d

MODEL_TYPES = ("vanilla", "act", "act_early_stopping", "sact")
"""Halting rules of a network, by the original's names."""


def make_block(
    model_type: str,
    units: Sequence[keras.layers.Layer],
    tau: float,
    batch_norm=None,
    weight_decay: float = 0.0,
    execution: str = "masked",
    tile_size: int = 1,
    name: str | None = None,
) -> PlainBlock:
    """Returns the block layer of a model type around a list of residual units."""
    if model_type == "vanilla":
        return PlainBlock(units, execution, name=name)
    options = dict(
        tau=tau,
        batch_norm=batch_norm,
        weight_decay=weight_decay,
        execution=execution,
        name=name,
    )
    if model_type == "sact":
        return SACTBlock(units, tile_size=tile_size, **options)
    return ACTBlock(units, early_stopping=model_type == "act_early_stopping", **options)


def parse_units(
    model: str | int | Sequence[int], named: dict[str, tuple[int, ...]], num_blocks: int
) -> tuple[int, ...]:
    """Reads the number of residual units per block.

    Args:
        model: A name in `named`, numbers joined by underscores such as "3_4_23_3", or a
            sequence.
        named: Networks known by name.
        num_blocks: How many numbers there have to be.

    Raises:
        ValueError: If `model` is none of these.
    """
    if str(model) in named:
        return named[str(model)]
    parts = str(model).split("_") if isinstance(model, (str, int)) else list(model)
    try:
        units = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        units = ()
    if len(units) != num_blocks or min(units) < 1:
        names = f"one of {', '.join(map(repr, named))}, or " if named else ""
        example = "_".join(["3"] * num_blocks)
        raise ValueError(
            f"model must be {names}{num_blocks} numbers >= 1 of residual units per "
            f"block, such as {example!r}; got {model!r}"
        )
    return units


def check_options(
    model_type: str,
    tau: float,
    execution: str,
    tile_size: int,
    num_classes: int,
    base_channels: int,
) -> None:
    """Raises ValueError on a bad option, naming it, its value and what is accepted."""
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"model_type must be one of {', '.join(MODEL_TYPES)}; got {model_type!r}"
        )
    if execution not in EXECUTIONS:
        raise ValueError(
            f"execution must be one of {', '.join(EXECUTIONS)}; got {execution!r}"
        )
    if not 0 <= tau < float("inf"):
        raise ValueError(f"tau must be a finite number >= 0; got {tau}")
    if tile_size != 1 and model_type != "sact":
        raise ValueError(
            f"tile_size must be 1 unless model_type is 'sact'; got {tile_size}"
        )
    for name, value in (("num_classes", num_classes), ("base_channels", base_channels)):
        if value != int(value) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1; got {value}")


class ResidualNetwork(keras.Model):
    """Residual network whose blocks may decide how many of their units to run.

    Maps images [batch, height, width, 3] of any size to logits [batch, num_classes].
    Its losses hold the weight decay and tau times the mean ponder cost of every block.
    Compiled with a loss on logits, `fit` and `evaluate` also report the mean units per
    block and FLOPs.

    Args:
        model: Residual units per block; what is accepted is up to the subclass.
        model_type: One of `MODEL_TYPES`.
        num_classes: Size of the logits.
        base_channels: Scales the channels of all blocks.
        tau: Weight of the ponder cost in the losses, at least 0.
        execution: One of `EXECUTIONS`.
        tile_size: Side of the tiles that halt together, as in `SACTBlock`.
        name: Keras name of the model.
        weight_decay: L2 coefficient c of the loss c * sum(w^2) / 2 of every
            convolution, halting heads included; None: the original's.

    Attributes:
        blocks: The block layers, `PlainBlock`, `ACTBlock` or `SACTBlock`.
        slim_scope: Root scope of the variables in TF-Slim checkpoints.

    Raises:
        ValueError: On any other value, naming the argument.
    """

    # What a subclass says of its architecture.
    slim_scope: str
    _weight_decay: float
    _block_name: str  # format string of the block's number
    _stem_scope: str
    _final_bn_scope: str

    def __init__(
        self,
        model: str | int | Sequence[int],
        model_type: str,
        num_classes: int,
        base_channels: int,
        tau: float,
        execution: str,
        tile_size: int = 1,
        name: str | None = None,
        weight_decay: float | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        check_options(model_type, tau, execution, tile_size, num_classes, base_channels)
        if weight_decay is None:
            weight_decay = self._weight_decay
        if not 0 <= weight_decay < float("inf"):
            raise ValueError(
                f"weight_decay must be a finite number >= 0; got {weight_decay}"
            )
        units_per_block = self._parse_units(model)
        self._config = dict(
            model="_".join(map(str, units_per_block)),
            model_type=model_type,
            num_classes=num_classes,
            base_channels=base_channels,
            tau=tau,
            execution=execution,
            tile_size=tile_size,
            weight_decay=weight_decay,
        )
        decay = dict(weight_decay=weight_decay)
        self.stem = self._make_stem(base_channels, **decay)
        self.blocks = [
            make_block(
                model_type,
                [
                    self._make_unit(b, k, base_channels, name=f"unit_{k + 1}", **decay)
                    for k in range(num_units)
                ],
                tau,
                self._head_batch_norm,
                execution=execution,
                tile_size=tile_size,
                name=self._block_name.format(b + 1),
                **decay,
            )
            for b, num_units in enumerate(units_per_block)
        ]
        self.final_bn = self._batch_norm(name=self._final_bn_scope)
        self.classifier = conv2d(num_classes, 1, use_bias=True, name="logits", **decay)
        names = [
            f"{block.name}/units" for block in self.blocks if hasattr(block, "tau")
        ]
        # In a namespace, where Keras does not count their variables as the network's.
        self._tracked = types.SimpleNamespace(
            metrics=[
                keras.metrics.Mean(name=name, dtype="float64")
                for name in [*names, "flops"]
            ]
        )
        self.build([None, None, None, 3])

    def get_config(self):
        return {**self._config, "name": self.name}

    def with_execution(self, execution: str) -> ResidualNetwork:
        """Returns this network, or a copy of it that runs another way.

        Args:
            execution: One of `EXECUTIONS`.

        Raises:
            ValueError: If the network cannot run that way.
        """
        if execution == self._config["execution"]:
            return self
        options = {**self._config, "execution": execution}
        copy = type(self)(**options, name=self.name)
        copy.set_weights(self.get_weights())
        return copy

    def export_saved_model(self, path: str, **options) -> str:
        """Exports for serving; see `sact_tf.exporting.export_saved_model`."""
        from sact_tf import exporting  # which imports what few networks need

        return exporting.export_saved_model(self, path, **options)

    @staticmethod
    def preprocess(image: tf.Tensor, size: int | None = None) -> tf.Tensor:
        """Preprocesses an image as in evaluation.

        Args:
            image: uint8 [height, width, 3].
            size: Side of the result; None: the original's.

        Returns:
            float32 [size, size, 3].
        """
        raise NotImplementedError

    @staticmethod
    def _batch_norm(name: str) -> BatchNorm:
        """Makes a batch normalization of the units, with its activation."""
        raise NotImplementedError

    @staticmethod
    def _head_batch_norm(name: str) -> BatchNorm:
        """Makes a batch normalization of the halting heads."""
        raise NotImplementedError

    @staticmethod
    def _parse_units(model) -> tuple[int, ...]:
        """Returns the residual units per block."""
        raise NotImplementedError

    def _make_stem(self, base_channels, weight_decay) -> keras.layers.Conv2D:
        raise NotImplementedError

    def _make_unit(self, b, k, base_channels, weight_decay, name):
        """Makes residual unit k of block b, both counted from 0."""
        raise NotImplementedError

    @property
    def block_scopes(self) -> list[str]:
        """Names of the blocks."""
        return [block.name for block in self.blocks]

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Layers by their scope in TF-Slim checkpoints, below `slim_scope`."""
        return {
            self._stem_scope: self.stem,
            **{block.name: block for block in self.blocks},
            self._final_bn_scope: self.final_bn,
            "logits": self.classifier,
        }

    def _run_stem(self, images):
        """Maps images to the input of the first block; returns it and its FLOPs."""
        raise NotImplementedError

    def _run_tail(self, x, training):
        """Maps the last block's output to pooled features [batch, 1, 1, channels]."""
        raise NotImplementedError

    def build(self, input_shape):
        if self.built:  # loading a saved model asks again
            return
        shape = tf.TensorShape(input_shape)
        self.stem.build(shape)
        channels = self.stem.filters
        shape = tf.TensorShape([shape[0], None, None, channels])
        for block in self.blocks:
            with tf.name_scope(block.name):
                block.build(shape)
            shape = tf.TensorShape(block.compute_output_shape(shape))
        self.final_bn.build(shape)
        self.classifier.build(shape)
        # Not `Model.build`, which would trace the whole network once more.
        keras.layers.Layer.build(self, input_shape)

    # Nothing below is for AutoGraph to convert, and its conversion takes longer than
    # all the rest of tracing.
    @tf.autograph.experimental.do_not_convert
    def run_blocks(
        self,
        images: tf.Tensor,
        training: bool | None = None,
        return_end_points: bool = False,
    ) -> tuple[tf.Tensor, dict[str, object]]:
        """Runs stem and blocks, without what comes after them.

        For layers and models that put something else there. To be called from the
        `call` of one that has the blocks among its layers, for their losses to be its.

        Args:
            images: Float [batch, height, width, 3], preprocessed.
            training: Whether batch statistics are used, and moving averages updated.
            return_end_points: Whether the blocks are asked for more than their output.

        Returns:
            The last block's output, before any normalization, and the end points: the
            output of every block by its name, `inputs`, `block_scopes` and
            `block_num_units`; where asked for, also `flops` and `<block>/...` as in
            `with_end_points`, of stem and blocks.
        """
        images = tf.cast(images, self.compute_dtype)
        x, total_flops = self._run_stem(images)
        end_points = {
            "inputs": images,
            "block_scopes": self.block_scopes,
            "block_num_units": [len(block.units) for block in self.blocks],
        }
        for block in self.blocks:
            if not return_end_points:
                x = end_points[block.name] = block(x, training=training)
                continue
            x, block_end_points = block(x, training=training, return_end_points=True)
            end_points[block.name] = x
            for key, value in block_end_points.items():
                end_points[f"{block.name}/{key}"] = value
            total_flops += block_end_points["flops"]
        if return_end_points:
            end_points["flops"] = total_flops
        return x, end_points

    @tf.autograph.experimental.do_not_convert
    def call(self, images, training=None, return_end_points=False):
        x, end_points = self.run_blocks(images, training, return_end_points)
        logits = self.classifier(self._run_tail(x, training))[:, 0, 0]
        logits = tf.cast(logits, tf.float32) if x.dtype != tf.float64 else logits
        if not return_end_points:
            return logits
        ones = tf.ones([tf.shape(x)[0]], tf.int64)
        end_points["flops"] += flops.conv2d_flops(self.classifier, ones)
        return logits, end_points

    def with_end_points(
        self, images: tf.Tensor, training: bool | None = None
    ) -> tuple[tf.Tensor, dict[str, object]]:
        """Runs the network and tells what happened inside.

        Args:
            images: Float [batch, height, width, 3], preprocessed.
            training: Whether batch statistics are used, and moving averages updated.

        Returns:
            Logits [batch, num_classes] and the end points: `inputs`, `block_scopes` and
            `block_num_units` (lists), `flops` (int64 [batch]); for each block `<block>`
            (its output) and `<block>/...` as in `sact_tf.blocks`.
        """
        return self(images, training=training, return_end_points=True)

    @property
    def metrics(self):
        return super().metrics + self._tracked.metrics

    def _update_metrics(self, x, y, logits, end_points, sample_weight):
        logs = self.compute_metrics(x, y, logits, sample_weight)
        for metric in self._tracked.metrics:
            key = metric.name.replace("/units", "/num_units")
            metric.update_state(tf.cast(end_points[key], tf.float64))
            logs[metric.name] = metric.result()
        return logs

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            logits, end_points = self.with_end_points(x, training=True)
            loss = self.compute_loss(x, y, logits, sample_weight)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return self._update_metrics(x, y, logits, end_points, sample_weight)

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        logits, end_points = self.with_end_points(x, training=False)
        self.compute_loss(x, y, logits, sample_weight)
        return self._update_metrics(x, y, logits, end_points, sample_weight)
