"""How fast this machine can multiply and add at most, measured.

`python -m custom_ops.peak [threads]` prints it for every type of number. Times of the
kernels mean more beside it: `experiments.benchmarks.network` gives each side's share.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import re
import shlex
import sys
import tempfile

from custom_ops import build

KINDS = ("float32", "bfloat16", "bfloat16 tiles")
"""What is measured: fused multiply-adds on vectors; dot products of bfloat16 pairs on
vectors (`avx512_bf16`), and on tiles (AMX), where the processor has them."""

_FLAGS = ("-std=c++17", "-O2", "-march=native", "-fPIC", "-shared", "-pthread")


def processor() -> str:
    """Returns the processor's name, as the system tells it."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def num_processors() -> int:
    """Returns on how many processors this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _name() -> str:
    parts = [*_FLAGS, build._cpu(), build._compiler()]
    parts.append(build._run([*shlex.split(build._compiler()), "--version"]))
    for source in ("peak.cc", "vector.h"):
        parts.append((build._KERNELS / source).read_text())
    return f"peak-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"


@functools.cache
def _library() -> ctypes.CDLL:
    """Loads the loops, compiled if need be and kept beside the native kernels."""
    name = _name()
    with build._locked(name) as directory:
        path = build._cached(name)
        if path is None:
            path = directory / name
            with tempfile.TemporaryDirectory(dir=directory) as work:
                unfinished = pathlib.Path(work) / name
                command = [*shlex.split(build._compiler()), *_FLAGS]
                source = str(build._KERNELS / "peak.cc")
                build._run([*command, source, "-o", str(unfinished)])
                build._keep(unfinished, path)
    library = ctypes.CDLL(str(path))
    library.perforated_peak.restype = ctypes.c_double
    library.perforated_peak.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_double]
    return library


def measure(threads: int | None = None, seconds: float = 0.2) -> dict[str, float]:
    """Measures the floating-point operations per second of all threads together.

    A multiplication and an addition are two. What else runs on the machine at the time
    is not accounted for, so that the result can only be too low.

    Args:
        threads: How many; None: one for every processor.
        seconds: About how long a thread multiplies for each kind.

    Returns:
        Operations per second of those of `KINDS` that the processor has.

    Raises:
        ValueError: `threads` is less than 1.
        custom_ops.build.BuildError: There is no compiler, or it fails.
    """
    threads = num_processors() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads must be at least 1; got {threads}")
    speeds = {
        kind: _library().perforated_peak(kind.encode(), threads, seconds)
        for kind in KINDS
    }
    return {kind: speed for kind, speed in speeds.items() if speed > 0}


def describe(threads: int, speeds: dict[str, float]) -> str:
    """Returns one line about what was measured, with the processor's name."""
    texts = (f"{kind} {speed / 1e9:.0f}" for kind, speed in speeds.items())
    plural = "s" if threads > 1 else ""
    return (
        f"{processor()}, {threads} thread{plural}: {', '.join(texts)} GFLOP/s at most"
    )


def main() -> None:
    """Measures and prints."""
    try:
        threads = int(sys.argv[1]) if sys.argv[1:] else num_processors()
        print(describe(threads, measure(threads)))
    except (ValueError, build.BuildError) as error:
        sys.exit(f"custom_ops.peak: {error}")


if __name__ == "__main__":
    main()
