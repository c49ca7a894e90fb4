"""Refuses a config before anything expensive starts, naming the field and what it may be."""

import importlib.util
import logging
from typing import Any

import jax
import numpy as np

from asgd.training import cluster_fields
from asgd.training.cluster_fields import ALGORITHMS
from asgd.training.every_field import AVERAGING_ALGORITHMS, GOSSIP_ALGORITHMS, check_every_field
from asgd.training.fields import (
    ConfigError,
    check_file,
    check_integer,
    get_field,
    short,
)
from asgd.transforms import rule_from_text
from asgd.workloads import text

log = logging.getLogger("asgd")


def validate(config: Any) -> None:
    """Raises ConfigError for the first field that is wrong or does not fit another."""
    check_every_field(config)
    if (config.dataset.name in text.NAMES) != (config.model.name == "transformer"):
        raise ConfigError(f"dataset.name={config.dataset.name!r} and model.name="
                          f"{config.model.name!r} do not fit: the transformer is for text")
    _data(config)
    if config.model.width % config.model.heads:
        raise ConfigError(f"model.width={config.model.width} must be a multiple of model.heads="
                          f"{config.model.heads}")
    if config.nesterov and not config.momentum:
        raise ConfigError("nesterov=True and momentum=0 do not fit: Nesterov's needs a momentum")
    _lengths(config)
    if config.algorithm in GOSSIP_ALGORITHMS:
        _needs_gradients_at_server(config)
    elif config.algorithm in AVERAGING_ALGORITHMS:
        _averaging(config)
    else:
        cluster_fields.check(config)
    _rule(config)
    _devices(config)
    if config.mode == "record":
        _recording(config)
    _files(config)


def _data(config):
    data = config.dataset
    if data.augment and data.name not in ("cifar10", "imagenet"):
        raise ConfigError(f"dataset.augment=True is for cifar10 and imagenet, but dataset.name="
                          f"{data.name!r}: crops and flips change what a digit is")
    if data.streaming == "always" and data.name in ("digits", *text.NAMES):
        raise ConfigError(f"dataset.streaming='always' and dataset.name={data.name!r} do not fit: it "
                          "is for images on disk")
    if data.streaming == "never" and data.name == "imagenet":
        raise ConfigError("dataset.streaming='never' and dataset.name='imagenet' do not fit: it is "
                          "for data that fits in memory")
    if data.name == "imagenet" and config.algorithm in GOSSIP_ALGORITHMS and config.gossip.split == "label":
        raise ConfigError("gossip.split='label' and dataset.name='imagenet' do not fit: its labels "
                          "are not known without reading the images")
    if data.name == "text" and not data.path:
        raise ConfigError("dataset.path must name a file when dataset.name='text'")


def _files(config):
    read = {"dataset.path": config.dataset.name == "text", "trace_path": config.trace_path,
            "cluster.times_from": config.cluster.times_from}
    for name, wanted in read.items():
        if wanted:
            check_file(config, name)


def _lengths(config):
    # A trace has a length of its own, a gossip schedule need not have one.
    needed = not config.trace_path or config.algorithm in GOSSIP_ALGORITHMS
    if needed and config.num_epochs is None and config.num_gradients is None:
        raise ConfigError("num_epochs or num_gradients must be set")
    if config.schedule == "step" and not config.schedule_epochs:
        raise ConfigError("schedule='step' needs schedule_epochs, the epochs where the rate drops")
    if list(config.schedule_epochs) != sorted(config.schedule_epochs):
        raise ConfigError(f"schedule_epochs must grow, got {tuple(config.schedule_epochs)}")


def _devices(config):
    if config.emulation.backend in ("jit", "debug") and config.emulation.num_devices != 1:
        raise ConfigError(f"emulation.backend={config.emulation.backend!r} and "
                          f"emulation.num_devices={config.emulation.num_devices} do not fit: "
                          "that backend runs on one device")


def _averaging(config):
    fields = config.averaging
    if fields.delay is not None:
        check_integer(config, "averaging.delay", least=0, most=fields.period)
        if config.algorithm != "delayed_averaging" or fields.schedule != "cyclic":
            raise ConfigError(f"averaging.delay={fields.delay} and algorithm={config.algorithm!r} with "
                              f"averaging.schedule={fields.schedule!r} do not fit: it is for "
                              "delayed_averaging in cycles")
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
    other = [name for name in sorted(theirs | mine) if theirs.get(name) != mine.get(name)]
    for name in other[:1]:
        raise ConfigError(
            f"trace_path={config.trace_path!r} was recorded with another model than model.name="
            f"{config.model.name!r} with {config.dataset.name}: parameter {name} was "
            f"{short(str(theirs.get(name, 'not there')))}, and is {mine.get(name, 'not there')}")
    now = {"seed": config.seed, "batch_size": config.batch_size, "dataset": config.dataset.name}
    for name, value in now.items():
        if recording.get(name, value) != value:
            log.warning("%s was recorded with %s=%s, and is replayed with %s: it will not end with the "
                        "same parameters", config.trace_path, name, recording[name], value)
