"""Time of calls, measured by turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np


def time_by_turns(
    calls: Mapping[str, Callable[[], object]], repetitions: int
) -> dict[str, float]:
    """Returns median seconds of each call; the first two rounds warm up.

    Calls take turns, so that what else the machine does meets all of them.

    Args:
        calls: By name.
        repetitions: How often each call is timed.
    """
    times = {name: [] for name in calls}
    for repetition in range(repetitions + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repetition >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}
