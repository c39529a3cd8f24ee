"""What every residual network here is: a stem, adaptive blocks, and a classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf import flops, halting
from sact_tf.blocks import make_block
from sact_tf.layers import (
    BatchNorm,
    build_child,
    conv2d,
    global_average,
    policy_of,
    zero_outside,
)
from sact_tf.networks.network import BlockSpec, Network
from sact_tf.networks.options import NetworkOptions, parse_units
from sact_tf.optimization import CrossEntropy
from sact_tf.plain_block import PlainBlock

MODEL_TYPES = halting.model_types()
"""Names of the model types of this package; `halting.model_types()` tells all."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What tells one family of residual networks from another.

    Attributes:
        slim_scope: Root scope of the variables in TF-Slim checkpoints.
        block_name: Format string of a block's number.
        stem_scope: Of the first convolution.
        final_bn_scope: Of the last batch normalization.
        weight_decay: L2 coefficient c of c * sum(w^2) / 2 of every convolution.
        units_per_block: Networks known by name.
        one_for_all: Whether one number is the units of every block.
        block_strides: Stride of the first unit of each block.
        expansion: Channels of a block's output for one of its own.
        stem_channels: Of the first convolution; None: the base channels.
        stem_size: Side of its kernel.
        stem_stride: Its stride.
        pool_stride: Of the max pooling after it; 1: there is none.
        pools_first: Whether features are averaged before the last batch normalization,
            rather than after it.
        make_unit: Makes unit k of block b from b, k, channels, stride, weight decay and
            name.
        batch_norm: Makes the last batch normalization, given a name.
        head_batch_norm: Makes those of halting heads, given a name.
    """

    slim_scope: str
    block_name: str
    stem_scope: str
    final_bn_scope: str
    weight_decay: float
    units_per_block: Mapping[str, tuple[int, ...]]
    one_for_all: bool
    block_strides: tuple[int, ...]
    expansion: int
    stem_channels: int | None
    stem_size: int
    stem_stride: int
    pool_stride: int
    pools_first: bool
    make_unit: Callable[..., keras.layers.Layer]
    batch_norm: Callable[..., BatchNorm]
    head_batch_norm: Callable[..., BatchNorm]


def inside(sizes: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the bool mask [batch, height, width] of what lies inside of images.

    Args:
        sizes: int32 [batch, 2], heights and widths of the images, at the top left.
        x: The padded images, [batch, height, width, channels].
    """
    height, width = tf.unstack(tf.shape(x)[1:3])
    rows = tf.range(height) < sizes[:, :1]
    columns = tf.range(width) < sizes[:, 1:]
    return rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :]


class ResidualNetwork(Network):
    """Residual network, read from top to bottom: `run_blocks`, then `_classify`.

    Args:
        model: Residual units per block; what is accepted is up to the subclass.
        model_type: One of `halting.model_types()`.
        num_classes: Size of the logits.
        base_channels: Scales the channels of all blocks.
        tau: Weight of the ponder cost in the losses, at least 0; or one of each block.
        execution: One of `EXECUTIONS`.
        tile_size: Side of the tiles that halt together, as in `SACTBlock`.
        name: Keras name of the model.
        weight_decay: L2 coefficient c of the loss c * sum(w^2) / 2 of every
            convolution, halting heads included; None: the original's.
        dtype: Mixed precision policy; None: the global one.
        **options: Others of `NetworkOptions`, and those of the halting rule.

    Attributes:
        architecture: What a subclass says of itself.
        slim_scope: Root scope of the variables in TF-Slim checkpoints.

    Raises:
        ValueError: On any other value, naming the argument.
    """

    architecture: Architecture

    def __init__(
        self,
        model: str | int | Sequence[int],
        model_type: str = "vanilla",
        num_classes: int = 1001,
        base_channels: int = 64,
        tau: float | Sequence[float] = 1.0,
        execution: str = "masked",
        tile_size: int = 1,
        name: str | None = None,
        weight_decay: float | None = None,
        dtype=None,
        trainable: bool = True,
        **options,
    ):
        plan = self.architecture
        units = parse_units(
            model, plan.units_per_block, len(plan.block_strides), plan.one_for_all
        )
        options = NetworkOptions.of(
            model="_".join(map(str, units)),
            model_type=model_type,
            num_classes=num_classes,
            base_channels=base_channels,
            tau=tau,
            execution=execution,
            tile_size=tile_size,
            weight_decay=plan.weight_decay if weight_decay is None else weight_decay,
            **options,
        )
        super().__init__(options, name=name, dtype=dtype, trainable=trainable)
        strides = options.block_strides or plan.block_strides
        for what, values in (("block_strides", strides), ("tau", options.tau)):
            if isinstance(values, (list, tuple)) and len(values) != len(units):
                raise ValueError(f"{what} must be {len(units)} numbers; got {values}")
        decay = dict(weight_decay=options.weight_decay)
        with policy_of(self):
            self.stem = conv2d(
                plan.stem_channels or base_channels,
                plan.stem_size,
                plan.stem_stride,
                "same" if plan.stem_stride == 1 else "valid",
                use_bias=True,
                name=plan.stem_scope,
                **decay,
            )
            self.blocks = [
                self._make_block(b, num_units, strides[b])
                for b, num_units in enumerate(units)
            ]
            self.final_bn = plan.batch_norm(name=plan.final_bn_scope)
            self.classifier = conv2d(
                num_classes, 1, use_bias=True, name="logits", **decay
            )
        self._finish()

    def _make_block(self, b, num_units, stride):
        """Makes block b, counted from 0."""
        options, plan = self.options, self.architecture
        units = [
            plan.make_unit(
                b,
                k,
                options.base_channels * 2**b,
                1 if k else stride,
                options.weight_decay,
                f"unit_{k + 1}",
            )
            for k in range(num_units)
        ]
        kind = halting.model_type(options.model_type)
        name = plan.block_name.format(b + 1)
        if kind.last_block_only and b + 1 < len(plan.block_strides):
            return PlainBlock(units, options.execution, name)
        return make_block(
            options.model_type,
            units,
            options.rule_options,
            options.execution,
            tau=options.tau_of(b),
            batch_norm=plan.head_batch_norm,
            weight_decay=options.weight_decay,
            tile_size=options.tile_size,
            group_grid=options.group_grid,
            name=name,
        )

    @property
    def slim_scope(self) -> str:
        """Root scope of the variables in TF-Slim checkpoints."""
        return self.architecture.slim_scope

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Layers by their scope in TF-Slim checkpoints, below `slim_scope`."""
        return {
            self.architecture.stem_scope: self.stem,
            **{block.name: block for block in self.blocks},
            self.architecture.final_bn_scope: self.final_bn,
            "logits": self.classifier,
        }

    @property
    def block_specs(self) -> list[BlockSpec]:
        stride = self.architecture.stem_stride * self.architecture.pool_stride
        specs = []
        for b, block in enumerate(self.blocks):
            stride *= block.output_stride()
            channels = self.architecture.expansion * self.options.base_channels * 2**b
            specs.append(BlockSpec(block.name, len(block.units), channels, stride))
        return specs

    def loss_function(self, label_smoothing=0.0):
        return CrossEntropy(label_smoothing)

    def build(self, input_shape):
        if self.built:  # loading a saved model asks again
            return
        shape = tf.TensorShape(input_shape)
        build_child(self.stem, shape)
        shape = tf.TensorShape([shape[0], None, None, self.stem.filters])
        for block in self.blocks:
            build_child(block, shape)
            shape = tf.TensorShape(block.compute_output_shape(shape))
        build_child(self.final_bn, shape)
        build_child(self.classifier, shape)
        # Not `Model.build`, which would trace the whole network once more.
        keras.layers.Layer.build(self, input_shape)

    @tf.autograph.experimental.do_not_convert
    def run_blocks(
        self,
        images,
        training=None,
        return_end_points=False,
        sizes=None,
        num_blocks=None,
        seed=None,
        trains_rule=None,
    ):
        images = tf.cast(images, self.compute_dtype)
        is_padded = self._check_sizes(images, sizes)
        x, total, valid = self._run_stem(images, sizes, is_padded)
        blocks = self.blocks[:num_blocks]
        end_points = {
            "inputs": images,
            "block_scopes": [block.name for block in blocks],
            "block_num_units": [len(block.units) for block in blocks],
        }
        dense_total = total
        expected_total, is_expected = tf.cast(total, tf.float32), False
        for b, block in enumerate(blocks):
            options = dict(training=training, valid=valid if is_padded else None)
            if block.is_adaptive and trains_rule is not None:
                options["trains_rule"] = trains_rule
            if block.is_adaptive and seed is not None:
                options["seed"] = tf.random.experimental.stateless_fold_in(seed, b)
            if return_end_points:
                if sizes is not None:
                    dense_total += block.dense_flops(x, valid)
                x, results = block(x, return_end_points=True, **options)
                for key, value in results.items():
                    end_points[f"{block.name}/{key}"] = value
                total += results["flops"]
                is_expected |= "expected_flops" in results
                expected_total += results.get(
                    "expected_flops", tf.cast(results["flops"], tf.float32)
                )
            else:
                x = block(x, **options)
            end_points[block.name] = x
            valid = block.valid_after(valid)
        if return_end_points:
            end_points["flops"] = total
            if is_expected:
                end_points["expected_flops"] = expected_total
        if sizes is not None:
            end_points.update(valid=valid, dense_flops=dense_total)
            x = zero_outside(x, valid if is_padded else None)
        return x, end_points

    def features(
        self, end_points: Mapping[str, object], training: bool | None = None
    ) -> list[tf.Tensor]:
        """Returns what the network itself goes on with after every block.

        The output of a block is a sum of residuals that nothing has normalized yet. A
        feature is the output after the next batch normalization and activation: those
        of the next block's first unit, and after the last block the network's own.

        Args:
            end_points: Of `run_blocks`, over all blocks.
            training: As in `run_blocks`. Moving averages of the next blocks' units are
                left as their own calls made them.
        """
        norms = [block.units[0].preact for block in self.blocks[1:]]
        features = [
            norm(end_points[block.name], training=training, update_averages=False)
            for block, norm in zip(self.blocks, norms)
        ]
        last = self.final_bn(end_points[self.blocks[-1].name], training=training)
        return [*features, last]

    def _check_sizes(self, images, sizes):
        """Returns whether there may be padding in this batch."""
        if sizes is None:
            return False
        if self.execution == "masked" and images.shape[0] != 1:
            return True
        tf.debugging.assert_equal(
            sizes,
            tf.broadcast_to(tf.shape(images)[1:3], tf.shape(sizes)),
            "padded images need execution='masked' and batches of more than one",
        )
        return False

    def _run_stem(self, images, sizes, is_padded):
        """Maps images to the input of the first block.

        Returns it, its FLOPs, and where it lies inside of images (None without sizes).
        """
        plan = self.architecture
        if is_padded:
            images = zero_outside(images, inside(sizes, images))
        if plan.stem_stride > 1:  # independent of the parity of the image size
            around = [plan.stem_size // 2] * 2
            images = tf.pad(images, [[0, 0], around, around, [0, 0]])
        x = self.stem(images)
        if sizes is None:
            total = flops.conv2d_flops(self.stem, flops.num_positions(x))
            if plan.pool_stride > 1:
                x = tf.nn.max_pool2d(x, 3, plan.pool_stride, "SAME")
            return x, total, None
        valid = inside(-(-sizes // plan.stem_stride), x)
        total = flops.conv2d_flops(self.stem, flops.num_active(valid))
        if plan.pool_stride > 1:
            x = self._pool_inside(x, valid if is_padded else None)
            valid = valid[:, :: plan.pool_stride, :: plan.pool_stride]
        return zero_outside(x, valid if is_padded else None), total, valid

    def _pool_inside(self, x, valid):
        """Pools images of several sizes.

        Where 4 divides the size of an image, this is the network's own pooling. On
        others that one pools at positions that depend on the size, which must not be:
        it may be any in a padded batch.
        """
        lowest = tf.constant(x.dtype.min, x.dtype)
        if valid is not None:
            x = tf.where(valid[..., tf.newaxis], x, lowest)
        bottom, right = tf.unstack(1 + tf.shape(x)[1:3] % 2)
        paddings = [[0, 0], [0, bottom], [0, right], [0, 0]]
        x = tf.pad(x, paddings, constant_values=lowest)
        return tf.nn.max_pool2d(x, 3, self.architecture.pool_stride, "VALID")

    def _classify(self, x, training):
        if self.architecture.pools_first:
            x = self.final_bn(global_average(x), training=training)
        else:
            x = global_average(self.final_bn(x, training=training))
        ones = tf.ones([tf.shape(x)[0]], tf.int64)
        total = flops.conv2d_flops(self.classifier, ones)
        return self.classifier(x)[:, 0, 0], total
