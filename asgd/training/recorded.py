"""What all runs have: a record of what happens, saved beside them."""

from typing import Any, Optional

import numpy as np

from asgd.training.validation import ConfigError
from asgd.training.workdir import load_at, save_at


class Recorded:
    """Base of the runs.

    Attributes:
      record: the name of the file.
      recorded: the attribute that is saved in it, which has ``save`` and ``load``.
      unit: runs stop after multiples of so many events.
    """

    record = "schedule.npz"
    recorded = "schedule"
    unit = 1

    def check_record(self, path: Any) -> None:
        """Raises ConfigError when a run at ``path`` followed another record."""
        mine = getattr(self, self.recorded)
        if path.exists() and load_at(path, type(mine).load) != mine:
            raise ConfigError(f"workdir holds a run of another {self.recorded} than this config makes, and "
                              "a run goes on with the one that it began with: choose a new workdir")

    def save_record(self, path: Any, stop: Optional[int] = None) -> None:
        """Writes the record, before the run; or what a checkpoint after ``stop`` events needs of it."""
        if stop is None:
            save_at(path, getattr(self, self.recorded).save)

    def applied(self, start: int, stop: int) -> np.ndarray:
        """Returns which of the events ``start .. stop - 1`` are applied."""
        return np.ones(stop - start, bool)

    def close(self, emulator: Any) -> None:
        """Ends what executes the run."""


def mean_loss(losses: np.ndarray) -> Optional[float]:
    """Returns the mean of the losses that are finite; those of dropped gradients may be anything."""
    losses = losses[np.isfinite(losses)]
    return float(np.mean(losses, dtype=np.float64)) if losses.size else None
