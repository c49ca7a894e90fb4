"""Executes traces in JAX."""

import importlib

from asgd.emulation.emulate import EmulationResult, Emulator, emulate, make_emulator
from asgd.emulation.feed import IndexedBatches
from asgd.emulation.inputs import NonFiniteLossError
from asgd.emulation.local_steps import AveragingEmulator, AveragingResult, emulate_averaging


def __getattr__(name):
    if name in ("GossipEmulator", "GossipResult", "emulate_gossip"):  # They import networkx.
        return getattr(importlib.import_module("asgd.emulation.decentralized"), name)
    if name in ("EventTriggeredResult", "emulate_event_triggered"):
        return getattr(importlib.import_module("asgd.emulation.event_triggered"), name)
    raise AttributeError(f"module 'asgd.emulation' has no attribute {name!r}")
