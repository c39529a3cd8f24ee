"""What a training run was: `run.json` beside its checkpoints.

Command, commit and machine are written when a program that trains ends, or is told to
stop. The time of training is not: TensorBoard's files of the run tell it, also of one
that was killed and started again.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping

import tensorflow as tf
from absl import flags

import sact_tf
from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.writing import write_json

FLAGS = flags.FLAGS

FILE = "run.json"
VERSION = 1
_SOON = 900.0  # seconds; summaries are usually at most 600 apart
_DIRECTORY_FLAG = "train_log_dir"
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_FIELDS = {
    "version": reading.number(),
    "program": reading.text(),
    "commit": reading.text(),
    "machine": reading.text(),
}


def given_flags() -> list[str]:
    """Returns this project's flags that differ from their defaults, `--name=value`."""
    given = {}
    for module, defined in FLAGS.flags_by_module_dict().items():
        if module.partition(".")[0] == "absl":
            continue
        for flag in defined:
            if flag.value != flag.default:
                given[flag.name] = flag.serialize().splitlines()
    return [line for name in sorted(given) for line in given[name]]


def program_name() -> str:
    """Returns the name of the running program, as of `python -m experiments.NAME`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name if spec else os.path.basename(sys.argv[0])
    return name.removesuffix(".py").removeprefix("experiments.")


def commit() -> str:
    """Returns the commit of the code that runs, "-dirty" behind it where it differs.

    Of an installed package, the version.
    """
    git = ["git", "-C", _ROOT, "describe", "--always", "--abbrev=12", "--dirty"]
    try:
        if not os.path.exists(os.path.join(_ROOT, ".git")):
            raise FileNotFoundError(_ROOT)
        done = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"sact-tf {sact_tf.__version__}"
    return done.stdout.strip()


def machine() -> str:
    """Returns processor, cores that may be used, and GPUs, without the host's name."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2] for line in file if "model name" in line]
        model = names[0].strip() if names else model
    cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return ", ".join([model, f"{len(cores)} cores", *gpus])


def trains() -> bool:
    """Whether the running program trains, as its flags say."""
    if _DIRECTORY_FLAG not in FLAGS:
        return False
    return "mode" not in FLAGS or FLAGS["mode"].value == "train"


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Writes `run.json` after a `with` block in which a program may have trained.

    Nothing is written where it failed, or left no checkpoint.
    """
    if not trains():
        yield
        return
    started_with = commit()  # the code on the disk may change meanwhile
    before = _checkpoints()
    try:
        yield
    except SystemExit as stop:  # by a signal: the run is to go on later
        if isinstance(stop.code, int) and stop.code > 128:
            write(started_with, before)
        raise
    write(started_with, before)


def _directory() -> str:
    return os.path.expanduser(FLAGS[_DIRECTORY_FLAG].value)


def _checkpoints() -> set[str]:
    return set(glob.glob(os.path.join(glob.escape(_directory()), "*.index")))


def write(started_with: str, before: set[str]) -> None:
    """Writes `run.json` to --train_log_dir, if that holds checkpoints.

    That of a run that had ended already stays as it is.

    Args:
        started_with: The commit.
        before: Files of checkpoints that were there when the program started.
    """
    found, path = _checkpoints(), os.path.join(_directory(), FILE)
    if not found or (found == before and os.path.exists(path)):
        return
    values = {
        "version": VERSION,
        "program": program_name(),
        "flags": given_flags(),
        "commit": started_with,
        "machine": machine(),
        "sact_tf": sact_tf.__version__,
        "tensorflow": tf.__version__,
    }
    write_json(path, values)


def seconds_of(directory: str) -> float:
    """Returns how long a run has trained, all its starts together.

    That is from the first summary of every start to its last, or to a checkpoint that
    was written soon after.
    """
    inside = glob.escape(directory)
    starts = []
    for path in glob.glob(os.path.join(inside, "events.out.tfevents.*")):
        times = []
        with contextlib.suppress(tf.errors.DataLossError):  # cut off by a kill
            for record in tf.data.TFRecordDataset(path):
                event = tf.compat.v1.Event.FromString(record.numpy())
                times.append(event.wall_time)
        if times:
            starts.append((min(times), max(times)))
    saved = [os.path.getmtime(p) for p in glob.glob(os.path.join(inside, "*.index"))]
    total = 0.0
    for first, last in starts:
        later = [start for start, _ in starts if start > first]
        limit = min([last + _SOON, *later])
        total += max([last, *(t for t in saved if last < t < limit)]) - first
    return total


def read(directory: str) -> Mapping[str, object] | None:
    """Returns what `run.json` in a directory says, with `seconds`; None: there is none.

    Raises:
        DataError: It is something else.
    """
    path = os.path.join(directory, FILE)
    if not os.path.exists(path):
        return None
    row = reading.checked_row(reading.read_json(path), _FIELDS, path)
    given = row.get("flags")
    if not isinstance(given, list) or not all(isinstance(f, str) for f in given):
        raise DataError(f"{path} has flags that are no list of strings")
    return {**row, "seconds": round(seconds_of(directory), 1)}
