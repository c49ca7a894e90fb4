"""Really asynchronous SGD, piece by piece, as an emulator runs a trace."""

from collections.abc import Collection, Sequence
from typing import Any, Callable, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asgd.cluster.simulate import Cluster
from asgd.cluster.storage import COLUMNS
from asgd.cluster.trace import Trace
from asgd.emulation import feed, inputs, ring
from asgd.emulation.rewrite import one_rounding
from asgd.emulation.spmd import Spmd
from asgd.emulation.update import ServerUpdate
from asgd.recording.gradients import Gradients
from asgd.recording.log import Log
from asgd.recording.server import Arrival, Server, State
from asgd.recording.threads import ThreadWorkers

RECORDERS = ("threads", "ray")


class RecordingResult(NamedTuple):
    """What :func:`asgd.record` returns.

    Attributes:
      params: the final server parameters, the tree that came in.
      losses: [T], loss of each gradient at its own snapshot, in the order of arrival.
      model_state: final running statistics, or None.
      trace: what happened; :func:`asgd.emulate` replays it to the same bits.
    """

    params: Any
    losses: np.ndarray
    model_state: Any
    trace: Trace


class Recorder:
    """A parameter server and its workers, with the interface of an emulator.

    Workers go on while nobody calls :meth:`run`, which only waits for the gradients it is asked for.
    Arguments are those of :func:`asgd.record`, but:

    Args:
      log: how many workers and gradients, and what happened.
      stops: numbers of gradients after which :meth:`run` returns the state.
    """

    server_type = Server

    def __init__(self, loss_fn: Callable[..., Any], tx: optax.GradientTransformation, params: Any,
                 batches: Any, log: Log, *, recorder: str = "threads", num_devices: int = 1,
                 sleep: Any = None,
                 worker_tx: Optional[optax.GradientTransformation] = None,
                 layout: str = "sharded", seed: int = 0, model_state: Any = None,
                 model_state_decay: float = 0.9, ray: Optional[dict[str, Any]] = None,
                 stops: Collection[int] = ()):
        inputs.check_arguments(tx, worker_tx, model_state_decay, num_devices=num_devices)
        if recorder not in RECORDERS:
            raise ValueError(f"recorder must be one of {', '.join(RECORDERS)}, got {recorder!r}")
        devices = Spmd(num_devices).devices
        self.log, self._device = log, devices[0]
        self._whole = params = jax.tree.map(jnp.asarray, params)
        self._model_state = jax.tree.map(jnp.asarray, model_state)
        numbers = np.arange(len(log))
        self._num_batches = None if callable(batches) else len(log)
        batches = feed.checked(batches, numbers)
        loss = inputs.uniform_loss(loss_fn, model_state is not None)
        inputs.check_loss(loss, params, self._model_state, feed.first_row(batches, numbers))
        tx, worker_tx = inputs.prepared(tx, worker_tx, params, layout, bool(log.updates.all()))
        shapes = jax.eval_shape(lambda: params)
        self._parts, _ = ring.layout(layout, 1).placed(lambda x: x, params)
        self._update = ServerUpdate(tx, shapes, model_state_decay, bool(log.updates.all()))
        self._worker_states = (worker_tx.init(params),) * log.num_workers
        self._apply = jax.jit(self._rounded_update)
        self._stops, self._server, self._compiled = {*stops, len(log)}, None, False
        problem = (loss, worker_tx, batches, layout, shapes, seed)
        seconds = _seconds(sleep, log.num_workers, seed)
        self._sleep, self._seed = sleep, seed
        if recorder == "ray":
            from asgd.recording.ray_workers import RayWorkers

            self._workers = RayWorkers(problem, log.num_workers, seconds, **(ray or {}))
        else:
            self._workers = ThreadWorkers(Gradients(*problem), log.num_workers, devices, seconds)
        log.metadata["recording"] = {
            **self._workers.describe(), "jax": jax.__version__, "seed": seed,
            "sleep": sleep and sleep.describe(), "params": signature(params)}

    def _rounded_update(self, held, gradient, statistics, stale_params, arrival, zero):
        return one_rounding(self._update, zero)(held, gradient, statistics, stale_params, arrival)

    def init(self) -> State:
        """Returns the server before the first gradient."""
        parts = ring.to_parts(self._whole, self._parts)
        held = jax.jit(self._update.init)(*jax.device_put((parts, self._model_state), self._device))
        return State(np.int64(0), held, self._worker_states)

    def run(self, state: State, start: int = 0, stop: Optional[int] = None, until: Any = None):
        """Waits for the gradients ``start .. stop - 1``; the first call starts the workers, at ``state``.

        Returns:
          The state after them, if ``stop`` is among the stops or the end, and their losses
          [stop - start].

        Raises:
          NonFiniteLossError: naming the first event whose loss is not finite.
          Exception: what a worker failed with.
        """
        stop = len(self.log) if stop is None else stop
        if self._server is None:
            self.compile(state)
            self._server = self.server_type(
                self._apply_sent, state, self.log, self._device, self._num_batches, self._stops)
            self._workers.start(self._server)
        state = self._server.wait(stop)
        losses = self.log.losses[start:stop].copy()
        inputs.check_losses(losses, start, self.log)
        return state, losses

    def compile(self, state: State) -> None:
        """Compiles, so that nobody does while the clock runs."""
        if not self._compiled:
            nothing = self._workers.compile(state.held.params, state.worker_states)
            arrival = Arrival(np.int32(0), np.int32(0), np.float32(0), np.bool_(True))
            jax.block_until_ready(self._apply_sent(
                state.held, jax.device_put(nothing, self._device), state.held.params, arrival))
            self._compiled = True

    def _apply_sent(self, held, sent, stale_params, arrival, zero=np.float32(0)):
        return self._apply(held, sent.gradient, sent.statistics, stale_params, arrival, zero)

    def processes(self) -> list[tuple[str, int]]:
        """Returns host and process id of every worker; all are this one but with Ray."""
        return self._workers.processes()

    def params(self, state: State) -> Any:
        """Returns the server's parameters as the tree that came in."""
        return ring.to_whole(jax.device_get(state.held.params), self._whole)

    def model_state(self, state: State) -> Any:
        """Returns the server's running statistics as the tree that came in."""
        return jax.device_get(state.held.model_state)

    def save(self, state: State) -> list[np.ndarray]:
        """Returns the server and the log until then as NumPy arrays, the same for both layouts."""
        whole = jax.eval_shape(self._update.init, self._whole, self._model_state)
        held = ring.to_whole(jax.device_get(state.held), whole)
        return [*self.log.columns(int(state.count)),
                *map(np.asarray, jax.tree.leaves(jax.device_get((held, state.worker_states))))]

    def saved(self) -> None:
        """Nothing is known of what is saved, but that all are NumPy arrays."""

    def describe(self) -> dict[str, str]:
        """Returns name, type and shape of every parameter."""
        return signature(self._whole)

    def load(self, arrays: Sequence[np.ndarray]) -> State:
        """Inverse of :meth:`save`."""
        start, rows = self.init(), len(COLUMNS)
        self.log.restore(arrays[:rows])
        held, worker_states = jax.tree.unflatten(
            jax.tree.structure((start.held, start.worker_states)), arrays[rows:])
        # Not the same sleeps again.
        self._workers.sleep = _seconds(self._sleep, self.log.num_workers, self._seed + self.log.count)
        held, worker_states = jax.device_put(
            (ring.to_parts(held, start.held), worker_states), self._device)
        return State(np.int64(self.log.count), held, worker_states)

    def close(self) -> None:
        """Stops the workers; what they are computing is lost."""
        if self._server is not None:
            self._server.close()
        self._workers.stop()


def signature(params: Any) -> dict[str, str]:
    """Returns what tells parameters of one model from another's: name, type and shape of leaves."""
    return {jax.tree_util.keystr(path): f"{jnp.result_type(x)}{list(jnp.shape(x))}"
            for path, x in jax.tree_util.tree_leaves_with_path(params)}


def _seconds(sleep, num_workers, seed):
    """Returns a function from a worker to how long it sleeps next."""
    if sleep is None:
        return lambda worker: 0.0
    cluster = Cluster(sleep, num_workers, seed)
    return lambda worker: float(cluster.durations(worker, 1)[0])
