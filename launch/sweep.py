"""Runs a config with many values of its fields, and collects what comes out in one table.

    python -m launch.sweep --config=configs/digits.py --workdir=runs/sweep \\
        --grid="learning_rate=0.1,0.5 cluster.num_workers=4,8" -- --config.num_epochs=5.0
    python -m launch.sweep --config=configs/digits.py --workdir=runs/random --num_samples=20 \\
        --random="learning_rate=loguniform(1e-3,1) momentum=uniform(0,0.9)"

Each point runs in DIR/NAME, named by its fields; its last line goes to result.json there, what it logs to
log.txt, and all last lines to DIR/sweep.csv. The same command again runs what is not done yet. With both
--grid and --random, every sample is run at every point of the grid.

--launcher=local runs --parallel processes at once. slurm prints the sbatch command of an array; commands
prints one main.py command a line, for other launchers (keep a command's standard output as
DIR/NAME/result.json); collect only writes the table, and is what to run after these two.

Exit codes: 0 done, 1 a run failed, 2 a flag or field that cannot be used, 130 or 143 interrupted.
"""

import csv
import json
import os
import pathlib
import shlex
import sys

from absl import app
from absl import flags

from asgd.training import command
from launch import sweep_points
from launch import sweep_runs

_CONFIG = flags.DEFINE_string("config", None, "Config file, as configs/digits.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory that has a folder for each point")
_GRID = flags.DEFINE_string("grid", "", "FIELD=VALUE,VALUE FIELD=VALUE,VALUE: all combinations")
_RANDOM = flags.DEFINE_string("random", "", "FIELD=DISTRIBUTION ...: uniform(a,b), loguniform(a,b), "
                              "randint(a,b) or choice(a,b,...)")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 0, "Samples of --random", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of --random; runs have --config.seed")
_LAUNCHER = flags.DEFINE_enum("launcher", "local", ["local", "slurm", "commands", "collect"],
                              "What is done with the points")
_PARALLEL = flags.DEFINE_integer("parallel", None, "Runs at once; by default half as many as cores, and "
                                 "under Slurm all", lower_bound=1)
_ONLY = flags.DEFINE_string("only", None, "Index of the one point to run, or the environment variable "
                            "that has it, as SLURM_ARRAY_TASK_ID")
_PROGRAM = flags.DEFINE_string("program", str(pathlib.Path(__file__).parents[1] / "main.py"),
                               "Python program that is run, with main.py's flags")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
    extra = argv[1:]
    workdir = pathlib.Path(_WORKDIR.value)
    try:
        for flag in extra:
            name = flag.lstrip("-").partition("=")[0]
            if not flag.startswith("-") or name in ("config", "workdir"):
                raise sweep_points.SweepError(f"unexpected {flag!r}: only flags of main.py but --config and"
                                              " --workdir may follow --")
        points = sweep_points.points(_CONFIG.value, _GRID.value, _RANDOM.value, _NUM_SAMPLES.value,
                                     _SEED.value, extra)
        bucket = "://" in _WORKDIR.value
        if bucket and _LAUNCHER.value != "commands":
            raise sweep_points.SweepError(f"--workdir={_WORKDIR.value} must be a folder; buckets are for"
                                          " --launcher=commands")
        done = [not bucket and sweep_runs.result(workdir / point.name, point) is not None
                for point in points]
        only = None if _ONLY.value is None else _index(_ONLY.value, len(points))
    except sweep_points.SweepError as error:
        command.fail(2, f"sweep: {error}")
    missing = [point for point, is_done in zip(points, done) if not is_done]
    if _LAUNCHER.value == "commands":
        for point in missing:
            folder = f"{_WORKDIR.value.rstrip('/')}/{point.name}"
            print(shlex.join(["python", "main.py", *point.flags, f"--workdir={folder}"]))
    elif _LAUNCHER.value == "slurm":
        print(_array(len(points), extra))
    elif _LAUNCHER.value == "collect":
        print(json.dumps(_collect(points, workdir)))
    elif only is not None:
        sys.exit(_run([points[only]] * (not done[only]), workdir, 1, 1))
    else:
        code = _run(missing, workdir, _PARALLEL.value or max(1, (os.cpu_count() or 1) // 2), len(points))
        print(json.dumps(_collect(points, workdir)))
        sys.exit(code)


def _index(text, count):
    if _LAUNCHER.value != "local":
        raise sweep_points.SweepError(f"--only is for --launcher=local, not {_LAUNCHER.value}")
    value = os.environ.get(text, text)
    if not value.isdecimal() or int(value) >= count:
        raise sweep_points.SweepError(f"--only={text} must be from 0 to {count - 1}, or an environment"
                                      f" variable that is, got {value!r}")
    return int(value)


def _run(points, workdir, parallel, total):
    """Runs points, says which failed, and returns the exit code: of a single point its own."""
    interruption = None
    try:
        codes = sweep_runs.run(points, workdir, _PROGRAM.value, parallel, total)
    except sweep_runs.Interrupted as error:
        codes, interruption = error.codes, error
    failed = {name: code for name, code in codes.items() if code not in (0, *sweep_runs.INTERRUPTED)}
    for name, code in failed.items():
        print(f"failed with exit code {code}: {workdir / name}: {sweep_runs.last_line(workdir / name)}",
              file=sys.stderr)
    if interruption:
        print(f"sweep: {interruption}", file=sys.stderr)
        return interruption.exit_code
    if len(codes) == total == 1:
        return next(iter(codes.values()))
    return 1 if failed else max(codes.values(), default=0)


def _array(count, extra):
    """Returns the sbatch command that runs each point as one task of an array."""
    limit = f"%{_PARALLEL.value}" if _PARALLEL.value else ""
    own = [f"--{flag.name}={flag.value}" for flag in
           (_CONFIG, _WORKDIR, _GRID, _RANDOM, _NUM_SAMPLES, _SEED, _PROGRAM) if flag.present]
    return shlex.join(["sbatch", f"--array=0-{count - 1}{limit}", "launch/slurm.sbatch", "-m", "launch.sweep",
                       *own, "--only=SLURM_ARRAY_TASK_ID", *(["--", *extra] if extra else [])])


def _collect(points, workdir):
    """Writes the table, a row for each point, and returns what is in it."""
    results = [sweep_runs.result(workdir / point.name, point) for point in points]
    swept = list(points[0].values)
    keys = list(dict.fromkeys(key for result in results if result for key in result))
    path = workdir / "sweep.csv"
    workdir.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.tmp", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["point", "status", *swept, *keys])
        for point, result in zip(points, results):
            begun = (workdir / point.name).exists()
            status = "done" if result else "unfinished" if begun else "not started"
            writer.writerow([point.name, status, *(point.values[field] for field in swept),
                             *((result or {}).get(key) for key in keys)])
    os.replace(f"{path}.tmp", path)
    return {"points": len(points), "done": sum(result is not None for result in results), "csv": str(path)}


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        command.fail(2, f"sweep: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
