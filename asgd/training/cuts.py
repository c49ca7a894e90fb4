"""Where a run stops for a moment."""

from typing import Any

import numpy as np

from asgd.training.validation import ConfigError


class Cuts:
    """The events at which a run stops for a moment, and why.

    Attributes:
      evaluations: after so many events the test set is looked at,
      lines: a line of metrics is written,
      checkpoints: a checkpoint is written.
      all: all of them, growing.
    """

    def __init__(self, config: Any, run: Any):
        total, passes = run.num_events, run.passes
        if passes[-1] / config.evaluate_every_epochs > total:
            raise ConfigError("evaluate_every_epochs must be at least one gradient, "
                              f"{passes[-1] / total:g}, got {config.evaluate_every_epochs}")

        def whole(events):
            return set((-(-np.asarray(events, int) // run.unit) * run.unit).tolist())

        marks = np.arange(1, int(passes[-1] / config.evaluate_every_epochs) + 1)
        events = np.searchsorted(passes, marks * config.evaluate_every_epochs) + 1
        self.evaluations = whole(np.minimum(events, total)) | {total}
        self.checkpoints = whole(range(0, total, config.checkpoint.every_gradients)) | {total}
        self.lines = whole(range(0, total, config.log_every)) | self.evaluations
        self.all = sorted((self.lines | self.checkpoints) - {0})
