"""Where the time of a network goes, by block and kind of operation."""

from __future__ import annotations

import collections
import glob
import os
import tempfile
import time
from collections.abc import Callable

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

_OTHERS = "between operations"


def profile(run: Callable[[], object], repetitions: int) -> list[dict]:
    """Runs something under TensorFlow's profiler.

    An operation that hands parts of its work to other threads is counted once, as long
    as it takes; so is one that waits for them. Where several run at the same time, the
    times add up to more than it takes in all.

    Args:
        run: Runs a graph whose operations bear the names of a network's blocks.
        repetitions: How often, after two runs that are not counted.

    Returns:
        Rows of `block` ("" outside of all), `operation`, `calls` and `seconds` of one
        run, the longest first; the last is what all of them leave of a run's time.
    """
    for _ in range(2):
        run()
    with tempfile.TemporaryDirectory() as directory:
        with tf.profiler.experimental.Profile(directory):
            start = time.perf_counter()
            for _ in range(repetitions):
                run()
            whole = time.perf_counter() - start
        pattern = os.path.join(glob.escape(directory), "**", "*.xplane.pb")
        (path,) = glob.glob(pattern, recursive=True)
        with open(path, "rb") as file:
            space = xplane_pb2.XSpace.FromString(file.read())
    times, calls = collections.Counter(), collections.Counter()
    for plane in space.planes:
        if "CPU" not in plane.name:
            continue
        for line in plane.lines:
            for event in line.events:
                key = _kind(plane.event_metadata[event.metadata_id].name)
                if key is not None:
                    times[key] += event.duration_ps / 1e12
                    calls[key] += 1
    times["", _OTHERS] = max(0.0, whole - sum(times.values()))
    keys = sorted(times, key=lambda key: (key[1] == _OTHERS, -times[key]))
    return [
        {
            "block": block,
            "operation": operation,
            "calls": calls[block, operation] / repetitions,
            "seconds": times[block, operation] / repetitions,
        }
        for block, operation in keys
    ]


def _kind(name: str) -> tuple[str, str] | None:
    """Returns block and operation of "network/block1/.../conv1:Conv2D", or None."""
    path, colon, operation = name.rpartition(":")
    if not colon or not operation.isidentifier() or "::" in name:
        return None
    blocks = [part for part in path.split("/") if part.startswith("block")]
    return (blocks[0] if blocks else ""), operation


def print_profile(rows: list[dict], least: float = 0.005) -> None:
    """Prints a profile as a table.

    Args:
        rows: What `profile` returns.
        least: Share of the time below which operations are added up as others.
    """
    whole = sum(row["seconds"] for row in rows)
    shown = [r for r in rows if r["seconds"] >= least * whole]
    few = [r for r in rows if r["seconds"] < least * whole]
    if few:
        shown.append(
            {
                "block": "",
                "operation": "others",
                "calls": sum(r["calls"] for r in few),
                "seconds": sum(r["seconds"] for r in few),
            }
        )
    print("| block | operation | calls | ms | share |")
    print("|---|---|---|---|---|")
    for row in shown:
        print(
            f"| {row['block']} | {row['operation']} | {row['calls']:g} | "
            f"{1e3 * row['seconds']:.2f} | {row['seconds'] / whole:.1%} |"
        )
