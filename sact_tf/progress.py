"""What training shows of itself: step of total, speed, time left, running means."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable, Mapping

import tf_keras as keras

_TERMINAL_SECS = 0.2
_LOG_SECS = 30.0


def describe(
    step: int,
    total: int | None,
    made: int,
    secs: float,
    logs: Mapping[str, float],
) -> str:
    """Returns one line about a run.

    Args:
        step: Steps made, those before a resume included.
        total: Steps of the whole run; None: no end.
        made: Steps made by this process.
        secs: Seconds they took.
        logs: Running means, by name.

    >>> describe(50, 200, 25, 5.0, {"loss": 1.25, "flops": 1696064.0})
    'step 50/200 (25%), 5.00 steps/s, 0:00:30 left, loss 1.25, flops 1.696e+06'
    """
    parts = [f"step {step}" if total is None else f"step {step}/{total}"]
    if total:
        parts[0] += f" ({100 * step // total}%)"
    if made and secs > 0:
        parts.append(f"{made / secs:.2f} steps/s")
        if total is not None:
            left = datetime.timedelta(seconds=round(max(total - step, 0) * secs / made))
            parts.append(f"{left} left")
    return ", ".join([*parts, *(f"{name} {value:.4g}" for name, value in logs.items())])


class StatusLine:
    """A line that changes in place on a terminal; in a log, one now and then."""

    def __init__(self):
        self._is_terminal = sys.stdout.isatty()
        self._secs = _TERMINAL_SECS if self._is_terminal else _LOG_SECS
        self._shown = 0.0
        self._width = 0

    def show(self, line: Callable[[], str], at_once: bool = False) -> None:
        """Shows a line, unless one was shown a moment ago.

        Args:
            line: Returns it.
            at_once: Show it in any case.
        """
        now = time.monotonic()
        if not at_once and now - self._shown < self._secs:
            return
        self._shown = now
        text = line()
        if self._is_terminal:
            print(f"\r{text:{self._width}}", end="", flush=True)
            self._width = len(text)
        else:
            print(text, flush=True)

    def end(self) -> None:
        """Leaves the line as it is; others come below."""
        if self._is_terminal and self._width:
            print(flush=True)
            self._width = 0


class Progress(keras.callbacks.Callback):
    """Shows a run: one line that changes on a terminal, a line now and then in a log.

    Args:
        step: Tells the steps made, those before a resume included.
        total: Steps of the whole run; None: no end.
    """

    def __init__(self, step: Callable[[], int], total: int | None):
        super().__init__()
        self._step = step
        self._total = total
        self._first, self._started = None, 0.0
        self._line = StatusLine()
        self._logs = {}

    def on_train_batch_end(self, batch, logs=None):
        self._logs = logs or {}
        if self._first is None:  # what the first step takes is mostly tracing
            self._first, self._started = self._step(), time.monotonic()
        self._line.show(self._text)

    def on_train_end(self, logs=None):
        if self._first is not None:
            self._line.show(self._text, at_once=True)
            self._line.end()

    def _text(self):
        step, secs = self._step(), time.monotonic() - self._started
        return describe(step, self._total, step - self._first, secs, self._logs)
