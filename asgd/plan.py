"""Plans a run: which protocol, how many workers, what learning rate.

    python -m asgd.plan --config=configs/digits.py --workdir=runs/plan

prints a table and two sentences, and writes ``plan.json`` and ``plan.png`` to the work directory.
Curvature is measured along a short run of sequential SGD or, if the work directory holds a run, at
its last checkpoint. Exit codes: 0 done, 1 a run-time failure, 2 a config or flag that cannot be used.
"""

import json
import pathlib
from typing import Any

from absl import app, flags

from asgd.training import command


def explain(plan: dict[str, Any]) -> str:
    """Returns what a plan says, in two sentences."""
    best, rate = plan["best"], plan["learning_rate"]
    if best is None:
        return ("No protocol reaches the target with the numbers of workers and learning rates that were "
                "tried. Larger batches, which lower the noise, or a less strict plan.target would help.")
    limits = plan["limits"][best["protocol"]]
    rows = [row for row in plan["rows"] if row["protocol"] == best["protocol"]]
    alone = [row for row in plan["rows"] if row["workers"] == 1 and row["time_to_target"]]
    faster = ""
    if alone and best["workers"] > 1:
        factor = min(row["time_to_target"] for row in alone) / best["time_to_target"]
        faster = f", {factor:.3g} times sooner than one worker"
    first = (f"Train with {best['protocol']} and {best['workers']} workers at the learning rate "
             f"{best['best_step']:.3g}: the target is predicted after {best['time_to_target']:.4g} "
             f"virtual seconds{faster}.")
    enough, most = limits["enough_workers"], max(row["workers"] for row in rows)
    if enough == most:
        second = f"No more than {most} workers were tried" + (
            ", and so many are the fastest" if len(rows) > 1 else "")
    else:
        here, there = (next(row for row in rows if row["workers"] == n) for n in (enough, most))
        why = ("the largest stable learning rate falls" if there["largest_step"] < here["largest_step"]
               else "gradients get staler" if there["staleness_mean"] > here["staleness_mean"]
               else "more gradients in an update only lower its noise")
        second = f"More than {enough}, up to the {most} that were tried, gain less than 5 per cent, as {why}"
    if limits["first_diverging"]:
        second += (f", and at the learning rate {rate:g} it diverges from {limits['first_diverging']} "
                   "workers on")
    else:
        second += f", and at the learning rate {rate:g} it is stable with all numbers that were tried"
    return f"{first} {second}."


def table(plan: dict[str, Any]) -> str:
    """Formats the rows of a plan as text."""
    heads = ["protocol", "workers", "updates/s", "staleness", "99%", "idle", "largest step",
             "best step", "time", f"at {plan['learning_rate']:g}", "rate/s", "time"]
    lines = [heads]
    for row in plan["rows"]:
        cells = [f"{v:.4g}" if isinstance(v, float) else "never" if v is None else str(v)
                 for v in row.values()]
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(w) if i else cell.ljust(w)
                               for i, (cell, w) in enumerate(zip(line, widths))) for line in lines)


def draw(plan: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the time to the target against the number of workers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(row["protocol"] for row in plan["rows"])):
        rows = [row for row in plan["rows"] if row["protocol"] == name]
        for field, style, label in (("time_to_target", "-", name), ("time_at_rate", ":", None)):
            reached = [row for row in rows if row[field]]
            axes.plot([row["workers"] for row in reached], [row[field] for row in reached], style,
                      marker=".", color=f"C{number}", label=label)
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="virtual seconds to the target",
             title=f"best learning rate (solid), {plan['learning_rate']:g} where it converges (dotted)")
    axes.title.set_fontsize("small")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main(argv):
    """Prints the plan, and writes it."""
    command.run(argv, _plan)


def _plan():
    from asgd.training import loop, planning

    loop.use_compilation_cache()
    config, workdir = flags.FLAGS.config, flags.FLAGS.workdir and pathlib.Path(flags.FLAGS.workdir)
    plan = planning.make_plan(config, workdir)
    plan["explanation"] = explain(plan)
    print(f"{table(plan)}\n\n{plan['explanation']}")
    if workdir:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "plan.json").write_text(json.dumps(plan, indent=1, allow_nan=False) + "\n")
        draw(plan, workdir / "plan.png")


if __name__ == "__main__":
    _CONFIG, _ = command.define("Directory for plan.json and plan.png.", workdir_required=False)
    app.run(main, flags_parser=command.parser(_CONFIG))
