"""Seconds from `python main.py` to the first gradients on digits, and what they are spent on.

Each phase is the median over new processes: imports, building the run (data, trace,
transformations), making the emulator and its initial state, and the first call, which compiles.
`first` has an empty compilation cache, `again` the one that the first run left.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

DEVICES = (1,)
_PHASES = ("imports", "build", "emulator", "first_call")
_PROGRAM = """
import time
from absl import logging
from asgd.training import loop
from configs import digits
print(time.time())
loop.use_compilation_cache()
config = digits.get_config()
run = loop.build(config)
print(time.time())
params, model_state = run.task.init(config.seed)
emulator = loop.make_emulator(run.task.loss_fn, run.tx, params, run.trace,
                              run.task.batches(run.sampler), cuts=[100])
state = emulator.init()
print(time.time())
emulator.run(state, 0, 100)
print(time.time())
"""


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    seconds = {"first": [], "again": []}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name in seconds:
                seconds[name].append(_phases(cache))
    for name, measured in seconds.items():
        middle = np.median(measured, axis=0)
        yield {"compilation_cache": name, "total_s": round(float(np.median(np.sum(measured, 1))), 2),
               **{phase: round(float(s), 2) for phase, s in zip(_PHASES, middle)}}


def _phases(cache):
    began = time.time()
    root = pathlib.Path(__file__).parents[1]
    env = dict(os.environ, XDG_CACHE_HOME=cache, PYTHONPATH=str(root))
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    out = subprocess.run([sys.executable, "-c", _PROGRAM], env=env, cwd=root, text=True,
                         stdout=subprocess.PIPE, check=True).stdout
    return np.diff([began, *map(float, out.split())])
