"""Finds the event that made a run's loss or parameters infinite or not a number."""

from typing import Any, NamedTuple, Optional

import numpy as np


class NonFiniteError(FloatingPointError):
    """A loss or the parameters became infinite or not a number.

    Attributes:
      event: at which gradient event.
      leaf: the first leaf of the parameters that did, or None if they are still finite.
    """

    def __init__(self, message: str, event: int, leaf: Optional[str]):
        self.event, self.leaf = event, leaf
        super().__init__(message)


class Culprit(NamedTuple):
    """What `find` returns.

    Attributes:
      event: the first event after which a loss or parameters are not finite.
      leaf: the first leaf that is not finite then, or None.
      before: what is saved of the cluster right before the event.
      losses: of the events from the checkpoint on that `find` began at, up to the culprit's.
    """

    event: int
    leaf: Optional[str]
    before: list[Any]
    losses: np.ndarray


def find(run: Any, watcher: Any, found: Any, stop: int) -> Optional[Culprit]:
    """Executes the events from a checkpoint on again, and looks after each whether all is finite.

    Normal runs look at the losses, and at the parameters where they stop anyway: to look at every
    event costs them nothing, as the same events can be executed again.

    Args:
      run: the run.
      watcher: its emulator with ``on_nonfinite="watch"``.
      found: the checkpoint, or None to begin at the beginning.
      stop: the event after the last one.

    Returns:
      The culprit, or None if all is finite.
    """
    start = found.step if found else 0

    def begin():
        return watcher.load(found.arrays) if found else watcher.init()

    _, losses, finite = watcher.observed(begin(), start, stop)
    bad = run.applied(start, stop) & ~np.isfinite(losses) | ~finite.all(1)
    if not bad.any():
        return None
    first = int(np.argmax(bad))
    before, _ = watcher.run(begin(), start, start + first)
    return Culprit(start + first, watcher.bad_leaf(finite[first]), watcher.save(before),
                   losses[:first + 1])
