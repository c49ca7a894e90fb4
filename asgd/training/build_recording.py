"""Makes a recording from its config."""

from typing import Any

from asgd.recording import Log
from asgd.training import build as build_lib
from asgd.training.cluster_fields import make_protocol
from asgd.training.recording_run import RecordingRun
from asgd.training.validation import ConfigError


def build(config: Any, task: Any, sampler: Any, worker_tx: Any) -> RecordingRun:
    """Builds a recording; see `asgd.training.build.build`."""
    length = build_lib.num_gradients(config, sampler.num_examples)
    try:
        log = Log(make_protocol(config), config.cluster.num_workers, length)
    except ValueError as error:
        raise ConfigError(f"cluster: {error}") from None
    return RecordingRun(
        task, sampler, log, build_lib.make_tx(config, log, sampler.num_examples), worker_tx,
        config.batch_size, _sleep(config))


def _sleep(config):
    """Returns the cluster's times in seconds of sleep, or None."""
    scale = config.recording.sleep
    if not scale:
        return None
    config = config.copy_and_resolve_references()
    config.cluster.compute_time.mean *= scale
    config.cluster.pull_time *= scale
    config.cluster.push_time *= scale
    return build_lib.make_timing(config)
