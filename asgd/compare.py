"""Compares algorithms on identical asynchrony.

    python -m asgd.compare --config=configs/digits.py --workdir=runs/compare \\
        --algorithms=asgd,staleness_aware,dc_asgd_c,dc_asgd_a --learning_rates=0.1,0.5

makes one trace (simulated; with ``--config.mode=record`` recorded; or the one at ``--config.trace_path``),
replays it with every algorithm and learning rate in a directory of its own, prints a table and writes
``comparison.json``. The same command again goes on where it was interrupted. Exit codes: 0 done, 1 a
run-time failure, 2 a config or flag that cannot be used.
"""

import contextlib
import itertools
import json
import pathlib
import sys
from typing import Any

from absl import app, flags

from asgd.training import command

_COLUMNS = ("algorithm", "learning_rate", "eval_accuracy", "eval_loss", "updates", "params_digest")


def compare(config: Any, workdir: pathlib.Path, algorithms: list[str],
            rates: list[float]) -> list[dict[str, Any]]:
    """Replays one trace with every algorithm and learning rate.

    Args:
      config: the fields of ``configs/default.py``, which all runs share. With its own algorithm and
        protocol the trace is made.
      workdir: where the trace, ``comparison.json`` and the runs' directories go.
      algorithms: of those with a server and staleness.
      rates: learning rates; the config's if there are none.

    Returns:
      A row for each run: its last line with ``algorithm`` and ``learning_rate``, or the ``error`` that
      it ended with, such as a loss that is not finite.

    Raises:
      ConfigError: for a field or an algorithm that cannot be used, before anything runs.
    """
    from asgd.training import fields, loop, validation
    from asgd.training.build import make_task, make_trace, read_trace

    fields.check_one_of(config, "algorithm", validation.ALGORITHMS)
    validation.validate(config)
    if not algorithms:
        raise validation.ConfigError("--algorithms must name at least one")
    replays = {}
    for algorithm, rate in itertools.product(algorithms, rates or [config.learning_rate]):
        replay = config.copy_and_resolve_references()
        replay.mode, replay.algorithm, replay.learning_rate = "emulate", algorithm, rate
        fields.check_one_of(replay, "algorithm", validation.ALGORITHMS)
        validation.validate(replay)
        replays[f"{algorithm}-{rate!r}"] = replay

    workdir.mkdir(parents=True, exist_ok=True)
    if config.mode == "record":
        loop.train(config, workdir / "recording")
        path = str(workdir / "recording" / "trace.npz")
    elif config.trace_path:
        path = config.trace_path
    else:
        path = str(workdir / "trace.npz")
        make_trace(config, make_task(config).num_examples).save(path)
    for replay in replays.values():
        replay.trace_path = path
        trace = read_trace(replay, "trace_path")
        replay.cluster.num_workers = trace.num_workers
        validation.check_trace(replay, trace)

    rows = []
    for name, replay in replays.items():
        row = {"algorithm": replay.algorithm, "learning_rate": replay.learning_rate}
        try:
            rows.append(row | loop.train(replay, workdir / name))
        except FloatingPointError as error:
            rows.append(row | {"error": str(error), "workdir": str(workdir / name)})
        (workdir / "comparison.json").write_text(
            json.dumps({"trace": path, "rows": rows}, indent=1) + "\n")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Formats rows as a Markdown table."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS)]
    for row in rows:
        cells = [row.get(name, "") for name in _COLUMNS]
        cells[-1] = cells[-1][:12]
        if "error" in row:
            cells[2] = row["error"]
        lines.append([f"{x:.4g}" if isinstance(x, float) else str(x) for x in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv):
    """Prints the comparison, and writes it."""
    def run():
        from asgd.training import loop

        loop.use_compilation_cache()
        given = flags.FLAGS
        rates = [_rate(text) for text in given.learning_rates]
        with contextlib.redirect_stdout(sys.stderr):
            rows = compare(given.config, pathlib.Path(given.workdir), given.algorithms, rates)
        print(table(rows))

    command.run(argv, run)


def _rate(text):
    from asgd.training.fields import ConfigError

    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--learning_rates must hold numbers, got {text!r}") from None


if __name__ == "__main__":
    _CONFIG, _ = command.define("Directory for the trace, the runs and comparison.json.",
                                workdir_required=True)
    flags.DEFINE_list("algorithms", ["asgd", "staleness_aware", "dc_asgd_c", "dc_asgd_a"],
                      "What to compare, separated by commas.")
    flags.DEFINE_list("learning_rates", [], "Each is tried with every algorithm; by default the config's.")
    app.run(main, flags_parser=command.parser(_CONFIG))
