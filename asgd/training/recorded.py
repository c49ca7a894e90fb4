"""What all runs have: a record of what happens, saved beside them."""

from typing import Any, Optional

from asgd.training.validation import ConfigError


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
        if path.exists() and type(mine).load(path) != mine:
            raise ConfigError(f"workdir holds a run of another {self.recorded} than trace_path has "
                              "now: choose a new workdir")

    def save_record(self, path: Any, stop: Optional[int] = None) -> None:
        """Writes the record, before the run; or what a checkpoint after ``stop`` events needs of it."""
        if stop is None:
            getattr(self, self.recorded).save(path)

    def close(self, emulator: Any) -> None:
        """Ends what executes the run."""
