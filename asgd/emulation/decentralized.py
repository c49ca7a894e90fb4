"""Decentralised training in one call: a graph, a loss and an optimizer in, agents out."""

import inspect
from typing import Any, Callable, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asgd.cluster import schedules
from asgd.cluster.graphs import Graph
from asgd.emulation import inputs, ring
from asgd.emulation.driver import Driver
from asgd.emulation.feed import Feed
from asgd.emulation.gossip import Gossip, plan_rounds
from asgd.emulation.keys import keys_as_data
from asgd.emulation.spmd import Spmd
from asgd.emulation.sums import CHUNK
from asgd.transforms.consensus import consensus
from asgd.transforms.predict_clip import predict_clip

THETA = {"p_asgd": 1.0, "c_asgd": 0.0, "pc_asgd": 0.5, "pc_asgd_pv": "paper"}
ALGORITHMS = ("dsgd", "ad_psgd", *THETA)


class GossipResult(NamedTuple):
    """What :func:`asgd.emulate_gossip` returns, T rounds of N agents.

    Attributes:
      params: the agents' final parameters, the tree that came in with a leading axis [N].
      average: their mean, the tree that came in.
      losses: [T, N], loss of each agent in each round, at its parameters before the round.
      consensus_distance: [T], after each round, :math:`\\sqrt{\\frac1N \\sum_i \\lVert x^i -
        \\bar x \\rVert^2}`.
      model_state: the agents' running statistics, leading axis [N], or None.
    """

    params: Any
    average: Any
    losses: np.ndarray
    consensus_distance: np.ndarray
    model_state: Any


class GossipEmulator(Driver):
    """Executes rounds piece by piece; :func:`asgd.emulate_gossip` runs them in one go.

    Arguments are those of :func:`asgd.emulate_gossip`, but ``tx`` is the whole transformation, from
    :func:`make_gossip_tx`, and ``schedule`` the schedule of ``num_rounds`` rounds.
    """

    def __init__(self, loss_fn: Callable[..., Any], tx: optax.GradientTransformation, params: Any,
                 schedule: schedules.GossipSchedule, num_rounds: int, batches: Any, *,
                 num_devices: int = 1, backend: str = "shard_map",
                 worker_tx: Optional[optax.GradientTransformation] = None,
                 layout: str = "sharded", waves_per_call: Optional[int] = None, seed: int = 0,
                 model_state: Any = None, model_state_decay: float = 0.9,
                 history: Optional[int] = None, params_per_agent: bool = False,
                 on_nonfinite: str = "stop"):
        inputs.check_arguments(tx, worker_tx, model_state_decay, on_nonfinite=on_nonfinite,
                               num_devices=num_devices, waves_per_call=waves_per_call)
        self.unit = num_agents = schedule.graph.num_agents
        history = schedule.max_delay if history is None else history
        for name, value in (("history", history), ("num_rounds", num_rounds)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise ValueError(f"{name} must be an integer, 0 or more, got {value!r}")
        if schedule.max_delay > history:
            raise ValueError(f"delays reach {schedule.max_delay} rounds, but history={history}: it "
                             "must be at least the longest delay")
        if schedule.num_rounds is not None and schedule.num_rounds < num_rounds:
            raise ValueError(f"the schedule has {schedule.num_rounds} rounds, but batches are for "
                             f"{num_rounds}")
        spmd = Spmd(num_devices, backend)
        place = ring.layout(layout, num_devices, CHUNK)
        agents = _agents(jax.tree.map(jnp.asarray, params), num_agents, params_per_agent)
        inputs.check_params(agents[0], place.num_parts)
        model_state = jax.tree.map(jnp.asarray, model_state)
        feed = Feed(batches, num_rounds * num_agents, spmd)
        loss = inputs.uniform_loss(loss_fn, model_state is not None)
        if num_rounds:
            inputs.check_loss(loss, agents[0], model_state, feed.row)
        tx, worker_tx = keys_as_data(tx, agents[0]), keys_as_data(
            worker_tx or optax.identity(), agents[0])
        self.topology = Gossip(tx, worker_tx, place, schedule, history,
                               jax.eval_shape(lambda: agents[0]), model_state_decay)
        if layout == "sharded":
            self.topology.check_elementwise()
        super().__init__(
            self.topology, loss, plan_rounds(num_rounds, num_agents, num_devices), feed, spmd, place,
            (agents, worker_tx.init(agents[0])), model_state, waves_per_call=waves_per_call,
            seed=seed, on_nonfinite=on_nonfinite)

    def params(self, state: Any) -> Any:
        """Returns the agents' parameters, leading axis [N]."""
        rows = self.topology.rows_of_round(int(state.num_rounds))
        snapshots = self._spmd.get(jax.tree.map(lambda x: x[rows], state.snapshots))
        return ring.to_whole(snapshots, jax.eval_shape(
            lambda *x: jax.tree.map(lambda *leaves: jnp.stack(leaves), *x), *self._whole[0]))

    def model_state(self, state: Any) -> Any:
        """Returns the agents' running statistics, leading axis [N], or None."""
        return jax.device_get(state.model_state)


def make_gossip_tx(tx: optax.GradientTransformation, algorithm: Optional[str],
                   **options: Any) -> optax.GradientTransformation:
    """Returns what agents do each round; see :func:`asgd.emulate_gossip`."""
    if algorithm is None:
        if options:
            raise ValueError(f"algorithm=None takes no option {next(iter(options))!r}: tx has its own")
        return tx
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    if algorithm not in THETA:
        if options:
            raise ValueError(f"algorithm={algorithm!r} predicts and clips nothing: it has no option "
                             f"{next(iter(options))!r}")
        return consensus(tx)
    if algorithm in ("p_asgd", "c_asgd") and "theta" in options:
        raise ValueError(f"algorithm={algorithm!r} has theta={THETA[algorithm]:g}; for another use "
                         "'pc_asgd'")
    for name in options:
        if name not in inspect.signature(predict_clip).parameters or name == "inner":
            raise ValueError(f"algorithm={algorithm!r} has no option {name!r}")
    return predict_clip(tx, **{"theta": THETA[algorithm], **options})


def average(tree: Any) -> Any:
    """Returns the mean over agents, summed in float64."""
    return jax.tree.map(lambda x: np.mean(x, axis=0, dtype=np.float64).astype(x.dtype), tree)


def emulate_gossip(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    params: Any,
    graph: Union[Graph, schedules.GossipSchedule],
    batches: Any,
    *,
    algorithm: Optional[str],
    num_devices: int = 1,
    backend: str = "shard_map",
    worker_tx: Optional[optax.GradientTransformation] = None,
    layout: str = "sharded",
    waves_per_call: Optional[int] = None,
    seed: int = 0,
    model_state: Any = None,
    model_state_decay: float = 0.9,
    num_rounds: Optional[int] = None,
    history: Optional[int] = None,
    params_per_agent: bool = False,
    **options: Any,
) -> GossipResult:
    r"""Executes decentralised training over a graph, exactly and deterministically.

    In every round t each agent i computes a gradient at its own parameters :math:`x^i_t`, and makes
    :math:`x^i_{t+1}` of it and of what its neighbours had :math:`\tau_{ij}` rounds before.

    ============== ==================================================================
    ``dsgd``       mixes what it received, however old (:func:`asgd.consensus`)
    ``ad_psgd``    averages with one random neighbour a round (a random matching)
    ``p_asgd``     predicts stale neighbours (:func:`asgd.predict_clip`, theta = 1)
    ``c_asgd``     leaves them out (theta = 0)
    ``pc_asgd``    weighs between both (``theta``, 0.5 by default)
    ``pc_asgd_pv`` chooses in each round (``theta="paper"`` or ``"descent"``)
    ============== ==================================================================

    The result has the same bits for every number of devices, backend and waves per call. Losses
    that are not finite do not stop the run, as other agents may be well.

    Args:
      loss_fn: ``loss_fn(params, batch)`` or ``loss_fn(params, batch, key)`` returning a scalar; agent
        i in round t gets ``jax.random.fold_in(jax.random.key(seed), t * N + i)``.
      tx: the agents' own optimizer, such as ``optax.sgd(0.1, 0.9)``.
      params: initial parameters, alike for all agents.
      graph: N agents, or a schedule of :mod:`asgd.cluster.schedules` when rounds differ.
      batches: a tree of arrays with leading axes [T, N], or a callable or
        :class:`asgd.IndexedBatches` of event numbers t * N + i.
      algorithm: a name from above, or None when ``tx`` itself takes what was received, as
        :func:`asgd.predict_clip` does.

    Other args:
      num_devices, backend, worker_tx, layout, waves_per_call, seed, model_state,
        model_state_decay: as for :func:`asgd.emulate`; every agent has running statistics of its
        own.
      num_rounds: T, needed when ``batches`` is a callable.
      history: how many rounds agents remember; by default the longest delay.
      params_per_agent: whether ``params`` has a leading axis [N], initial parameters of each agent.
      **options: of :func:`asgd.predict_clip`: ``theta``, ``learning_rate``, ``strength``,
        ``all_steps``, ``per_tensor``, ``warmup_rounds``.

    Returns:
      A :class:`GossipResult`.

    Raises:
      ValueError: for arguments that do not fit, naming them.

    Example:
      >>> import asgd, jax.numpy as jnp, numpy as np, optax
      >>> graph = asgd.cluster.graphs.ring(3)
      >>> targets = np.tile([0.0, 1.0, 2.0], (20, 1))
      >>> result = asgd.emulate_gossip(lambda p, b: 0.5 * (p - b)**2, optax.sgd(0.5),
      ...                              jnp.array(0.0), graph, targets, algorithm="dsgd")
      >>> print(result.average.round(3), result.losses.shape)
      1.0 (20, 3)
    """
    inputs.check_arguments(tx, worker_tx, model_state_decay, num_devices=num_devices,
                           waves_per_call=waves_per_call)
    schedule = schedules.constant(graph) if isinstance(graph, Graph) else graph
    if not isinstance(schedule, schedules.GossipSchedule):
        raise ValueError("graph must be a Graph of asgd.cluster.graphs or a GossipSchedule, got "
                         f"{type(graph).__name__}")
    if schedule.partners is not None and algorithm not in ("ad_psgd", None):
        raise ValueError(f"graph has the random pairs of ad_psgd, but algorithm={algorithm!r}")
    num_agents = schedule.graph.num_agents
    num_rounds, batches = _by_event(batches, num_rounds, num_agents)
    if algorithm == "ad_psgd" and schedule.partners is None:
        schedule = schedules.random_matchings(schedule, max(1, num_rounds), seed)
    emulator = GossipEmulator(
        loss_fn, make_gossip_tx(tx, algorithm, **options), params, schedule, num_rounds, batches,
        num_devices=num_devices, backend=backend, worker_tx=worker_tx, layout=layout,
        waves_per_call=waves_per_call, seed=seed, model_state=model_state,
        model_state_decay=model_state_decay, history=history, params_per_agent=params_per_agent)
    state, losses, distances = emulator.observed(emulator.init())
    agents = emulator.params(state)
    waves_per_round = max(1, emulator.plan.num_waves // max(1, num_rounds))
    return GossipResult(
        agents, average(agents), losses.reshape(num_rounds, num_agents),
        np.asarray(distances, np.float64).ravel()[waves_per_round - 1::waves_per_round],
        emulator.model_state(state))


def _by_event(batches, num_rounds, num_agents):
    """Returns the number of rounds, and batches with one axis for rounds and agents."""
    if callable(batches):
        if num_rounds is None:
            raise ValueError("num_rounds must be given when batches is a function")
        return num_rounds, batches
    shapes = {np.shape(x)[:2] for x in jax.tree.leaves(batches)}
    rounds = {shape[0] for shape in shapes if shape}
    if len(shapes) != 1 or any(shape[1:] != (num_agents,) for shape in shapes) or (
            num_rounds is not None and rounds != {num_rounds}):
        raise ValueError(f"batches: every leaf must have the leading axes [rounds, {num_agents}], "
                         f"alike, but they have {sorted(shapes)}")
    return rounds.pop(), jax.tree.map(
        lambda x: np.reshape(x, (-1,) + np.shape(x)[2:]), batches)


def _agents(params, num_agents, per_agent):
    """Returns a list of the agents' initial parameters."""
    if not per_agent:
        return [params] * num_agents
    if any(np.shape(x)[:1] != (num_agents,) for x in jax.tree.leaves(params)):
        raise ValueError(f"params_per_agent: every leaf of params must have a leading axis of "
                         f"{num_agents}, the number of agents")
    return [jax.tree.map(lambda x: x[i], params) for i in range(num_agents)]
