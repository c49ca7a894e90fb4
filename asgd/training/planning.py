"""Makes a plan from a config: times of its cluster, curvature of its task, predictions."""

import math
import pathlib
from typing import Any, Callable

import jax
import numpy as np
import optax

from asgd import emulation, theory
from asgd.cluster import Trace, protocols as protocol_lib, timing as timing_lib
from asgd.theory import on_trace, planner
from asgd.training import validation
from asgd.training.build import build, make_timing, read_trace
from asgd.training.checkpoints import Checkpoints
from asgd.training.fields import check_number
from asgd.training.workdir import check_unchanged, workdir_path
from asgd.transforms import rule_from_text

CHOICES: dict[str, Callable[[int], Any]] = {
    # Where a protocol has a number to choose, one that is a common compromise.
    "hardsync": lambda workers: protocol_lib.hardsync(),
    "backup_workers": lambda workers: protocol_lib.backup_workers(
        spare=min(workers - 1, -(-workers // 8))),
    "k_sync": lambda workers: protocol_lib.k_sync(k=-(-3 * workers // 4)),
    "k_async": lambda workers: protocol_lib.k_async(k=-(-workers // 2)),
    "softsync": lambda workers: protocol_lib.softsync(n=min(4, workers)),
    "asynchronous": lambda workers: protocol_lib.asynchronous(),
    "ssp": lambda workers: protocol_lib.ssp(s=3),
    "staleness_threshold": lambda workers: protocol_lib.staleness_threshold(s=workers),
}


def make_plan(config: Any, workdir: pathlib.Path | None = None) -> dict[str, Any]:
    """Returns the plan of a config as a JSON-able dict.

    Args:
      config: the fields of ``configs/default.py``; those under ``plan`` say what to compare.
      workdir: of a run at whose last checkpoint curvature is measured, or None.

    Raises:
      ConfigError: naming the field.
    """
    validation.validate(config)
    _check(config)
    fields = config.plan
    problem, about = _problem(config, workdir)
    scale = None
    if config.algorithm == "staleness_aware":
        scale = rule_from_text(config.staleness_rule)
    try:
        clock = _clock(config)
        rows = planner.plan(
            problem, {name: CHOICES[name] for name in fields.protocols}, clock, sorted(set(fields.workers)),
            config.learning_rate, fields.target, momentum=config.momentum, scale=scale,
            seed=config.seed)
    except ValueError as error:
        raise validation.ConfigError(f"plan: {error}") from None

    def diverges(name, workers):
        trace = on_trace.long_trace(CHOICES[name](workers), clock(workers), workers, config.seed)
        step = config.learning_rate * problem.eigenvalues[:1]
        return on_trace.rates_on_trace(trace, step, config.momentum, scale=scale)[0] < 0

    limits = {name: _limits([row for row in rows if row.protocol == name],
                            lambda workers, name=name: diverges(name, workers))
              for name in fields.protocols}
    reached = [row for row in rows if row.time_to_target is not None]
    least = min((row.time_to_target for row in reached), default=None)
    # Of what is as fast within 2 per cent, the fewest workers.
    best = min((row for row in reached if row.time_to_target <= 1.02 * least),
               key=lambda row: (row.workers, row.time_to_target), default=None)
    return {"learning_rate": config.learning_rate, "target": fields.target, "curvature": about,
            "rows": [row._asdict() for row in rows], "limits": limits,
            "best": best and best._asdict()}


def _check(config):
    fields = config.plan
    if config.algorithm not in validation.ALGORITHMS:
        raise validation.ConfigError(f"algorithm={config.algorithm!r} has no plan: it must be one of "
                                     f"{', '.join(validation.ALGORITHMS)}")
    check_number(config, "learning_rate", above=0)
    if not fields.workers:
        raise validation.ConfigError("plan.workers must hold integers of at least 1, got ()")
    for name in fields.protocols:
        if name not in CHOICES:
            raise validation.ConfigError(f"plan.protocols must be among {', '.join(CHOICES)}, got {name!r}")
    if not fields.protocols:
        raise validation.ConfigError("plan.protocols must name at least one protocol")
    if len(fields.eigenvalues) not in (0, 2):
        raise validation.ConfigError("plan.eigenvalues must be the largest and the smallest, or () to "
                                     f"estimate them, got {tuple(fields.eigenvalues)}")


def _clock(config):
    """Returns a function from the number of workers to their timing."""
    if config.trace_path:
        measured = timing_lib.fit(read_trace(config, "trace_path"), distributions=("empirical",))
        return lambda workers: measured

    def clock(workers):
        config_of = config.copy_and_resolve_references()
        config_of.cluster.num_workers = workers
        return make_timing(config_of)

    return clock


def _problem(config, workdir):
    fields = config.plan
    given = {"eigenvalues": len(fields.eigenvalues) == 2, "excess": fields.excess is not None,
             "noise": fields.noise is not None}
    measured = {} if all(given.values()) else _measure(config, workdir)
    if given["eigenvalues"]:
        largest, smallest = fields.eigenvalues
    else:
        largest = measured["largest_eigenvalue"]
        smallest = largest / fields.condition
    noise = fields.noise if given["noise"] else measured["noise"]
    excess = fields.excess if given["excess"] else measured["loss"]
    try:
        problem = planner.make_problem(largest, smallest, excess=excess, noise=noise)
    except ValueError as error:
        raise validation.ConfigError(f"plan.eigenvalues, plan.excess or plan.noise: {error}") from None
    return problem, {"largest": largest, "smallest": smallest, "noise": noise, "excess": excess,
                     "measured": measured or None}


def _measure(config, workdir):
    """Estimates curvature, noise and loss on the task's training batches."""
    run = build(config)
    points = {"checkpoint": _checkpoint(run, config, workdir)}
    if points["checkpoint"] is None:
        points = _short_run(run, config)
    rows = run.task.batches(run.sampler)(np.arange(config.plan.batches))
    batches = [jax.tree.map(lambda x, e=e: x[e], rows) for e in range(config.plan.batches)]
    measured = {name: _measure_at(run.task.loss_fn, *point, batches) for name, point in points.items()}
    # What is stable at the steepest point is stable at the others.
    steepest = max(measured.values(), key=lambda point: point["largest_eigenvalue"])
    first = next(iter(measured.values()))
    return {"batches": len(batches), "batch_size": config.batch_size, **steepest,
            "loss": first["loss"], "points": measured}


def _checkpoint(run, config, workdir):
    """Returns parameters and model state at a run's last checkpoint, or None."""
    if not (workdir and (workdir / "checkpoints").exists() and (workdir / "config.json").exists()):
        return None
    workdir = workdir_path(workdir)
    check_unchanged(config, workdir / "config.json")
    emulator = run.emulator(*run.task.init(config.seed), config, [])
    checkpoints = Checkpoints(workdir, config.checkpoint.keep, emulator.describe())
    found = checkpoints.newest(emulator.saved())
    checkpoints.close()
    if not found:
        return None
    state = emulator.load(found.arrays)
    return emulator.params(state), emulator.model_state(state)


def _short_run(run, config):
    """Returns parameters and model states along a run of sequential SGD at the learning rate."""
    params, model_state = run.task.init(config.seed)
    points, total = {"0 gradients": (params, model_state)}, config.plan.gradients
    cuts = sorted({0, total // 10, total // 3, total})
    sequential = Trace(worker=np.zeros(total, int), read_version=np.arange(total))
    emulator = emulation.make_emulator(
        run.task.loss_fn, optax.sgd(config.learning_rate, config.momentum or None), params, sequential,
        run.task.batches(run.sampler), model_state=model_state, seed=config.seed, cuts=cuts)
    state = emulator.init()
    for start, stop in zip(cuts, cuts[1:]):
        try:
            state, _ = emulator.run(state, start, stop)
        except FloatingPointError:  # It diverges: the points so far must do.
            break
        points[f"{stop} gradients"] = emulator.params(state), emulator.model_state(state)
    return points


def _measure_at(loss, params, model_state, batches):
    has_aux = model_state is not None
    found = theory.extreme_eigenvalues(loss, params, batches, has_aux=has_aux, tolerance=1e-2,
                                       eigenvectors=True)
    noise = theory.gradient_noise(loss, params, batches, directions=found.largest_vectors,
                                  has_aux=has_aux)
    keys = [jax.random.key(e) for e in range(len(batches))]
    values = [loss(params, batch, key) for batch, key in zip(batches, keys)]
    scale = noise.noise_scale
    return {"largest_eigenvalue": float(found.largest[0]),
            "smallest_eigenvalue": float(found.smallest[0]), "noise": float(noise.along[0]),
            "noise_scale": scale if math.isfinite(scale) else None,
            "loss": float(np.mean([value[0] if has_aux else value for value in values]))}


def _limits(rows, diverges):
    """From which number of workers on more do not help, and which is the first to diverge."""
    times = [math.inf if row.time_to_target is None else row.time_to_target for row in rows]
    enough = next((row.workers for row, time in zip(rows, times)
                   if math.isfinite(time) and time <= 1.05 * min(times)), None)
    unstable = sorted(row.workers for row in rows if row.verdict == "diverges")
    first = unstable[0] if unstable else None
    low = max((row.workers for row in rows if first and row.workers < first), default=None)
    while low is not None and first - low > 1:
        middle = (low + first) // 2
        low, first = (low, middle) if diverges(middle) else (middle, first)
    return {"enough_workers": enough, "first_diverging": first}
