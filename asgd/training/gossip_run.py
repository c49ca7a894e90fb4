"""What the training loop needs to know of decentralised training."""

from collections.abc import Sequence
import dataclasses
from typing import Any, Optional

import jax
import numpy as np
import optax

from asgd.training.recorded import Recorded, mean_loss
from asgd.workloads import sampling, task as task_lib


@dataclasses.dataclass(frozen=True, eq=False)
class GossipRun(Recorded):
    """Decentralised training; attributes as for `ServerRun`, and:

    Attributes:
      schedule: who mixes what; saved as ``schedule.npz``.
      num_rounds: rounds. Virtual time counts them too.
      tx: the agents' transformation.
    """

    task: task_lib.Task
    sampler: sampling.AgentSampler
    schedule: Any
    num_rounds: int
    tx: optax.GradientTransformation
    worker_tx: Optional[optax.GradientTransformation]
    batch_size: int

    @property
    def unit(self) -> int:
        return self.schedule.graph.num_agents

    @property
    def num_events(self) -> int:
        return self.num_rounds * self.unit

    @property
    def passes(self) -> np.ndarray:
        return np.arange(1, self.num_events + 1) * (self.batch_size / self.sampler.num_examples)

    @property
    def totals(self) -> dict[str, Any]:
        return {"updates": self.num_rounds, "virtual_time": float(self.num_rounds)}

    def __str__(self):
        return f"Graph\n{self.schedule}"

    def emulator(self, params: Any, model_state: Any, config: Any, cuts: Sequence[int],
                 on_nonfinite: Optional[str] = None) -> Any:
        """Returns what executes the run; it can stop after any round."""
        from asgd.emulation.decentralized import GossipEmulator  # Imports networkx.

        options = config.emulation
        return GossipEmulator(
            self.task.loss_fn, self.tx, params, self.schedule, self.num_rounds,
            self.task.batches(self.sampler), num_devices=options.num_devices,
            backend=options.backend, layout=options.layout,
            waves_per_call=options.waves_per_call or None, worker_tx=self.worker_tx,
            seed=config.seed, model_state=model_state, model_state_decay=config.model_state_decay,
            on_nonfinite=on_nonfinite or config.on_nonfinite)

    def where(self, event: int) -> str:
        """Returns an event in words."""
        return f"event {event} (round {event // self.unit}, agent {event % self.unit})"

    def summary(self, start: int, stop: int, losses: np.ndarray) -> dict[str, Any]:
        """Returns the metrics of the events ``start .. stop - 1``, whole rounds."""
        rounds, agents = np.divmod(np.arange(start, stop), self.unit)
        received = self.schedule.received(rounds, agents)
        others = (received.mixing > 0) & (received.agents != agents[:, None])
        delays = np.minimum(received.delays, rounds[:, None])[others]
        return {
            "updates": stop // self.unit,
            "virtual_time": float(stop // self.unit),
            "epoch": stop * self.batch_size / self.sampler.num_examples,
            "loss": mean_loss(losses),
            "staleness_mean": float(delays.mean()) if delays.size else None,
        }

    def evaluate(self, emulator: Any, state: Any) -> dict[str, Any]:
        """Returns the metrics of the average of all agents, of every agent, and how they differ."""
        from asgd.emulation.decentralized import average

        agents, statistics = emulator.params(state), emulator.model_state(state)
        mean = self.task.evaluate(average(agents), average(statistics))
        each = [self.task.evaluate(*(_row(tree, i) for tree in (agents, statistics)))
                for i in range(self.unit)]
        accuracies = [one["eval_accuracy"] for one in each]
        return {
            **mean,
            "eval_accuracy_agents": accuracies,
            "eval_loss_agents": [one["eval_loss"] for one in each],
            "eval_accuracy_worst": min(accuracies),
            "consensus_distance": float(state.consensus_distance),
        }


def _row(tree, i):
    return jax.tree.map(lambda x: x[i], tree)
