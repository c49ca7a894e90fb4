"""Refuses a config before anything expensive starts, naming the field and what it may be."""

import importlib.util
import json
import logging
import math
from typing import Any

import jax
import numpy as np

from asgd.cluster import timing
from asgd.training import cluster_fields
from asgd.training.cluster_fields import ALGORITHMS
from asgd.training.fields import ConfigError, check_number, check_one_of, get_field
from asgd.transforms import rule_from_text
from asgd.workloads import datasets, models, text

log = logging.getLogger("asgd")
GOSSIP_ALGORITHMS = ("dsgd", "p_asgd", "c_asgd", "pc_asgd", "pc_asgd_pv", "ad_psgd")
AVERAGING_ALGORITHMS = ("delayed_averaging", "local_sgd", "elastic_averaging", "async_diloco")


def validate(config: Any) -> None:
    """Raises ConfigError for the first field that is wrong or does not fit another."""
    check_one_of(config, "mode", ("emulate", "record"))
    check_one_of(config, "recorder", ("threads", "ray"))
    check_one_of(config, "algorithm", (*ALGORITHMS, *GOSSIP_ALGORITHMS, *AVERAGING_ALGORITHMS))
    check_one_of(config, "dataset.name", (*datasets.NAMES, *text.NAMES))
    check_one_of(config, "model.name", models.NAMES)
    if (config.dataset.name in text.NAMES) != (config.model.name == "transformer"):
        raise ConfigError(f"dataset.name={config.dataset.name!r} and model.name="
                          f"{config.model.name!r} do not fit: the transformer is for text")
    check_one_of(config, "schedule", ("constant", "cosine", "step"))
    check_one_of(config, "cluster.protocol", ("auto", *cluster_fields.PROTOCOLS))
    check_one_of(config, "cluster.pull", ("after", "before"))
    check_one_of(config, "cluster.compute_time.distribution", timing.NAMES)
    check_one_of(config, "emulation.backend", ("shard_map", "pmap", "jit", "debug"))
    check_one_of(config, "emulation.layout", ("sharded", "replicated"))
    check_one_of(config, "emulation.snapshot_dtype", ("", "bfloat16", "float16"))

    for name in ("batch_size", "cluster.num_workers", "emulation.num_devices",
                 "dataset.length", "model.width", "model.layers", "model.heads",
                 "emulation.events_per_device", "log_every", "checkpoint.every_gradients",
                 "checkpoint.keep"):
        check_number(config, name, least=1)
    for name in ("seed", "cluster.softsync_n", "emulation.waves_per_call"):
        check_number(config, name, least=0)
    check_number(config, "recording.sleep", least=0, most=1e6)
    for name in ("recording.cpus_per_worker", "recording.gpus_per_worker",
                 "learning_rate", "weight_decay", "clip_norm", "warmup_epochs",
                 "cluster.pull_time", "cluster.push_time", "compensation.eps"):
        check_number(config, name, least=0)
    for name in ("momentum", "compensation.decay", "model_state_decay"):
        check_number(config, name, least=0, below=1)
    for name in ("cluster.compute_time.mean", "evaluate_every_epochs", "schedule_factor",
                 "compensation.factor"):
        check_number(config, name, above=0)
    if config.compensation.strength is not None:
        check_number(config, "compensation.strength")
    for name in ("schedule_epochs", "cluster.slowdown", "model.hidden"):
        for value in get_field(config, name):
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must hold positive numbers, got {value!r}")
    if config.dataset.augment and config.dataset.name != "cifar10":
        raise ConfigError(f"dataset.augment=True is for cifar10, but dataset.name="
                          f"{config.dataset.name!r}: crops and flips change what a digit is")
    if not all(isinstance(width, int) for width in config.model.hidden):
        raise ConfigError(f"model.hidden must hold integers, got {tuple(config.model.hidden)}")
    if config.model.width % config.model.heads:
        raise ConfigError(f"model.width={config.model.width} must be a multiple of model.heads="
                          f"{config.model.heads}")
    if config.nesterov and not config.momentum:
        raise ConfigError("nesterov=True and momentum=0 do not fit: Nesterov's needs a momentum")
    if config.dataset.name == "text" and not config.dataset.path:
        raise ConfigError("dataset.path must name a file when dataset.name='text'")
    _lengths(config)
    if config.algorithm in GOSSIP_ALGORITHMS:
        _gossip(config)
    elif config.algorithm in AVERAGING_ALGORITHMS:
        _averaging(config)
    else:
        cluster_fields.check(config)
    _rule(config)
    _devices(config)
    if config.mode == "record":
        _recording(config)


def _lengths(config):
    # A trace has a length of its own, a gossip schedule need not have one.
    needed = not config.trace_path or config.algorithm in GOSSIP_ALGORITHMS
    if needed and config.num_epochs is None and config.num_gradients is None:
        raise ConfigError("num_epochs or num_gradients must be set")
    if config.num_epochs is not None:
        check_number(config, "num_epochs", above=0)
    if config.num_gradients is not None:
        check_number(config, "num_gradients", least=1, below=2**31)
    if config.schedule == "step" and not config.schedule_epochs:
        raise ConfigError("schedule='step' needs schedule_epochs, the epochs where the rate drops")
    if list(config.schedule_epochs) != sorted(config.schedule_epochs):
        raise ConfigError(f"schedule_epochs must grow, got {tuple(config.schedule_epochs)}")


def _devices(config):
    if config.emulation.backend in ("jit", "debug") and config.emulation.num_devices != 1:
        raise ConfigError(f"emulation.backend={config.emulation.backend!r} and "
                          f"emulation.num_devices={config.emulation.num_devices} do not fit: "
                          "that backend runs on one device")


def _gossip(config):
    check_one_of(config, "gossip.graph",
                 ("two_cliques", "ring", "torus", "complete", "star", "erdos_renyi"))
    check_one_of(config, "gossip.mixing", ("metropolis", "uniform"))
    check_one_of(config, "gossip.split", ("random", "label"))
    check_one_of(config, "gossip.criterion", ("paper", "descent"))
    for name, least in (("gossip.num_agents", 2), ("gossip.delay", 0)):
        check_number(config, name, least=least, below=2**15)
    for name in ("gossip.theta", "gossip.delayed_fraction", "gossip.delay_probability",
                 "gossip.edge_probability"):
        check_number(config, name, least=0, most=1)
    check_number(config, "gossip.strength")
    check_number(config, "gossip.warmup_epochs", least=0)
    _needs_gradients_at_server(config)


def _averaging(config):
    check_one_of(config, "averaging.schedule", ("cyclic", "whenever_ready"))
    for name in ("averaging.period", "averaging.max_drift"):
        check_number(config, name, least=1)
    check_number(config, "averaging.measure_every", least=0)
    for name in ("averaging.merge_time", "averaging.outer_learning_rate"):
        check_number(config, name, least=0)
    check_number(config, "averaging.outer_momentum", least=0, below=1)
    check_number(config, "averaging.spread", least=0, most=1)
    fields = config.averaging
    if fields.delay is not None:
        check_number(config, "averaging.delay", least=0, most=fields.period)
        if config.algorithm != "delayed_averaging" or fields.schedule != "cyclic":
            raise ConfigError(f"averaging.delay={fields.delay} and algorithm={config.algorithm!r} with "
                              f"averaging.schedule={fields.schedule!r} do not fit: it is for "
                              "delayed_averaging in cycles")
    if fields.elasticity is not None:
        check_number(config, "averaging.elasticity", least=0, most=1)
    for name in ("cluster.pull_time", "cluster.push_time"):
        if get_field(config, name):
            raise ConfigError(f"{name}={get_field(config, name)!r} and algorithm={config.algorithm!r} do "
                              "not fit: communication takes averaging.merge_time")
    for name, value in cluster_fields.given(config).items():
        raise ConfigError(f"{name}={value!r} and algorithm={config.algorithm!r} do not fit: its "
                          "protocol is under averaging")
    if not config.trace_path:
        cluster_fields.check_slowdown(config)
    _needs_gradients_at_server(config)


def _needs_gradients_at_server(config):
    fixed = {"emulation.backend": ("debug",), "emulation.snapshot_dtype": ("bfloat16", "float16"),
             "emulation.events_per_device": range(2, 2**31)}
    for name, refused in fixed.items():
        if get_field(config, name) in refused:
            raise ConfigError(f"{name}={get_field(config, name)!r} and algorithm={config.algorithm!r} do "
                              "not fit: it is for algorithms whose gradients go to a server")


def _recording(config):
    """Refuses what cannot happen really."""
    def refuse(name, why):
        raise ConfigError(f"mode='record' and {name}={get_field(config, name)!r} do not fit: {why}")

    if config.algorithm not in ALGORITHMS:
        refuse("algorithm", "recordings have a server")
    if config.trace_path:
        refuse("trace_path", "a recording makes a trace")
    protocol = cluster_fields.protocol_of(config)
    if protocol not in cluster_fields.NEVER_WAITING:
        raise ConfigError(f"mode='record' and cluster.protocol={protocol!r} do not fit: it must be "
                          f"{' or '.join(cluster_fields.NEVER_WAITING)}, so algorithm one of those with "
                          "staleness")
    for name, allowed in (("cluster.pull", "after"), ("cluster.times_from", ""),
                          ("emulation.snapshot_dtype", ""),
                          ("emulation.events_per_device", 1)):
        if get_field(config, name) != allowed:
            refuse(name, f"it must be {allowed!r}")
    if config.emulation.backend == "debug":
        refuse("emulation.backend", "it steps through emulations")
    if config.recorder == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError("recorder='ray' needs the package ray: pip install 'asgd[ray]'")


def _rule(config):
    try:
        rule_from_text(config.staleness_rule)
    except ValueError as error:
        raise ConfigError(f"staleness_rule: {error}") from None


def check_trace(config: Any, trace: Any) -> None:
    """Raises ConfigError when a trace does not fit the algorithm or the requested length."""
    if not len(trace):
        raise ConfigError(f"trace_path={config.trace_path!r} has no gradients")
    stale = np.flatnonzero(trace.applied & (trace.staleness > 0))
    if config.algorithm in ("sgd", "ssgd") and stale.size:
        raise ConfigError(
            f"algorithm={config.algorithm!r} and trace_path={config.trace_path!r} do not fit: "
            f"the gradient at row {stale[0]} has staleness {trace.staleness[stale[0]]}, "
            "and a synchronous algorithm has none")
    if isinstance(trace.metadata.get("recording"), dict) and trace.num_workers != config.cluster.num_workers:
        raise ConfigError(f"trace_path={config.trace_path!r} was recorded with {trace.num_workers} "
                          f"workers, but cluster.num_workers={config.cluster.num_workers}")
    if config.num_gradients is not None and config.num_gradients > len(trace):
        raise ConfigError(f"num_gradients={config.num_gradients}, but the trace at trace_path="
                          f"{config.trace_path!r} has {len(trace)}")


def check_model(config: Any, trace: Any, task: Any) -> None:
    """Raises ConfigError when a trace was recorded with another model; warns of other data."""
    recording = trace.metadata.get("recording")
    theirs = recording.get("params") if isinstance(recording, dict) else None
    if not isinstance(theirs, dict):
        return
    from asgd.recording.recorder import signature

    mine = signature(jax.eval_shape(lambda: task.init(config.seed)[0]))
    other = sorted(theirs.items() ^ mine.items())
    if other:
        name = other[0][0]
        raise ConfigError(
            f"trace_path={config.trace_path!r} was recorded with another model than model.name="
            f"{config.model.name!r} with {config.dataset.name}: parameter {name} was "
            f"{theirs.get(name, 'not there')}, and is {mine.get(name, 'not there')}")
    now = {"seed": config.seed, "batch_size": config.batch_size, "dataset": config.dataset.name}
    for name, value in now.items():
        if recording.get(name, value) != value:
            log.warning("%s was recorded with %s=%s, and is replayed with %s: it will not end with the "
                        "same parameters", config.trace_path, name, recording[name], value)


def check_unchanged(config: Any, path: Any) -> None:
    """Raises ConfigError when the run at ``path`` (its config.json) had another config.

    Fields that change how a run is executed, but not what it computes, may differ.
    """
    free = ("emulation.num_devices", "emulation.backend", "emulation.layout",
            "emulation.waves_per_call", "dataset.data_dir", "checkpoint.keep")
    try:
        old = _flat(json.loads(path.read_text()))
    except ValueError as error:
        raise ConfigError(f"workdir: {path} cannot be read ({error}): choose a new workdir") from None
    new = _flat(json.loads(config.to_json()))
    changed = [name for name in sorted(old.keys() | new.keys())
               if old.get(name) != new.get(name) and name not in free
               and not name.startswith("plan.")]
    if changed:
        was = ", ".join(f"{name}={old.get(name)!r}, now {new.get(name)!r}" for name in changed)
        raise ConfigError(f"workdir holds a run with another config ({was}): choose a new workdir")


def _flat(tree, prefix=""):
    out = {}
    for name, value in tree.items():
        out.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict)
                   else {prefix + name: value})
    return out
