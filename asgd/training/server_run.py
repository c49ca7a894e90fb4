"""What the training loop needs to know of a run with a parameter server."""

from collections.abc import Sequence
import dataclasses
from typing import Any, Optional

import numpy as np
import optax

from asgd.cluster import Trace
from asgd.emulation import make_emulator
from asgd.training.recorded import Recorded, mean_loss
from asgd.workloads import sampling, task as task_lib


@dataclasses.dataclass(frozen=True, eq=False)
class ServerRun(Recorded):
    """Asynchronous SGD with a parameter server.

    Attributes:
      task: data set, model and loss.
      sampler: which samples each event uses.
      trace: what happens; saved as ``trace.npz``.
      tx: the server's transformation.
      worker_tx: what workers do to whole gradients, or None.
      batch_size: samples of an event.
    """

    task: task_lib.Task
    sampler: sampling.EventSampler
    trace: Trace
    tx: optax.GradientTransformation
    worker_tx: Optional[optax.GradientTransformation]
    batch_size: int

    record = "trace.npz"
    recorded = "trace"

    @property
    def num_events(self) -> int:
        return len(self.trace)

    @property
    def passes(self) -> np.ndarray:
        """float64 [T], passes over the training set after each event, of applied samples."""
        return np.cumsum(self.trace.applied) * (self.batch_size / self.sampler.num_examples)

    @property
    def totals(self) -> dict[str, Any]:
        return {"updates": self.trace.num_updates,
                "virtual_time": float(self.trace.finish_time[-1])}

    def __str__(self):
        return f"Trace\n{self.trace}"

    def emulator(self, params: Any, model_state: Any, config: Any, cuts: Sequence[int],
                 on_nonfinite: Optional[str] = None) -> Any:
        """Returns what executes the run."""
        options = config.emulation
        return make_emulator(
            self.task.loss_fn, self.tx, params, self.trace, self.task.batches(self.sampler),
            num_devices=options.num_devices, backend=options.backend, layout=options.layout,
            waves_per_call=options.waves_per_call or None, worker_tx=self.worker_tx,
            snapshot_dtype=options.snapshot_dtype or None,
            events_per_device=options.events_per_device,
            seed=config.seed, model_state=model_state,
            model_state_decay=config.model_state_decay, cuts=cuts,
            on_nonfinite=on_nonfinite or config.on_nonfinite)

    def applied(self, start: int, stop: int) -> np.ndarray:
        """Returns which of the events ``start .. stop - 1`` the trace does not drop."""
        return self.trace.applied[start:stop]

    def where(self, event: int) -> str:
        """Returns an event in words."""
        return (f"event {event} (worker {self.trace.worker[event]}, staleness "
                f"{self.trace.staleness[event]})")

    def summary(self, start: int, stop: int, losses: np.ndarray) -> dict[str, Any]:
        """Returns the metrics of the events ``start .. stop - 1``."""
        trace, applied = self.trace, self.trace.applied[start:stop]
        staleness = trace.staleness[start:stop][applied]
        return {
            "updates": int(trace.version[stop - 1]) + int(trace.updates[stop - 1]),
            "virtual_time": float(trace.finish_time[stop - 1]),
            "epoch": int(trace.applied[:stop].sum()) * self.batch_size / self.sampler.num_examples,
            "loss": mean_loss(losses),
            "staleness_mean": float(staleness.mean()) if staleness.size else None,
        }

    def evaluate(self, emulator: Any, state: Any) -> dict[str, Any]:
        """Returns the metrics of the server's parameters."""
        return self.task.evaluate(emulator.params(state), emulator.model_state(state))
