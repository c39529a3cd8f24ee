"""Files and directories that are written whole or not at all.

What is written goes to a temporary name beside its place, is synced to the disk, and
renamed: whatever happens before leaves what was there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

import h5py
import tensorflow as tf

from sact_tf.domains import first_line

_NAME_LENGTH = 200
# What TensorFlow says of a disk that cannot be written to, in errors of its own.
_DISK_ERRORS = tuple(
    os.strerror(number)
    for number in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
    )
)


class WritingError(OSError):
    """A file or directory cannot be written; the message names it.

    Attributes:
        path: The file or directory.
    """

    def __init__(self, path: str, reason: str):
        self.path = path
        super().__init__(f"{path}: cannot be written ({reason})")


def _reason(error: Exception) -> str | None:
    """Returns why the disk could not be written to, None if that is not what failed."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # h5py tells long stories
    # h5py and TensorFlow put the system's words into errors of their own.
    found = [text for text in _DISK_ERRORS if text in str(error)]
    if found:
        return found[0]
    return first_line(error) if isinstance(error, OSError) else None


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Turns errors of the disk in a `with` block into `WritingError`."""
    try:
        yield
    except WritingError:
        raise
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise WritingError(path, reason) from error


def _beside(path: str) -> str:
    """Returns a new name in the same directory, of the same extension."""
    directory, name = os.path.split(path)
    return os.path.join(
        directory, f".tmp-{secrets.token_hex(4)}-{name[-_NAME_LENGTH:]}"
    )


def _sync(path: str) -> None:
    """Has the disk keep a file or directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise  # some file systems cannot sync directories
    finally:
        os.close(descriptor)


def _sync_parent(path: str) -> None:
    """Has the disk keep a new name, where a directory can be opened at all."""
    with contextlib.suppress(PermissionError):
        _sync(os.path.dirname(path) or ".")


@contextlib.contextmanager
def atomic_file(path: str) -> Iterator[str]:
    """Gives the name of a temporary file, which becomes `path` when all went well.

    Args:
        path: The file; one that is there is replaced. Where that is a link, it stays
            one, and what it leads to is replaced. Devices and pipes are written to
            directly.

    Raises:
        WritingError: The file cannot be written. What was there is as before.
    """
    path = os.path.realpath(os.fspath(path))
    with naming(path):
        mode = os.stat(path).st_mode if os.path.exists(path) else None
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if mode is not None and not stat.S_ISREG(mode):
            yield path
            return
        temporary = _beside(path)
        try:
            yield temporary
            _sync(temporary)
            if mode is not None:
                os.chmod(temporary, stat.S_IMODE(mode))
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                os.remove(temporary)
        _sync_parent(path)


@contextlib.contextmanager
def atomic_directory(path: str) -> Iterator[str]:
    """Gives the name of a temporary directory, which becomes `path` if all went well.

    Where `path` is a directory already, the new files take the places of those of the
    same names, and others stay.

    Args:
        path: The directory.

    Raises:
        WritingError: It cannot be written. What was there is as before.
    """
    path = os.path.realpath(os.fspath(path))
    with naming(path):
        if os.path.exists(path) and not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = _beside(path)
        try:
            os.mkdir(temporary)
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _sync(os.path.join(folder, name))
            _move(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _sync_parent(path)


def _move(source: str, target: str) -> None:
    """Gives a directory another name, file by file if there is one of that name."""
    if not os.path.isdir(target) or not os.listdir(target):
        os.replace(source, target)
        return
    # Those in subdirectories first: what a reader looks for lies at the top.
    for folder, _, names in os.walk(source, topdown=False):
        place = os.path.join(target, os.path.relpath(folder, source))
        os.makedirs(place, exist_ok=True)
        for name in names:
            os.replace(os.path.join(folder, name), os.path.join(place, name))


def write_bytes(path: str, content: bytes) -> None:
    """Writes a file whole or not at all; see `atomic_file`."""
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_json(path: str, values: object) -> None:
    """Writes a JSON file whole or not at all; see `atomic_file`."""
    text = json.dumps(values, indent=2)
    write_bytes(path, f"{text}\n".encode())


class _PatientFile:
    """A file for the HDF5 library, which ends the process where a disk is full.

    What cannot be written is dropped, and the first error kept.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._error: OSError | None = None
        self.seek, self.tell, self.read = file.seek, file.tell, file.read

    def _try(self, function, *arguments):
        try:
            return function(*arguments)
        except OSError as error:
            self._error = self._error or error
            return None

    def write(self, content) -> int:
        place = self._file.tell()
        if self._try(self._file.write, content) is None:
            self._file.seek(place + len(content))
        return len(content)

    def readinto(self, content) -> int:
        count = self._try(self._file.readinto, content) or 0
        content[count:] = bytes(len(content) - count)  # what was dropped
        return len(content)

    def truncate(self, size=None) -> None:
        self._try(self._file.truncate, size)

    def flush(self) -> None:
        self._try(self._file.flush)

    def check(self) -> None:
        """Raises what kept anything from being written so far."""
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def atomic_hdf5(path: str) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Gives an HDF5 file, which becomes `path` when all went well.

    Args:
        path: As of `atomic_file`.

    Yields:
        The open file; and a function that raises at once what would be raised at the
        end: the disk is full.

    Raises:
        WritingError: The file cannot be written. What was there is as before.
    """
    with (
        atomic_file(path) as temporary,
        open(temporary, "wb+", buffering=0) as opened,
    ):
        patient = _PatientFile(opened)
        with h5py.File(patient, "w") as file:
            yield file, patient.check
        patient.check()
