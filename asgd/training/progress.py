"""How far a run has come: what its next checkpoint, and so the next process, needs to know."""

import contextlib
import time
from typing import Any

import numpy as np

from asgd.training import distributed, nonfinite
from asgd.training.checkpoints import Checkpoints
from asgd.training.interruption import Interruption, Preempted
from asgd.training.metrics import MetricsWriter


class Progress:
    """Advances a run and keeps what a checkpoint needs, in memory and in the work directory.

    Made from the newest checkpoint, if there is one.

    Args:
      config: the run's config.
      workdir: its directory.
      run: the run.
      emulator: what executes it.
      initial: parameters and model state to begin with.

    Attributes:
      emulator: as given.
      state: what the emulator goes on from.
      step: gradient events so far.
      seconds: that they took.
      evaluation: the last one's metrics.
      skipped: gradients that were dropped because they were not finite.
    """

    def __init__(self, config: Any, workdir: Any, run: Any, emulator: Any, initial: tuple[Any, Any]):
        self.workdir, self._config, self._run = workdir, config, run
        self.emulator, self._initial = emulator, initial
        # The plain Python reference is for stepping through, not for runs to come back to.
        self._checkpoints = (None if config.emulation.backend == "debug" else
                             Checkpoints(workdir, config.checkpoint.keep, emulator.describe()))
        found = self._checkpoints and self._checkpoints.newest(self.emulator.saved())
        self.step = found.step if found else 0
        self.state = self.emulator.load(found.arrays) if found else self.emulator.init()
        # Losses of the events that are in no line of the metrics yet.
        self._losses = found.losses if found else np.zeros(0)
        saved = {"metrics_bytes": 0, "seconds": 0.0, "evaluation": {}, "skipped": 0}
        saved |= found.progress if found else {}
        self.seconds, self.evaluation = saved["seconds"], saved["evaluation"]
        self.skipped, self._saved_step, self._saved_at = saved["skipped"], self.step, time.monotonic()
        self._writer = MetricsWriter(workdir if distributed.is_first() else None, self.step,
                                     saved["metrics_bytes"])
        self._interruption = Interruption()

    def advance(self, state: Any, stop: int) -> Any:
        """Returns the cluster after event number ``stop``.

        Raises:
          Preempted: when it was interrupted before, and a checkpoint written.
          NonFiniteError: for a loss or parameters that are not finite.
        """
        began = time.perf_counter()
        try:
            state, losses = self.emulator.run(state, self.step, stop, self._interruption)
        except FloatingPointError as error:
            self._blame(stop, error)
        self.seconds += time.perf_counter() - began
        reached = self.step + len(losses)
        applied = self._run.applied(self.step, reached)
        skips = self._config.on_nonfinite == "skip"
        dropped = int((applied & ~np.isfinite(losses)).sum())
        if dropped and not skips or self._can_repeat and not self.emulator.finite(state).all():
            self._blame(reached, FloatingPointError(
                f"parameters are not finite after {self._run.where(reached - 1)}"))
        self.step, self.skipped = reached, self.skipped + dropped
        self._losses = np.concatenate([self._losses.astype(losses.dtype), losses])
        if reached < stop:
            self._leave(state)
        return state

    def summary(self) -> dict[str, Any]:
        """Returns the metrics of the events since the last line."""
        metrics = self._run.summary(self.step - len(self._losses), self.step, self._losses)
        if self._config.on_nonfinite == "skip":
            metrics["skipped"] = self.skipped
        self._losses = self._losses[:0]
        return metrics

    def write(self, metrics: dict[str, Any], evaluation: dict[str, Any]) -> None:
        """Writes a line of metrics."""
        self.evaluation = evaluation or self.evaluation
        self._writer.write(self.step, {**metrics, **evaluation})

    def save_if_due(self, state: Any, due: bool) -> None:
        """Saves a checkpoint if it is due, or time for one, or the run is to stop here."""
        every = self._config.checkpoint.every_seconds
        if every and not due:
            due = bool(distributed.from_first(time.monotonic() - self._saved_at >= every))
        if self._interruption() and self.step < self._run.num_events:
            self._leave(state)
        if due and state is not None:  # Recorders keep few states.
            self._save(state)

    @property
    def _can_repeat(self):
        return self._checkpoints is not None and self._config.mode != "record"

    def _save(self, state):
        if self._checkpoints is not None and self.step != self._saved_step:
            self._write_checkpoint(self.step, self.emulator.save(state), self._losses)

    def _write_checkpoint(self, step, arrays, losses):
        self._writer.flush()
        if distributed.is_first():
            self._run.save_record(self.workdir / self._run.record, step)
        self._checkpoints.save(step, arrays, {
            "metrics_bytes": self._writer.position, "seconds": self.seconds,
            "evaluation": self.evaluation, "skipped": self.skipped}, losses)
        self._saved_step, self._saved_at = step, time.monotonic()

    def _leave(self, state):
        if state is None:
            return  # A recorder goes on to where it has a state.
        self._save(state)
        if self._checkpoints is not None:
            self._checkpoints.wait()
        raise Preempted(f"stopped by SIGTERM after {self.step} gradients; the same command goes on "
                        f"from {self._saved_step}")

    def _blame(self, stop, error):
        """Raises NonFiniteError for the first bad event; leaves a checkpoint from before it."""
        run, skips = self._run, self._config.on_nonfinite == "skip"
        if not self._can_repeat or skips:
            raise error
        self._checkpoints.wait()
        watcher = run.emulator(*self._initial, self._config, (), on_nonfinite="watch")
        culprit = nonfinite.find(
            run, watcher, lambda: self._checkpoints.newest(watcher.saved()), stop)
        if culprit is None:
            raise error
        event, loss = culprit.event, culprit.losses[-1]
        if event not in self._checkpoints.steps:
            before = culprit.losses[:-1]
            line = self.step - len(self._losses)  # Where the first line begins that is not written.
            self._write_checkpoint(event, culprit.before, before[len(before) - (event - line):])
        where = run.where(event)
        what = (f"loss is {loss} at {where}" if not np.isfinite(loss) else
                f"parameters are not finite after {where}, whose loss is {loss}")
        leaf = f"params{culprit.leaf}" if culprit.leaf else "none"
        raise nonfinite.NonFiniteError(
            f"{what}; first leaf that is not finite then: {leaf}; checkpoint {event} is from before it",
            event, culprit.leaf) from None

    def close(self) -> None:
        """Stops what runs, and waits until everything is written."""
        with contextlib.ExitStack() as stack:  # All of it, whatever fails, the last one first.
            stack.callback(self._interruption.close)
            if self._checkpoints:
                stack.callback(self._checkpoints.close)
            stack.callback(self._writer.close)
            stack.callback(self._run.close, self.emulator)
