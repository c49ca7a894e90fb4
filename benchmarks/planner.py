"""The planner's answer beside runs: digits with 1, 8 and 32 workers, at four learning rates each.

The plan of `configs/digits.py` (asynchronous), and for each number of workers what happens at the
config's own learning rate, at half the best step, at the best, and at 1.3 times the largest stable
one: virtual seconds until the mean loss of 50 gradients is a tenth of log(10), the loss at the start.

    python -m benchmarks --figures=planner
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from asgd.training import build, planning
from configs import digits

DEVICES = (1,)
WORKERS = (1, 8, 32)


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    del options
    config = digits.get_config()
    config.plan.update({"protocols": ("asynchronous",), "workers": WORKERS, "target": 0.1})
    for planned in planning.make_plan(config)["rows"]:
        for name, rate, predicted in (
                ("of the config", config.learning_rate, planned["time_at_rate"]),
                ("half the best", planned["best_step"] / 2, None),
                ("best", planned["best_step"], planned["time_to_target"]),
                ("1.3 times the largest", 1.3 * planned["largest_step"], None)):
            yield {"workers": planned["workers"], "learning rate": name, "value": round(rate, 2),
                   "predicted": "" if predicted is None else round(predicted, 1),
                   "measured": _measured(planned["workers"], rate)}


def _measured(workers, rate):
    config = digits.get_config()
    config.cluster.num_workers, config.learning_rate = workers, rate
    run = build.build(config)
    emulator = run.emulator(*run.task.init(config.seed), config, [])
    try:
        _, losses = emulator.run(emulator.init())
    except FloatingPointError:
        return "diverges"
    smooth = np.convolve(losses, np.full(50, 1 / 50), "valid")
    below = np.flatnonzero(smooth < 0.1 * math.log(10))
    return round(float(run.trace.finish_time[below[0] + 25]), 1) if below.size else "never"
