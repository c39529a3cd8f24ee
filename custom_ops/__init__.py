"""Convolutions, pooling and residual units computed at chosen positions only.

Native kernels, compiled on first use, with a plain TensorFlow twin of each, and their
gradients.
"""

from custom_ops import unit_gradients
from custom_ops.blocks import (
    BlockResults,
    HeadParameters,
    Norm,
    UnitParameters,
    are_alike,
    perforated_block,
)
from custom_ops.convolution import perforated_conv2d
from custom_ops.implementation import (
    IMPLEMENTATIONS,
    default_implementation,
    has_kernel,
    load,
    runs_on_cpu,
)
from custom_ops.indexed import indexed_conv2d, indexed_pool, nearest_interpolate
from custom_ops.positions import (
    ActivePositions,
    DevicePositions,
    find_positions,
    mask_of,
)
from custom_ops.precision import PRECISIONS, check_precision
from custom_ops.tiles import add_on_tiles
from custom_ops.units import (
    fold_batch_norm,
    masked_accumulate,
    perforated_basic_unit,
    perforated_bottleneck,
    projection_bottleneck,
)

__all__ = [
    "IMPLEMENTATIONS",
    "PRECISIONS",
    "ActivePositions",
    "BlockResults",
    "DevicePositions",
    "HeadParameters",
    "Norm",
    "UnitParameters",
    "add_on_tiles",
    "are_alike",
    "check_precision",
    "default_implementation",
    "find_positions",
    "fold_batch_norm",
    "has_kernel",
    "indexed_conv2d",
    "indexed_pool",
    "load",
    "mask_of",
    "masked_accumulate",
    "nearest_interpolate",
    "perforated_basic_unit",
    "perforated_block",
    "perforated_bottleneck",
    "perforated_conv2d",
    "projection_bottleneck",
    "runs_on_cpu",
    "unit_gradients",
]
