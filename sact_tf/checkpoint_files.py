"""The files of TF-Slim checkpoints: found, opened, read and written."""

from __future__ import annotations

import atexit
import functools
import glob
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

from sact_tf.domains import first_line
from sact_tf.writing import naming, write_bytes

# What TensorFlow raises on checkpoints that are missing, cut off or something else.
READ_ERRORS = (tf.errors.OpError, ValueError, IndexError, RuntimeError)


def newest_checkpoint(directory: str) -> str | None:
    """Returns the prefix of the newest complete checkpoint, None if there is none.

    The newest is what the file `checkpoint` says, and where that is missing, damaged or
    wrong, the one of the highest step. When files were written or copied tells nothing.
    Warns of newer ones that are passed over because their files are cut off or missing.

    Args:
        directory: Of TF-Slim checkpoints, with or without the file `checkpoint`.

    Raises:
        FileNotFoundError: There are checkpoints, and none is complete.
    """
    directory = os.fspath(directory)
    state = _directory_state(directory)
    last = [state.model_checkpoint_path] if state else []
    listed = list(state.all_model_checkpoint_paths) if state else []
    found = [
        path.removesuffix(".index")
        for path in glob.glob(os.path.join(glob.escape(directory), "*.index"))
    ]
    others = sorted(dict.fromkeys([*listed, *found]), key=_age, reverse=True)
    candidates = list(dict.fromkeys([*last, *others]))
    for k, prefix in enumerate(candidates):
        if _is_complete(prefix, _stamps(prefix)):
            if k:
                names = ", ".join(os.path.basename(path) for path in candidates[:k])
                warnings.warn(
                    f"{directory}: passing over {names}, which is incomplete; using "
                    f"{os.path.basename(prefix)}",
                    stacklevel=2,
                )
            return prefix
    if candidates:
        names = ", ".join(os.path.basename(path) for path in candidates)
        raise FileNotFoundError(
            f"directory {directory} holds no complete checkpoint, only parts of {names}"
        )
    return None


def _directory_state(directory: str):
    """Reads a directory's file `checkpoint`; None if it is not there or damaged."""
    try:
        state = tf.train.get_checkpoint_state(directory)
    except (tf.errors.OpError, ValueError, UnicodeDecodeError):
        state = None
    return state if state and state.model_checkpoint_path else None


def _age(prefix: str) -> tuple[int, list[int]]:
    """Orders checkpoints: by the step in them, else by the numbers in their names."""
    numbers = [int(digits) for digits in re.findall(r"\d+", os.path.basename(prefix))]
    try:
        reader = _reader(prefix)
        if reader.has_tensor("global_step"):
            return int(reader.get_tensor("global_step")), numbers
    except READ_ERRORS:
        pass
    return (numbers[-1] if numbers else -1), numbers


@functools.cache
def _links() -> str:
    """A directory for links, which goes with the process."""
    directory = tempfile.mkdtemp(prefix="sact_tf_")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def is_pattern(path: str) -> bool:
    """Tells whether TensorFlow takes a checkpoint's path for a pattern of paths."""
    return re.search(r"[][*?\\]", path) is not None


def plain_prefix(prefix: str) -> str:
    """Returns a prefix that TensorFlow can read a checkpoint by.

    TensorFlow takes prefixes for patterns, and does not find the files of a path with
    `[`, `]`, `*`, `?` or a backslash in it. They are then read through links.

    Args:
        prefix: Of a checkpoint on this machine, or of a remote file system.
    """
    if not is_pattern(prefix):
        return prefix
    number = len(os.listdir(_links()))
    directory = os.path.join(_links(), str(number))
    os.mkdir(directory)
    for path in glob.glob(f"{glob.escape(prefix)}.*"):
        ending = path.removeprefix(prefix)
        os.symlink(os.path.abspath(path), os.path.join(directory, f"model{ending}"))
    return os.path.join(directory, "model")


def _reader(prefix: str):
    """Opens a checkpoint."""
    return tf.train.load_checkpoint(plain_prefix(prefix))


def _stamps(prefix: str) -> tuple[tuple[str, int, int], ...]:
    """Returns name, size and time of a checkpoint's files."""
    files = sorted(glob.glob(f"{glob.escape(prefix)}.*"))
    return tuple((f, os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files)


@functools.lru_cache(maxsize=16)
def _is_complete(prefix: str, stamps: tuple) -> bool:
    """Whether all tensors of a checkpoint can be read; asked once per state of it."""
    try:
        reader = _reader(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except READ_ERRORS:
        return False
    return True


def open_checkpoint(checkpoint_path: str):
    """Opens a checkpoint prefix or directory; returns the prefix and a reader."""
    path = os.fspath(checkpoint_path)
    if tf.io.gfile.isdir(path):
        newest = newest_checkpoint(path)
        if newest is None:
            raise FileNotFoundError(f"no checkpoint in directory {path}")
        path = newest
    try:
        return path, _reader(path)
    except READ_ERRORS as error:
        raise FileNotFoundError(
            f"no readable TF-Slim checkpoint at {path}: {first_line(error)}"
        ) from error


def read_tensors(path: str, reader, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads tensors of an open checkpoint."""
    try:
        return {name: reader.get_tensor(name) for name in names}
    except READ_ERRORS as error:
        raise FileNotFoundError(
            f"TF-Slim checkpoint {path} is truncated or corrupt: {error}"
        ) from error


def write_tensors(
    path: str,
    tensors: Mapping[str, tf.Tensor | np.ndarray],
    global_step: int,
    keep: int | None = None,
) -> str:
    """Writes a checkpoint and makes it its directory's newest.

    Args:
        path: Prefix to write.
        tensors: By their names.
        global_step: Stored under that name as int64.
        keep: How many checkpoints the directory shall remember; older ones are
            deleted. None: only the new one is remembered, and none deleted.

    Returns:
        `path`.

    Raises:
        WritingError: The disk is full, or cannot be written to.
    """
    tensors = {**tensors, "global_step": np.int64(global_step)}
    directory = os.path.dirname(path) or "."
    with naming(path), tf.device("cpu:0"):
        tf.io.gfile.makedirs(directory)
        tf.raw_ops.SaveV2(
            prefix=path,
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=[tf.convert_to_tensor(tensor) for tensor in tensors.values()],
        )
    state = _directory_state(directory) if keep else None
    others = list(state.all_model_checkpoint_paths) if state else []
    remembered = [os.path.join(directory, os.path.basename(other)) for other in others]
    remembered = [other for other in remembered if other != path] + [path]
    old = remembered[: -(keep or 1)]
    names = [os.path.basename(other) for other in remembered[len(old) :]]
    _remember(directory, names)
    for prefix in old:
        for file in glob.glob(f"{glob.escape(prefix)}.*"):
            os.remove(file)
    return path


def _remember(directory: str, names: list[str]) -> None:
    """Writes the file that lists a directory's checkpoints, whole or not at all."""
    # As TensorFlow 1 does; what does it in TensorFlow 2 warns of its removal.
    lines = [f"model_checkpoint_path: {json.dumps(names[-1], ensure_ascii=False)}"]
    for name in names:
        quoted = json.dumps(name, ensure_ascii=False)
        lines.append(f"all_model_checkpoint_paths: {quoted}")
    content = "\n".join(lines) + "\n"
    write_bytes(os.path.join(directory, "checkpoint"), content.encode())
