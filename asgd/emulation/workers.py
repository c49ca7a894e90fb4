"""The workers' side of a topology: what they compute on, and what they send."""

from typing import Any, Callable

import jax
import optax

from asgd.emulation import ring


class Workers:
    """Base of the topologies.

    Their states have ``snapshots``, a ring of parameters, and ``worker_state``, a ring
    [num_workers]; their events have ``number``, ``worker`` and ``read_slot``, the row of
    ``snapshots`` that a gradient is computed on.

    Args:
      worker_tx: the workers' transformation, on whole gradients.
      layout: where trees live, from :mod:`asgd.emulation.ring`.
      params: shapes of the parameters.
    """

    def __init__(self, worker_tx: optax.GradientTransformationExtraArgs,
                 layout: ring.Replicated, params: Any):
        self.worker_tx = worker_tx
        self._layout = layout
        self._params = params
        self._worker_state = jax.eval_shape(worker_tx.init, params)

    def views(self, state: Any, wave: Any) -> Callable[[jax.Array], Any]:
        """Returns a function from j to what this device's event j is computed on.

        That is a pair: the snapshot, and the worker's own state.
        """
        snapshots = self._layout.fetch(state.snapshots, wave.read_slot, self._params)
        if not jax.tree.leaves(self._worker_state):
            return lambda j: (self._used(snapshots(j)), self._worker_state)
        worker_states = self._layout.fetch(state.worker_state, wave.worker, self._worker_state)
        return lambda j: (self._used(snapshots(j)), worker_states(j))

    def on_worker(self, gradient: Any, view: Any, event: Any) -> Any:
        """Returns what the worker sends: its transformed gradient, and its new state."""
        params, worker_state = view
        return self.worker_tx.update(gradient, worker_state, params, worker=event.worker)

    def collect(self, sent: Any, statistics: Any) -> Any:
        """Brings what the workers sent to where it is applied: trees with a leading axis [W]."""
        return self._layout.collect(sent), self._layout.gather(statistics)

    def gather(self, flags: Any) -> Any:
        """Returns what the devices say of their events, for all events of a wave."""
        return self._layout.gather(flags)

    def trained(self, state: Any) -> Any:
        """Returns the parameters of all workers."""
        return state.snapshots

    def keep_statistics(self, state: Any, worker: jax.Array, statistics: Any, decay: float) -> Any:
        """Returns the state with a worker's own running statistics moved by those of its batch."""
        if state.model_state is None:
            return state
        mine = jax.tree.map(lambda s, b: decay * s + (1 - decay) * b,
                            ring.read(state.model_state, worker), statistics)
        return state._replace(model_state=ring.write(state.model_state, worker, mine))

    def _used(self, snapshot):
        return jax.tree.map(lambda x, like: x.astype(like.dtype), snapshot, self._params)
