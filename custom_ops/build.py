"""Compiles the native kernels, on first use or by `python -m custom_ops.build`.

The library is cached under a key of all that goes into it: sources, TensorFlow,
compilers, CPU, flags. Where there is a CUDA compiler, kernels for NVIDIA GPUs go into
the same library; where they can not be compiled, one warning says why, and the library
is for CPUs alone. Environment variables:

* `SACT_CACHE_DIR`: where libraries are kept; by default `sact_tf` in `XDG_CACHE_HOME`
  or `~/.cache`, and in the temporary directory where neither can be written. Loading a
  library is running it: directories and files that are links, belong to another user,
  or can be written by others are passed over.
* `CXX`: the C++ compiler; by default `c++`, `g++` or `clang++`, whichever comes first.
* `NVCC`: the CUDA compiler, with options if need be (`nvcc -ccbin g++-12`); by default
  `nvcc`, or `/usr/local/cuda/bin/nvcc`. Set to nothing, it leaves out the CUDA part.
* `SACT_CUDA_ARCHITECTURES`: the compute capabilities of GPUs to compile for, without
  dots and separated by semicolons, or `all` that the compiler knows from 7.5 on, which
  takes minutes; by default `75;80;90`, whose code runs on all others of the same first
  number. Those that the compiler does not know are left out, older ones replaced by the
  oldest. 9.0 gets code of its own (`sm_90a`, with `wgmma`) from CUDA 12 on. Newer GPUs
  compile the last one's intermediate code (PTX) when the program starts.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings

import tensorflow as tf

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_KERNELS = pathlib.Path(__file__).parent / "kernels"
# Those that take longest to compile first.
_CPU_SOURCES = (
    *("block_ops.cc", "unit_ops.cc", "gradient_ops.cc", "convolution_ops.cc"),
    *("indexed_ops.cc", "op_definitions.cc"),
)
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-Wall", "-Wextra")
_CUDA_FLAGS = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC", "--threads", "0")
_CUDA_SOURCES = (
    "gpu_convolution.cu",
    "gpu_indexed.cu",
    "gpu_units.cu",
    "gpu_positions.cu",
)
_GPU_OPS = ("gpu_ops.cc", "gpu_indexed_ops.cc", "gpu_unit_ops.cc")
_CUDA_ARCHITECTURES = "75;80;90"
_OLDEST_ARCHITECTURE = 75
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


@dataclasses.dataclass(frozen=True)
class _Cuda:
    """The CUDA compiler, and the compute capabilities (times 10) to compile for."""

    command: tuple[str, ...]
    version: str
    architectures: tuple[int, ...]

    def code(self, architecture: int) -> str:
        """Returns the option that asks for machine code.

        9.0 has instructions that no other one has, and that PTX for newer ones must not
        use: they come with the name 90a, which CUDA 11 does not know.
        """
        release = re.search(r"release (\d+)", self.version)
        own = architecture == 90 and release is not None and int(release[1]) >= 12
        name = f"{architecture}{'a' if own else ''}"
        return f"-gencode=arch=compute_{name},code=sm_{name}"

    def flags(self) -> list[str]:
        last = self.architectures[-1]
        return [
            *_CUDA_FLAGS,
            *map(self.code, self.architectures),
            f"-gencode=arch=compute_{last},code=compute_{last}",
        ]

    def runs_on(self, major: int, minor: int) -> bool:
        """Whether a GPU of this compute capability runs what is compiled.

        Machine code runs on GPUs of the same first number that are no older than what
        it is for, the last one's PTX on all that are no older.
        """
        number = 10 * major + minor
        return number >= self.architectures[-1] or any(
            a // 10 == major and a <= number for a in self.architectures
        )

    def __str__(self) -> str:
        numbers = ", ".join(f"{a // 10}.{a % 10}" for a in self.architectures)
        return f"for compute capability {numbers}"


def _cuda() -> _Cuda | None:
    """Returns the CUDA compiler, None without one; BuildError if it does not work."""
    chosen = os.environ.get("NVCC")
    if chosen is None:
        usual = "/usr/local/cuda/bin/nvcc"
        chosen = next(filter(shutil.which, ("nvcc", usual)), "")
    command = tuple(shlex.split(chosen))
    if not command:
        return None
    version = _run([*command, "--version"])
    known = {
        int(number)
        for number in re.findall(
            r"compute_(\d+)$", _run([*command, "--list-gpu-arch"]), re.MULTILINE
        )
    }
    known = {number for number in known if number >= _OLDEST_ARCHITECTURE}
    if not known:
        raise BuildError(
            f"{chosen} --list-gpu-arch names no architecture from "
            f"{_OLDEST_ARCHITECTURE} on; install a newer CUDA compiler, or set NVCC"
        )
    return _Cuda(command, version, _architectures(known))


def _architectures(known: set[int]) -> tuple[int, ...]:
    """Returns which of the architectures that a compiler knows to compile for."""
    text = os.environ.get("SACT_CUDA_ARCHITECTURES") or _CUDA_ARCHITECTURES
    if text.strip() == "all":
        return tuple(sorted(known))
    if not re.fullmatch(r"\s*\d{2,3}\s*(;\s*\d{2,3}\s*)*", text):
        raise BuildError(
            "SACT_CUDA_ARCHITECTURES must be compute capabilities without dots, "
            f"separated by semicolons, like {_CUDA_ARCHITECTURES}, or all; got {text!r}"
        )
    wanted = {max(int(number), min(known)) for number in text.split(";")}
    return tuple(sorted(wanted & known)) or (min(known),)


def _cpu() -> str:
    """What `-march=native` depends on."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    lines = re.findall(r"^(?:model name|flags|Features)\s*:.*$", text, re.MULTILINE)
    return "\n".join(sorted(set(lines)))


def _key(cuda: _Cuda | None = None) -> str:
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
    if cuda is not None:
        parts += [*cuda.command, cuda.version, *cuda.flags()]
    digest = hashlib.sha256("\0".join(parts).encode())
    return _digest_sources(digest)


def _digest_sources(digest) -> str:
    """Adds all sources to a hash; returns enough of it for a name."""
    for path in sorted(_KERNELS.rglob("*")):
        if path.is_file():
            name = path.relative_to(_KERNELS).as_posix()
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:20]


def _cache_directories() -> list[pathlib.Path]:
    """Returns where a library may be kept, the best place first."""
    chosen = os.environ.get("SACT_CACHE_DIR")
    try:
        if chosen:
            return [pathlib.Path(chosen).expanduser()]
    except RuntimeError as error:
        raise BuildError(f"SACT_CACHE_DIR={chosen}: {error}") from error
    places = []
    base = os.environ.get("XDG_CACHE_HOME", "")
    # Without HOME, and without a name in the system's list of users, there is none.
    with contextlib.suppress(RuntimeError):
        home = pathlib.Path(base) if os.path.isabs(base) else None
        places.append((home or pathlib.Path.home() / ".cache") / "sact_tf")
    with contextlib.suppress(OSError):
        # A name of the user's own, beside those of others.
        shared = pathlib.Path(tempfile.gettempdir())
        places.append(shared / f"sact_tf-{os.geteuid()}")
    return places


def _distrust(path: pathlib.Path) -> str | None:
    """Returns why others may have written a file or directory; None: it is ours.

    What does not exist is as the closest directory above it that does: one of another
    user is no place for files of ours.
    """
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        above = next(filter(os.path.exists, path.absolute().parents), None)
        owner = os.geteuid() if above is None else above.stat().st_uid
        is_ours = owner in (0, os.geteuid())
        return None if is_ours else f"would lie in {above}, which is of user {owner}"
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by other users (mode {stat.S_IMODE(found.st_mode):o})"
    return None


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _own_directories() -> list[pathlib.Path]:
    """Returns the places that nobody else can write to; warns of others.

    Raises:
        BuildError: If there is none.
    """
    problems = {place: _distrust(place) for place in _cache_directories()}
    own = [place for place, problem in problems.items() if problem is None]
    text = "; ".join(
        f"{place} {problem}" for place, problem in problems.items() if problem
    )
    if not own:
        raise BuildError(
            "there is no place for the library that is this user's alone: "
            f"{text or 'neither a home nor a temporary directory'} (set SACT_CACHE_DIR)"
        )
    if text:
        _warn_once(f"The native kernels are kept in {own[0]}, because {text}")
    return own


def _usable(directory: pathlib.Path) -> bool:
    """Makes a cache directory; tells whether it is ours and can be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=directory):
            return _distrust(directory) is None
    except OSError:
        return False


def _digest_file(library: pathlib.Path) -> pathlib.Path:
    return library.with_name(f"{library.name}.sha256")


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _keep(unfinished: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a whole library its name, and notes what it holds."""
    unfinished.chmod(0o700)  # whatever the mask that new files get
    note = unfinished.with_name("digest")
    note.write_text(_digest(unfinished))
    note.chmod(0o600)
    note.rename(_digest_file(path))
    unfinished.rename(path)


def _damage(library: pathlib.Path) -> str | None:
    """Returns why a library is not to be loaded, None if it is whole and ours.

    The system ends a process that loads a library whose end is missing.
    """
    problem = _distrust(library) or _distrust(_digest_file(library))
    if problem is not None:
        return problem
    try:
        noted = _digest_file(library).read_text()
        return None if _digest(library) == noted else "is damaged"
    except (OSError, ValueError):
        return "is without its digest"


def _compile(output: pathlib.Path, cuda: _Cuda | None) -> BuildError | None:
    """Compiles the library to a file; returns why it lacks the CUDA part, if it does.

    Args:
        output: The file; others are written next to it.
        cuda: The CUDA compiler, or None.

    Raises:
        BuildError: If the part for CPUs can not be compiled.
    """
    # TensorFlow's headers as system headers: their warnings are not ours to mend.
    flags = [
        flag.replace("-I", "-isystem", 1) if flag.startswith("-I") else flag
        for flag in tf.sysconfig.get_compile_flags()
    ]
    compiler = [*shlex.split(_compiler()), *_FLAGS, *flags]
    link = ["-o", str(output), *tf.sysconfig.get_link_flags()]
    commands = {source: compiler for source in _CPU_SOURCES}
    if cuda is not None:
        commands |= dict.fromkeys(_CUDA_SOURCES, [*cuda.command, *cuda.flags()])
        commands |= dict.fromkeys(_GPU_OPS, compiler)
    objects = {source: str(output.with_name(f"{source}.o")) for source in commands}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        jobs = {}
        for source, command in commands.items():
            command = [*command, "-c", str(_KERNELS / source), "-o", objects[source]]
            jobs[source] = pool.submit(_run, command)
    for source in _CPU_SOURCES:
        jobs.pop(source).result()
    cpu_only = [*compiler, "-shared", *(objects[s] for s in _CPU_SOURCES), *link]
    if cuda is None:
        _run(cpu_only)
        return None
    try:
        for job in jobs.values():
            job.result()
        # nvcc knows where its runtime library is. That comes before TensorFlow, which
        # exports the same names for a runtime of its own, and keeps its names inside.
        runtime = ["-lcudart_static", "-Xlinker", "--exclude-libs=ALL"]
        _run([*cuda.command, "-shared", *objects.values(), *runtime, *link])
    except BuildError as error:
        _run(cpu_only)
        return error
    return None


def _notice(text: str) -> None:
    """Says what keeps a program waiting, beside what it writes to its output."""
    print(text, file=sys.stderr, flush=True)


def _say(verbose: bool, text: str) -> None:
    if verbose:
        print(text, flush=True)


def _cached(name: str) -> pathlib.Path | None:
    """Returns a file in a cache directory, both of them ours, or None."""
    for directory in _own_directories():
        path = directory / name
        if not os.path.lexists(path):
            continue
        problem = _damage(path) if path.suffix == ".so" else _distrust(path)
        if problem is None:
            return path
        _warn_once(f"{path} {problem}; the native kernels are compiled anew")
    return None


def _find(cuda: _Cuda | None, retry: bool):
    """Returns the library in the cache, and why it lacks the CUDA part; or None's."""
    name = _name(cuda)
    path = _cached(name)
    if path is None and cuda is not None and not retry:
        failed, plain = _cached(f"{name}.failed"), _cached(_name(None))
        if failed is not None and plain is not None:
            return plain, failed.read_text()
    return path, None


def _name(cuda: _Cuda | None) -> str:
    return f"perforated-{_key(cuda)}.so"


@contextlib.contextmanager
def _locked(name: str):
    """Yields a directory to keep a file in; one process at a time gets it.

    Raises:
        BuildError: If there is none that can be written.
    """
    directories = _own_directories()
    directory = next(filter(_usable, directories), None)
    if directory is None:
        raise BuildError(
            "none of these directories can be written: "
            f"{', '.join(map(str, directories))} (set SACT_CACHE_DIR)"
        )
    with open(directory / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


def _make(cuda: _Cuda | None, verbose: bool, retry: bool):
    """Compiles the library; returns it, and why it lacks the CUDA part, or None."""
    name = _name(cuda)
    with _locked(name) as directory:
        path, failure = _find(cuda, retry)
        if path is None:
            # Nobody ever sees half a library: it gets its name when it is whole.
            with tempfile.TemporaryDirectory(dir=directory) as work:
                unfinished = pathlib.Path(work) / name
                _notice(
                    "Compiling the perforated kernels, once, 1 to 3 minutes "
                    "(`python -m custom_ops.build` does it ahead)"
                )
                started = time.monotonic()
                failure = _compile(unfinished, cuda)
                _notice(
                    f"Compiled the perforated kernels in "
                    f"{time.monotonic() - started:.0f} s"
                )
                path = directory / (name if failure is None else _name(None))
                _keep(unfinished, path)
            if failure is not None:
                # The next process need not find out again; another compiler, or
                # `retry`, tries again.
                note = directory / f"{name}.failed"
                note.write_text(str(failure))
                note.chmod(0o600)
    _say(verbose, f"built: {path}")
    return path, failure


def build(verbose: bool = False, retry: bool = False) -> pathlib.Path:
    """Compiles the library unless it is in the cache already.

    Any number of processes may call this at once: one compiles, the others wait. Warns
    if there is a CUDA compiler, but the CUDA part could not be compiled.

    Args:
        verbose: Whether to say what is done.
        retry: Whether to try the CUDA part again where it has failed before.

    Returns:
        The library's path.

    Raises:
        BuildError: If there is no compiler, it fails, or nothing can be written.
    """
    if fcntl is None:
        raise BuildError(f"they need a system with file locks; this is {sys.platform}")
    try:
        cuda, failure = _cuda(), None
    except BuildError as error:
        cuda, failure = None, error
    try:
        path, cuda_failure = _find(cuda, retry)
        if path is not None:
            _say(verbose, f"up to date: {path}")
        else:
            path, cuda_failure = _make(cuda, verbose, retry)
    except OSError as error:
        raise BuildError(f"the library cannot be kept: {error}") from error
    failure = failure or cuda_failure
    if failure is not None:
        _say(verbose, "CUDA: no")
        warnings.warn(
            "The native kernels were built without their CUDA part, so that plain "
            "TensorFlow operations run on a GPU (set NVCC to nothing if that is what "
            f"you want; `python -m custom_ops.build` tries again): {failure}",
            RuntimeWarning,
            stacklevel=2,
        )
    else:
        _say(verbose, f"CUDA: {cuda or 'no compiler (nvcc)'}")
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
        path = build(verbose=True, retry=True)
        tf.load_op_library(str(path))
    except (BuildError, tf.errors.OpError) as error:
        sys.exit(f"custom_ops.build: {error}")


if __name__ == "__main__":
    main()
