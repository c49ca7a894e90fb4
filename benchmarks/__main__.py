"""Measures speed and memory: python -m benchmarks [--figures=overhead,waves] [--out=FILE]

Every figure runs in a process of its own, with as many emulated CPU devices as it needs. The
results go to FILE as JSON and to standard output as tables.
"""

import importlib
import json
import os
import pathlib
import platform
import subprocess
import sys

from absl import app, flags

FIGURES = ("overhead", "against", "floor", "profile", "feed", "convolutions", "waves", "memory",
           "growth", "simulation", "startup", "discrepancy", "theory", "critical",
           "planner", "recording", "scaling")

_FIGURES = flags.DEFINE_list("figures", list(FIGURES), "Figures to measure.")
_OUT = flags.DEFINE_string("out", "runs/benchmarks.json", "Where the results are written.")
flags.DEFINE_list("models", ["mlp", "cnn", "resnet20", "transformer"], "Models.")
flags.DEFINE_list("algorithms", ["asgd", "dc_asgd_a"], "Algorithms.")
flags.DEFINE_integer("repeats", 7, "Timings of each thing.")
flags.DEFINE_string("data_dir", "", "Prepared TFDS data with MNIST, for `critical`.")
flags.DEFINE_integer("devices", 0, "Devices; 0 measures each figure with the numbers it needs.")
_ROWS = flags.DEFINE_bool("rows", False, "Measure one figure here, and print a row a line.")


def main(argv):
    """Measures the figures, or one of them."""
    for name in _FIGURES.value:
        if name not in FIGURES:
            sys.exit(f"{argv[0]}: --figures: {name!r} is none of {', '.join(FIGURES)}")
    if _ROWS.value:
        for row in importlib.import_module(f"benchmarks.{_FIGURES.value[0]}").rows(flags.FLAGS):
            print(json.dumps(row), flush=True)
        return
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "command": " ".join(["python -m benchmarks", *sys.argv[1:]])}
    for name in _FIGURES.value:
        results[name] = []
        devices = importlib.import_module(f"benchmarks.{name}").DEVICES
        for number in [flags.FLAGS.devices] if flags.FLAGS.devices else devices:
            results[name] += measure(name, number)
            out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"\n{name}\n{table(results[name])}", flush=True)


def measure(figure, devices):
    """Runs one figure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "--rows", f"--figures={figure}",
               f"--devices={devices}", f"--repeats={flags.FLAGS.repeats}",
               f"--data_dir={flags.FLAGS.data_dir}"]
    command += [f"--{name}={','.join(flags.FLAGS[name].value)}" for name in ("models", "algorithms")]
    env = dict(os.environ, JAX_NUM_CPU_DEVICES=str(devices))
    out = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def table(rows):
    """Formats rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([row.get(n, "") for n in names] for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine():
    """Describes what the figures were measured on."""
    import jax

    device = jax.devices()[0]
    model = platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [l.split(":")[1].strip() for l in cpuinfo.read_text().splitlines()
                 if l.startswith("model name")]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "device": device.device_kind,
            "jax": jax.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    app.run(main)
