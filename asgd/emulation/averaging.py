"""Topology 3: workers that take local steps, whose updates a server averages (paper D).

An event is a local step. What happens between steps (releasing, merging, taking the server's copy)
follows the event before it, as the schedule says. All parameters live on shards, so a merge moves
nothing between devices.
"""

from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asgd.cluster.averaging import MEASURE, MERGE, RELEASE, TAKE, AveragingSchedule
from asgd.emulation import elementwise, ring
from asgd.emulation.inputs import NonFiniteLossError
from asgd.emulation.sums import sum_rows
from asgd.emulation.workers import Workers


class AveragingState(NamedTuple):
    """What the emulated cluster remembers between waves; trees are in the layout's form.

    Attributes:
      params: the server's parameters, which are the last copy that it sent.
      outer_state: state of the server's transformation.
      released: sum of the updates that were released since the last merge.
      num_released: int32 scalar, how many.
      snapshots: ring [N] of the workers' parameters.
      bases: ring [N] of the points from which their pending updates are counted.
      opt_state: ring [N] of the states of the workers' transformations on shards.
      worker_state: ring [N] of the states of what is done to whole gradients.
      model_state: tree [N, ...] of the workers' running statistics, whole on every device, or None.
      discrepancy: float [max(1, M)], the largest distance between two workers when it was measured.
      num_measured: int32 scalar, how often it was.
    """

    params: Any
    outer_state: Any
    released: Any
    num_released: jax.Array
    snapshots: Any
    bases: Any
    opt_state: Any
    worker_state: Any
    model_state: Any
    discrepancy: jax.Array
    num_measured: jax.Array


class Event(NamedTuple):
    """What is known of each event of a wave, arrays [W] and [W, A]."""

    number: Any
    worker: Any
    read_slot: Any
    num_actions: Any
    action: Any
    member: Any


class Averaging(Workers):
    r"""Takes local steps and averages their sums.

    Args:
      tx: the workers' transformation, given ``worker`` and ``number``, of the event (int32).
      outer_tx: the server's, given as gradient minus the mean of the released updates, and
        ``num_released``, their number.
      worker_tx: what is done to whole gradients before.
      layout: where trees live.
      schedule: what happens.
      params: shapes of the parameters.
      model_state_decay: decay of the running statistics.
      elasticity: None, or :math:`\alpha` of elastic averaging, which changes what is released.
    """

    def __init__(self, tx, outer_tx, worker_tx, layout: ring.Replicated,
                 schedule: AveragingSchedule, params: Any, model_state_decay: float,
                 elasticity: Optional[float] = None):
        super().__init__(worker_tx, layout, params)
        self.tx, self.outer_tx = tx, outer_tx
        self._schedule = schedule
        self._decay = model_state_decay
        self._elasticity = elasticity
        self._first = np.searchsorted(schedule.after, np.arange(1, len(schedule) + 2))
        self._most = int(np.diff(self._first).max(initial=1))

    def init(self, params: Any, worker_state: Any, model_state: Any) -> AveragingState:
        """Returns the state before the first event, where all have ``params``."""
        num_workers = self._schedule.num_workers
        everybody = ring.repeat(params, num_workers)

        def strong(tree):
            return jax.tree.map(lambda x: lax.convert_element_type(x, x.dtype), tree)

        return AveragingState(
            params=params,
            outer_state=strong(self.outer_tx.init(params)),
            released=jax.tree.map(jnp.zeros_like, params),
            num_released=jnp.zeros([], jnp.int32),
            snapshots=everybody,
            bases=everybody,
            opt_state=ring.repeat(strong(self.tx.init(params)), num_workers),
            worker_state=ring.repeat(worker_state, num_workers),
            model_state=ring.repeat(model_state, num_workers),
            discrepancy=jnp.zeros(max(1, self._schedule.num_measured)),
            num_measured=jnp.zeros([], jnp.int32),
        )

    def describe(self, events: np.ndarray) -> Event:
        """Returns what the program needs to know of events, in NumPy arrays like ``events``."""
        schedule, first = self._schedule, self._first
        worker = schedule.worker[events]
        places = first[events][..., None] + np.arange(self._most)
        places = np.minimum(places, max(0, len(schedule.after) - 1))
        action, member = (column[places] if len(column) else np.zeros(places.shape, np.int32)
                          for column in (schedule.action, schedule.member))
        return Event(events.astype(np.uint32), worker, worker,
                     (first[events + 1] - first[events]).astype(np.int32),
                     action.astype(np.int32), member)

    def apply(self, state: AveragingState, arrived: Any, event: Event) -> AveragingState:
        """Takes a local step, and does what follows it."""
        return self._follow(self._step(state, arrived, event), event)

    def apply_finite(self, state: AveragingState, arrived: Any, event: Event,
                     finite: Any) -> AveragingState:
        """As `apply`, but takes no step with a gradient that is not finite."""
        # A loop of no or one turn; its number keeps the step in it, as in the parameter server's.
        return self._follow(lax.fori_loop(0, finite.astype(int), lambda turn, s: self._step(
            s, lax.optimization_barrier((arrived, turn))[0], event), state), event)

    def _step(self, state, arrived, event):
        (gradient, worker_state), statistics = arrived
        opt_state = ring.read(state.opt_state, event.worker)
        params = ring.read(state.snapshots, event.worker)
        updates, new_opt_state = self.tx.update(
            gradient, opt_state, params, worker=event.worker, number=event.number.astype(jnp.int32))
        new_opt_state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype),
                                     new_opt_state, opt_state)
        state = self.keep_statistics(state, event.worker, statistics, self._decay)
        return state._replace(
            snapshots=ring.write(
                state.snapshots, event.worker, optax.apply_updates(params, updates)),
            opt_state=ring.write(state.opt_state, event.worker, new_opt_state),
            worker_state=ring.write(state.worker_state, event.worker, worker_state))

    def _follow(self, state, event):
        def act(i, state):
            action, member = event.action[i], event.member[i]
            for kind, do in {MERGE: self._merge, MEASURE: self._measure}.items():
                if kind not in self._schedule.action:
                    continue
                state = lax.fori_loop(0, (action == kind).astype(int), do, state)
            return self._move(state, action, member)

        return lax.fori_loop(0, event.num_actions, act, state)

    def _move(self, state, action, member):
        """Lets a worker take the server's copy, or release its update."""
        takes, releases = action == TAKE, action == RELEASE
        # What leaves a conditional has a buffer of its own; else XLA reads a row again where it is
        # used, after it is overwritten, for which it copies all workers'.
        params, base = lax.cond(
            takes | releases, lambda *rings: ring.read(rings, member),
            lambda *rings: jax.tree.map(lambda r: jnp.zeros_like(r[0]), rings),
            state.snapshots, state.bases)

        def move(_, state):
            return self._moved(state, takes, member, params, base)

        return lax.fori_loop(0, (takes | releases).astype(int), move, state)

    def _moved(self, state, takes, member, params, base):
        if self._elasticity is None:
            sent = jax.tree.map(jnp.subtract, params, base)
            new_base = jax.tree.map(lambda x, s: jnp.where(takes, s, x), params, state.params)
            new = jax.tree.map(
                lambda x, s, pending: jnp.where(takes, s + pending, x), params, state.params, sent)
        else:
            sent = jax.tree.map(lambda x, s: self._elasticity * (x - s), params, state.params)
            new_base, new = base, jax.tree.map(jnp.subtract, params, sent)
        released = jax.tree.map(
            lambda total, x: jnp.where(takes, total, total + x), state.released, sent)
        return state._replace(
            snapshots=ring.write(state.snapshots, member, new),
            bases=ring.write(state.bases, member, new_base),
            released=released, num_released=state.num_released + ~takes)

    def _merge(self, _, state):
        # What elastic averaging releases is added, not averaged.
        count = 1 if self._elasticity is not None else jnp.maximum(state.num_released, 1)
        pseudo = jax.tree.map(lambda x: -x / jnp.asarray(count, x.dtype), state.released)
        updates, outer_state = self.outer_tx.update(
            pseudo, state.outer_state, state.params, num_released=state.num_released)
        outer_state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype),
                                   outer_state, state.outer_state)
        return state._replace(
            params=optax.apply_updates(state.params, updates), outer_state=outer_state,
            released=jax.tree.map(jnp.zeros_like, state.released),
            num_released=jnp.zeros_like(state.num_released))

    def _measure(self, turn, state):
        num_workers = self._schedule.num_workers
        # The turn's number in the barrier keeps the body from being moved out of its loop.
        snapshots, _ = lax.optimization_barrier((state.snapshots, turn))

        def to_others(i, largest):
            def squares(ring_):
                wide = ring_.astype(jnp.promote_types(ring_.dtype, jnp.float32))
                return jnp.square(wide - lax.dynamic_index_in_dim(wide, i))

            square = sum(
                sum_rows(squares(ring_), like.size, self._layout.num_parts)
                for ring_, like in zip(*map(jax.tree.leaves, (snapshots, self._params))))
            return jnp.maximum(largest, jnp.sqrt(square.max()).astype(largest.dtype))

        largest = lax.fori_loop(
            0, num_workers, to_others, jnp.zeros([], state.discrepancy.dtype))
        return state._replace(
            discrepancy=state.discrepancy.at[state.num_measured].set(largest),
            num_measured=state.num_measured + 1)

    def observe(self, state: AveragingState) -> tuple[()]:
        """Nothing: the state keeps what was measured."""
        return ()

    def check(self, losses: np.ndarray, start: int) -> None:
        """Raises :class:`NonFiniteLossError` for the first bad loss."""
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            event = int(start + bad[0])
            raise NonFiniteLossError(event, float(losses[bad[0]]), int(self._schedule.worker[event]),
                                     int(self._schedule.drift[event]))

    def check_elementwise(self) -> None:
        """Raises ValueError when a transformation cannot run on shards."""
        elementwise.check_elementwise(
            self.tx, self._params, {}, dict(worker=np.int32(0), number=np.int32(0)))
        elementwise.check_elementwise(self.outer_tx, self._params, {}, dict(num_released=np.int32(1)))
