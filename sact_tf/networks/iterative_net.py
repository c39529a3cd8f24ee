"""Iterative residual networks with ACT: IterativeNet and IamNN.

Leroux et al., IamNN: Iterative and adaptive mobile neural network (2018), and Iterative
neural networks for adaptive inference on resource-constrained devices (2022). Neither
came with code. Where the papers are silent, this is what their parameter counts say, or
a choice; docs/iterative.md tells which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import flops
from sact_tf.domains import COUNT, MAX_UNITS, Domain, brief
from sact_tf.halting import CumulativeHalting
from sact_tf.halting.gates import GATE_BIAS
from sact_tf.layers import build_child, conv2d, global_average, policy_of
from sact_tf.networks.cifar_resnet import CifarResNet
from sact_tf.networks.imagenet_resnet import ImagenetResNet
from sact_tf.networks.iterative_block import VARIANTS, IterativeBlock
from sact_tf.networks.network import BlockSpec, Network
from sact_tf.networks.options import IterativeForm, NetworkOptions, _option
from sact_tf.networks.residual_network import ResidualNetwork
from sact_tf.optimization import iterative_learning_rate
from sact_tf.units.iterative import iterative_batch_norm

_STAGES = 4
_EXPANSION = Domain(1, 4, is_integer=True)


class _Stem(NamedTuple):
    """What comes before the first stage, and what belongs to it.

    Attributes:
        stem_size: Side of the convolution's kernel.
        stem_stride: Its stride.
        pool_stride: Of the max pooling after it; 1: there is none.
        preprocessing: What images go through.
        weight_decay: As of a residual network's `Architecture`.
        network: Whose preprocessing of images that is.
        slim_scope: Root scope of the variables in checkpoints.
    """

    stem_size: int
    stem_stride: int
    pool_stride: int
    preprocessing: str
    weight_decay: float
    network: type[Network]
    slim_scope: str = "iterative_net"


STEMS = {
    "imagenet": _Stem(7, 2, 2, "symmetric", 1e-4, ImagenetResNet),
    "cifar": _Stem(3, 1, 1, "standardized", 5e-4, CifarResNet),
}
"""What `stem=` may be."""


def parse_limits(limits: str | Sequence[int]) -> tuple[int, ...]:
    """Reads the most iterations of every stage, as in "3,8,36,3".

    Raises:
        ValueError: They are not four numbers from 1 to `MAX_UNITS`.
    """
    parts = limits.split(",") if isinstance(limits, str) else limits
    try:
        parts = [
            COUNT.parse(part, "") if isinstance(part, str) else COUNT.convert(part)
            for part in parts
        ]
    except (TypeError, ValueError):
        parts = []
    if len(parts) != _STAGES or max(parts) > MAX_UNITS:
        raise ValueError(
            f"max_iterations must be {_STAGES} integers from 1 to {MAX_UNITS}, such as "
            f"3,8,36,3; got {brief(limits)}"
        )
    return tuple(parts)


@dataclasses.dataclass(frozen=True)
class IterativeOptions(NetworkOptions):
    """Options of iterative networks; `model_type` is the variant.

    Attributes:
        max_iterations: Of every stage.
        expansion: Channels of a stage's states for one of its 3x3 convolution.
        depthwise: Whether that is depthwise.
        double: Whether every stage has two blocks.
        stem: One of `STEMS`.
    """

    max_iterations: Sequence[int] = _option((3, 8, 36, 3), "Limits.")
    expansion: int = _option(1, "Channels of states for one of the unit's.")
    depthwise: bool = _option(False, "Whether 3x3 convolutions are depthwise.")
    double: bool = _option(False, "Whether every stage has two blocks.")
    stem: str = _option("imagenet", "What comes first.")

    def __post_init__(self):
        for name, known in (("model_type", VARIANTS), ("stem", STEMS)):
            value = getattr(self, name)
            if value not in known:
                name = "variant" if name == "model_type" else name
                accepted = f"{name} must be one of {', '.join(known)}"
                raise ValueError(f"{accepted}; got {brief(value)}")
        _EXPANSION.check(self.expansion, "expansion")
        for name in ("depthwise", "double"):
            if not isinstance(getattr(self, name), bool):
                value = brief(getattr(self, name))
                raise ValueError(f"{name} must be True or False; got {value}")
        super().__post_init__()

    def _check_sharing(self):
        if self.tile_size != 1 or self.group_grid is not None:
            raise ValueError(
                "tile_size, group_grid must be 1 and None in an iterative network, "
                f"whose images halt; got {self.tile_size} and {self.group_grid}"
            )
        if self.precision != "float32":
            raise ValueError(
                "precision must be float32 in an iterative network, whose units are "
                f"TensorFlow's convolutions; got {brief(self.precision)}"
            )

    def make_rule(self):
        try:
            return CumulativeHalting(**self.rule_options)
        except TypeError as error:
            raise ValueError(
                f"iterative networks halt by CumulativeHalting; got "
                f"{dict(self.rule_options)}: {error}"
            ) from error

    @property
    def form(self):
        return IterativeForm(
            self.model_type,
            self.model,
            str(self.expansion),
            "depthwise" if self.depthwise else "full",
            "double" if self.double else "single",
            self.stem,
        )


@keras.utils.register_keras_serializable("sact_tf")
class IterativeNet(ResidualNetwork):
    """See `iterative_net`."""

    def __init__(
        self,
        variant: str = "iterative",
        max_iterations: str | Sequence[int] = (3, 8, 36, 3),
        expansion: int = 1,
        depthwise: bool = False,
        double: bool = False,
        num_classes: int = 1000,
        stem: str = "imagenet",
        tau: float | Sequence[float] = 0.001,
        execution: str = "masked",
        base_channels: int = 64,
        weight_decay: float | None = None,
        halting_bias: float = GATE_BIAS,
        name: str | None = None,
        dtype=None,
        trainable: bool = True,
        **options,
    ):
        limits = parse_limits(max_iterations)
        plan = STEMS.get(stem, STEMS["imagenet"])
        options = IterativeOptions.of(
            model="_".join(map(str, limits)),
            model_type=variant,
            max_iterations=limits,
            expansion=expansion,
            depthwise=depthwise,
            double=double,
            num_classes=num_classes,
            stem=stem,
            tau=tau,
            execution=execution,
            base_channels=base_channels,
            weight_decay=plan.weight_decay if weight_decay is None else weight_decay,
            halting_bias=halting_bias,
            **{"preprocessing": plan.preprocessing, **options},
        )
        # Its parts are not those of an `Architecture`; what runs them is.
        Network.__init__(self, options, name=name, dtype=dtype, trainable=trainable)
        self._preprocessing({"preprocessing": options.preprocessing})
        if isinstance(tau, (list, tuple)) and len(tau) != self._num_blocks():
            raise ValueError(f"tau must be {self._num_blocks()} numbers; got {tau}")
        decay = dict(weight_decay=options.weight_decay)
        with policy_of(self):
            self.stem = conv2d(
                base_channels,
                plan.stem_size,
                plan.stem_stride,
                "same" if plan.stem_stride == 1 else "valid",
                name="stem",
                **decay,
            )
            self.stem_bn = iterative_batch_norm("stem_bn")
            self.blocks = [self._make_block(b) for b in range(self._num_blocks())]
            self.final_bn = self.classifier = None
            if num_classes:
                self.classifier = conv2d(
                    num_classes, 1, use_bias=True, name="logits", **decay
                )
        self._finish()

    def _num_blocks(self):
        return _STAGES * (2 if self.options.double else 1)

    def _make_block(self, b):
        """Makes block b, counted from 0."""
        options = self.options
        stage, part = divmod(b, 2) if options.double else (b, 0)
        name = f"block_{stage + 1}"
        return IterativeBlock(
            options.base_channels * 2**stage,
            options.max_iterations[stage],
            options.expansion,
            options.model_type,
            options.depthwise,
            strides=2 if stage and not part else 1,
            tau=options.tau_of(b),
            epsilon=options.make_rule().epsilon,
            execution=options.execution,
            weight_decay=options.weight_decay,
            halting_bias=options.halting_bias,
            name=f"{name}_{part + 1}" if options.double else name,
        )

    @property
    def architecture(self) -> _Stem:
        """What `ResidualNetwork` wants to know of stem and images."""
        return STEMS[self.options.stem]

    def get_config(self):
        config = super().get_config()
        names = ("model", "tile_size", "group_grid", "block_strides", "rate")
        for name in (*names, "precision", "stem_pool", "downsample"):
            del config[name]
        return {"variant": config.pop("model_type"), **config}

    def preprocess(self, image, size=None):
        return self.architecture.network.preprocess(image, size)

    def default_learning_rate(self, max_number_of_steps, num_examples, batch_size):
        return iterative_learning_rate(max_number_of_steps)

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        scopes = {
            "stem": self.stem,
            "stem/BatchNorm": self.stem_bn,
            **{block.name: block for block in self.blocks},
        }
        return {**scopes, "logits": self.classifier} if self.classifier else scopes

    @property
    def block_specs(self) -> list[BlockSpec]:
        stride = self.architecture.stem_stride * self.architecture.pool_stride
        specs = []
        for block in self.blocks:
            stride *= block.strides
            count = len(block.units)
            specs.append(BlockSpec(block.name, count, block.out_channels, stride))
        return specs

    def build(self, input_shape):
        if self.built:
            return
        shape = tf.TensorShape(input_shape)
        build_child(self.stem, shape)
        shape = tf.TensorShape([shape[0], None, None, self.stem.filters])
        build_child(self.stem_bn, shape)
        for block in self.blocks:
            build_child(block, shape)
            shape = tf.TensorShape(block.compute_output_shape(shape))
        if self.classifier is not None:
            build_child(self.classifier, shape)
        keras.layers.Layer.build(self, input_shape)

    def features(self, end_points, training=None):
        """Returns the output of every block, which its own ReLU has activated."""
        return [end_points[name] for name in end_points["block_scopes"]]

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
        if 0 in images.shape[1:3]:
            raise ValueError(
                "images must have a pixel or more, so that every stage has positions; "
                f"got {images.shape[1]} x {images.shape[2]}"
            )
        x, end_points = super().run_blocks(
            images, training, return_end_points, sizes, num_blocks, seed, trains_rule
        )
        if return_end_points:
            names = end_points["block_scopes"]
            inside = tf.add_n([end_points[f"{name}/flops"] for name in names])
            of_stem = flops.multiply_accumulates(end_points["flops"] - inside)
            of_blocks = [end_points[f"{name}/macs"] for name in names]
            end_points["macs"] = tf.add_n([of_stem, *of_blocks])
        return x, end_points

    @tf.autograph.experimental.do_not_convert
    def call(
        self,
        images,
        training=None,
        return_end_points=False,
        seed=None,
        trains_rule=None,
    ):
        results = super().call(images, training, return_end_points, seed, trains_rule)
        if return_end_points and self.classifier is not None:
            results[1]["macs"] += int(np.prod(self.classifier.kernel.shape))
        return results

    def _convolve_stem(self, images, training):
        return self.stem_bn(self.stem(images), training=training)

    def _classifier_flops(self, x):
        """None: operations are those of convolutions, as `macs` are not."""
        return tf.zeros([tf.shape(x)[0]], tf.int64)

    def _without_classifier(self, x, training):
        if self.options.pooling is None:
            return x
        if self.options.pooling == "max":
            return tf.reduce_max(x, [1, 2])
        return global_average(x)[:, 0, 0]

    def _average(self, x, training):
        return global_average(x)


def iterative_net(
    variant: str = "iterative",
    max_iterations: Sequence[int] = (3, 8, 36, 3),
    expansion: int = 1,
    depthwise: bool = False,
    double: bool = False,
    num_classes: int = 1000,
    stem: str = "imagenet",
    tau: float = 0.001,
    execution: str = "masked",
    base_channels: int = 64,
    name: str | None = None,
    **options,
) -> IterativeNet:
    """Builds an iterative residual network (Leroux et al., 2018 and 2022).

    Every stage runs one bottleneck unit again and again, until a gate stops it, image
    by image. Iterations share all weights but batch normalization.

    Args:
        variant: "iterative" (2022) or "iamnn" (2018).
        max_iterations: The most iterations of each of the four stages; (3, 8, 36, 3) is
            as deep as ResNet-152.
        expansion: 1 to 4: states have so many times the channels of the unit's 3x3
            convolution.
        depthwise: Whether that is a depthwise one, with a 1x1 convolution after it.
        double: Whether every stage has two blocks, each with a gate of its own and the
            stage's limit.
        num_classes: Size of the logits; 0: there is no classifier.
        stem: "imagenet": 7x7 with stride 2, and max pooling; "cifar": 3x3.
        tau: Weight of the ponder cost in the losses; the papers do not tell it.
        execution: "masked", or "perforated": in inference, images that have halted
            leave the batch.
        base_channels: Of the first stage; the others have 2, 4 and 8 times as many.
        name: Keras name of the model.
        **options: `epsilon` of the halting rule, `halting_bias`, `weight_decay`,
            `dtype`, and without a classifier `pooling`, "avg" or "max".

    Returns:
        A `tf_keras.Model` from images [batch, height, width, 3] (in [-1, 1] with the
        stem "imagenet", standardised with "cifar") to logits [batch, num_classes].
        `with_end_points` also tells `macs`, int64 [batch], the multiply-accumulates of
        everything that has weights; `flops` are those of convolutions alone.

    Raises:
        ValueError: On any other value, naming the argument.
    """
    return IterativeNet(
        variant,
        max_iterations,
        expansion,
        depthwise,
        double,
        num_classes,
        stem,
        tau,
        execution,
        base_channels,
        name=name,
        **options,
    )
