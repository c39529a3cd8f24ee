"""Iterative residual networks with ACT: IterativeNet and IamNN.

Leroux et al., IamNN: Iterative and adaptive mobile neural network (2018), and Iterative
neural networks for adaptive inference on resource-constrained devices (2022). Neither
came with code. Where the papers are silent, this is what their parameter counts say, or
a choice; docs/iterative.md tells which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import flops
from sact_tf.domains import COUNT, MAX_UNITS, Domain, brief
from sact_tf.halting import CumulativeHalting
from sact_tf.halting.gates import GATE_BIAS
from sact_tf.networks.cifar_resnet import CifarResNet
from sact_tf.networks.imagenet_resnet import ImagenetResNet
from sact_tf.networks.iterative_block import VARIANTS, IterativeBlock
from sact_tf.networks.options import IterativeForm, NetworkOptions, _option
from sact_tf.networks.residual_network import ResidualNetwork
from sact_tf.optimization import iterative_learning_rate
from sact_tf.units.iterative import iterative_batch_norm

_STAGES = 4
_EXPANSION = Domain(1, 4, is_integer=True)


def _make_block(plan, options, b, limit, dilation):
    stage, part = divmod(b, 2) if options.double else (b, 0)
    name = plan.block_name.format(stage + 1)
    return IterativeBlock(
        options.base_channels * 2**stage,
        limit,
        options.expansion,
        options.model_type,
        options.depthwise,
        strides=dilation.stride,
        tau=options.tau_of(b),
        epsilon=options.make_rule().epsilon,
        execution=options.execution,
        weight_decay=options.weight_decay,
        halting_bias=options.halting_bias,
        name=f"{name}_{part + 1}" if options.double else name,
    )


_PLAN = dataclasses.replace(
    ImagenetResNet.architecture,
    slim_scope="iterative_net",
    block_name="block_{}",
    stem_scope="stem",
    final_bn_scope=None,
    units_per_block={},
    stem_channels=None,
    make_unit=None,
    dilates=False,
    batch_norm=None,
    head_batch_norm=None,
    has_forms=False,
    stem_batch_norm=iterative_batch_norm,
    make_block=_make_block,
)
_CIFAR = dict(stem_size=3, stem_stride=1, pool_stride=1, weight_decay=5e-4)
STEMS = {
    "imagenet": _PLAN,
    "cifar": dataclasses.replace(_PLAN, preprocessing="standardized", **_CIFAR),
}
"""What `stem=` may be, and the architectures with it."""

_IMAGES_OF = {"imagenet": ImagenetResNet, "cifar": CifarResNet}


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
                "precision must be float32 in an iterative network, whose units "
                f"have no other; got {brief(self.precision)}"
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

    options_type = IterativeOptions

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
        super().__init__(
            limits,
            variant,
            num_classes,
            base_channels,
            tau,
            execution,
            name=name,
            weight_decay=weight_decay,
            dtype=dtype,
            trainable=trainable,
            max_iterations=limits,
            expansion=expansion,
            depthwise=depthwise,
            double=double,
            stem=stem,
            halting_bias=halting_bias,
            **options,
        )

    def _plan(self, options):
        plan = STEMS.get(options["stem"], _PLAN)
        if not options["double"]:
            return plan
        strides = [part for stride in plan.block_strides for part in (stride, 1)]
        return dataclasses.replace(plan, block_strides=tuple(strides))

    def _units_per_block(self, model, plan):
        limits = parse_limits(model)
        parts = len(plan.block_strides) // len(limits)
        return tuple(limit for limit in limits for _ in range(parts))

    def _model_name(self, units):
        return super()._model_name(units[:: len(units) // _STAGES])

    @property
    def architecture(self):
        """That of its stem."""
        options = self.options
        return self._plan({"stem": options.stem, "double": options.double})

    def get_config(self):
        config = super().get_config()
        names = ("model", "tile_size", "group_grid", "rate", "precision")
        for name in (*names, "stem_pool", "downsample"):
            del config[name]
        return {"variant": config.pop("model_type"), **config}

    def preprocess(self, image, size=None):
        return _IMAGES_OF[self.options.stem].preprocess(image, size)

    def default_learning_rate(self, max_number_of_steps, num_examples, batch_size):
        return iterative_learning_rate(max_number_of_steps)

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

    def _classifier_flops(self, x):
        """None: operations are those of convolutions, as `macs` are not."""
        return tf.zeros([tf.shape(x)[0]], tf.int64)


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
            `dtype`, `block_strides` (as detectors give stage 4 stride 1), and without a
            classifier `pooling`, "avg" or "max".

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
