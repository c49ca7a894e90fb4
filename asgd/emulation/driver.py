"""Runs a trace wave by wave: views, gradients, apply."""

import collections
from collections.abc import Sequence
from typing import Any, Callable, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asgd.cluster.trace import Trace
from asgd.emulation import elementwise, inputs, ring
from asgd.emulation.convolutions import canonical_convolutions
from asgd.emulation.rewrite import one_rounding
from asgd.emulation.server import ParameterServer, describe_events
from asgd.emulation.spmd import AXIS, Spmd
from asgd.emulation.waves import plan_waves

LAYOUTS = ("sharded", "replicated")
_BATCH_BYTES_PER_CALL = 2**25
_MOST_WAVES_PER_CALL = 128


class Emulator:
    """Executes a trace piece by piece; :func:`asgd.emulate` runs it in one go.

    Arguments are those of :func:`asgd.emulate`, and:

    Args:
      cuts: event numbers at which :meth:`run` will start or stop.
    """

    def __init__(self, loss_fn: Callable[..., Any], tx: optax.GradientTransformation, params: Any,
                 trace: Trace, batches: Any, *, num_devices: int = 1, backend: str = "shard_map",
                 worker_tx: Optional[optax.GradientTransformation] = None,
                 layout: str = "sharded", waves_per_call: Optional[int] = None, seed: int = 0,
                 model_state: Any = None, model_state_decay: float = 0.9,
                 cuts: Sequence[int] = ()):
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r} is unknown; the layouts are {', '.join(LAYOUTS)}")
        inputs.check_arguments(tx, worker_tx, trace, num_devices, waves_per_call,
                               model_state_decay)
        self.trace = trace
        self._spmd = Spmd(num_devices, backend)
        self._params = jax.tree.map(jnp.asarray, params)
        self._model_state = jax.tree.map(jnp.asarray, model_state)
        self._rows = inputs.row_reader(batches, len(trace))
        self._key = jax.random.key(seed)
        loss = inputs.uniform_loss(loss_fn, model_state is not None)
        row = jax.tree.map(lambda x: x[0], self._rows(0, 1)) if len(trace) else None
        if row is not None:
            inputs.check_loss(loss, self._params, self._model_state, row)
        tx = optax.with_extra_args_support(tx)
        if layout == "sharded":
            elementwise.check_elementwise(tx, self._params)
        if (trace.applied & ~trace.updates).any():
            elementwise.check_waits_for_update(tx, self._params)

        worker_has_state = worker_tx is not None and bool(
            jax.tree.leaves(jax.eval_shape(worker_tx.init, self._params)))
        self.plan = plan_waves(trace, num_devices, cuts, distinct_workers=worker_has_state)
        self._layout = {"sharded": ring.Sharded, "replicated": ring.Replicated}[layout](num_devices)
        self._topology = ParameterServer(
            tx, worker_tx, self._layout, trace, self.plan,
            jax.eval_shape(lambda: self._params), model_state_decay)
        row_bytes = sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(row))
        self.waves_per_call = waves_per_call or int(max(1, min(
            _MOST_WAVES_PER_CALL, _BATCH_BYTES_PER_CALL // max(1, row_bytes * num_devices))))
        self._call = self._spmd.compile(
            wave_program(canonical_convolutions(loss), self._topology, num_devices))

    def init(self) -> Any:
        """Returns the emulated cluster before the first event, on the devices."""
        worker_state = self._topology.worker_tx.init(self._params)
        whole = ring.Replicated(self._spmd.num_devices)
        mine = self._spmd.put((self._layout.split(self._params), self._layout.split(worker_state),
                               whole.split(self._model_state)))
        return self._spmd.compile(
            lambda carry, mine, shared: (carry, self._topology.init(*mine)), donate=False)(
                (), mine, ())[1]

    def run(self, state: Any, start: int = 0, stop: Optional[int] = None):
        """Executes the events ``start .. stop - 1``.

        Args:
          state: the emulated cluster at event ``start``; its buffers are used up.
          start: event number where a wave begins: 0, the trace's length, or one of ``cuts``.
          stop: likewise; by default the trace's length.

        Returns:
          The cluster at event ``stop``, and the losses [stop - start] as a NumPy array.

        Raises:
          NonFiniteLossError: naming the first event whose loss is not finite.
        """
        stop = len(self.trace) if stop is None else stop
        begin, end = np.searchsorted(self.plan.first, [start, stop])
        if (self.plan.first[[begin, end]] != (start, stop)).any():
            raise ValueError(f"run: start={start} and stop={stop} must be cuts of the plan")
        losses, in_flight = [], collections.deque()

        def finish():
            first, taken, out = in_flight.popleft()
            # [D, waves, k] -> [waves, D * k], of which the places with an event are taken.
            out = np.asarray(out).swapaxes(0, 1).reshape(taken.shape)[taken]
            inputs.check_losses(out, int(first), self.trace)
            losses.append(out)

        for wave in range(begin, end, self.waves_per_call):
            first, taken, rows, shared = self._prepare(wave, min(wave + self.waves_per_call, end))
            state, out = self._call(state, rows, (self._key, np.float32(0), shared))
            in_flight.append((first, taken, out))
            # More programs in the queue than this can stall several CPU devices.
            if len(in_flight) > 2:
                finish()
        while in_flight:
            finish()
        return state, np.concatenate(losses) if losses else np.zeros(0, np.float32)

    def params(self, state: Any) -> Any:
        """Returns the server's parameters as the tree that came in."""
        return self._layout.join(jax.device_get(state.params), self._params)

    def model_state(self, state: Any) -> Any:
        """Returns the server's running statistics as the tree that came in."""
        return jax.tree.map(lambda x: x[0], jax.device_get(state.model_state))

    def save(self, state: Any) -> list[np.ndarray]:
        """Returns the whole cluster as NumPy arrays, the same for any number of devices."""
        return jax.tree.leaves(self._layout.join(jax.device_get(state), self._whole_state()))

    def load(self, arrays: Sequence[np.ndarray]) -> Any:
        """Inverse of :meth:`save`, also onto another number of devices."""
        whole = self._whole_state()
        state = jax.tree.unflatten(jax.tree.structure(whole), arrays)
        part = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
                            jax.eval_shape(self.init))
        return self._spmd.put(self._layout.split(state, part))

    def _whole_state(self):
        return jax.eval_shape(lambda: self._topology.init(
            self._params, self._topology.worker_tx.init(self._params), self._model_state))

    def _prepare(self, begin, end):
        """Returns the first event of a call, which places are taken, and the call's arrays."""
        num_devices, width = self._spmd.num_devices, self.plan.width
        edges = np.full(self.waves_per_call + 1, self.plan.first[end])
        edges[: end - begin + 1] = self.plan.first[begin:end + 1]
        first, last = edges[0], edges[-1]
        places = edges[:-1, None] + np.arange(width)
        taken = places < edges[1:, None]
        events = np.where(taken, places, first)
        shared = (taken.sum(1).astype(np.int32), describe_events(self.trace, self.plan, events))

        # Event d * k + j of a wave is computed on device d: [waves, D * k] -> [D, waves, k].
        events = events.reshape(len(taken), num_devices, -1).swapaxes(0, 1) - first
        rows = self._rows(int(first), int(last))
        in_order = taken.all() and num_devices == 1
        rows = jax.tree.map(
            lambda r: r.reshape(events.shape + r.shape[1:]) if in_order else r[events], rows)
        return first, taken, self._spmd.put(rows), self._spmd.put_shared(shared)


def wave_program(loss: Callable[..., Any], topology: Any, num_devices: int):
    """Returns the program of one call: a scan over waves on one device's share.

    Gradients are computed in a loop of their own, whose number of turns is known only when it
    runs. So the compiler can neither unroll it nor fuse it with what surrounds it, and a
    gradient's bits do not depend on the number of devices, waves per call or backend.
    """
    gradient_of = one_rounding(jax.value_and_grad(loss, has_aux=True))

    def program(state, rows, shared):
        key, zero, waves = shared
        apply_to = one_rounding(topology.apply, zero)
        device = lax.axis_index(AXIS) if num_devices > 1 else 0

        def compute(view, batch, event, turn):
            # The turn's number in the barrier keeps the body from being moved out of its loop.
            view, batch, event, _ = lax.optimization_barrier((view, batch, event, turn))
            event_key = jax.random.fold_in(key, event.number)
            (value, statistics), gradient = gradient_of(view[0], batch, event_key)
            value, statistics, gradient = lax.optimization_barrier((value, statistics, gradient))
            return value, statistics, topology.on_worker(gradient, view, event.worker)

        def wave(carry, xs):
            state, sent = carry
            size, events, batch = xs
            views = topology.views(state, events)
            per_device = jax.tree.leaves(sent)[0].shape[0]

            def turn(j, sent):
                event = ring.read(events, device * per_device + j)
                return ring.write(
                    sent, j, compute(ring.read(views, j), ring.read(batch, j), event, j))

            mine = jnp.clip(size - device * per_device, 0, per_device)
            sent = lax.fori_loop(0, mine, turn, sent)
            arrived = topology.collect(sent[2], sent[1])

            def apply(i, state):
                one, event, _ = lax.optimization_barrier(
                    (ring.read(arrived, i), ring.read(events, i), i))
                return apply_to(state, one, event)

            state = lax.fori_loop(0, size, apply, state)
            return (state, sent), sent[0]

        def shapes(state, rows, waves):
            event = ring.read(waves[1], 0)
            views = topology.views(state, event)
            return jax.vmap(compute, (0, 0, None, None))(
                views, ring.read(rows, 0), jax.tree.map(lambda e: e[0], event), 0)

        sent = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype),
                            jax.eval_shape(shapes, state, rows, waves))
        (state, _), losses = lax.scan(wave, (state, sent), (*waves, rows))
        return state, losses

    return program
