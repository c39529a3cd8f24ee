"""What every residual network here is: a stem, adaptive blocks, and a classifier."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf import flops, halting
from sact_tf.act_blocks import make_block
from sact_tf.halting.domain import get_domain
from sact_tf.layers import (
    BatchNorm,
    build_child,
    conv2d,
    global_average,
    policy_of,
    zero_outside,
)
from sact_tf.networks.network import BlockSpec, Network
from sact_tf.networks.options import (
    Dilation,
    Form,
    NetworkOptions,
    dilated,
    parse_units,
)
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
        make_unit: Makes unit k of block b from b, k, channels, stride, dilation rate,
            the network's options and name.
        dilates: Whether its units take a dilation rate above 1.
        preprocessing: Of its images, one of `PREPROCESSINGS`.
        has_forms: Whether `stem_pool` and `downsample` may be others than the first.
        batch_norm: Makes the last batch normalization, given a name; None: blocks
            normalize and activate what they return, and there is none.
        head_batch_norm: Makes those of halting heads, given a name.
        stem_batch_norm: Makes the one after the first convolution, which then has no
            bias; None: the first unit normalizes.
        make_block: Makes block b from the architecture, the network's options, b, its
            number of units, and its `Dilation`; None: `unit_block`.
    """

    slim_scope: str
    block_name: str
    stem_scope: str
    final_bn_scope: str | None
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
    make_unit: Callable[..., keras.layers.Layer] | None
    dilates: bool
    batch_norm: Callable[..., BatchNorm] | None
    head_batch_norm: Callable[..., BatchNorm] | None
    preprocessing: str
    has_forms: bool = False
    stem_batch_norm: Callable[..., BatchNorm] | None = None
    make_block: Callable[..., keras.layers.Layer] | None = None


def unit_block(
    plan: Architecture,
    options: NetworkOptions,
    b: int,
    num_units: int,
    dilation: Dilation,
) -> keras.layers.Layer:
    """Makes block b (from 0) of units, under the model type's halting rule."""
    kind = halting.model_type(options.model_type)
    units = [
        plan.make_unit(
            b,
            k,
            options.base_channels * 2**b,
            1 if k else dilation.stride,
            dilation.others if k else dilation.first,
            options,
            f"unit_{k + 1}",
        )
        for k in range(num_units)
    ]
    name = plan.block_name.format(b + 1)
    if kind.last_block_only and b + 1 < len(plan.block_strides):
        return PlainBlock(units, options.execution, name, options.precision)
    default_head = get_domain(kind.domain).default_head
    return make_block(
        options.model_type,
        units,
        options.rule_options,
        options.execution,
        tau=options.tau_of(b),
        head=functools.partial(default_head, bias=options.halting_bias),
        batch_norm=plan.head_batch_norm,
        weight_decay=options.weight_decay,
        tile_size=options.tile_size,
        group_grid=options.group_grid,
        precision=options.precision,
        name=name,
    )


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
        num_classes: Size of the logits; 0: there is no classifier.
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
    options_type = NetworkOptions

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
        plan = self._plan(options)
        units = self._units_per_block(model, plan)
        options = self.options_type.of(
            model=self._model_name(units),
            model_type=model_type,
            num_classes=num_classes,
            base_channels=base_channels,
            tau=tau,
            execution=execution,
            tile_size=tile_size,
            weight_decay=plan.weight_decay if weight_decay is None else weight_decay,
            **{**options, "preprocessing": self._preprocessing(plan, options)},
        )
        super().__init__(options, name=name, dtype=dtype, trainable=trainable)
        dilations = self._dilations(plan, len(units))
        decay = dict(weight_decay=options.weight_decay)
        with policy_of(self):
            self.stem = conv2d(
                plan.stem_channels or base_channels,
                plan.stem_size,
                plan.stem_stride,
                "same" if plan.stem_stride == 1 else "valid",
                use_bias=plan.stem_batch_norm is None,
                name=plan.stem_scope,
                **decay,
            )
            self.stem_bn = self.final_bn = self.classifier = None
            if plan.stem_batch_norm is not None:
                self.stem_bn = plan.stem_batch_norm(name=f"{plan.stem_scope}_bn")
            make = plan.make_block or unit_block
            self.blocks = [
                make(plan, options, b, num_units, dilations[b])
                for b, num_units in enumerate(units)
            ]
            if plan.batch_norm is not None:
                self.final_bn = plan.batch_norm(name=plan.final_bn_scope)
            if num_classes:
                self.classifier = conv2d(
                    num_classes, 1, use_bias=True, name="logits", **decay
                )
        self._finish()

    def _plan(self, options):
        """Returns the architecture; options may choose among several."""
        return self.architecture

    def _units_per_block(self, model, plan):
        """Reads the units of every block."""
        blocks = len(plan.block_strides)
        return parse_units(model, plan.units_per_block, blocks, plan.one_for_all)

    def _model_name(self, units):
        return "_".join(map(str, units))

    def _preprocessing(self, plan, options):
        """Returns what images go through; checks what the options say of it."""
        own = plan.preprocessing
        if options.get("preprocessing") not in (None, own):
            raise ValueError(
                f"preprocessing must be {own!r} in a {type(self).__name__}; got "
                f"{options['preprocessing']!r}"
            )
        return own

    def _dilations(self, plan, num_blocks):
        """Returns how blocks are strided and dilated; checks what is said of it."""
        options = self.options
        strides = options.block_strides or plan.block_strides
        for what, values in (("block_strides", strides), ("tau", options.tau)):
            if isinstance(values, (list, tuple)) and len(values) != num_blocks:
                raise ValueError(f"{what} must be {num_blocks} numbers; got {values}")
        if options.rate != 1 and not plan.dilates:
            raise ValueError(
                f"rate must be 1 in {type(self).__name__}; got {options.rate}"
            )
        if not plan.has_forms and (options.stem_pool, options.downsample) != Form():
            raise ValueError(
                f"stem_pool, downsample must be {Form()} in a {type(self).__name__}; "
                f"got {Form(options.stem_pool, options.downsample)}"
            )
        return dilated(strides, options.rate)

    @property
    def slim_scope(self) -> str:
        """Root scope of the variables in TF-Slim checkpoints."""
        return self.architecture.slim_scope

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Layers by their scope in TF-Slim checkpoints, below `slim_scope`."""
        plan = self.architecture
        scopes = {
            plan.stem_scope: self.stem,
            f"{plan.stem_scope}/BatchNorm": self.stem_bn,
            **{block.name: block for block in self.blocks},
            plan.final_bn_scope: self.final_bn,
        }
        scopes = {name: layer for name, layer in scopes.items() if layer is not None}
        return {**scopes, "logits": self.classifier} if self.classifier else scopes

    @property
    def classifier_scopes(self) -> tuple[str, ...]:
        """Beginnings of the names of variables that depend on the classes."""
        return (f"{self.slim_scope}/logits/",)

    @property
    def block_specs(self) -> list[BlockSpec]:
        stride = self.architecture.stem_stride * self.architecture.pool_stride
        shape = tf.TensorShape([None, None, None, self.stem.filters])
        specs = []
        for block in self.blocks:
            stride *= block.output_stride()
            shape = tf.TensorShape(block.compute_output_shape(shape))
            specs.append(BlockSpec(block.name, len(block.units), shape[-1], stride))
        return specs

    def loss_function(self, label_smoothing=0.0):
        if self.classifier is None:
            raise ValueError(
                "num_classes must be at least 1 to train a classifier; got 0"
            )
        return CrossEntropy(label_smoothing)

    def build(self, input_shape):
        if self.built:  # loading a saved model asks again
            return
        shape = tf.TensorShape(input_shape)
        build_child(self.stem, shape)
        shape = tf.TensorShape([shape[0], None, None, self.stem.filters])
        if self.stem_bn is not None:
            build_child(self.stem_bn, shape)
        for block in self.blocks:
            build_child(block, shape)
            shape = tf.TensorShape(block.compute_output_shape(shape))
        if self.final_bn is not None:
            build_child(self.final_bn, shape)
        if self.classifier is not None:
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
        images = tf.convert_to_tensor(images)
        if not images.dtype.is_floating:
            raise ValueError(
                f"images must be floats, preprocessed; got {images.dtype.name}: map "
                "pixels by sact_tf.preprocess_input first"
            )
        images = tf.cast(images, self.compute_dtype)
        is_padded = self._check_sizes(images, sizes)
        x, total, valid = self._run_stem(images, sizes, is_padded, training)
        blocks = self.blocks[:num_blocks]
        end_points = {
            "inputs": images,
            "block_scopes": [block.name for block in blocks],
            "block_num_units": [len(block.units) for block in blocks],
        }
        if return_end_points and sizes is not None:
            end_points["dense_flops"] = self.dense_flops_of_blocks(
                images, sizes, num_blocks
            )
        expected_total, is_expected = tf.cast(total, tf.float32), False
        for b, block in enumerate(blocks):
            options = dict(training=training, valid=valid if is_padded else None)
            if block.is_adaptive and trains_rule is not None:
                options["trains_rule"] = trains_rule
            if block.is_adaptive and seed is not None:
                options["seed"] = tf.random.experimental.stateless_fold_in(seed, b)
            if return_end_points:
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
            end_points["valid"] = valid
            x = zero_outside(x, valid if is_padded else None)
        return x, end_points

    def dense_flops_of_blocks(
        self,
        images: tf.Tensor,
        sizes: tf.Tensor | None = None,
        num_blocks: int | None = None,
        num_units: int | None = None,
    ) -> tf.Tensor:
        """Counts what stem and blocks of an ordinary network of this depth take.

        Nothing of the network is run.

        Args:
            images: [batch, height, width, 3]; only the shape counts.
            sizes: int32 [batch, 2], heights and widths without padding; None: there is
                none.
            num_blocks: How many blocks follow the stem; None: all. What comes after
                them is not counted.
            num_units: How many units of every block run; None: all.

        Returns:
            int64 [batch].
        """
        plan, valid = self.architecture, None
        x = images[:, :: plan.stem_stride, :: plan.stem_stride, :1]
        positions = flops.num_positions(x)
        if sizes is not None:
            valid = inside(-(-sizes // plan.stem_stride), x)
            positions = flops.num_active(valid)
        total = flops.conv2d_flops(self.stem, positions)
        x = x[:, :: plan.pool_stride, :: plan.pool_stride]
        if valid is not None:
            valid = valid[:, :: plan.pool_stride, :: plan.pool_stride]
        for block in self.blocks[:num_blocks]:
            total += block.dense_flops(x, valid, num_units)
            stride = block.output_stride()
            x = x[:, ::stride, ::stride]
            valid = None if valid is None else block.valid_after(valid)
        return total

    def features(
        self, end_points: Mapping[str, object], training: bool | None = None
    ) -> list[tf.Tensor]:
        """Returns what the network itself goes on with after every block.

        The output of a block is a sum of residuals that nothing has normalized yet. A
        feature is the output after the next batch normalization and activation: those
        of the next block's first unit, and after the last block the network's own. In
        networks without that, blocks have done both.

        Args:
            end_points: Of `run_blocks`.
            training: As in `run_blocks`. Moving averages of the next blocks' units are
                left as their own calls made them.
        """
        run = len(end_points["block_scopes"])
        if self.final_bn is None:
            return [end_points[name] for name in end_points["block_scopes"]]
        norms = [block.units[0].preact for block in self.blocks[1 : run + 1]]
        features = [
            norm(end_points[block.name], training=training, update_averages=False)
            for block, norm in zip(self.blocks, norms)
        ]
        if run == len(self.blocks):
            last = end_points[self.blocks[-1].name]
            features.append(self.normalized(last, training))
        return features

    def normalized(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalizes and activates the last block's output, if it has not done so."""
        return x if self.final_bn is None else self.final_bn(x, training=training)

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

    def _run_stem(self, images, sizes, is_padded, training=None):
        """Maps images to the input of the first block.

        Returns it, its FLOPs, and where it lies inside of images (None without sizes).
        """
        plan = self.architecture
        if is_padded:
            images = zero_outside(images, inside(sizes, images))
        if plan.stem_stride > 1:  # independent of the parity of the image size
            around = [plan.stem_size // 2] * 2
            images = tf.pad(images, [[0, 0], around, around, [0, 0]])
        x = self._convolve_stem(images, training)
        if sizes is None:
            total = flops.conv2d_flops(self.stem, flops.num_positions(x))
            return self._pool(x), total, None
        valid = inside(-(-sizes // plan.stem_stride), x)
        total = flops.conv2d_flops(self.stem, flops.num_active(valid))
        if plan.pool_stride > 1:
            x = self._pool(x, valid if is_padded else None, of_any_size=True)
            valid = valid[:, :: plan.pool_stride, :: plan.pool_stride]
        return zero_outside(x, valid if is_padded else None), total, valid

    def _convolve_stem(self, images, training):
        """Runs what stands before the stem's pooling."""
        x = self.stem(images)
        return x if self.stem_bn is None else self.stem_bn(x, training=training)

    def _pool(self, x, valid=None, of_any_size=False):
        """Pools the stem's output as `stem_pool` says.

        Args:
            x: [batch, height, width, channels].
            valid: Bool [batch, height, width], where x lies inside of images; None:
                everywhere.
            of_any_size: Whether images of several sizes are to be pooled alike. With
                "same", where 4 divides the size of an image, this is the network's own
                pooling. On others that one pools at positions that depend on the size,
                which must not be: it may be any in a padded batch.
        """
        stride, border = self.architecture.pool_stride, self.options.stem_pool
        if stride == 1:
            return x
        if border == "same" and not of_any_size:
            return tf.nn.max_pool2d(x, 3, stride, "SAME")
        outside = tf.constant(0 if border == "zeros" else x.dtype.min, x.dtype)
        if valid is not None:
            x = tf.where(valid[..., tf.newaxis], x, outside)
        before = [0, 0] if border == "same" else [1, 1]
        after = tf.unstack(1 + tf.shape(x)[1:3] % 2) if border == "same" else [1, 1]
        paddings = [[0, 0], *([b, a] for b, a in zip(before, after)), [0, 0]]
        x = tf.pad(x, paddings, constant_values=outside)
        return tf.nn.max_pool2d(x, 3, stride, "VALID")

    def dense_flops(self, images, num_units=None):
        total = self.dense_flops_of_blocks(images, num_units=num_units)
        return total + self._classifier_flops(images)

    def _classifier_flops(self, x):
        ones = tf.ones([tf.shape(x)[0]], tf.int64)
        if self.classifier is None:
            return tf.zeros_like(ones)
        return flops.conv2d_flops(self.classifier, ones)

    def _without_classifier(self, x, training):
        """Maps the last block's output to what a network without classifier returns."""
        pooling = self.options.pooling
        if pooling == "avg":
            return self._average(x, training)[:, 0, 0]
        x = self.normalized(x, training)
        return tf.reduce_max(x, [1, 2]) if pooling == "max" else x

    def _average(self, x, training):
        """Averages over positions, and normalizes, before that or after it."""
        if self.architecture.pools_first:
            return self.normalized(global_average(x), training)
        return global_average(self.normalized(x, training))

    def _classify(self, x, training):
        if self.classifier is None:
            return self._without_classifier(x, training), self._classifier_flops(x)
        x = self._average(x, training)
        return self.classifier(x)[:, 0, 0], self._classifier_flops(x)
