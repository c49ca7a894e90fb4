"""Seconds from `python main.py` to the first line of metrics on digits, after 100 gradients.

`main.py` itself runs, in new processes, and is stopped when it writes the line. Of the median over
these, `imports` is until the training program is imported, `compiling` is what XLA and reading its
cache took, and `rest` everything else: data, trace, tracing, files, the gradients. `first` has an
empty compilation cache, `again` the one that the first run left.
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
_PHASES = ("imports", "compiling", "rest")
_PROGRAM = """
import os, runpy, sys, time
import jax
from asgd.training import loop
imported, compiling = time.time(), []
def listen(name, seconds, **_):
    if name.endswith(("backend_compile_duration", "cache_retrieval_time_sec")):
        compiling.append(seconds)
jax.monitoring.register_event_duration_secs_listener(listen)
write = loop.MetricsWriter.write
def stop(*args):
    write(*args)
    print(imported, sum(compiling), time.time(), flush=True)
    os._exit(0)
loop.MetricsWriter.write = stop
sys.argv = ["main.py", "--config=configs/digits.py", "--workdir=" + sys.argv[1]]
runpy.run_path("main.py", run_name="__main__")
"""


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    seconds = {"first": [], "again": []}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name in seconds:
                seconds[name].append(_phases(folder, name))
    for name, measured in seconds.items():
        low, middle, high = np.quantile(np.sum(measured, 1), [0.25, 0.5, 0.75])
        yield {"compilation_cache": name, "total_s": round(float(middle), 2),
               "low": round(float(low), 2), "high": round(float(high), 2),
               **{phase: round(float(s), 2)
                  for phase, s in zip(_PHASES, np.median(measured, axis=0))}}


def _phases(folder, name):
    began = time.time()
    root = pathlib.Path(__file__).parents[1]
    env = dict(os.environ, XDG_CACHE_HOME=folder, PYTHONPATH=str(root))
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    out = subprocess.run([sys.executable, "-c", _PROGRAM, f"{folder}/{name}"], env=env, cwd=root,
                         text=True, stdout=subprocess.PIPE, check=True).stdout
    imported, compiling, end = map(float, out.split())
    return [imported - began, compiling, end - imported - compiling]
