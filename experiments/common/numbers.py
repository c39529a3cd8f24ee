"""What the numbers of flags may be: checked once, before a program does anything."""

from __future__ import annotations

from absl import flags

from sact_tf.domains import (
    COUNT,
    INPUT_SIDE,
    MAX_UNITS,
    OPTIONAL_SIDE,
    POSITIVE,
    SEED,
    SIGMA,
    Domain,
    has_too_many_units,
)
from sact_tf.segmentation.data import FACTOR
from sact_tf.segmentation.sources import LABEL

FLAGS = flags.FLAGS

_MANY = Domain(1, 100000, is_integer=True)
_DOMAINS = {
    "base_channels": Domain(1, 1024, is_integer=True),
    "batch_size": Domain(1, 65536, is_integer=True),
    "crop_height": INPUT_SIDE,
    "crop_size": Domain(7, 448, is_integer=True),
    "crop_width": INPUT_SIDE,
    "cutout": Domain(0, 1024, is_integer=True),
    "eval_batch_size": Domain(1, 65536, is_integer=True),
    "group_grid": COUNT,
    "head_channels": Domain(1, 4096, is_integer=True),
    "human_sigma": SIGMA,
    "image_size": OPTIONAL_SIDE,
    "long_side": OPTIONAL_SIDE,
    "max_detections": _MANY,
    "max_number_of_steps": COUNT,
    "max_scale": FACTOR,
    "min_scale": FACTOR,
    "num_classes": _MANY,
    "num_epochs_per_decay": POSITIVE,
    "num_figures": Domain(0, 1000, is_integer=True),
    "num_proposals": _MANY,
    "num_region_samples": _MANY,
    "num_samples": Domain(1, 1000, is_integer=True),
    "sampling_seed": Domain(0, 2**31 - 1, is_integer=True),
    "seed": SEED,
    "short_side": INPUT_SIDE,
    "temperature": POSITIVE,
    "tile_size": INPUT_SIDE,
    "void_label": LABEL,
}
"""Of flags by their names; of all others: what is finite, or has 64 bits."""


def check() -> None:
    """Checks the numbers of all flags that this project defines.

    Raises:
        ValueError: Naming flag, value and what is accepted.
    """
    for module, defined in FLAGS.flags_by_module_dict().items():
        if module.partition(".")[0] == "absl":
            continue
        for flag in defined:
            _check_number(flag)
            if flag.name == "model" and has_too_many_units(flag.value):
                raise ValueError(
                    f"--model={flag.value}: must have at most {MAX_UNITS} residual "
                    "units per block"
                )


def _check_number(flag) -> None:
    domain = domain_of(flag)
    if flag.value is None or domain is None:
        return
    try:
        domain.convert(flag.value)
    except ValueError:
        raise ValueError(f"--{flag.name}={flag.value}: must be {domain}") from None


def domain_of(flag: flags.Flag) -> Domain | None:
    """Returns what a flag accepts; None: it is no number."""
    is_integer = isinstance(flag.parser, flags.IntegerParser)
    if not (is_integer or isinstance(flag.parser, flags.FloatParser)):
        return None
    if flag.name in _DOMAINS:
        return _DOMAINS[flag.name]
    return Domain(flag.parser.lower_bound, flag.parser.upper_bound, is_integer)
