"""Makes a decentralised run's schedule, data and transformations from its config."""

import pathlib
from typing import Any, Optional

import numpy as np
import optax

from asgd.cluster import graphs, schedules
from asgd.emulation.decentralized import THETA, make_gossip_tx
from asgd.training import build as build_server
from asgd.training.gossip_run import GossipRun
from asgd.training.validation import ConfigError
from asgd.workloads import sampling, task as task_lib


def build(config: Any, task: task_lib.Task,
          worker_tx: Optional[optax.GradientTransformation]) -> GossipRun:
    """Builds a run; see the fields under ``gossip`` in ``configs/default.py``.

    Raises:
      ConfigError: naming the field that does not fit the graph or the data.
    """
    num_examples, by_label = task.num_examples, config.gossip.split == "label"
    if by_label and task.labels is None:
        raise ConfigError(f"gossip.split='label' and dataset.name={config.dataset.name!r} do not fit: "
                          "its examples have no label")
    wanted = build_server.num_gradients(config, num_examples)
    schedule = make_schedule(config, wanted)
    num_agents = schedule.graph.num_agents
    num_rounds = -(-wanted // num_agents)
    if schedule.num_rounds is not None and schedule.num_rounds < num_rounds:
        raise ConfigError(f"trace_path={config.trace_path!r} has {schedule.num_rounds} rounds, but "
                          f"the run has {num_rounds}")
    try:
        sampler = sampling.AgentSampler(
            num_examples, config.batch_size, num_agents, config.seed,
            task.labels if by_label else None)
    except ValueError as error:
        raise ConfigError(f"gossip: {error}") from None
    return GossipRun(task, sampler, schedule, num_rounds, make_tx(config, num_examples, num_agents,
                     num_rounds), worker_tx, config.batch_size)


def make_graph(config: Any) -> graphs.Graph:
    """Builds the graph, with the delays of its unreliable edges."""
    fields = config.gossip
    agents, options = fields.num_agents, dict(mixing=fields.mixing)
    try:
        if fields.graph == "two_cliques":
            return graphs.two_cliques(agents, fields.delay, **options)
        make = {
            "ring": lambda **o: graphs.ring(agents, **o),
            "torus": lambda **o: graphs.torus(*_near_square(agents), **o),
            "complete": lambda **o: graphs.complete(agents, **o),
            "star": lambda **o: graphs.star(agents, **o),
            "erdos_renyi": lambda **o: graphs.erdos_renyi(
                agents, fields.edge_probability, config.seed, **o),
        }[fields.graph]
        delays = _some_edges(make().adjacency, fields.delayed_fraction, config.seed) * fields.delay
        return make(delays=delays, **options)
    except ValueError as error:
        raise ConfigError(f"gossip: {error}") from None


def make_schedule(config: Any, num_gradients: int) -> schedules.GossipSchedule:
    """Loads the schedule at ``trace_path``, which brings its graph, or makes one."""
    path = config.trace_path
    has_graph = path and pathlib.Path(path).suffix != ".csv"
    graph = None if has_graph else make_graph(config)
    try:
        schedule = (schedules.GossipSchedule.load(path) if has_graph else
                    _of_graph(config, graph, num_gradients))
    except (OSError, ValueError) as error:
        raise ConfigError(f"trace_path: {error}") from None
    num_rounds = -(-num_gradients // schedule.graph.num_agents)
    if config.algorithm == "ad_psgd" and schedule.partners is None:
        return schedules.random_matchings(schedule, num_rounds, config.seed)
    if config.algorithm != "ad_psgd" and schedule.partners is not None:
        raise ConfigError(f"trace_path={path!r} and algorithm={config.algorithm!r} do not fit: the "
                          "schedule has the random pairs of ad_psgd")
    return schedule


def _of_graph(config, graph, num_gradients):
    num_rounds = -(-num_gradients // graph.num_agents)
    if config.trace_path:
        return schedules.from_csv(graph, config.trace_path, num_rounds)
    if config.gossip.random_delays:
        return schedules.random_delays(
            graph, num_rounds, config.seed, probability=config.gossip.delay_probability)
    return schedules.constant(graph)


def make_tx(config: Any, num_examples: int, num_agents: int, num_rounds: int):
    """Builds what agents do each round; an update is a round."""
    def rounds(epochs):
        return round(epochs * num_examples / (config.batch_size * num_agents))

    rate = build_server.make_schedule(config, rounds, num_rounds)
    inner = optax.sgd(rate, config.momentum or None, config.nesterov)
    if config.weight_decay:
        inner = optax.chain(optax.add_decayed_weights(config.weight_decay), inner)
    fields, options = config.gossip, {}
    if config.algorithm in THETA:
        options = dict(learning_rate=rate, strength=fields.strength, all_steps=fields.all_steps,
                       per_tensor=fields.per_tensor, warmup_rounds=rounds(fields.warmup_epochs))
        if config.algorithm == "pc_asgd":
            options["theta"] = fields.theta
        if config.algorithm == "pc_asgd_pv":
            options["theta"] = fields.criterion
    return make_gossip_tx(inner, config.algorithm, **options)


def _near_square(number):
    rows = max(r for r in range(1, int(number ** 0.5) + 1) if number % r == 0)
    return rows, number // rows


def _some_edges(adjacency, fraction, seed):
    """Returns a symmetric matrix with a one for the edges drawn."""
    edges = np.argwhere(np.triu(adjacency))
    drawn = edges[np.random.default_rng(seed).permutation(len(edges))[:round(fraction * len(edges))]]
    out = np.zeros(adjacency.shape, np.int64)
    out[drawn[:, 0], drawn[:, 1]] = out[drawn[:, 1], drawn[:, 0]] = 1
    return out
