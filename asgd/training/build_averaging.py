"""Makes a run of local steps and averaging from its config."""

from typing import Any, Callable, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asgd import transforms
from asgd.cluster import averaging
from asgd.cluster.averaging import AveragingSchedule
from asgd.training import build as build_server
from asgd.training.averaging_run import AveragingRun
from asgd.training.validation import ConfigError
from asgd.workloads import sampling, task as task_lib


KINDS = {
    # algorithm: the schedules that make sense with it.
    "delayed_averaging": ("cyclic", "whenever_ready"),
    "local_sgd": ("cyclic",),
    "elastic_averaging": ("independent, kept", "cyclic, kept"),
    "async_diloco": ("independent",),
}


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
    fields, workers = config.averaging, config.cluster.num_workers
    wanted = build_server.num_gradients(config, num_examples)
    if config.trace_path:
        try:
            schedule = AveragingSchedule.load(config.trace_path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"trace_path: {error}") from None
        if not len(schedule):
            raise ConfigError(f"trace_path={config.trace_path!r} has no gradients")
        if schedule.kind and schedule.kind not in KINDS[config.algorithm]:
            raise ConfigError(f"trace_path={config.trace_path!r} and algorithm={config.algorithm!r} do "
                              f"not fit: the schedule is {schedule.kind}, and this algorithm takes "
                              f"{' or '.join(KINDS[config.algorithm])}")
        if config.num_gradients is not None and wanted > len(schedule):
            raise ConfigError(f"num_gradients={wanted}, but the schedule at trace_path="
                              f"{config.trace_path!r} has {len(schedule)}")
        return schedule if wanted is None or wanted >= len(schedule) else schedule.head(wanted)
    clock = build_server.make_timing(config)
    options = dict(timing=clock, merge_time=fields.merge_time, measure_every=fields.measure_every,
                   seed=config.seed)
    try:
        if config.algorithm == "delayed_averaging" and fields.schedule == "whenever_ready":
            return averaging.whenever_ready(workers, wanted, fields.max_drift, **options)
        if config.algorithm in ("delayed_averaging", "local_sgd"):
            delay = 0 if config.algorithm == "local_sgd" else fields.delay
            whole = averaging.cyclic(
                workers, -(-wanted // workers), fields.period, delay=delay, **options)
            return whole.head(wanted)
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
    """Builds what workers do in a local step, and what the server does with the mean update.

    A schedule of the learning rate is clocked by the gradients of all workers, over their number,
    so that slow and fast workers have the same rate at a time.
    """
    fields, workers = config.averaging, schedule.num_workers

    def steps(epochs):
        return round(epochs * num_examples / (config.batch_size * workers))

    rate = build_server.make_schedule(config, steps, -(-len(schedule) // workers),
                                      factor=workers if fields.linear_scaling else None)
    tx = optax.sgd(1.0 if callable(rate) else rate, config.momentum or None, config.nesterov)
    if callable(rate):
        tx = optax.chain(tx, scale_by_events(lambda number: rate(number // workers)))
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


def scale_by_events(factor: Callable[[Any], Any]) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by a function of the event's number."""
    def update_fn(updates, state, params=None, *, number, **extra_args):
        now = factor(number)
        return jax.tree.map(lambda u: jnp.asarray(now, u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)


def _elasticity(config, schedule):
    if config.algorithm != "elastic_averaging":
        return None
    given = config.averaging.elasticity
    return 0.9 / schedule.num_workers if given is None else given
