"""The CUDA kernels on the host, where there is no GPU: slow, for checks.

The same `.cu` files that `nvcc` compiles are compiled by the C++ compiler against
`kernels/emulation`, once for each compute capability from which on they differ, and
kept beside the native kernels. `python -m custom_ops.emulation [cases] [seed]` compares
random cases of every kernel and type with plain loops.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from custom_ops import build

ARCHITECTURES = (75, 80, 90)
"""Compute capabilities (times 10) from which on the kernels take another path."""

_SOURCES = (
    "gpu_check.cu",
    "gpu_check_convolution.cu",
    "gpu_check_indexed.cu",
    "gpu_check_units.cu",
    "gpu_units.cu",
    "gpu_positions.cu",
    "emulation/c_api.cc",
    "emulation/device.cc",
)
# Those that depend on the compute capability.
_KERNEL_SOURCES = ("gpu_convolution.cu", "gpu_indexed.cu")
_FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-fno-strict-aliasing",  # chunks of 16 bytes are moved at once, as on the device
    "-U_FORTIFY_SOURCE",  # which takes a jump to another fiber for an attack
)


def _compiler() -> list[str]:
    return shlex.split(build._compiler())


def compile_programs(
    directory: pathlib.Path,
    architectures: Sequence[int] = ARCHITECTURES,
    options: Sequence[str] = ("-shared",),
    kernels: pathlib.Path = build._KERNELS,
) -> list[pathlib.Path]:
    """Compiles the check of all kernels, `kernels/gpu_check.cu`, for the host.

    Args:
        directory: Where the results go, and what they are made of.
        architectures: Compute capabilities, times 10.
        options: More of the compiler's: `-shared` for libraries whose `main` is the
            check, sanitizers, optimization.
        kernels: The sources.

    Returns:
        A program, or library, for each compute capability.

    Raises:
        custom_ops.build.BuildError: If there is no compiler, or it fails.
    """
    compiler = [*_compiler(), *_FLAGS, *options]
    jobs = [(source, ARCHITECTURES[-1]) for source in _SOURCES]
    jobs += [(source, a) for a in architectures for source in _KERNEL_SOURCES]

    def run(job):
        source, architecture = job
        target = directory / f"{pathlib.Path(source).stem}-{architecture}.o"
        define = f"-D__CUDA_ARCH__={architecture}0"
        language = ["-x", "c++", str(kernels / source)]
        build._run([*compiler, define, "-c", *language, "-o", str(target)])
        return target

    with concurrent.futures.ThreadPoolExecutor() as pool:
        objects = list(pool.map(run, jobs))
    common = objects[: len(_SOURCES)]
    programs = []
    for architecture in architectures:
        own = [
            o
            for o, (s, a) in zip(objects, jobs)
            if a == architecture and s in _KERNEL_SOURCES
        ]
        programs.append(directory / f"emulated-{architecture}")
        build._run([*compiler, *map(str, common + own), "-o", str(programs[-1])])
    return programs


def _names() -> list[str]:
    parts = [*_FLAGS, *_compiler(), build._run([*_compiler(), "--version"])]
    key = build._digest_sources(hashlib.sha256("\0".join(parts).encode()))
    return [f"emulated-{architecture}-{key}.so" for architecture in ARCHITECTURES]


def libraries() -> dict[int, pathlib.Path]:
    """Returns the check as a library by compute capability; compiles it if it has to.

    Raises:
        custom_ops.build.BuildError: If that is not possible.
    """
    names = _names()
    with build._locked(names[-1]) as directory:
        paths = [build._cached(name) for name in names]
        if None in paths:
            with tempfile.TemporaryDirectory(dir=directory) as work:
                made = compile_programs(pathlib.Path(work))
                paths = [directory / name for name in names]
                for unfinished, path in zip(made, paths):
                    build._keep(unfinished, path)
    return dict(zip(ARCHITECTURES, paths))


def check(
    architecture: int, cases: int, seed: int = 1
) -> subprocess.CompletedProcess[str]:
    """Checks all kernels in a process of its own; returns it, finished.

    Args:
        architecture: One of `ARCHITECTURES`.
        cases: Number of random cases of every kernel and type.
        seed: Of the random numbers, and of the order in which threads run.
    """
    arguments = [str(libraries()[architecture]), str(cases), str(seed)]
    code = (
        "import ctypes, sys; names = [n.encode() for n in sys.argv[1:]]; "
        "main = ctypes.CDLL(sys.argv[1]).main; "
        "sys.exit(main(len(names), (ctypes.c_char_p * len(names))(*names)))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True
    )


def main() -> None:
    """Checks every path and says what came out."""
    numbers = [int(argument) for argument in sys.argv[1:3]] or [20]
    try:
        for architecture in ARCHITECTURES:
            done = check(architecture, *numbers)
            text = (done.stdout + done.stderr).strip().replace("\n", ": ")
            print(f"{architecture / 10}: {text}", flush=True)
            if done.returncode:
                sys.exit(1)
    except build.BuildError as error:
        sys.exit(f"custom_ops.emulation: {error}")


if __name__ == "__main__":
    main()
