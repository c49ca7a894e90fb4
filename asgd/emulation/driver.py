"""Runs events wave by wave on a topology: views, gradients, apply."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Callable, Optional

import jax
import numpy as np

from asgd.emulation import ring
from asgd.emulation.feed import Feed
from asgd.emulation.finite import finite_leaves, first_bad
from asgd.emulation.program import wave_program
from asgd.emulation.spmd import WHOLE, Spmd, split_axis
from asgd.emulation.waves import Waves

_BATCH_BYTES_PER_CALL = 2**25
_MOST_WAVES_PER_CALL = 128


class Driver:
    """Executes events piece by piece.

    Args:
      topology: what agents or workers compute on, and what is done with it; an object with

        * ``init(*parts, model_state)``: the state before the first event;
        * ``describe(events)``: NumPy arrays about events, with the field ``number`` among them;
        * ``views(state, wave)``: a function from j to what this device's event j is computed
          on, a pair of the parameters and what else ``on_worker`` needs;
        * ``on_worker(gradient, view, event)``: what is sent;
        * ``collect(sent, statistics)``: brings it to where it is applied;
        * ``apply(state, arrived, event)``: the state after an event;
        * ``apply_finite(state, arrived, event, finite)``: likewise, but without what arrived unless
          it is finite;
        * ``trained(state)``: the parameters that are trained, a tree that looks like them;
        * ``observe(state)``: numbers to be returned for every wave, ``()`` for none;
        * ``check(losses, start)``: raises for losses that stop a run.
      loss: ``loss(params, batch, key) -> (scalar, statistics)``.
      waves: which events run side by side.
      feed: their batches.
      spmd: the devices.
      layout: where trees live, from :mod:`asgd.emulation.ring`.
      whole: whole trees from whose parts ``init`` makes the state.
      model_state: running statistics, or None.

    Other args:
      waves_per_call: waves in one compiled call; chosen by batch size if None.
      seed: of the events' keys.
      events_per_device: gradients that a device computes in one batched call.
      on_nonfinite: "stop" raises for losses; "skip" drops gradients that are not finite, whose losses
        are then not a number; "watch" goes on, with waves of one event, and observes for every event
        which leaves of the parameters are still finite after it, bool [events, leaves].

    Attributes:
      unit: it can stop after multiples of so many events.
    """

    unit = 1

    def __init__(self, topology: Any, loss: Callable[..., Any], waves: Waves, feed: Feed,
                 spmd: Spmd, layout: ring.Replicated, whole: tuple[Any, ...], model_state: Any, *,
                 waves_per_call: Optional[int] = None, seed: int = 0, events_per_device: int = 1,
                 on_nonfinite: str = "stop"):
        if on_nonfinite == "watch":
            waves = dataclasses.replace(waves, first=np.arange(waves.first[-1] + 1))
        self.plan = waves
        self._checks = on_nonfinite == "stop"
        self._topology, self._spmd, self._feed = topology, spmd, feed
        self._whole, self._model_state = whole, model_state
        row_bytes = sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(feed.row))
        self.waves_per_call = waves_per_call or int(max(1, min(
            _MOST_WAVES_PER_CALL, _BATCH_BYTES_PER_CALL // max(1, row_bytes * waves.width))))
        self._placed = layout.placed
        self._next_wave = None

        def make(*parts):
            return topology.init(*parts, model_state)

        self._shapes, self._specs = layout.placed(make, *whole)
        # Saved states are flat and padded, so that any number of devices reads its own parts.
        self._saved = self._shapes if layout.num_parts > 1 else ring.Sharded(1).placed(make, *whole)[0]
        self._constants = spmd.put((jax.random.key(seed), np.float32(0)), WHOLE)
        self._call = spmd.compile(
            wave_program(loss, topology, feed, spmd.num_devices, layout.num_parts,
                         batched=events_per_device > 1, on_nonfinite=on_nonfinite),
            (self._specs, WHOLE, split_axis(0), WHOLE, WHOLE),
            (self._specs, (WHOLE, WHOLE)), donate=(0,))
        self._finite = jax.jit(lambda state: finite_leaves(topology.trained(state), 1),
                               out_shardings=spmd.sharding(WHOLE))

    def init(self) -> Any:
        """Returns the emulated cluster before the first event, on the devices."""
        shapes, specs = self._placed(lambda *parts: parts, *self._whole)
        parts = self._spmd.put(ring.to_parts(self._whole, shapes), specs)
        return self._spmd.compile(
            lambda parts, model_state: self._topology.init(*parts, model_state),
            (specs, WHOLE), self._specs)(parts, self._spmd.put(self._model_state, WHOLE))

    def observed(self, state: Any, start: int = 0, stop: Optional[int] = None,
                 until: Optional[Callable[[], bool]] = None):
        """Executes the events ``start .. stop - 1``.

        Args:
          state: the emulated cluster at event ``start``; its buffers are used up.
          start: event number where a wave begins: 0, the number of events, or a cut.
          stop: likewise; by default the number of events.
          until: asked between calls; once it is true this stops early, where a cut may be.

        Returns:
          The cluster at event ``stop``, the losses [stop - start] as a NumPy array (fewer if it
          stopped early), and what was observed after each wave, NumPy arrays [waves, ...].

        Raises:
          FloatingPointError: naming the first event whose loss is not finite.
        """
        stop = int(self.plan.first[-1]) if stop is None else stop
        begin, end = np.searchsorted(self.plan.first, [start, stop])
        if (self.plan.first[[begin, end]] != (start, stop)).any():
            raise ValueError(f"run: start={start} and stop={stop} must be cuts of the plan")
        losses, observed, in_flight = [], [], collections.deque()

        def finish():
            first, taken, out = in_flight.popleft()
            out, seen = jax.device_get(out)
            out = out[taken]
            if self._checks:
                self._topology.check(out, int(first))
            losses.append(out)
            observed.append(jax.tree.map(lambda x: x[taken.any(1)], seen))

        if self._feed.reads_ahead and begin != self._next_wave:
            self._feed.expect(self._own_events(begin))
        self._next_wave = end
        for wave in range(begin, end, self.waves_per_call):
            if until and wave > begin and self.plan.first[wave] % self.unit == 0 and until():
                self._next_wave = wave
                break
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
        losses = np.concatenate(losses) if losses else np.zeros(0, np.float32)
        return state, losses, jax.tree.map(lambda *x: np.concatenate(x), *observed) if observed else ()

    def run(self, state: Any, start: int = 0, stop: Optional[int] = None,
            until: Optional[Callable[[], bool]] = None):
        """As :meth:`observed`, without the third result."""
        return self.observed(state, start, stop, until)[:2]

    def finite(self, state: Any) -> np.ndarray:
        """Returns for each leaf of the parameters whether all its numbers are finite, bool [leaves]."""
        return jax.device_get(self._finite(state))

    def bad_leaf(self, finite: np.ndarray) -> Optional[str]:
        """Returns the first leaf that is not finite, as `finite` or "watch" say, or None."""
        shapes = jax.eval_shape(self._topology.trained, self._shapes)
        return first_bad(jax.tree.unflatten(jax.tree.structure(shapes), finite))

    def save(self, state: Any) -> list[jax.Array]:
        """Returns the whole cluster as arrays: flat, split over the devices and padded with zeros.

        For another number of devices only the padding at the end of the last axis differs.
        """
        return [x if x.shape == saved.shape else x.reshape(saved.shape)
                for x, saved in zip(jax.tree.leaves(state), jax.tree.leaves(self._saved))]

    def saved(self) -> list[jax.ShapeDtypeStruct]:
        """Returns shapes, types and shardings of what :meth:`save` returns and :meth:`load` wants."""
        return jax.tree.leaves(jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._spmd.sharding(spec)),
            self._saved, self._specs))

    def describe(self) -> dict[str, str]:
        """Returns what :meth:`save` saves: name, type and shape of every array, for any devices."""
        whole = jax.eval_shape(lambda: self._topology.init(*self._whole, self._model_state))
        return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}"
                for path, x in jax.tree_util.tree_leaves_with_path(whole)}

    def load(self, arrays: Sequence[Any]) -> Any:
        """Inverse of :meth:`save`; NumPy arrays may be those of another number of devices.

        Arrays that lie on these devices already are not copied, so :meth:`run` uses them up.
        """
        state = jax.tree.unflatten(jax.tree.structure(self._saved), [
            x if x.shape == like.shape else ring.padded(np.asarray(x), like.shape)
            for x, like in zip(arrays, jax.tree.leaves(self._saved), strict=True)])
        state = jax.tree.map(lambda x, like: x if x.shape == like.shape else x.reshape(like.shape),
                             state, self._shapes)
        # What was loaded for these devices lies there already.
        there = all(isinstance(x, jax.Array) and x.sharding.device_set == set(self._spmd.devices)
                    for x in arrays)
        return state if there else self._spmd.put(state, self._specs)

    def temporary_bytes(self) -> int:
        """Returns what the compiled program needs on a device besides its arguments."""
        shapes = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._spmd.sharding(
                spec)), self._shapes, self._specs)
        rest = self._prepare(0, min(self.waves_per_call, self.plan.num_waves))
        compiled = self._call.lower(
            shapes, self._feed.data, rest[2], self._constants, rest[3]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def _own_events(self, begin):
        """Returns the events from a wave on that this process's devices compute, in order."""
        first = self.plan.first[begin:]
        events = np.arange(first[0], first[-1])
        place = events - np.repeat(first[:-1], np.diff(first))
        device = place // (self.plan.width // self._spmd.num_devices)
        return events[(device >= self._spmd.local.start) & (device < self._spmd.local.stop)]

    def _prepare(self, begin, end):
        """Returns the first event of a call, which places are taken, and the call's arrays."""
        edges = np.full(self.waves_per_call + 1, self.plan.first[end])
        edges[: end - begin + 1] = self.plan.first[begin:end + 1]
        first = int(edges[0])
        places = edges[:-1, None] + np.arange(self.plan.width)
        taken = places < edges[1:, None]
        events = np.where(taken, places, first)
        waves = (np.int32(end - begin), taken.sum(1).astype(np.int32),
                 self._topology.describe(events))
        return first, taken, self._feed.send(events, taken), self._spmd.put(waves, WHOLE)
