"""Finds the event that made a run's loss or parameters infinite or not a number."""

from typing import Any, Callable, NamedTuple, Optional

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
      losses: of the last events up to the culprit's, at least those since the checkpoint.
    """

    event: int
    leaf: Optional[str]
    before: list[Any]
    losses: np.ndarray


def find(run: Any, watcher: Any, read: Callable[[], Any], stop: int) -> Optional[Culprit]:
    """Executes the events from a checkpoint on again, and looks after each whether all is finite.

    Normal runs look at the losses, and at the parameters where they stop anyway: to look at every
    event costs them nothing, as the same events can be executed again.

    Args:
      run: the run.
      watcher: its emulator with ``on_nonfinite="watch"``.
      read: reads the checkpoint to begin at, or returns None to begin at the beginning.
      stop: the event after the last one.

    Returns:
      The culprit, or None if all is finite.
    """
    found = read()
    start, earlier = (found.step, found.losses) if found else (0, np.zeros(0))
    state = watcher.load(found.arrays) if found else watcher.init()
    _, losses, finite = watcher.observed(state, start, stop)
    bad = run.applied(start, stop) & ~np.isfinite(losses) | ~finite.all(1)
    if not bad.any():
        return None
    first = int(np.argmax(bad))
    # The state was used up.
    before, _ = watcher.run(watcher.load(read().arrays) if found else watcher.init(), start, start + first)
    return Culprit(start + first, watcher.bad_leaf(finite[first]), watcher.save(before),
                   np.concatenate([earlier, losses[:first + 1]]))
