"""Weights of timm's `resnetv2_50` and its like, in safetensors files."""

from __future__ import annotations

import re

import numpy as np

from sact_tf import optional
from sact_tf.data.examples import DataError
from sact_tf.pretrained.sources import (
    EXPLAINED,
    SOURCES,
    Found,
    batch_norm,
    with_biases,
)

_UNIT = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)\.(\w+)$")
_PARTS = {
    "norm1": "preact",
    "conv1": "conv1",
    "norm2": "conv1/BatchNorm",
    "conv2": "conv2",
    "norm3": "conv2/BatchNorm",
    "conv3": "conv3",
    "downsample.conv": "shortcut",
}
_OTHERS = {"stem.conv": "conv1", "norm": "postnorm", "head.fc": "logits"}
_IGNORED = "num_batches_tracked"


def read(path: str) -> Found:
    """Reads a safetensors file.

    Raises:
        DataError: It is cut off, or holds anything but such a network.
        MissingPackageError: The package safetensors is not installed.
    """
    safetensors = optional.load("safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            _check(path, names)
            arrays = {n: file.get_tensor(n) for n in names if _IGNORED not in n}
    except safetensors.SafetensorError as error:
        raise DataError(
            f"{path}: is truncated or no safetensors file ({error})"
        ) from error
    except TypeError as error:  # numbers that NumPy does not have
        raise DataError(
            f"{path}: holds numbers of a type that cannot be read ({error}); convert "
            "them to float32"
        ) from error
    tensors: dict[str, np.ndarray] = {}
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in arrays):
        parts = {
            name.rpartition(".")[2]: array.astype(np.float32)
            for name, array in arrays.items()
            if name.rpartition(".")[0] == layer
        }
        tensors.update(_layer(path, layer, parts))
    source = SOURCES["timm"]
    return Found(path, source, with_biases(tensors), source.form)


def _check(path, names):
    """Raises DataError on networks that are known not to fit."""
    known, kind = set(names), None
    if "stem.conv1.weight" in known:
        kind = "deep_stem"
    elif {"layer1.0.conv1.weight", "bn1.weight"} & known:
        kind = "v1"
    elif "stages.0.blocks.0.norm1.weight" not in known or "stem.conv.weight" not in (
        known
    ):
        raise DataError(
            f"{path}: holds no ResNet v2 of timm; its first tensor is "
            f"{min(known, default='none')!r}"
        )
    elif "stages.0.blocks.0.norm1.running_mean" not in known:
        kind = "bit"
    elif "stages.0.blocks.0.conv3.weight" not in known:
        kind = "basic"
    if kind:
        raise DataError(f"{path}: holds weights {EXPLAINED[kind]}")


def _layer(path, layer, parts):
    """Returns a layer's tensors by the names of TF-Slim."""
    match = _UNIT.match(f"{layer}.weight")
    if match and match[3] in _PARTS:
        block, unit = int(match[1]) + 1, int(match[2]) + 1
        scope = f"block{block}/unit_{unit}/bottleneck_v2/{_PARTS[match[3]]}"
    elif layer in _OTHERS:
        scope = _OTHERS[layer]
    else:
        raise DataError(f"{path}: holds {layer!r}, which no ResNet v2 has")
    try:
        if "running_mean" in parts:
            return batch_norm(
                scope,
                parts["weight"],
                parts["bias"],
                parts["running_mean"],
                parts["running_var"],
            )
        weight = parts["weight"]
        if weight.ndim == 2:  # a dense layer, where timm has a 1x1 convolution
            weight = weight[:, :, np.newaxis, np.newaxis]
        tensors = {f"{scope}/weights": weight.transpose(2, 3, 1, 0)}
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: {layer!r} is of another layout ({error})") from error
    if "bias" in parts:
        tensors[f"{scope}/biases"] = parts["bias"]
    return tensors
