"""Peak memory of a computation, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable

_RUNS = 3


def _resident(key: str) -> float:
    """Reads VmHWM or VmRSS, in MB."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(key))
    return int(line.split()[1]) / 1024


def _measure(prepare, arguments, result) -> None:
    try:
        run = prepare(*arguments)
        with open("/proc/self/clear_refs", "w") as reset:  # forgets the peak so far
            reset.write("5")
        before = _resident("VmRSS")
        for _ in range(_RUNS):
            run()
        result.put(_resident("VmHWM") - before)
    except Exception as error:  # or the other process waits for ever
        result.put(str(error))


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments) -> float:
    """Returns how much memory some runs take beyond what was there before, in MB.

    Args:
        prepare: Function of a module; returns what is to be run.
        *arguments: Its arguments.

    Raises:
        OSError: The system does not tell (it is not Linux).
        RuntimeError: A run failed.
    """
    if not os.path.exists("/proc/self/clear_refs"):
        raise OSError("peak memory can be measured on Linux only")
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=_measure, args=(prepare, arguments, result))
    process.start()
    process.join()
    peak = "the process was killed" if result.empty() else result.get()
    if isinstance(peak, str):
        raise RuntimeError(peak)
    return peak
