"""The protocol of a run: which fields under ``config.cluster`` set it, and what fits what."""

from typing import Any, NamedTuple, Optional

from asgd.cluster import protocols
from asgd.training.fields import ConfigError

_STALE = ("asynchronous", "softsync", "k_async", "k_batch_async", "ssp", "staleness_threshold")
NEVER_WAITING = ("asynchronous", "softsync", "k_batch_async")
ALGORITHMS = {
    # algorithm: the protocols that make sense with it, the first by default.
    "sgd": ("asynchronous",),
    "ssgd": ("hardsync", "k_sync", "k_batch_sync", "backup_workers"),
    "asgd": _STALE,
    "staleness_aware": _STALE,
    "dc_asgd_c": _STALE,
    "dc_asgd_a": _STALE,
}


class _Count(NamedTuple):
    """The count that a protocol needs: the field's name, least value, largest in words."""

    field: str
    least: int
    most: Optional[str] = None


_COUNTS = {
    "softsync": _Count("softsync_n", 1, "num_workers"),
    "k_sync": _Count("k", 1, "num_workers"),
    "k_batch_sync": _Count("k", 1),
    "k_async": _Count("k", 1, "num_workers"),
    "k_batch_async": _Count("k", 1),
    "backup_workers": _Count("spare_workers", 0, "num_workers - 1"),
    "ssp": _Count("staleness_bound", 0),
    "staleness_threshold": _Count("staleness_bound", 0),
}
PROTOCOLS = ("asynchronous", "softsync", "hardsync", *(p for p in _COUNTS if p != "softsync"))
# Fields under cluster with the value that says they were not given, and the protocols they are for.
_FIELDS = {
    "softsync_n": (0, ("softsync",)),
    "k": (None, ("k_sync", "k_batch_sync", "k_async", "k_batch_async")),
    "spare_workers": (None, ("backup_workers",)),
    "staleness_bound": (None, ("ssp", "staleness_threshold")),
    "on_late": (None, ("staleness_threshold",)),
    "pull": ("after", ("asynchronous", "softsync")),
}


def protocol_of(config: Any) -> str:
    """Returns the protocol's name, chosen by the algorithm where it says "auto"."""
    if config.cluster.protocol != "auto":
        return config.cluster.protocol
    if config.cluster.softsync_n and "softsync" in ALGORITHMS[config.algorithm]:
        return "softsync"
    return ALGORITHMS[config.algorithm][0]


def make_protocol(config: Any) -> protocols.Protocol:
    """Builds the protocol."""
    name, cluster = protocol_of(config), config.cluster
    arguments = [cluster[_COUNTS[name].field]] if name in _COUNTS else []
    if name in _FIELDS["pull"][1]:
        arguments.append(cluster.pull)
    if name == "staleness_threshold":
        arguments.append(cluster.on_late or "drop")
    return getattr(protocols, name)(*arguments)


def given(config: Any) -> dict[str, Any]:
    """Returns the fields that choose a protocol, where they do not say what they say by default."""
    defaults = {"protocol": "auto", **{name: value for name, (value, _) in _FIELDS.items()}}
    del defaults["pull"]
    return {f"cluster.{name}": config.cluster[name] for name, value in defaults.items()
            if config.cluster[name] != value}


def check(config: Any) -> None:
    """Raises ConfigError if algorithm, protocol and the fields of protocols do not fit."""
    algorithm, cluster = config.algorithm, config.cluster
    if cluster.protocol != "auto" and cluster.protocol not in ALGORITHMS[algorithm]:
        raise ConfigError(
            f"algorithm={algorithm!r} and cluster.protocol={cluster.protocol!r} do not fit: "
            f"this algorithm takes {' or '.join(ALGORITHMS[algorithm])}")
    if config.trace_path:
        return
    if algorithm == "sgd" and cluster.num_workers != 1:
        raise ConfigError("algorithm='sgd' and cluster.num_workers="
                          f"{cluster.num_workers} do not fit: sequential SGD has one worker")
    name = protocol_of(config)
    for field, (default, takers) in _FIELDS.items():
        if cluster[field] != default and name not in takers:
            raise ConfigError(f"cluster.{field}={cluster[field]!r} and cluster.protocol={name!r} "
                              f"(algorithm={algorithm!r}) do not fit: {field} is for "
                              f"{' or '.join(takers)}")
    if name in _COUNTS:
        _check_count(cluster, name)
    check_slowdown(config)


def _check_count(cluster, protocol):
    field, least, most = _COUNTS[protocol]
    value, workers = cluster[field], cluster.num_workers
    largest = value if most is None else workers - (most != "num_workers")
    if value is None or not least <= value <= largest:
        other = f"cluster.num_workers={workers}" if most else f"cluster.protocol={protocol!r}"
        allowed = f"{least} to {most}" if most else f"an integer at least {least}"
        raise ConfigError(f"cluster.{field}={value!r} and {other} do not fit: with {protocol}, "
                          f"{field} must be {allowed}")


def check_slowdown(config: Any) -> None:
    """Raises ConfigError if there are more factors than workers."""
    cluster = config.cluster
    if len(cluster.slowdown) > cluster.num_workers > 1:
        raise ConfigError(f"cluster.slowdown has {len(cluster.slowdown)} factors, but "
                          f"cluster.num_workers={cluster.num_workers}")
