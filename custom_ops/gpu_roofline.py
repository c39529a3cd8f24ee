"""What the kernels could take on GPUs, on paper: an estimate, nothing is measured.

    python -m custom_ops.gpu_roofline

A kernel takes as long as the longest of: its operations at the rate of the tensor
cores; the bytes that its tiles move through shared memory; the bytes that it moves
from and to the device's memory; and the start of a kernel. For a bottleneck unit of
each block, a table says what follows at 10, 50 and 100 % random active positions, for
TensorFlow's dense operations, and at which share of positions both take the same.
Kernels for the H100 multiply by `wgmma`, the matrix instructions that only 9.0 has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Device:
    """Limits from NVIDIA's data sheets (dense rates, SXM boards)."""

    name: str
    bfloat16_rate: float  # operations per second
    memory_rate: float  # bytes per second
    multiprocessors: int
    clock: float  # per second, boosted
    has_wgmma: bool  # four warps multiply a tile together, and so read it once

    @property
    def shared_rate(self) -> float:
        """Bytes per second from and to shared memory: 128 per clock each."""
        return 128 * self.multiprocessors * self.clock


DEVICES = (
    Device("A100", 312e12, 1.555e12, 108, 1.41e9, False),
    Device("H100", 989e12, 3.35e12, 132, 1.83e9, True),
)
_BLOCKS = (
    # name, height and width at 600x1000, channels inside, channels of the output
    ("block 1", 150, 250, 64, 256),
    ("block 2", 75, 125, 128, 512),
    ("block 3", 38, 63, 256, 1024),
)
_START = 2.5e-6  # of a kernel after another one
_TILE = 64
_WARP_TILE = 32
_BYTES = 2  # of a bfloat16
_LIBRARY_SHARE = 0.7  # of the tensor cores' rate that cuDNN reaches
# Of a step: lists of positions and of what they touch, accumulation, a 3x3 head.
_POSITION_LAUNCHES, _OTHER_LAUNCHES = 7, 3
_UNIT_LAUNCHES = 5  # three convolutions, two for the sums


def product(
    device: Device, rows: float, columns: int, depth: int, moved: float
) -> float:
    """Seconds of a product kernel.

    Args:
        device: The GPU.
        rows: Active positions, or those that are touched.
        columns: Output channels.
        depth: Taps times input channels.
        moved: Bytes from and to the device's memory.
    """
    tiles = -(-rows // _TILE) * -(-columns // _TILE)
    operations = 2 * tiles * _TILE * _TILE * depth
    # Each of four warps reads its rows and columns of a tile, which was written once.
    written = 2 * _TILE * depth * _BYTES
    read = written if device.has_wgmma else 4 * 2 * _WARP_TILE * depth * _BYTES
    return max(
        operations / device.bfloat16_rate,
        tiles * (read + written) / device.shared_rate,
        moved / device.memory_rate,
        _START,
    )


def perforated_unit(device, batch, height, width, inner, outer, share) -> float:
    """Seconds of a step: positions, bottleneck, head, accumulation."""
    positions = batch * height * width
    active = share * positions
    # Random positions: a 3x3 window is touched unless all of its nine are inactive.
    touched = positions * (1 - (1 - share) ** 9)
    weights = _BYTES * (2 * outer * inner + 9 * inner * inner)
    seconds = product(device, touched, inner, outer, _BYTES * touched * (outer + inner))
    seconds += product(
        device, active, inner, 9 * inner, _BYTES * (touched + active) * inner + weights
    )
    seconds += product(
        device, active, outer, inner, _BYTES * active * (inner + 2 * outer)
    )
    head = product(device, active, 1, 9 * outer, _BYTES * touched * outer)
    accumulation = max(_START, 3 * _BYTES * active * outer / device.memory_rate)
    launches = _POSITION_LAUNCHES + _UNIT_LAUNCHES - 3 + _OTHER_LAUNCHES - 2
    return seconds + head + accumulation + launches * _START


def dense_unit(device, batch, height, width, inner, outer) -> float:
    """Seconds of the ordinary unit: three convolutions of cuDNN's, and what TensorFlow
    runs between them (each batch normalization with its ReLU, and the sum)."""
    positions = batch * height * width
    seconds = 0.0
    for columns, depth, read in (
        (inner, outer, outer),
        (inner, 9 * inner, inner),
        (outer, inner, inner),
    ):
        operations = 2 * positions * columns * depth
        moved = _BYTES * positions * (read + columns)
        seconds += max(
            operations / device.bfloat16_rate / _LIBRARY_SHARE,
            moved / device.memory_rate,
            _START,
        )
    for channels, passes in ((outer, 2), (inner, 2), (inner, 2), (outer, 3)):
        moved = _BYTES * positions * channels * passes
        seconds += max(moved / device.memory_rate, _START)
    return seconds


def break_even(device, batch, *sizes) -> float | None:
    """Returns up to which share of active positions the perforated step is faster."""
    shares = [i / 200 for i in range(201)]
    dense = dense_unit(device, batch, *sizes)
    won = [
        share
        for share in shares
        if perforated_unit(device, batch, *sizes, share) <= dense
    ]
    return max(won, default=None)


def print_table(devices: Sequence[Device]) -> None:
    """Prints a table in Markdown, in microseconds."""
    print("| device, batch, unit of | 10 % | 50 % | 100 % | dense | break-even |")
    print("|---|---|---|---|---|---|")
    for device in devices:
        for batch in (1, 8):
            for name, *sizes in _BLOCKS:
                times = [
                    perforated_unit(device, batch, *sizes, share)
                    for share in (0.1, 0.5, 1.0)
                ]
                times.append(dense_unit(device, batch, *sizes))
                figures = " | ".join(f"{seconds * 1e6:.0f}" for seconds in times)
                even = break_even(device, batch, *sizes)
                share = "never" if even is None else f"{even:.0%}"
                print(f"| {device.name}, {batch}, {name} | {figures} | {share} |")


def main() -> None:
    """Prints the table."""
    print_table(DEVICES)


if __name__ == "__main__":
    main()
