"""Weights of Keras Applications and of KerasHub, in HDF5 files.

There are two layouts. The older names groups after layers. The newer, `.weights.h5`,
counts layers of a kind: `layers/conv2d`, `layers/conv2d_1`, and so on, in the order of
the model; newer versions of Keras note the layers' names beside. Files are read as
arrays alone: no configuration in them is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import h5py
import numpy as np

from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.pretrained.sources import (
    EXPLAINED,
    SOURCES,
    Found,
    batch_norm,
    with_biases,
)

_PARTS = {
    "preact_bn": "preact",
    "pre_activation_bn": "preact",
    "0_conv": "shortcut",
    "1_conv": "conv1",
    "1_bn": "conv1/BatchNorm",
    "2_conv": "conv2",
    "2_bn": "conv2/BatchNorm",
    "3_conv": "conv3",
}
_OTHERS = {"conv1_conv": "conv1", "post_bn": "postnorm", "predictions": "logits"}
_UNIT = re.compile(r"(?:conv([2-5])|stack([0-3]))_block(\d+)_(\w+)$")
# Only found in networks that normalize after their convolutions.
_V1 = re.compile(r"conv1_bn$|(conv\d|stack\d)_block\d+_(0|3)_bn$")


def read(path: str) -> Found:
    """Reads a file of any of these layouts.

    Raises:
        DataError: It is no HDF5 file, or holds anything but such a network.
    """
    try:
        with h5py.File(path, "r") as file:
            reading.check_hdf5(file)
            group = file.get("model_weights", file)
            counted = "layers" in group or "_layer_checkpoint_dependencies" in group
            layers = dict(_counted(group) if counted else _named(group))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = str(error).strip("'\"")
        raise DataError(f"{path}: holds no readable weights ({reason})") from error
    return from_layers(path, layers)


def from_layers(path: str, layers: Mapping[str, list[np.ndarray]]) -> Found:
    """Makes out what the arrays of layers are, given the layers' names.

    Args:
        path: What an error calls them.
        layers: Arrays of every layer, in Keras' order: kernel and bias, or gamma, beta,
            mean and variance.

    Raises:
        DataError: They are of no network that fits.
    """
    layers = {name: arrays for name, arrays in layers.items() if arrays}
    _check(path, layers)
    is_hub = any(name.startswith("stack0") for name in layers) or (
        len(layers["conv1_conv"]) == 1
    )
    source = SOURCES["keras_hub" if is_hub else "keras_applications"]
    tensors = {}
    for name, arrays in layers.items():
        match = _UNIT.match(name)
        if match and match[4] in _PARTS:
            # The one counts units from 1, the other from 0.
            block = int(match[1]) - 1 if match[1] else int(match[2]) + 1
            unit = int(match[3]) + (0 if match[1] else 1)
            scope = f"block{block}/unit_{unit}/bottleneck_v2/{_PARTS[match[4]]}"
        elif name in _OTHERS:
            scope = _OTHERS[name]
        else:
            raise DataError(f"{path}: holds layer {name!r}, which no ResNet v2 has")
        tensors.update(_tensors(path, name, scope, arrays, source.variance_shift))
    return Found(path, source, with_biases(tensors), source.form)


def _check(path, layers):
    if any(_V1.match(name) for name in layers):
        raise DataError(f"{path}: holds weights {EXPLAINED['v1']}")
    if "conv1_conv" not in layers or "post_bn" not in layers:
        raise DataError(
            f"{path}: holds no ResNet v2 of Keras Applications or KerasHub; its first "
            f"layer is {next(iter(layers), 'none')!r}"
        )
    if not any(name.endswith("_3_conv") for name in layers):
        raise DataError(f"{path}: holds weights {EXPLAINED['basic']}")


def _tensors(path, name, scope, arrays, shift):
    arrays = [np.asarray(array, np.float32) for array in arrays]
    if name.endswith("_bn"):
        if len(arrays) != 4:
            raise DataError(f"{path}: layer {name!r} has {len(arrays)} arrays, not 4")
        return batch_norm(scope, *arrays, shift)
    kernel = arrays[0]
    if kernel.ndim == 2:  # a dense layer
        kernel = kernel[np.newaxis, np.newaxis]
    if kernel.ndim != 4 or len(arrays) > 2:
        raise DataError(f"{path}: layer {name!r} is no convolution of two dimensions")
    tensors = {f"{scope}/weights": kernel}
    if len(arrays) == 2:
        tensors[f"{scope}/biases"] = arrays[1]
    return tensors


def _named(group) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Arrays of the older layout, by the names of their layers."""
    for name in group.attrs["layer_names"]:
        layer = group[_text(name)]
        weights = [_text(weight) for weight in layer.attrs["weight_names"]]
        yield _text(name), [layer[weight][()] for weight in weights]


def _text(name):
    return name.decode() if isinstance(name, bytes) else str(name)


def _number(name):
    """Orders `conv2d`, `conv2d_1`, `conv2d_10` as they were counted."""
    return int(re.search(r"(?:_(\d+))?$", name.removesuffix("2d"))[1] or 0)


def _counted(group) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Arrays of the newer layout, by the names of their layers."""
    group = group.get("layers", group.get("_layer_checkpoint_dependencies"))
    kinds: dict[str, list] = {}
    for kind in ("conv2d", "batch_normalization", "dense"):
        names = [n for n in group if re.fullmatch(rf"{kind}(_\d+)?", n)]
        kinds[kind] = [group[name]["vars"] for name in sorted(names, key=_number)]
    every = [variables for kind in kinds.values() for variables in kind]
    if every and all("name" in variables.attrs for variables in every):
        names = [_text(variables.attrs["name"]) for variables in every]
    else:
        names = _names_in_order(kinds)
    for name, variables in zip(names, every):
        yield name, [variables[key][()] for key in sorted(variables, key=int)]


def _names_in_order(kinds):
    """Names layers that are only counted, as ResNets v2 of bottleneck units have them.

    The first unit of a block is told by its shortcut, a 1x1 convolution between the 3x3
    one and the last.
    """
    kernels = [variables["0"].shape for variables in kinds["conv2d"]]
    convolutions, norms, k, block, unit = ["conv1_conv"], [], 1, 1, 0
    while k < len(kernels):
        has_shortcut = (
            k + 3 < len(kernels)
            and kernels[k + 2][:2] == kernels[k + 3][:2] == (1, 1)
            and kernels[k + 2][2] == kernels[k][2]
            and kernels[k + 1][:2] == (3, 3)
        )
        if has_shortcut:
            block, unit = block + 1, 0
        unit += 1
        start = f"conv{block}_block{unit}"
        parts = ("1", "2", "0", "3") if has_shortcut else ("1", "2", "3")
        convolutions += [f"{start}_{part}_conv" for part in parts]
        norms += [f"{start}_{part}_bn" for part in ("preact", "1", "2")]
        k += len(parts)
    norms.append("post_bn")
    dense = ["predictions"] * len(kinds["dense"])
    counts = [len(kinds[kind]) for kind in ("conv2d", "batch_normalization")]
    if counts != [len(convolutions), len(norms)] or len(dense) > 1 or block > 5:
        raise ValueError(
            f"{counts[0]} convolutions and {counts[1]} batch normalizations are those "
            "of no ResNet v2"
        )
    return [*convolutions, *norms, *dense]
