"""Packs the events of a trace into waves and plans where snapshots live.

A wave is a run of consecutive events whose snapshots all exist when it starts, so that their
gradients can be computed side by side. A snapshot occupies a slot from the update that makes
its version to the last event that reads it, as a compiler gives registers to values.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from asgd.cluster.trace import Trace


@dataclasses.dataclass(frozen=True)
class Waves:
    """Which events run side by side.

    Attributes:
      width: most events a wave may have.
      first: int64 [W + 1]; wave w has the events ``first[w] .. first[w + 1] - 1``.
    """

    width: int
    first: np.ndarray

    @property
    def num_waves(self) -> int:
        return len(self.first) - 1

    @property
    def utilization(self) -> float:
        """Events over places, ``T / (W * width)``, in (0, 1]."""
        return float(self.first[-1]) / max(1, self.num_waves * self.width)


@dataclasses.dataclass(frozen=True)
class Plan(Waves):
    """How a trace of T events is executed.

    Attributes:
      read_slot: int32 [T], the slot of the snapshot that the event's gradient is computed on.
      write_slot: int32 [T], the slot that the version made by the event goes to; a free one where
        nobody reads it, as skipping costs more than writing; -1 where the event makes no
        version, or nobody reads it and no slot is free.
      num_slots: slots in all, the largest number of snapshots alive at once.
    """

    read_slot: np.ndarray
    write_slot: np.ndarray
    num_slots: int


def plan_waves(trace: Trace, width: int, cuts: Sequence[int] = (),
               distinct_workers: bool = False) -> Plan:
    """Packs events greedily, in order, which gives the fewest waves.

    Args:
      trace: what happened.
      width: most events a wave may have.
      cuts: event numbers at which a wave must start (evaluations, checkpoints).
      distinct_workers: whether a worker may appear in a wave only once (needed when workers
        carry a state from one gradient to the next).

    Returns:
      The plan.

    Example:
      >>> from asgd.cluster import Trace
      >>> trace = Trace(worker=[0, 1, 0, 1], read_version=[0, 0, 1, 2])
      >>> plan = plan_waves(trace, width=2)
      >>> print(plan.first, plan.num_slots)
      [0 2 4] 2
    """
    read_slot, write_slot, num_slots = _plan_slots(trace)
    first = pack(_earliest(trace, distinct_workers), width, cuts)
    return Plan(width, first, read_slot, write_slot, num_slots)


def pack(earliest: np.ndarray, width: int, cuts: Sequence[int] = ()) -> np.ndarray:
    """Packs events greedily, in order.

    Args:
      earliest: int [T], the first event that may start a wave which has the event in it.
      width: most events a wave may have.
      cuts: event numbers at which a wave must start.

    Returns:
      ``Waves.first``.
    """
    num_events = len(earliest)
    if width == 1:
        return np.arange(num_events + 1)
    earliest = np.array(earliest, np.int64)
    cuts = np.asarray([c for c in cuts if 0 <= c < num_events], np.int64)
    earliest[cuts] = cuts
    # A cut bounds every later event too.
    earliest = np.maximum.accumulate(earliest).tolist()
    first, start = [0], 0
    for event in range(1, num_events):
        if event - start == width or earliest[event] > start:
            first.append(event)
            start = event
    return np.asarray(first + [num_events] * (num_events > 0), np.int64)


def _earliest(trace, distinct_workers):
    earliest = np.searchsorted(trace.version, trace.read_version)
    if distinct_workers:
        by_worker = np.argsort(trace.worker, kind="stable")
        same = trace.worker[by_worker][1:] == trace.worker[by_worker][:-1]
        later, before = by_worker[1:][same], by_worker[:-1][same]
        earliest[later] = np.maximum(earliest[later], before + 1)
    return earliest


def _plan_slots(trace):
    num_events = len(trace)
    makers = np.flatnonzero(trace.updates)
    last_read = np.full(len(makers) + 1, -1)
    last_read[trace.read_version] = np.arange(num_events)  # the last of equal indices stays

    by_expiry = np.argsort(last_read, kind="stable").tolist()
    expiry = last_read.tolist()
    slot_of, free, num_slots, next_to_expire = [-1] * len(expiry), [], 0, 0
    for version, maker in enumerate([-1] + makers.tolist()):
        # Event `maker` reads its own snapshot before it writes, so `<=`.
        while next_to_expire < len(expiry) and expiry[by_expiry[next_to_expire]] <= maker:
            if expiry[by_expiry[next_to_expire]] >= 0:
                free.append(slot_of[by_expiry[next_to_expire]])
            next_to_expire += 1
        if expiry[version] < 0:
            slot_of[version] = free[-1] if free else num_slots
            continue
        if not free:
            free.append(num_slots)
            num_slots += 1
        slot_of[version] = free.pop()

    slot_of = np.asarray(slot_of, np.int32)
    # A slot that comes into use later is free until then.
    slot_of[slot_of >= num_slots] = -1
    write_slot = np.full(num_events, -1, np.int32)
    write_slot[makers] = slot_of[1:]
    return slot_of[trace.read_version], write_slot, max(1, num_slots)
