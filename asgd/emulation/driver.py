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
from asgd.emulation.feed import Feed
from asgd.emulation.keys import keys_as_data
from asgd.emulation.rewrite import one_rounding
from asgd.emulation.server import ParameterServer, describe_events
from asgd.emulation.spmd import AXIS, WHOLE, Spmd, split_axis
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
                 snapshot_dtype: Any = None, events_per_device: int = 1,
                 cuts: Sequence[int] = ()):
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r} is unknown; the layouts are {', '.join(LAYOUTS)}")
        inputs.check_arguments(tx, worker_tx, trace, model_state_decay, snapshot_dtype,
                               num_devices=num_devices, waves_per_call=waves_per_call,
                               events_per_device=events_per_device)
        self.trace = trace
        self._spmd = Spmd(num_devices, backend)
        self._params = jax.tree.map(jnp.asarray, params)
        self._model_state = jax.tree.map(jnp.asarray, model_state)
        self._feed = Feed(batches, len(trace), self._spmd)
        loss = inputs.uniform_loss(loss_fn, model_state is not None)
        row = self._feed.row
        if len(trace):
            inputs.check_loss(loss, self._params, self._model_state, row)
        tx = keys_as_data(tx, self._params)
        worker_tx = keys_as_data(worker_tx or optax.identity(), self._params)
        if layout == "sharded":
            elementwise.check_elementwise(tx, self._params)
        if (trace.applied & ~trace.updates).any():
            elementwise.check_waits_for_update(tx, self._params)

        worker_state = jax.eval_shape(worker_tx.init, self._params)
        self.plan = plan_waves(trace, num_devices * events_per_device, cuts,
                               distinct_workers=bool(jax.tree.leaves(worker_state)))
        self._layout = {"sharded": ring.Sharded, "replicated": ring.Replicated}[layout](num_devices)
        self._topology = ParameterServer(
            tx, worker_tx, self._layout, trace, self.plan,
            jax.eval_shape(lambda: self._params), model_state_decay, snapshot_dtype)
        row_bytes = sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(row))
        self.waves_per_call = waves_per_call or int(max(1, min(
            _MOST_WAVES_PER_CALL, _BATCH_BYTES_PER_CALL // max(1, row_bytes * self.plan.width))))
        self._shapes, self._specs = self._layout.placed(
            lambda *parts: self._topology.init(*parts, self._model_state),
            self._params, worker_state)
        self._key = jax.random.key(seed)
        self._constants = self._spmd.put((self._key, np.float32(0)), WHOLE)
        self._call = self._spmd.compile(
            wave_program(canonical_convolutions(loss), self._topology, self._feed, num_devices,
                         batched=events_per_device > 1),
            (self._specs, WHOLE, split_axis(0), WHOLE, WHOLE), (self._specs, split_axis(1)),
            donate=(0,))

    def init(self) -> Any:
        """Returns the emulated cluster before the first event, on the devices."""
        whole = self._params, self._topology.worker_tx.init(self._params)
        shapes, specs = self._layout.placed(lambda *parts: parts, *whole)
        parts = self._spmd.put(ring.to_parts(whole, shapes), specs)
        return self._spmd.compile(
            lambda parts, model_state: self._topology.init(*parts, model_state),
            (specs, WHOLE), self._specs)(parts, self._spmd.put(self._model_state, WHOLE))

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
            out = jax.device_get(out)[taken]
            inputs.check_losses(out, int(first), self.trace)
            losses.append(out)

        for wave in range(begin, end, self.waves_per_call):
            first, taken, rows, waves = self._prepare(wave, min(wave + self.waves_per_call, end))
            # Nothing crosses between host and devices but what is put and fetched on purpose.
            with jax.transfer_guard("disallow"):
                state, out = self._call(state, self._feed.data, rows, self._constants, waves)
            in_flight.append((first, taken, out))
            # More programs in the queue than this can stall several CPU devices.
            if len(in_flight) > 2:
                finish()
        while in_flight:
            finish()
        return state, np.concatenate(losses) if losses else np.zeros(0, np.float32)

    def params(self, state: Any) -> Any:
        """Returns the server's parameters as the tree that came in."""
        return ring.to_whole(jax.device_get(state.params), self._params)

    def model_state(self, state: Any) -> Any:
        """Returns the server's running statistics as the tree that came in."""
        return jax.device_get(state.model_state)

    def save(self, state: Any) -> list[np.ndarray]:
        """Returns the whole cluster as NumPy arrays, the same for any number of devices."""
        return jax.tree.leaves(ring.to_whole(jax.device_get(state), self._whole_state()))

    def load(self, arrays: Sequence[np.ndarray]) -> Any:
        """Inverse of :meth:`save`, also onto another number of devices."""
        state = jax.tree.unflatten(jax.tree.structure(self._shapes), arrays)
        return self._spmd.put(ring.to_parts(state, self._shapes), self._specs)

    def temporary_bytes(self) -> int:
        """Returns what the compiled program needs on a device besides its arguments."""
        shapes = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._spmd.sharding(
                spec)), self._shapes, self._specs)
        rest = self._prepare(0, min(self.waves_per_call, self.plan.num_waves))
        compiled = self._call.lower(
            shapes, self._feed.data, rest[2], self._constants, rest[3]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def _whole_state(self):
        return jax.eval_shape(lambda: self._topology.init(
            self._params, self._topology.worker_tx.init(self._params), self._model_state))

    def _prepare(self, begin, end):
        """Returns the first event of a call, which places are taken, and the call's arrays."""
        edges = np.full(self.waves_per_call + 1, self.plan.first[end])
        edges[: end - begin + 1] = self.plan.first[begin:end + 1]
        first, last = int(edges[0]), int(edges[-1])
        places = edges[:-1, None] + np.arange(self.plan.width)
        taken = places < edges[1:, None]
        events = np.where(taken, places, first)
        waves = (np.int32(end - begin), taken.sum(1).astype(np.int32),
                 describe_events(self.trace, self.plan, events))
        return first, taken, self._feed.send(first, last, events), self._spmd.put(waves, WHOLE)


def wave_program(loss: Callable[..., Any], topology: Any, feed: Feed, num_devices: int,
                 batched: bool = False):
    """Returns the program of one call: a loop over waves on one device's share.

    A gradient is computed in a loop of its own, of no or one turn, known only when it runs. So the
    compiler can neither unroll it nor fuse it with what surrounds it, and a gradient's bits do not
    depend on the number of devices, waves per call or backend. Without ``batched`` a wave has one
    event a device.
    """
    gradient_of = one_rounding(jax.value_and_grad(loss, has_aux=True))

    def program(state, data, rows, constants, plan):
        key, zero = constants
        count, *waves = plan
        apply_to = one_rounding(topology.apply, zero)
        device = lax.axis_index(AXIS) if num_devices > 1 else 0
        read_rows = feed.reader(data, rows)
        num_waves, width = waves[1].number.shape
        per_device = width // num_devices

        def compute(view, batch, event, turn):
            # The turn's number in the barrier keeps the body from being moved out of its loop.
            view, batch, event, _ = lax.optimization_barrier((view, batch, event, turn))
            event_key = jax.random.fold_in(key, event.number)
            (value, statistics), gradient = gradient_of(view[0], feed.shaped(batch), event_key)
            value, statistics, gradient = lax.optimization_barrier((value, statistics, gradient))
            return value, statistics, topology.on_worker(gradient, view, event.worker)

        def needs(state, number, events):
            """Returns a function from j to what this device's event j of a wave is made of."""
            views = topology.views(state, events)

            def need(j):
                event = ring.read(events, device * per_device + j)
                return views(j), read_rows(number * per_device + j, event.number), event

            return need

        def wave(number, carry):
            state, sent, losses = carry
            size, events = ring.read(waves, number)
            need = needs(state, number, events)
            if batched:
                sent = jax.vmap(lambda j: compute(*need(j), j))(jnp.arange(per_device))
            else:
                # Read before the loop, or XLA would fuse where it reads from with what it computes.
                mine = need(0)
                sent = lax.fori_loop(0, (device < size).astype(int), lambda turn, _: jax.tree.map(
                    lambda x: x[None], compute(*mine, turn)), sent)
            arrived = topology.collect(sent[2], sent[1])

            def apply(i, state):
                return apply_to(state, ring.read(arrived, i), ring.read(events, i))

            state = apply(0, state) if width == 1 else lax.fori_loop(0, size, apply, state)
            return state, sent, ring.write(losses, number, sent[0])

        shapes = jax.eval_shape(
            lambda: compute(*needs(state, 0, ring.read(waves[1], 0))(0), 0))
        sent = jax.tree.map(lambda s: jnp.zeros((per_device,) + s.shape, s.dtype), shapes)
        losses = jnp.zeros((num_waves,) + sent[0].shape, sent[0].dtype)
        state, _, losses = lax.fori_loop(0, count, wave, (state, sent, losses))
        return state, losses

    return program
