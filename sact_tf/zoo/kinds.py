"""How a network is made again of plain values: its kind, and what it is made with."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import tf_keras as keras

from sact_tf.domains import MAX_UNITS, brief, has_too_many_units
from sact_tf.executions import EXECUTIONS

KINDS = {
    "CifarResNet": "sact_tf.networks.cifar_resnet",
    "ImagenetResNet": "sact_tf.networks.imagenet_resnet",
    "IterativeNet": "sact_tf.networks.iterative_net",
    "RecurrentAttention": "sact_tf.networks.recurrent_attention",
    "FasterRCNN": "object_detection.faster_rcnn",
}
"""Classes of networks that can be described, and the modules that they are in.

Those of packages that use this one are imported when such a network is made, not
before; what else a description names is never imported.
"""

_NESTED = "options"  # of a detector, what it is beside its network


def is_known(model: keras.Model) -> bool:
    """Whether `describe` takes a network."""
    kind = type(model).__name__
    return kind in KINDS and type(model).__module__ == KINDS[kind]


def describe(model: keras.Model) -> dict[str, object]:
    """Returns the kind of a network and what it is made with, as JSON holds it.

    Raises:
        ValueError: It is of no kind in `KINDS`.
    """
    kind = type(model).__name__
    if not is_known(model):
        raise ValueError(
            f"model must be one of {', '.join(KINDS)}; got {brief(type(model))}"
        )
    config = dict(model.get_config())
    config.pop("name", None)
    if not isinstance(config.get("dtype", ""), str):
        del config["dtype"]  # a policy of mixed precision, no part of the weights
    return {"kind": kind, "config": _unwrapped(config)}


def _unwrapped(value):
    """Returns a value without what Keras wraps dictionaries and lists in."""
    if isinstance(value, Mapping):
        return {key: _unwrapped(v) for key, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_unwrapped(v) for v in value]
    return value


def make(description: Mapping[str, object], **changes) -> keras.Model:
    """Makes a network that `describe` told, with fresh weights.

    Args:
        description: What `describe` returned, or a file holds.
        **changes: Options that take the place of those it was made with. `execution`
            is checked, and otherwise passed over, where networks run in one way only.

    Raises:
        ValueError: The description is of no network, or changes are refused.
    """
    kind, config = description.get("kind"), description.get("config")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {brief(kind)}")
    if not isinstance(config, Mapping) or not all(
        _is_plain(value) or (name == _NESTED and _are_plain(value))
        for name, value in config.items()
    ):
        raise ValueError(f"config must be plain options; got {brief(config)}")
    if has_too_many_units(config.get("model")):
        raise ValueError(
            f"config must have at most {MAX_UNITS} residual units per block; got "
            f"{brief(config['model'])}"
        )
    execution = changes.get("execution")
    if execution is not None and execution not in EXECUTIONS:
        raise ValueError(
            f"execution must be one of {', '.join(EXECUTIONS)}; got {brief(execution)}"
        )
    network = getattr(importlib.import_module(KINDS[kind]), kind)
    if "execution" not in config:
        changes.pop("execution", None)
    return network.from_config({**config, **changes})


def _is_plain(value):
    values = value if isinstance(value, list) else [value]
    return all(v is None or isinstance(v, (bool, int, float, str)) for v in values)


def _are_plain(options):
    return isinstance(options, Mapping) and all(map(_is_plain, options.values()))
