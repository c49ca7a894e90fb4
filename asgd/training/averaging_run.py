"""What the training loop needs to know of training by local steps and averaging."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, Optional

import jax
import numpy as np
import optax

from asgd.cluster.averaging import MERGE, AveragingSchedule
from asgd.emulation import AveragingEmulator
from asgd.training.recorded import Recorded, mean_loss
from asgd.workloads import sampling, task as task_lib


@dataclasses.dataclass(frozen=True, eq=False)
class AveragingRun(Recorded):
    """Local steps whose sums a server averages; attributes as for `ServerRun`, and:

    Attributes:
      schedule: who computes and what happens when; saved as ``schedule.npz``.
      tx: the workers' transformation.
      outer_tx: the server's, or None.
      elasticity: of elastic averaging, or None.
    """

    task: task_lib.Task
    sampler: sampling.EventSampler
    schedule: AveragingSchedule
    tx: optax.GradientTransformation
    outer_tx: Optional[optax.GradientTransformation]
    elasticity: Optional[float]
    worker_tx: Optional[optax.GradientTransformation]
    batch_size: int

    @property
    def num_events(self) -> int:
        return len(self.schedule)

    @property
    def passes(self) -> np.ndarray:
        return np.arange(1, self.num_events + 1) * (self.batch_size / self.sampler.num_examples)

    @property
    def totals(self) -> dict[str, Any]:
        return {"updates": self.schedule.num_merges, **self._times(self.num_events)}

    def __str__(self):
        return f"Schedule\n{self.schedule}"

    def emulator(self, params: Any, model_state: Any, config: Any, cuts: Sequence[int],
                 on_nonfinite: Optional[str] = None) -> Any:
        """Returns what executes the run."""
        options = config.emulation
        return AveragingEmulator(
            self.task.loss_fn, self.tx, params, self.schedule, self.task.batches(self.sampler),
            outer_tx=self.outer_tx, elasticity=self.elasticity, num_devices=options.num_devices,
            backend=options.backend, layout=options.layout,
            waves_per_call=options.waves_per_call or None, worker_tx=self.worker_tx,
            seed=config.seed, model_state=model_state,
            model_state_decay=config.model_state_decay, cuts=cuts,
            on_nonfinite=on_nonfinite or config.on_nonfinite)

    def where(self, event: int) -> str:
        """Returns an event in words."""
        return (f"event {event} (worker {self.schedule.worker[event]}, drift "
                f"{self._drift[event]})")

    def summary(self, start: int, stop: int, losses: np.ndarray) -> dict[str, Any]:
        """Returns the metrics of the events ``start .. stop - 1``."""
        schedule, drift = self.schedule, self._drift[start:stop]
        return {
            "updates": int(np.searchsorted(self._merged[0], stop, side="right")),
            **self._times(stop),
            "idle_time_workers": np.bincount(
                schedule.worker[:stop], self._waits[:stop], schedule.num_workers).tolist(),
            "epoch": stop * self.batch_size / self.sampler.num_examples,
            "loss": mean_loss(losses),
            "staleness_mean": float(drift.mean()),
            "drift_max": int(drift.max()),
        }

    def evaluate(self, emulator: Any, state: Any) -> dict[str, Any]:
        """Returns the metrics of the server's copy, and of the average of the workers."""
        def mean(tree):
            return jax.tree.map(
                lambda x: np.mean(x, axis=0, dtype=np.float64).astype(x.dtype), tree)

        statistics = mean(emulator.model_state(state))
        average = self.task.evaluate(mean(emulator.worker_params(state)), statistics)
        measured = emulator.discrepancy(state)
        return {
            **self.task.evaluate(emulator.params(state), statistics),
            **{f"{name}_average": value for name, value in average.items()},
            **({"discrepancy": float(measured[-1])} if len(measured) else {}),
        }

    def _times(self, stop):
        """Returns the virtual time, and which part of it workers were idle so far.

        It is when the gradients are done and the copies that were merged from them are there.
        """
        latest, busy, idle = (column[stop - 1] for column in self._running)
        after, there = self._merged
        merges = np.searchsorted(after, stop, side="right")
        return {"virtual_time": float(max(latest, there[merges - 1] if merges else 0.0)),
                "idle_fraction": float(idle / max(busy + idle, np.finfo(float).tiny))}

    @functools.cached_property
    def _running(self):
        schedule = self.schedule
        return (np.maximum.accumulate(schedule.finish_time),
                np.cumsum(schedule.finish_time - schedule.start_time), np.cumsum(self._waits))

    @functools.cached_property
    def _merged(self):
        merges = self.schedule.action == MERGE
        return self.schedule.after[merges], np.maximum.accumulate(self.schedule.time[merges])

    @functools.cached_property
    def _waits(self):
        return self.schedule.waits

    @functools.cached_property
    def _drift(self):
        return self.schedule.drift
