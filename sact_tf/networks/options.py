"""What a network is made with: checked once, and passed on whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from custom_ops import PRECISIONS
from sact_tf import halting
from sact_tf.domains import AT_LEAST_0, COUNT, FINITE, MAX_UNITS, Domain
from sact_tf.executions import EXECUTIONS
from sact_tf.halting.heads import HALTING_BIAS

_CLASSES = Domain(0, 1_000_000, is_integer=True)
_CHANNELS = Domain(1, 4096, is_integer=True)
_STRIDE = Domain(1, 2, is_integer=True)

STEM_POOLS = ("same", "symmetric", "zeros")
"""Borders of the stem's max pooling: as TensorFlow's SAME padding, which depends on the
parity of the image; one position of minus infinity on every side; one of zeros."""

DOWNSAMPLES = ("conv2", "input")
"""Where the first unit of a block halves the resolution: in its second convolution and
shortcut; at its input, of which it takes every second position."""


PREPROCESSINGS = ("symmetric", "standardized")
"""What images go through: to [-1, 1]; to mean 0 and deviation 1, each on its own."""


class Form(NamedTuple):
    """What tells apart networks whose weights have the same shapes.

    Attributes:
        stem_pool: One of `STEM_POOLS`.
        downsample: One of `DOWNSAMPLES`.
    """

    stem_pool: str = STEM_POOLS[0]
    downsample: str = DOWNSAMPLES[0]

    def __str__(self) -> str:
        return f"stem_pool={self.stem_pool!r}, downsample={self.downsample!r}"

    def check(self, path: str, network: Form) -> None:
        """Raises ValueError unless a network has the form of weights it shall load.

        Args:
            path: What holds weights of this form.
            network: The network's form.
        """
        if self != network:
            agree = type(self) is type(network)
            but = "All shapes agree, but not the results: make" if agree else "Make"
            raise ValueError(
                f"{path}: holds weights of a network with {self}; this one has "
                f"{network}. {but} it with {self}"
            )


class IterativeForm(NamedTuple):
    """What tells iterative networks apart, in words.

    Attributes:
        variant: One of `VARIANTS`.
        limits: Of iterations, as in "3_8_36_3".
        expansion: "1" to "4".
        depthwise: "depthwise" or "full".
        double: "double" or "single".
        stem: One of `STEMS`.
    """

    variant: str
    limits: str
    expansion: str
    depthwise: str
    double: str
    stem: str

    def __str__(self) -> str:
        limits = self.limits.replace("_", ",")
        return (
            f"variant={self.variant!r}, max_iterations={limits}, "
            f"expansion={self.expansion}, depthwise={self.depthwise == 'depthwise'}, "
            f"double={self.double == 'double'}, stem={self.stem!r}"
        )

    def check(self, path: str, network: Form | IterativeForm) -> None:
        """As of `Form`. No other limit will do: iterations have statistics of own."""
        if self != network:
            raise ValueError(
                f"{path}: holds weights of a network with {self}; this one has "
                f"{network}. Make it with {self}"
            )


def read_form(text: str) -> Form | IterativeForm:
    """Returns the form that a checkpoint says, such as "zeros,input"."""
    parts = text.split(",")
    is_iterative = len(parts) == len(IterativeForm._fields)
    return IterativeForm(*parts) if is_iterative else Form(*parts)


_CHOICES = {
    "execution": EXECUTIONS,
    "precision": PRECISIONS,
    "stem_pool": STEM_POOLS,
    "downsample": DOWNSAMPLES,
}


def _option(default, description, **metadata):
    metadata["description"] = description
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Options of every network here.

    Attributes:
        model: Residual units per block; what is accepted is up to the network.
        model_type: One of `halting.model_types()`.
        num_classes: Size of the logits; 0: there is no classifier.
        base_channels: Scales the channels of all blocks.
        tau: Weight of the ponder cost in the losses, at least 0; or one of each block.
        execution: One of `EXECUTIONS`.
        precision: One of `custom_ops.PRECISIONS`: what convolutions of units multiply
            in perforated execution. Everything else is float32 whatever it is: masked
            and tiled execution, training, the stem and the classifier. Not together
            with a mixed precision policy, in which features are of fewer bits too.
        tile_size: Side of the tiles that halt together, as in `SACTBlock`.
        group_grid: As in `AdaptiveBlock`; None: each position alone.
        weight_decay: L2 coefficient c of the loss c * sum(w^2) / 2 of every
            convolution, halting heads included; None: the network's own.
        block_strides: Stride of the first unit of each block; None: the network's own.
        halting_bias: Initial bias of the halting heads.
        rate: By how much the features of the last block are denser than the strides of
            the blocks make them; see `dilated`.
        stem_pool: One of `STEM_POOLS`.
        downsample: One of `DOWNSAMPLES`.
        preprocessing: One of `PREPROCESSINGS`, what its images went through; None: the
            network's own.
        pooling: Without a classifier, "avg" or "max" over positions; None: the network
            returns features of all positions.
        rule_options: Arguments of the model type's halting rule.

    Raises:
        ValueError: On any other value, naming the option.
    """

    model: str | int | Sequence[int] = _option("5", "Residual units per block.")
    model_type: str = _option("vanilla", "Kind of network.")
    num_classes: int = _option(1001, "Number of classes.", lower_bound=1)
    base_channels: int = _option(
        64, "Channels of the first block; scales all.", lower_bound=1
    )
    tau: float | Sequence[float] = _option(
        1.0, "Weight of the ponder cost in the loss, at least 0.", lower_bound=0.0
    )
    execution: str = _option(
        "masked", "How units are computed in inference.", choices=_CHOICES["execution"]
    )
    precision: str = _option(
        PRECISIONS[0],
        "What convolutions of units multiply in perforated execution: float32; or "
        "bfloat16, summed in float32, in less time on CPUs that multiply it.",
        choices=_CHOICES["precision"],
    )
    tile_size: int = _option(
        1,
        "Side of the square tiles whose positions halt together, in networks whose "
        "positions halt; 1: each position alone.",
        lower_bound=1,
    )
    group_grid: int | None = _option(
        None,
        "g: the positions of every one of g x g equal rectangles of a block's map halt "
        "together, in networks whose positions halt; by default each position alone.",
        lower_bound=1,
    )
    weight_decay: float | None = None
    block_strides: Sequence[int] | None = None
    halting_bias: float = _option(
        HALTING_BIAS,
        "Bias that halting heads start from: the lower it is, the more units run at "
        "first.",
    )
    rate: int = 1
    stem_pool: str = _option(
        STEM_POOLS[0],
        "Border of the stem's max pooling, which weights from elsewhere ask for.",
        choices=_CHOICES["stem_pool"],
    )
    downsample: str = _option(
        DOWNSAMPLES[0],
        "Where blocks halve the resolution, which weights from elsewhere ask for.",
        choices=_CHOICES["downsample"],
    )
    preprocessing: str | None = None
    pooling: str | None = None
    rule_options: Mapping[str, Any] = _option({}, "")

    def __post_init__(self):
        self.make_rule()
        for name in _CHOICES:
            value, choices = getattr(self, name), _CHOICES[name]
            if value not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}; got {value!r}"
                )
        for tau in self.tau if isinstance(self.tau, (list, tuple)) else [self.tau]:
            AT_LEAST_0.check(tau, "tau")
        if self.weight_decay is not None:
            AT_LEAST_0.check(self.weight_decay, "weight_decay")
        self._check_sharing()
        _CLASSES.check(self.num_classes, "num_classes")
        if self.pooling not in (None, "avg", "max"):
            raise ValueError(f"pooling must be avg, max or None; got {self.pooling!r}")
        if self.pooling and self.num_classes:
            raise ValueError(
                f"pooling must be None with a classifier; got {self.pooling!r} with "
                f"num_classes={self.num_classes} (0 leaves it out)"
            )
        _CHANNELS.check(self.base_channels, "base_channels")
        for stride in self.block_strides or []:
            _STRIDE.check(stride, "block_strides")
        FINITE.check(self.halting_bias, "halting_bias")
        COUNT.check(self.rate, "rate")

    def _check_sharing(self):
        """Checks that positions share their scores only where positions halt."""

        def has_positions(name):
            kind = halting.model_type(name)
            return kind.rule is not None and halting.DOMAINS[kind.domain].has_tiles

        for name, usual in (("tile_size", 1), ("group_grid", None)):
            value = getattr(self, name)
            if value != usual and not has_positions(self.model_type):
                kinds = filter(has_positions, halting.model_types())
                raise ValueError(
                    f"{name} must be {usual} unless model_type is "
                    f"{' or '.join(map(repr, kinds))}; got {value}"
                )
        if self.group_grid is not None:
            COUNT.check(self.group_grid, "group_grid")
            if self.tile_size != 1 or self.execution == "tiled":
                raise ValueError(
                    f"group_grid must be None with tile_size={self.tile_size} and "
                    f"execution={self.execution!r}; got {self.group_grid}"
                )

    def make_rule(self) -> halting.HaltingRule | None:
        """Makes the halting rule; None where all units run."""
        kind = halting.model_type(self.model_type)
        return kind.make_rule(self.model_type, self.rule_options)

    @property
    def form(self) -> Form:
        """What tells it apart from networks whose weights have the same shapes."""
        return Form(self.stem_pool, self.downsample)

    def tau_of(self, block: int) -> float:
        """Returns tau of a block, counted from 0."""
        return self.tau[block] if isinstance(self.tau, (list, tuple)) else self.tau

    @classmethod
    def of(cls, **options) -> NetworkOptions:
        """Makes options, those that are not its own being of the halting rule."""
        names = {field.name for field in dataclasses.fields(cls)}
        own = {name: value for name, value in options.items() if name in names}
        rest = {name: value for name, value in options.items() if name not in names}
        own["rule_options"] = {**own.get("rule_options", {}), **rest}
        return cls(**own)

    def get_config(self) -> dict[str, Any]:
        """Returns what `of` makes these options of; all of the halting rule's too."""
        config = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        del config["rule_options"]
        rule = self.make_rule()
        return {**config, **(rule.get_config() if rule is not None else {})}


class Dilation(NamedTuple):
    """How the 3x3 convolutions of a block are strided and dilated.

    Attributes:
        stride: Of the first unit.
        first: Dilation rate in the first unit.
        others: Dilation rate in all others.
    """

    stride: int
    first: int
    others: int


def dilated(strides: Sequence[int], rate: int) -> list[Dilation]:
    """Trades the strides of the last blocks for dilations (atrous convolutions).

    The output is `rate` times denser in both directions. Where nothing halts, every
    `rate`-th of its positions holds what the network of the given strides computes: a
    3x3 convolution reads what it read there.

    >>> dilated((1, 2, 2, 2), 2)[2:]
    [Dilation(stride=2, first=1, others=1), Dilation(stride=1, first=1, others=2)]

    Args:
        strides: Of the first unit of every block.
        rate: 1, or the product of the strides of some last blocks.

    Raises:
        ValueError: `rate` is anything else.
    """
    products = [1]
    for stride in reversed(strides):
        products.append(products[-1] * stride)
    if rate not in products:
        accepted = sorted(set(products))
        raise ValueError(f"rate must be one of {accepted}; got {rate}")
    kept = len(strides) - products.index(rate)
    result, others = [], 1
    for b, stride in enumerate(strides):
        if b < kept:
            result.append(Dilation(stride, 1, 1))
        else:
            first, others = others, others * stride
            result.append(Dilation(1, first, others))
    return result


def parse_units(
    model: str | int | Sequence[int],
    named: Mapping[str, tuple[int, ...]],
    num_blocks: int,
    one_for_all: bool = False,
) -> tuple[int, ...]:
    """Reads the number of residual units per block.

    Args:
        model: A name in `named`, numbers joined by underscores such as "3_4_23_3", or a
            sequence.
        named: Networks known by name.
        num_blocks: How many numbers there have to be.
        one_for_all: Whether one number is that of every block.

    Raises:
        ValueError: If `model` is none of these, or a number is above `MAX_UNITS`.
    """
    if str(model) in named:
        return named[str(model)]
    parts = str(model).split("_") if isinstance(model, (str, int)) else list(model)
    if one_for_all and isinstance(model, (str, int)) and len(parts) == 1:
        parts *= num_blocks
    try:
        units = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        units = ()
    if len(units) != num_blocks or min(units) < 1 or max(units) > MAX_UNITS:
        names = f"one of {', '.join(map(repr, named))}, or " if named else ""
        example = "_".join(["3"] * num_blocks)
        raise ValueError(
            f"model must be {names}{num_blocks} numbers from 1 to {MAX_UNITS} of "
            f"residual units per block, such as {example!r}; got {model!r}"
        )
    return units
