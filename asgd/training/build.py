"""Makes a run's trace, task and transformations from its config."""

from typing import Any, Callable, Optional

import jax.numpy as jnp
import numpy as np
import optax

from asgd import transforms
from asgd.cluster import Trace, simulate, timing
from asgd.training.cluster_fields import make_protocol
from asgd.training.fields import LARGEST, get_field
from asgd.training.server_run import ServerRun
from asgd.training.validation import (
    AVERAGING_ALGORITHMS,
    GOSSIP_ALGORITHMS,
    ConfigError,
    check_model,
    check_trace,
)
from asgd.workloads import datasets, models, sampling, task as task_lib, text


def build(config: Any) -> Any:
    """Builds a run; see the fields in ``configs/default.py``.

    Raises:
      ConfigError: naming the field that does not fit the data or the trace.
    """
    task = make_task(config)
    worker_tx = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else None
    if config.algorithm in GOSSIP_ALGORITHMS:
        from asgd.training import build_gossip  # Imports networkx.

        return build_gossip.build(config, task, worker_tx)
    try:
        sampler = sampling.EventSampler(
            task.num_examples, config.batch_size, config.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.algorithm in AVERAGING_ALGORITHMS:
        from asgd.training import build_averaging

        return build_averaging.build(config, task, sampler, worker_tx)
    if config.mode == "record":
        from asgd.training import build_recording

        return build_recording.build(config, task, sampler, worker_tx)
    trace = make_trace(config, sampler.num_examples)
    check_model(config, trace, task)
    return ServerRun(task, sampler, trace, make_tx(config, trace, sampler.num_examples), worker_tx,
                     config.batch_size)


def make_task(config: Any) -> task_lib.Task:
    """Loads the data and builds the model."""
    fields, data = config.model, config.dataset
    if data.name in text.NAMES:
        try:
            dataset = text.load(data.name, data.length, data.data_dir or None, data.path)
        except ValueError as error:
            raise ConfigError(f"dataset: {error}") from None
        return text.TextTask(dataset, models.create(
            fields.name, text.VOCABULARY, width=fields.width, layers=fields.layers,
            heads=fields.heads))
    dataset = datasets.load(
        data.name, data.data_dir or None, streaming=data.streaming, image_size=data.image_size,
        augment=data.augment, read_threads=data.read_threads, prefetch=data.prefetch)
    options = {"hidden": tuple(fields.hidden)} if fields.name == "mlp" else {}
    model = models.create(fields.name, dataset.num_classes, **options)
    # ImageNet's pictures are cut where they are read, as they differ in size.
    return task_lib.make_task(dataset, model, augment=data.augment and data.name != "imagenet")


def make_trace(config: Any, num_examples: int) -> Trace:
    """Loads the trace at ``trace_path``, or simulates the cluster.

    It is cut to ``num_gradients`` events, or to ``num_epochs`` passes of applied samples.
    """
    wanted = num_gradients(config, num_examples)
    if config.trace_path:
        trace = read_trace(config, "trace_path")
        check_trace(config, trace)
        length = len(trace) if wanted is None else _events(config, trace, wanted)
        return trace if length >= len(trace) else trace.head(length)

    clock = make_timing(config)
    try:
        protocol, length = make_protocol(config), wanted
        while True:
            trace = simulate(protocol, clock, config.cluster.num_workers, length, config.seed)
            needed = _events(config, trace, wanted)
            if needed == length:
                return trace
            length = needed
    except ValueError as error:
        raise ConfigError(f"cluster: {error}") from None


def read_trace(config: Any, field: str) -> Trace:
    """Reads the saved trace, or the log of a cluster, that a field names; else ConfigError."""
    path = get_field(config, field)
    try:
        return (Trace.from_csv if path.endswith(".csv") else Trace.load)(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{field}: {error}") from None


def _events(config, trace, wanted):
    """How many events it takes: to apply as many, for epochs. Beyond the trace's end a guess."""
    applied = np.cumsum(trace.applied)
    if config.num_gradients is not None or applied[-1] == len(trace):
        return wanted
    if applied[-1] >= wanted:
        return int(np.searchsorted(applied, wanted)) + 1
    return int(1.1 * len(trace) * wanted / max(1, applied[-1])) + 1


def make_timing(config: Any) -> timing.Timing:
    """Builds the cluster's timing."""
    cluster, compute = config.cluster, config.cluster.compute_time
    if cluster.times_from:
        trace = read_trace(config, "cluster.times_from")
        try:
            return timing.fit(trace)
        except ValueError as error:
            raise ConfigError(f"cluster.times_from: {error}") from None
    slowdown = np.resize(cluster.slowdown, cluster.num_workers) if cluster.slowdown else None
    try:
        return timing.Timing(
            timing.from_name(compute.distribution, compute.mean, compute.cv),
            pull=cluster.pull_time, push=cluster.push_time, slowdown=slowdown)
    except ValueError as error:
        raise ConfigError(f"cluster.compute_time: {error}") from None


def num_gradients(config: Any, num_examples: int) -> Optional[int]:
    """Returns how many gradients a config asks for, or None."""
    if config.num_gradients is not None or config.num_epochs is None:
        return config.num_gradients
    number = int(np.ceil(config.num_epochs * num_examples / config.batch_size))
    if number > LARGEST:
        raise ConfigError(f"num_epochs={config.num_epochs} are {number} gradients of batch_size="
                          f"{config.batch_size}, but a run has at most {LARGEST}")
    return number


def updates_at(trace: Trace, epochs: float, num_examples: int, batch_size: int) -> int:
    """Returns how many updates the server has made after so many passes of applied samples.

    Beyond the trace's end its average pace is continued.
    """
    applied = epochs * num_examples / batch_size
    total = int(trace.applied.sum())
    if applied >= total:
        return round(applied * trace.num_updates / max(1, total))
    event = int(np.searchsorted(np.cumsum(trace.applied), applied, side="left"))
    return int(trace.version[event]) + int(trace.updates[event]) if applied > 0 else 0


def make_tx(config: Any, trace: Trace, num_examples: int):
    """Builds the algorithm: per gradient, average until the update, then SGD."""
    def updates(epochs):
        return updates_at(trace, epochs, num_examples, config.batch_size)

    rate = make_schedule(config, updates, trace.num_updates)
    options = dict(momentum=config.momentum or None, nesterov=config.nesterov,
                   weight_decay=config.weight_decay)
    if config.algorithm == "staleness_aware":
        return transforms.staleness_aware_sgd(rate, rule=config.staleness_rule, **options)
    if config.algorithm in ("dc_asgd_c", "dc_asgd_a"):
        given = config.compensation
        default = 0.04 if config.algorithm == "dc_asgd_c" else 2.0
        strength = default if given.strength is None else given.strength
        if given.factor != 1:
            strength = optax.piecewise_constant_schedule(
                strength, _drops(config, updates, given.factor))
        if config.algorithm == "dc_asgd_c":
            return transforms.dc_asgd_c(rate, strength, **options)
        workers = trace.num_workers if given.per_worker else None
        return transforms.dc_asgd_a(rate, strength, given.decay, given.eps, num_workers=workers,
                                    **options)
    return transforms.staleness_aware_sgd(rate, rule="constant", **options)


def make_schedule(config: Any, updates_at: Callable[[float], int], num_updates: int, *,
                  factor: Optional[float] = None) -> optax.ScalarOrSchedule:
    """Builds the learning rate over updates.

    Args:
      config: with ``learning_rate``, ``schedule`` and what belongs to it.
      updates_at: function from epochs, passes of applied samples, to updates made by then.
      num_updates: updates of the run.
      factor: of linear scaling, on the whole schedule; warm-up then begins at the unscaled rate,
        and not at 0.
    """
    rate = config.learning_rate * (factor or 1)
    least = 1 / factor if factor else 0.0
    if config.schedule == "step":
        schedule = optax.piecewise_constant_schedule(
            rate, _drops(config, updates_at, config.schedule_factor))
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(rate, max(1, num_updates))
    else:
        schedule = rate
    warmup = updates_at(config.warmup_epochs)
    if not warmup:
        return schedule

    def warmed(count):
        now = schedule(count) if callable(schedule) else schedule
        return now * (least + (1 - least) * jnp.minimum(1.0, (count + 1) / float(warmup)))

    return warmed


def _drops(config, updates_at, factor):
    drops = {}
    for epoch in config.schedule_epochs:
        update = updates_at(epoch)
        if update < 2**31:  # Counts are int32.
            drops[update] = drops.get(update, 1.0) * factor
    return drops
