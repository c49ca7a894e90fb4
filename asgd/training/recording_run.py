"""What the training loop needs to know of a run that happens while it is looked at."""

from collections.abc import Sequence
import dataclasses
import logging
from typing import Any, Optional

from asgd.cluster.timing import Timing
from asgd.recording import Log, Recorder
from asgd.training.cuts import Cuts
from asgd.training.server_run import ServerRun
from asgd.training.workdir import save_at

log = logging.getLogger("asgd")


@dataclasses.dataclass(frozen=True, eq=False)
class RecordingRun(ServerRun):
    """Really asynchronous SGD with a parameter server, which becomes a trace.

    Attributes:
      trace: what has happened so far; saved as ``trace.npz`` with every checkpoint.
      sleep: how many seconds workers sleep before a push, or None.
    """

    trace: Log
    sleep: Optional[Timing] = None

    @property
    def totals(self) -> dict[str, Any]:
        seconds = float(self.trace.finish_time[-1])
        return {**super().totals, "gradients_per_second": round(len(self.trace) / seconds, 1)}

    def check_record(self, path: Any) -> None:
        """Nothing to check: a recording follows no trace, and its checkpoints have all of its own."""

    def save_record(self, path: Any, stop: Optional[int] = None) -> None:
        """Writes the trace of the first ``stop`` gradients, if any."""
        if stop:
            save_at(path, self.trace.trace(stop).save)

    def emulator(self, params: Any, model_state: Any, config: Any, cuts: Sequence[int],
                 on_nonfinite: Optional[str] = None) -> Any:
        """Returns what records the run."""
        cuts = Cuts(config, self)  # States are kept where they are looked at, which is not at all cuts.
        recorder = Recorder(
            self.task.loss_fn, self.tx, params, self.task.batches(self.sampler), self.trace,
            recorder=config.recorder, num_devices=config.emulation.num_devices, sleep=self.sleep,
            worker_tx=self.worker_tx, layout=config.emulation.layout, seed=config.seed,
            model_state=model_state, model_state_decay=config.model_state_decay,
            ray={"address": config.recording.ray_address,
                 "cpus_per_worker": config.recording.cpus_per_worker,
                 "gpus_per_worker": config.recording.gpus_per_worker},
            stops=cuts.evaluations | cuts.checkpoints)
        self.trace.metadata["recording"] |= {"batch_size": config.batch_size,
                                             "dataset": config.dataset.name}
        return recorder

    def close(self, emulator: Any) -> None:
        """Stops the workers."""
        emulator.close()
        log.info("Recorded\n%s", self.trace)
