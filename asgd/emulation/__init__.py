"""Executes traces in JAX."""

from asgd.emulation.driver import Emulator
from asgd.emulation.emulate import EmulationResult, emulate, make_emulator
from asgd.emulation.feed import IndexedBatches
from asgd.emulation.inputs import NonFiniteLossError
