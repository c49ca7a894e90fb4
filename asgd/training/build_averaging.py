"""Makes a run of local steps and averaging from its config."""

from typing import Any, Optional

import numpy as np
import optax

from asgd import transforms
from asgd.cluster import averaging
from asgd.cluster.averaging import TAKE, AveragingSchedule
from asgd.training import build as build_server
from asgd.training.averaging_run import AveragingRun
from asgd.training.validation import ConfigError
from asgd.workloads import sampling, task as task_lib


def build(config: Any, task: task_lib.Task, sampler: sampling.EventSampler,
          worker_tx: Optional[optax.GradientTransformation]) -> AveragingRun:
    """Builds a run; see the fields under ``averaging`` in ``configs/default.py``.

    Raises:
      ConfigError: naming the field that does not fit.
    """
    schedule = make_schedule(config, sampler.num_examples)
    tx, outer_tx = make_txs(config, schedule, sampler.num_examples)
    return AveragingRun(task, sampler, schedule, tx, outer_tx, _elasticity(config, schedule),
                        worker_tx, config.batch_size)


def make_schedule(config: Any, num_examples: int) -> AveragingSchedule:
    """Loads the schedule at ``trace_path``, or makes one for the cluster."""
    fields, cluster, workers = config.averaging, config.cluster, config.cluster.num_workers
    wanted = build_server.num_gradients(config, num_examples)
    if config.trace_path:
        try:
            schedule = AveragingSchedule.load(config.trace_path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"trace_path: {error}") from None
        keeps = not (schedule.action == TAKE).any()
        if keeps != (config.algorithm == "elastic_averaging") or not len(schedule):
            raise ConfigError(f"trace_path={config.trace_path!r} and algorithm={config.algorithm!r} do "
                              "not fit: the schedule has "
                              + ("no gradients" if not len(schedule) else
                                 f"{'no ' * keeps}workers that take the server's copy"))
        if config.num_gradients is not None and wanted > len(schedule):
            raise ConfigError(f"num_gradients={wanted}, but the schedule at trace_path="
                              f"{config.trace_path!r} has {len(schedule)}")
        return schedule if wanted is None or wanted >= len(schedule) else schedule.head(wanted)
    clock = build_server.make_timing(config)
    options = dict(timing=clock, merge_time=fields.merge_time, seed=config.seed)
    try:
        if config.algorithm == "delayed_averaging" and fields.schedule == "whenever_ready":
            return averaging.whenever_ready(workers, wanted, fields.max_drift, **options)
        if config.algorithm in ("delayed_averaging", "local_sgd"):
            delay = 0 if config.algorithm == "local_sgd" else fields.delay
            return averaging.cyclic(workers, -(-wanted // workers), fields.period, delay=delay,
                                    **options)
        steps = fields.period
        if config.algorithm == "async_diloco" and fields.proportional_steps:
            steps = proportional_steps(fields.period, clock.slowdowns(workers))
        return averaging.independent(workers, wanted, steps, takes=config.algorithm == "async_diloco",
                                     **options)
    except ValueError as error:
        raise ConfigError(f"averaging: {error}") from None


def proportional_steps(period: int, slowdowns: np.ndarray) -> list[int]:
    """Returns each worker's local steps, in proportion to its speed: floor(H v / max v).

    Example:
      >>> proportional_steps(8, np.array([1.0, 1.0, 4.0]))
      [8, 8, 2]
    """
    speeds = 1 / np.asarray(slowdowns, float)
    # The ratio of equal speeds is 1 but for a rounding.
    return [max(1, int(s)) for s in np.floor(period * speeds / speeds.max() + 1e-9)]


def make_txs(config: Any, schedule: AveragingSchedule, num_examples: int):
    """Builds what workers do in a local step, and what the server does with the mean update."""
    fields, workers = config.averaging, schedule.num_workers

    def steps(epochs):
        return round(epochs * num_examples / (config.batch_size * workers))

    rate = build_server.make_schedule(config, steps, -(-len(schedule) // workers),
                                      factor=workers if fields.linear_scaling else None)
    tx = optax.sgd(rate, config.momentum or None, config.nesterov)
    if config.weight_decay:
        tx = optax.chain(optax.add_decayed_weights(config.weight_decay), tx)
    if config.algorithm == "elastic_averaging":
        return tx, None
    if config.algorithm == "async_diloco":
        return tx, transforms.delayed_nesterov(
            fields.outer_learning_rate, fields.outer_momentum, every=workers,
            spread=fields.spread / workers)
    momentum = fields.outer_momentum
    return tx, optax.sgd(fields.outer_learning_rate, momentum or None, nesterov=bool(momentum))


def _elasticity(config, schedule):
    if config.algorithm != "elastic_averaging":
        return None
    given = config.averaging.elasticity
    return 0.9 / schedule.num_workers if given is None else given
