"""Workers that push only what is large: an event-triggered policy, decided during emulation."""

import math
import numbers
from typing import Any, Callable, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asgd.cluster.trace import Trace
from asgd.emulation import ring
from asgd.emulation.emulate import Emulator
from asgd.emulation.server import ParameterServer


class EventTriggeredResult(NamedTuple):
    """What :func:`asgd.emulate_event_triggered` returns.

    Attributes:
      params: the final server parameters, the tree that came in.
      losses: [T], loss of each gradient event at its own snapshot.
      model_state: final running statistics, or None.
      trace: what happened: ``applied`` says which gradients were pushed. It was decided by the
        gradients themselves, so it belongs to this model, data and optimizer;
        :func:`asgd.emulate` replays it, to the same bits.
    """

    params: Any
    losses: np.ndarray
    model_state: Any
    trace: Trace


class _State(NamedTuple):
    """The server's state, how many gradients were computed and how many of them pushed, and when.

    ``made_at`` [num_slots] is the version that each snapshot is of, ``pushed`` [width] what the events
    of the last wave decided.
    """

    server: Any
    computed: Any
    version: Any
    made_at: Any
    pushed: Any

    params = property(lambda self: self.server.params)
    snapshots = property(lambda self: self.server.snapshots)
    worker_state = property(lambda self: self.server.worker_state)
    model_state = property(lambda self: self.server.model_state)


class _EventTriggered(ParameterServer):
    """A parameter server that gets a gradient only if its norm is above a threshold."""

    def __init__(self, threshold, *args):
        super().__init__(*args)
        self._threshold = threshold

    def init(self, params, worker_state, model_state):
        width = self._plan.width
        return _State(super().init(params, worker_state, model_state), jnp.int32(0),
                      jnp.int32(0), jnp.zeros(self._plan.num_slots, jnp.int32), jnp.zeros(width, bool))

    def on_worker(self, gradient, view, event):
        return super().on_worker(gradient, view, event), optax.tree.norm(gradient) > self._threshold

    def collect(self, sent, statistics):
        sent, pushed = sent
        return super().collect(sent, (statistics, pushed))

    def observe(self, state):
        return state.pushed

    def apply(self, state, arrived, event):
        sent, (statistics, pushed) = arrived
        staleness = state.version - ring.read(state.made_at, event.read_slot)
        event = event._replace(staleness=staleness)
        server = self._apply_if(pushed, state.server, (sent, statistics), event)
        # Whoever reads next gets the parameters that are there.
        server = self.keep_version(server, ~pushed, event)
        version = state.version + pushed.astype(jnp.int32)
        made_at = lax.fori_loop(0, (event.write_slot >= 0).astype(int), lambda _, m: ring.write(
            m, event.write_slot, version), state.made_at)
        place = lax.rem(state.computed, np.int32(self._plan.width))
        return _State(server, state.computed + 1, version, made_at, ring.write(state.pushed, place, pushed))


class EventTriggeredEmulator(Emulator):
    """Executes arrivals piece by piece; arguments of :func:`asgd.emulate_event_triggered`."""

    def __init__(self, loss_fn, tx, params, arrivals, batches, *, threshold, **options):
        if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or not (
                math.isfinite(threshold) and threshold >= 0):
            raise ValueError(f"threshold must be a number of at least 0, got {threshold!r}")
        if isinstance(arrivals, Trace) and not arrivals.updates.all():
            row = int(np.argmin(arrivals.updates))
            raise ValueError("arrivals must have an update after every gradient, as "
                             f"protocols.asynchronous makes them, but has none at row {row}")
        self._threshold, self._arrivals = float(threshold), arrivals
        super().__init__(loss_fn, tx, params, arrivals, batches, **options)

    def _make_server(self, *args):
        return _EventTriggered(self._threshold, *args)

    def trace(self, observed: np.ndarray) -> Trace:
        """Returns what happened, from what was observed in a whole run."""
        arrivals = self._arrivals
        events = np.arange(len(arrivals))
        wave = np.searchsorted(self.plan.first, events, side="right") - 1
        pushed = np.asarray(observed, bool)[wave, events % self.plan.width]
        version = np.concatenate([[0], np.cumsum(pushed)])
        return Trace(
            worker=arrivals.worker, read_version=version[arrivals.read_version], applied=pushed,
            updates=pushed, start_time=arrivals.start_time, finish_time=arrivals.finish_time,
            batch=arrivals.batch, num_workers=arrivals.num_workers, metadata={
                **arrivals.metadata, "event_triggered": {"threshold": self._threshold}})


def emulate_event_triggered(loss_fn: Callable[..., Any], tx: optax.GradientTransformation,
                            params: Any, arrivals: Trace, batches: Any, *, threshold: float,
                            **options: Any) -> EventTriggeredResult:
    r"""Executes asynchronous SGD whose workers push a gradient only if it is large.

    A worker that has computed g pushes it if :math:`\|g\|_2 >` ``threshold``; else the server hears
    nothing, no update is made, and the worker goes on from the server's current parameters. Who is
    ready when does not depend on that, so it is given; which of them push is decided by the gradients,
    and comes back as a trace, whose staleness counts the updates that were made. (Event-triggered SGD
    is named in the abstract of Yu, Chen and Poor, arXiv 2406.11159, whose policy could not be had; this
    is the plain one.)

    Args:
      loss_fn: as for :func:`asgd.emulate`.
      tx: the server's transformation.
      params: initial parameters.
      arrivals: a trace with an update after every gradient: who is ready with a gradient, and when.
      batches: rows for its events, also those whose gradient is not pushed.

    Other args:
      threshold: of the global norm of a worker's gradient, before ``worker_tx``; 0 pushes all but
        gradients of zero.
      **options: the others of :func:`asgd.emulate`; not ``backend="debug"``.

    Returns:
      An :class:`EventTriggeredResult`.

    Raises:
      ValueError: for arguments that do not fit, naming them.

    Example:
      >>> import asgd, jax.numpy as jnp, optax
      >>> from asgd.cluster import protocols, timing
      >>> arrivals = asgd.simulate(protocols.asynchronous(), timing.constant(1.0), 2, 6, seed=0)
      >>> result = asgd.emulate_event_triggered(
      ...     lambda p, b: 0.5 * p**2, optax.sgd(0.5), jnp.array(1.0), arrivals, jnp.zeros(6),
      ...     threshold=0.4)
      >>> result.trace.applied.tolist(), result.trace.staleness.tolist()
      ([True, True, True, False, False, False], [0, 1, 1, 1, 0, 0])
    """
    if options.get("backend") == "debug":
        raise ValueError("backend='debug' replays traces; take the result's trace to it")
    emulator = EventTriggeredEmulator(loss_fn, tx, params, arrivals, batches, threshold=threshold,
                                      **options)
    state, losses, observed = emulator.observed(emulator.init())
    return EventTriggeredResult(emulator.params(state), losses, emulator.model_state(state),
                                emulator.trace(observed))
