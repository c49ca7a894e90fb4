"""What every field of a config may be, whatever the others are."""

from typing import Any, Iterator

from ml_collections import config_dict

from asgd.cluster import timing
from asgd.cluster.checks import LONGEST_DELAY, MOST_AGENTS, MOST_WORKERS
from asgd.training import fields
from asgd.training.cluster_fields import ALGORITHMS, PROTOCOLS
from asgd.training.fields import ConfigError, get_field
from asgd.workloads import datasets, models, text

GOSSIP_ALGORITHMS = ("dsgd", "p_asgd", "c_asgd", "pc_asgd", "pc_asgd_pv", "ad_psgd")
AVERAGING_ALGORITHMS = ("delayed_averaging", "local_sgd", "elastic_averaging", "async_diloco")
_SECONDS = 1e9  # Of virtual time: sums of a run stay far from where they overflow or lose what is added.
_PASSES = 1e6  # As many epochs are beyond 2**31 gradients of any data set.

_ONE_OF = {
    "mode": ("emulate", "record"),
    "recorder": ("threads", "ray"),
    "on_nonfinite": ("stop", "skip"),
    "algorithm": (*ALGORITHMS, *GOSSIP_ALGORITHMS, *AVERAGING_ALGORITHMS),
    "dataset.name": (*datasets.NAMES, *text.NAMES),
    "dataset.streaming": datasets.STREAMING,
    "model.name": models.NAMES,
    "schedule": ("constant", "cosine", "step"),
    "cluster.protocol": ("auto", *PROTOCOLS),
    "cluster.on_late": ("drop", "cancel"),
    "cluster.pull": ("after", "before"),
    "cluster.compute_time.distribution": timing.NAMES,
    "averaging.schedule": ("cyclic", "whenever_ready"),
    "gossip.graph": ("two_cliques", "ring", "torus", "complete", "star", "erdos_renyi"),
    "gossip.mixing": ("metropolis", "uniform"),
    "gossip.split": ("random", "label"),
    "gossip.criterion": ("paper", "descent"),
    "emulation.backend": ("shard_map", "pmap", "jit", "debug"),
    "emulation.layout": ("sharded", "replicated"),
    "emulation.snapshot_dtype": ("", "bfloat16", "float16"),
}
_INTEGERS = {  # The least, and the most where memory or a type is a limit.
    "seed": (0, 2**32 - 1),
    "batch_size": (1,),
    "num_gradients": (1,),
    "dataset.image_size": (1, 2**16),
    "dataset.read_threads": (0, 2**16),
    "dataset.prefetch": (0, 2**16),
    "dataset.length": (1,),
    "model.width": (1, 2**16),
    "model.layers": (1, 1000),
    "model.heads": (1, 2**16),
    "cluster.num_workers": (1, MOST_WORKERS),
    "cluster.softsync_n": (0,),
    "cluster.k": (1,),
    "cluster.spare_workers": (0,),
    "cluster.staleness_bound": (0,),
    "averaging.period": (1,),
    "averaging.delay": (0,),
    "averaging.max_drift": (1,),
    "averaging.measure_every": (0,),
    "gossip.num_agents": (2, MOST_AGENTS),
    "gossip.delay": (0, LONGEST_DELAY),
    "emulation.num_devices": (1,),
    "emulation.events_per_device": (1, 2**16),
    "emulation.waves_per_call": (0, 2**16),
    "plan.batches": (2, 10_000),
    "plan.gradients": (0, 10**6),
    "log_every": (1,),
    "checkpoint.every_gradients": (1,),
    "checkpoint.keep": (1,),
}
_NUMBERS = {
    "num_epochs": dict(above=0, most=_PASSES),
    "learning_rate": dict(least=0),
    "schedule_factor": dict(above=0),
    "warmup_epochs": dict(least=0, most=_PASSES),
    "momentum": dict(least=0, below=1),
    "weight_decay": dict(least=0),
    "clip_norm": dict(least=0),
    "model_state_decay": dict(least=0, below=1),
    "evaluate_every_epochs": dict(above=0),
    "checkpoint.every_seconds": dict(least=0, most=_SECONDS),
    "compensation.strength": dict(),
    "compensation.factor": dict(above=0),
    "compensation.decay": dict(least=0, below=1),
    "compensation.eps": dict(least=0),
    "recording.sleep": dict(least=0, most=1e6),
    "recording.cpus_per_worker": dict(least=0, most=1e6),
    "recording.gpus_per_worker": dict(least=0, most=1e6),
    "cluster.compute_time.mean": dict(least=1e-9, most=_SECONDS),
    # Beyond these nearly all gamma times are 0, or equal.
    "cluster.compute_time.cv": dict(least=1e-6, most=100),
    "cluster.pull_time": dict(least=0, most=_SECONDS),
    "cluster.push_time": dict(least=0, most=_SECONDS),
    "averaging.merge_time": dict(least=0, most=_SECONDS),
    "averaging.outer_learning_rate": dict(least=0),
    "averaging.outer_momentum": dict(least=0, below=1),
    "averaging.spread": dict(least=0, most=1),
    "averaging.elasticity": dict(least=0, most=1),
    "gossip.edge_probability": dict(least=0, most=1),
    "gossip.delayed_fraction": dict(least=0, most=1),
    "gossip.delay_probability": dict(least=0, most=1),
    "gossip.theta": dict(least=0, most=1),
    "gossip.strength": dict(),
    "gossip.warmup_epochs": dict(least=0, most=_PASSES),
    "plan.target": dict(above=0, below=1),
    "plan.condition": dict(above=0),
    "plan.excess": dict(least=0),
    "plan.noise": dict(least=0),
}
_BOOLS = ("checkpoint.allow_changes", "dataset.augment", "nesterov",
          "compensation.per_worker", "averaging.proportional_steps",
          "averaging.linear_scaling", "gossip.random_delays", "gossip.per_tensor", "gossip.all_steps")
_TEXTS = ("recording.ray_address", "dataset.data_dir", "dataset.path", "staleness_rule",
          "cluster.times_from", "trace_path")
_TUPLES = {
    "model.hidden": (fields.check_integers, dict(least=1, most=10**6)),
    "schedule_epochs": (fields.check_numbers, dict(above=0, most=_PASSES)),
    "cluster.slowdown": (fields.check_numbers, dict(least=1e-6, most=1e6)),
    "plan.protocols": (fields.check_texts, {}),
    "plan.workers": (fields.check_integers, dict(least=1, most=MOST_WORKERS)),
    "plan.eigenvalues": (fields.check_numbers, {}),
}
_MAY_BE_NONE = ("num_epochs", "num_gradients", "compensation.strength", "cluster.k",
                "cluster.spare_workers", "cluster.staleness_bound", "cluster.on_late",
                "averaging.delay", "averaging.elasticity", "plan.excess", "plan.noise")


def check_every_field(config: Any) -> None:
    """Raises ConfigError for the first field that is missing, not what it may be, or unknown."""
    def given(those):
        return (name for name in those
                if name not in _MAY_BE_NONE or get_field(config, name) is not None)

    for name in given(_ONE_OF):
        fields.check_one_of(config, name, _ONE_OF[name])
    for name in given(_INTEGERS):
        fields.check_integer(config, name, *_INTEGERS[name])
    for name in given(_NUMBERS):
        fields.check_number(config, name, **_NUMBERS[name])
    for name in _BOOLS:
        fields.check_bool(config, name)
    for name in _TEXTS:
        fields.check_text(config, name)
    for name, (check, bounds) in _TUPLES.items():
        check(config, name, **bounds)
    known = {*_ONE_OF, *_INTEGERS, *_NUMBERS, *_BOOLS, *_TEXTS, *_TUPLES}
    for name in names(config):
        if name not in known:
            raise ConfigError(f"{name} is no field: configs/default.py has them all")


def names(config: Any) -> Iterator[str]:
    """Yields the dotted names of a config's fields."""
    for name, value in config.items():
        if isinstance(value, config_dict.ConfigDict):
            yield from (f"{name}.{inner}" for inner in names(value))
        else:
            yield name
