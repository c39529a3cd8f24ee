"""Compiles the native kernels, on first use or by `python -m custom_ops.build`.

The library is cached under a key of all that goes into it: sources, TensorFlow,
compiler, CPU, flags. Environment variables:

* `SACT_CACHE_DIR`: where libraries are kept; by default `sact_tf` in `XDG_CACHE_HOME`
  or `~/.cache`, and in the temporary directory where neither can be written.
* `CXX`: the C++ compiler; by default `c++`, `g++` or `clang++`, whichever comes first.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings

import tensorflow as tf

_KERNELS = pathlib.Path(__file__).parent / "kernels"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-Wall", "-Wextra")
_lock = threading.Lock()


class BuildError(RuntimeError):
    """The native kernels could not be compiled or loaded; says why, in one message."""


def _run(command: list[str]) -> str:
    """Runs a program and returns its output; BuildError with its errors if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]} can not be run: {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        errors = [line for line in lines if re.search(r"\b(error|fatal)\b", line)]
        raise BuildError(
            f"`{shlex.join(command)}` failed with status {done.returncode}:\n"
            + "\n".join((errors or lines)[:10])
        )
    return done.stdout


def _compiler() -> str:
    chosen = os.environ.get("CXX")
    if chosen:
        return chosen
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return name
    raise BuildError("there is no C++ compiler (c++, g++, clang++; or set CXX)")


def _cpu() -> str:
    """What `-march=native` depends on."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    lines = re.findall(r"^(?:model name|flags|Features)\s*:.*$", text, re.MULTILINE)
    return "\n".join(sorted(set(lines)))


def _key() -> str:
    """Returns the hash of everything a library depends on."""
    parts = [
        tf.__version__,
        tf.version.GIT_VERSION,
        *tf.sysconfig.get_compile_flags(),
        *_FLAGS,
        _cpu(),
        _compiler(),
        _run([*shlex.split(_compiler()), "--version"]),
    ]
    digest = hashlib.sha256("\0".join(parts).encode())
    for path in sorted(_KERNELS.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:20]


def _cache_directories() -> list[pathlib.Path]:
    """Returns where a library may be kept, the best place first."""
    chosen = os.environ.get("SACT_CACHE_DIR")
    if chosen:
        return [pathlib.Path(chosen)]
    base = os.environ.get("XDG_CACHE_HOME")
    home = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
    # A name of the user's own: nobody loads a library that somebody else wrote.
    shared = pathlib.Path(tempfile.gettempdir()) / f"sact_tf-{os.getuid()}"
    return [home / "sact_tf", shared]


def _usable(directory: pathlib.Path) -> bool:
    """Makes a cache directory; tells whether it is ours and can be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=directory):
            return directory.stat().st_uid == os.getuid()
    except OSError:
        return False


def _compile(output: pathlib.Path) -> None:
    """Compiles the library to a file."""
    # TensorFlow's headers as system headers: their warnings are not ours to mend.
    flags = [
        flag.replace("-I", "-isystem", 1) if flag.startswith("-I") else flag
        for flag in tf.sysconfig.get_compile_flags()
    ]
    link = tf.sysconfig.get_link_flags()
    source = str(_KERNELS / "ops.cc")
    command = [*shlex.split(_compiler()), *_FLAGS, "-shared", *flags, source]
    _run([*command, "-o", str(output), *link])


def _say(verbose: bool, text: str) -> None:
    if verbose:
        print(text, flush=True)


def build(verbose: bool = False) -> pathlib.Path:
    """Compiles the library unless it is in the cache already.

    Any number of processes may call this at once: one compiles, the others wait.

    Args:
        verbose: Whether to say what is done.

    Returns:
        The library's path.

    Raises:
        BuildError: If there is no compiler, it fails, or nothing can be written.
    """
    name = f"perforated-{_key()}.so"
    directories = _cache_directories()
    for directory in directories:
        if (directory / name).is_file() and directory.stat().st_uid == os.getuid():
            _say(verbose, f"up to date: {directory / name}")
            return directory / name
    directory = next(filter(_usable, directories), None)
    if directory is None:
        raise BuildError(
            "none of these directories can be written: "
            f"{', '.join(map(str, directories))} (set SACT_CACHE_DIR)"
        )
    path = directory / name
    with open(directory / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            # Nobody ever sees half a library: it gets its name when it is whole.
            with tempfile.TemporaryDirectory(dir=directory) as work:
                unfinished = pathlib.Path(work) / name
                _say(verbose, "compiling")
                _compile(unfinished)
                unfinished.rename(path)
    _say(verbose, f"built: {path}")
    return path


@functools.cache
def _load_once():
    """Returns the library and None, or None and why there is none."""
    try:
        return tf.load_op_library(str(build())), None
    except BuildError as error:
        reason = str(error)
    except tf.errors.OpError as error:
        reason = f"TensorFlow {tf.__version__} can not load the library: {error}"
    warnings.warn(
        f"The native kernels are not available, plain TensorFlow operations run "
        f"instead: {reason}",
        RuntimeWarning,
        stacklevel=4,
    )
    return None, reason


def load():
    """Returns the native library as a module of op functions, or None.

    Compiles it if it has to; where that fails, warns once per process.
    """
    with _lock:
        return _load_once()[0]


def failure() -> str | None:
    """Returns why there is no native library, or None where there is one."""
    with _lock:
        return _load_once()[1]


def main() -> None:
    """Builds, loads, and says what was built."""
    try:
        path = build(verbose=True)
        tf.load_op_library(str(path))
    except (BuildError, tf.errors.OpError) as error:
        sys.exit(f"custom_ops.build: {error}")


if __name__ == "__main__":
    main()
