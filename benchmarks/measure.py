"""Times several things side by side."""

import time
from typing import Any, Callable

import numpy as np

PAUSE = 0.3  # Seconds before a timing, in which the threads of another library come to rest.


def interleaved(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Times runs in turn, so that what disturbs the machine disturbs all of them.

    Args:
      runs: functions that prepare and return the function to be timed, which waits for its
        own results.
      repeats: how often each is timed, after one run that is not.

    Returns:
      Seconds [repeats] for each.
    """
    seconds = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        # There and back, so that none always comes after the same other one.
        for name in list(runs)[:: 1 if repeat % 2 else -1]:
            timed = runs[name]()
            time.sleep(PAUSE)
            began = time.perf_counter()
            timed()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {name: np.asarray(times) for name, times in seconds.items()}


def spread(ratios: np.ndarray) -> dict[str, float]:
    """Returns the median and the quartiles of ratios that were measured in pairs."""
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {"ratio": round(float(middle), 3), "low": round(float(low), 3),
            "high": round(float(high), 3)}


def fastest(seconds: dict[str, np.ndarray], names: list[str]) -> str:
    """Returns the name with the smallest median."""
    return min(names, key=lambda name: np.median(seconds[name]))
