"""Where weights come from, and what a network must be to make the same of an image."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from sact_tf.networks.options import Form

EXPLAINED = {
    "v1": "of a ResNet v1, which normalizes and activates after every convolution; "
    "only pre-activation networks (ResNet v2) fit",
    "bit": "of a BiT network, which normalizes by groups of channels; only networks "
    "with batch normalization fit",
    "deep_stem": "of a network with several convolutions in its stem; only one of 7x7 "
    "fits",
    "basic": "of a network of units with two convolutions, such as ResNet-18; only "
    "bottleneck units, of three, fit",
}
"""Networks that are asked for and cannot be had, and why."""

OTHERS = {
    "iterative_net": "an iterative network",
    "recurrent_attention": "a recurrent attention model",
    "fine_grained_attention": "a fine-grained attention model",
}
"""Networks of this project, by root scope, whose weights fit their own kind alone."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A place that weights come from.

    Attributes:
        name: By which it is asked for.
        description: In words.
        form: Of its networks; None: checkpoints tell.
        variance_shift: Added to moving variances: its epsilon less ours.
        preprocessing: What its images go through, one of `PREPROCESSINGS`; None: what
            the network's own do.
    """

    name: str
    description: str
    form: Form | None
    variance_shift: float = 0.0
    preprocessing: str | None = "symmetric"


SOURCES = {
    source.name: source
    for source in (
        Source("sact", "this project or the original code", None, preprocessing=None),
        Source("slim", "TF-Slim", Form("same", "input")),
        # Its batch normalizations have the epsilon 1.001e-5.
        Source(
            "keras_applications", "Keras Applications", Form("zeros", "input"), 1e-8
        ),
        Source("keras_hub", "KerasHub", Form("symmetric", "conv2")),
        Source("timm", "timm", Form("symmetric", "conv2")),
    )
}
"""All of them, by name. All take images in [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file holds.

    Attributes:
        path: Of the file.
        source: Where it is from.
        tensors: By the names of TF-Slim below the root scope, such as
            "block1/unit_1/bottleneck_v2/conv1/weights".
        form: Of the network it was trained in; None: not known, that of any.
        is_imagenet: Whether it is of an ImageNet network, else of a CIFAR one.
    """

    path: str
    source: Source
    tensors: Mapping[str, np.ndarray]
    form: Form | None
    is_imagenet: bool = True

    @property
    def units(self) -> str:
        """Residual units per block, as in "3_4_6_3"."""
        return units_of(self.tensors)

    @property
    def base_channels(self) -> int:
        """Channels of the first block."""
        return base_channels_of(self.tensors)

    @property
    def num_classes(self) -> int:
        """Size of the logits; 0: it has no classifier."""
        weights = self.tensors.get("logits/weights")
        return 0 if weights is None else int(np.shape(weights)[-1])


def units_of(names) -> str:
    """Returns the units per block, as in "3_4_6_3", of variables' names."""
    units: dict[int, int] = {}
    for name in names:
        match = re.match(r"block_?(\d+)/unit_(\d+)/", name)
        if match:
            block, unit = int(match[1]), int(match[2])
            units[block] = max(units.get(block, 0), unit)
    return "_".join(str(units[block]) for block in sorted(units))


def base_channels_of(tensors: Mapping) -> int:
    """Returns the channels of the first block's first convolution; 0: has none."""
    names = [n for n in tensors if re.match(r"block_?1/unit_1/\w+/conv1/weights$", n)]
    return int(tensors[names[0]].shape[-1]) if names else 0


_BIASED = re.compile(r"(^conv1|/conv3|/shortcut|^logits)/weights$")


def with_biases(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds zeros for the biases that our networks have and others leave out."""
    for name in [n for n in tensors if _BIASED.search(n)]:
        bias = name.replace("/weights", "/biases")
        if bias not in tensors:
            tensors[bias] = np.zeros(tensors[name].shape[-1:], np.float32)
    return tensors


def batch_norm(scope: str, gamma, beta, mean, variance, shift: float = 0.0) -> dict:
    """Returns a batch normalization's tensors by their names."""
    return {
        f"{scope}/gamma": gamma,
        f"{scope}/beta": beta,
        f"{scope}/moving_mean": mean,
        f"{scope}/moving_variance": variance + np.asarray(shift, variance.dtype),
    }
