"""Flags of iterative residual networks, in the programs that train and evaluate."""

from __future__ import annotations

from absl import flags

import sact_tf
from sact_tf.networks.iterative_block import VARIANTS
from sact_tf.networks.iterative_net import STEMS

FLAGS = flags.FLAGS
# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()

_NOT_THEIRS = (
    "model",
    "tile_size",
    "group_grid",
    "precision",
    "stem_pool",
    "downsample",
)
_OWN = ("max_iterations", "expansion", "depthwise", "double")


def define_flags() -> None:
    """Defines --max_iterations, --expansion, --depthwise and --double."""
    flags.DEFINE_list(
        "max_iterations",
        ["3", "8", "36", "3"],
        "Of iterative networks: the most iterations of each of the four stages.",
    )
    flags.DEFINE_integer(
        "expansion",
        1,
        "Of iterative networks: states have so many times the channels of the unit, "
        "1 to 4.",
    )
    flags.DEFINE_bool(
        "depthwise", False, "Of iterative networks: 3x3 convolutions are depthwise."
    )
    flags.DEFINE_bool(
        "double", False, "Of iterative networks: every stage has two blocks."
    )


def is_asked_for() -> bool:
    """Whether --model_type is that of an iterative network."""
    return FLAGS.model_type in VARIANTS


def check() -> None:
    """Raises ValueError on flags that mean nothing to the network asked for."""
    names = _NOT_THEIRS if is_asked_for() else _OWN
    for name in names:
        if name not in FLAGS:
            continue
        flag = FLAGS[name]
        if flag.value != flag.default:
            needs = "another" if is_asked_for() else " or ".join(VARIANTS)
            value = flag.value
            shown = ",".join(value) if isinstance(value, list) else value
            raise ValueError(
                f"--{name}={shown}: needs --model_type={needs}; got "
                f"--model_type={FLAGS.model_type}"
            )


def network_options() -> dict[str, object]:
    """Returns what the flags say of the network, as options of `iterative_net`."""
    given = {name: FLAGS[name].value for name in _OWN}
    given["max_iterations"] = ",".join(given["max_iterations"])
    for name in ("execution", "base_channels", "num_classes"):  # no flags of some
        if name in FLAGS and FLAGS[name].value is not None:
            given[name] = FLAGS[name].value
    for name in ("tau", "halting_bias"):  # whose defaults are those of ACT
        if name in FLAGS and not FLAGS[name].using_default_value:
            given[name] = FLAGS[name].value
    return given


def make_network(**options) -> sact_tf.IterativeNet:
    """Builds the network that the flags describe.

    Args:
        **options: Others of `sact_tf.iterative_net`.

    Raises:
        ValueError: A flag means nothing to it.
    """
    check()
    family = FLAGS.network if "network" in FLAGS else "imagenet"
    if family not in STEMS:
        raise ValueError(
            f"--network={family}: must be {' or '.join(STEMS)} with "
            f"--model_type={FLAGS.model_type}"
        )
    given = network_options()
    if family == "cifar":
        given.setdefault("base_channels", 16)
    return sact_tf.iterative_net(FLAGS.model_type, stem=family, **{**given, **options})


def about() -> dict[str, object]:
    """Returns what eval.json says of these flags."""
    if not is_asked_for():
        return {}
    return {name: FLAGS[name].value for name in _OWN[1:]}


def load_weights(network: sact_tf.IterativeNet, path: str) -> list[str]:
    """Loads --finetune_path, a checkpoint; gates are taken too.

    Returns:
        The names of the variables loaded.
    """
    without = FLAGS.finetune_without_classifier
    return sact_tf.load_slim_checkpoint(network, path, without_classifier=without)
