"""Asynchronous SGD as data: simulate, record and execute it exactly, in JAX.

The names below are imported when first used, so that the virtual cluster needs no JAX.
"""

import importlib

_PUBLIC = {
    "asgd.cluster": ["Trace", "simulate"],
    "asgd.emulation": ["AveragingResult", "EmulationResult", "EventTriggeredResult", "GossipResult",
                       "IndexedBatches", "NonFiniteLossError", "emulate", "emulate_averaging",
                       "emulate_event_triggered", "emulate_gossip"],
    "asgd.recording": ["RecordingResult", "record"],
    "asgd.transforms": [
        "read_row", "weighted_sum",
        "average_until_update", "compensate_delay", "consensus", "delayed_nesterov",
        "predict_clip", "scale_by_staleness",
        "dc_asgd_a", "dc_asgd_c", "staleness_aware_sgd",
        "constant", "delay_adaptive", "exponential", "hinge", "inverse", "polynomial",
    ],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
_SUBPACKAGES = ("cluster", "emulation", "recording", "theory", "transforms", "training", "workloads")

__all__ = sorted(_HOME) + list(_SUBPACKAGES)


def __getattr__(name):
    if name in _SUBPACKAGES:
        return importlib.import_module(f"asgd.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'asgd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
    return __all__
