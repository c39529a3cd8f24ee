"""What a training run does beside its steps: it locks its directory, and heeds signals.

Schedulers stop jobs by SIGTERM, users by Ctrl-C. Both let the step in progress end, and
a checkpoint is written. A second one ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOCK = ".training_lock"


class DirectoryInUseError(RuntimeError):
    """Another process trains in the directory; the message tells which."""


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Keeps other trainings out of a directory in a `with` block.

    The operating system lets the lock go when the process ends, however that is. Where
    there are no such locks (Windows), nothing is locked.

    Args:
        directory: Made if it is not there.

    Raises:
        DirectoryInUseError: Another process has it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, _LOCK)
    # Not truncated: it tells who holds the lock.
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = file.read().strip() or "another process"
            raise DirectoryInUseError(
                f"{directory}: {holder} trains there; wait for its end or name another "
                "directory"
            ) from error
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()


class Interruption:
    """Tells whether the process was asked to stop, in a `with` block.

    Outside of the main thread, where no signal can be caught, it never was.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        self.signal = signal.Signals(number)
        self._restore()  # the next one is not waited for

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *error):
        self._restore()

    @property
    def exit_code(self) -> int:
        """What a shell says of a process that the signal ended: 143 or 130."""
        return 128 + int(self.signal)
