"""Topology 2: agents that mix with their neighbours over a graph, without a server (paper B).

An event is an agent's gradient in a round: event ``t * N + i`` is agent i's in round t. When it
has arrived, the agent's next parameters are made of it and of what its neighbours sent, which all
exists when a round begins. So a round's events run side by side. An agent's neighbours are added up
one by one, on shards: a matrix product over all agents would round as the length of the shards
wants.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.extend import core

from asgd.cluster.schedules import GossipSchedule
from asgd.emulation import elementwise, ring
from asgd.emulation.sums import sum_rows
from asgd.emulation.waves import Waves
from asgd.emulation.workers import Workers

class GossipState(NamedTuple):
    """What the emulated agents remember between waves; trees are in the layout's form.

    Attributes:
      snapshots: ring [S * N] of the agents' parameters in the last rounds; round t is in the rows
        from ``t % S * N``.
      gradients: likewise their gradients, or ``()`` when nobody uses old ones.
      opt_state: ring [N] of the states of the agents' transformations.
      worker_state: ring [N] of the states of what is done to whole gradients.
      model_state: tree [N, ...] of the agents' running statistics, whole on every device, or None.
      consensus_distance: float scalar, after the last round.
      num_rounds: int32 scalar, rounds so far.
    """

    snapshots: Any
    gradients: Any
    opt_state: Any
    worker_state: Any
    model_state: Any
    consensus_distance: jax.Array
    num_rounds: jax.Array


class Event(NamedTuple):
    """What is known of each event of a wave, arrays [W] and [W, K]."""

    number: Any
    worker: Any
    read_slot: Any
    write_slot: Any
    round_ends: Any
    neighbors: Any
    delays: Any
    mixing: Any
    clipped: Any
    trajectory: Any


class Gossip(Workers):
    r"""Mixes the agents' parameters as a schedule says.

    Args:
      tx: the agents' transformation, given for agent i in round t the arguments that
        :func:`asgd.predict_clip` takes, and ``worker``.
      worker_tx: what is done to whole gradients before.
      layout: where trees live, with shards of a multiple of ``CHUNK`` elements.
      schedule: who mixes what.
      history: H, how many rounds back agents remember.
      params: shapes of one agent's parameters.
      model_state_decay: decay of the running statistics.
    """

    def __init__(self, tx, worker_tx, layout: ring.Replicated, schedule: GossipSchedule,
                 history: int, params: Any, model_state_decay: float):
        super().__init__(worker_tx, layout, params)
        self.tx = tx
        self.num_agents = schedule.graph.num_agents
        self._schedule = schedule
        self._history = history
        self._num_slots = history + 2  # A round is written while the oldest is still read.
        self._decay = model_state_decay
        self._num_received = schedule.neighbors.shape[1]
        self._num_rows = self._num_slots * self.num_agents
        self._keeps_gradients = self._uses_old_gradients()

    def init(self, params: Any, worker_state: Any, model_state: Any) -> GossipState:
        """Returns the state before round 0.

        Args:
          params: a list of the N agents' trees, in the layout's form.
          worker_state: state of the workers' transformation, in the layout's form.
          model_state: running statistics, or None.
        """
        snapshots = jax.tree.map(lambda *x: jnp.tile(
            jnp.stack(x), (self._num_slots,) + (1,) * x[0].ndim), *params)
        return GossipState(
            snapshots=snapshots,
            gradients=jax.tree.map(jnp.zeros_like, snapshots) if self._keeps_gradients else (),
            opt_state=jax.tree.map(
                lambda *x: lax.convert_element_type(jnp.stack(x), x[0].dtype),
                *map(self.tx.init, params)),
            worker_state=ring.repeat(worker_state, self.num_agents),
            model_state=ring.repeat(model_state, self.num_agents),
            consensus_distance=jnp.zeros([]),
            num_rounds=jnp.zeros([], jnp.int32),
        )

    def describe(self, events: np.ndarray) -> Event:
        """Returns what the program needs to know of events, in NumPy arrays like ``events``."""
        rounds, agents = np.divmod(events, self.num_agents)
        received = self._schedule.received(rounds, agents)
        # Before the first round everybody was where they began.
        delays = np.minimum(received.delays, rounds[..., None]).astype(np.int32)
        ages = np.minimum(np.arange(self._history + 1), rounds[..., None])
        return Event(
            number=events.astype(np.uint32),
            worker=agents.astype(np.int32),
            read_slot=self._row(rounds, agents),
            write_slot=self._row(rounds + 1, agents),
            round_ends=agents == self.num_agents - 1,
            neighbors=self._row(rounds[..., None] - delays, received.agents),
            delays=delays,
            mixing=received.mixing,
            clipped=received.clipped,
            trajectory=self._row(rounds[..., None] - ages, agents[..., None]),
        )

    def apply(self, state: GossipState, arrived: Any, event: Event) -> GossipState:
        """Makes an agent's next parameters."""
        return self.apply_finite(state, arrived, event, None)

    def apply_finite(self, state: GossipState, arrived: Any, event: Event,
                     finite: Any) -> GossipState:
        """As `apply`, but mixes with a gradient of zeros in place of one that is not finite.

        The running statistics and the state of what is done to whole gradients then stay.
        """
        before = state.model_state
        if finite is not None:
            arrived = self._where_finite(finite, state, arrived, event)
        (gradient, worker_state), statistics = arrived
        gradients = state.gradients
        if self._keeps_gradients:
            gradients = ring.write(gradients, event.read_slot, gradient)
        opt_state = ring.read(state.opt_state, event.worker)
        params = ring.read(state.snapshots, event.read_slot)
        updates, new_opt_state = self.tx.update(
            gradient, opt_state, params,
            past_params=state.snapshots,
            past_grads=gradients if self._keeps_gradients else state.snapshots,
            neighbor_rows=event.neighbors, own_rows=event.trajectory,
            delays=event.delays, mixing=event.mixing, clipped=event.clipped,
            worker=event.worker, sum_elements=self.sum_elements)
        snapshots = ring.write(
            state.snapshots, event.write_slot, optax.apply_updates(params, updates))
        new_opt_state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype),
                                     new_opt_state, opt_state)
        state = self.keep_statistics(state, event.worker, statistics, self._decay)
        if finite is not None:
            state = state._replace(model_state=_choose(finite, state.model_state, before))
        first = event.write_slot - event.worker
        distance = lax.fori_loop(
            0, event.round_ends.astype(int),
            # The turn's number in the barrier keeps the body from being moved out of its loop.
            lambda turn, old: self._consensus_distance(*lax.optimization_barrier(
                (snapshots, first, turn))[:2]).astype(old.dtype),
            state.consensus_distance)
        return state._replace(
            snapshots=snapshots, gradients=gradients,
            opt_state=ring.write(state.opt_state, event.worker, new_opt_state),
            worker_state=ring.write(state.worker_state, event.worker, worker_state),
            consensus_distance=distance, num_rounds=state.num_rounds + event.round_ends)

    def _where_finite(self, finite, state, arrived, event):
        (gradient, worker_state), statistics = arrived
        worker_state = _choose(finite, worker_state, ring.read(state.worker_state, event.worker))
        return (_choose(finite, gradient, jax.tree.map(jnp.zeros_like, gradient)), worker_state), statistics

    def observe(self, state: GossipState) -> jax.Array:
        """Returns the consensus distance, which changes when a round ends."""
        return state.consensus_distance

    def check(self, losses: np.ndarray, start: int) -> None:
        """Nothing: one agent's failure does not make the others' results worthless."""

    def sum_elements(self, tree: Any) -> Any:
        """Returns the sum over each leaf of a tree in the layout's form, as scalars."""
        return jax.tree.map(
            lambda x, like: sum_rows(x[None], like.size, self._layout.num_parts)[0], tree,
            self._params)

    def rows_of_round(self, rounds: int) -> np.ndarray:
        """Returns the rows of ``snapshots`` that hold the agents' parameters before a round."""
        return self._row(rounds, np.arange(self.num_agents))

    def _row(self, rounds, agents):
        return (rounds % self._num_slots * self.num_agents + agents).astype(np.int32)

    def _consensus_distance(self, snapshots, first):
        def squares(ring_):
            agents = lax.dynamic_slice_in_dim(ring_, first, self.num_agents)
            mean = agents.sum(0) / self.num_agents
            return jnp.square(agents - mean).sum(0)

        sums = self.sum_elements(jax.tree.map(squares, snapshots))
        return jnp.sqrt(sum(jax.tree.leaves(sums)) / self.num_agents)

    def _uses_old_gradients(self):
        """Tells whether the transformation looks at its neighbours' gradients."""
        def update(old, params):
            return self.tx.update(params, self.tx.init(params), params, past_params=ring.repeat(
                params, self._num_rows), past_grads=old, **self._extras())

        rows = jax.tree.map(lambda p: jax.ShapeDtypeStruct((self._num_rows,) + p.shape, p.dtype),
                            self._params)
        jaxpr = jax.make_jaxpr(update)(rows, self._params).jaxpr
        used = {v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, core.Literal)}
        return any(v in used for v in jaxpr.invars[:len(jax.tree.leaves(rows))])

    def _extras(self) -> dict[str, Any]:
        """Returns stand-ins of the extra arguments that are no trees, to trace ``tx`` with."""
        weights = jnp.zeros(self._num_received)
        return dict(delays=jnp.zeros(self._num_received, int), mixing=weights, clipped=weights,
                    neighbor_rows=jnp.zeros(self._num_received, int),
                    own_rows=jnp.zeros(self._history + 1, int),
                    worker=np.int32(0), sum_elements=_sums_to_trace)

    def check_elementwise(self) -> None:
        """Raises ValueError when ``tx`` cannot run on shards."""
        elementwise.check_elementwise(
            self.tx, self._params,
            {"past_params": self._num_rows, "past_grads": self._num_rows}, self._extras())


def _choose(finite, new, old):
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)


def _sums_to_trace(tree):
    def sum_elements(tree):
        return jax.tree.map(jnp.sum, tree)

    sum_elements.__name__ = elementwise.SUMS
    return jax.jit(sum_elements)(tree)


def plan_rounds(num_rounds: int, num_agents: int, width: int) -> Waves:
    """Packs the events of each round into waves of at most ``width`` events."""
    starts = np.arange(num_rounds)[:, None] * num_agents + np.arange(0, num_agents, width)
    return Waves(width, np.append(starts.ravel(), num_rounds * num_agents))
