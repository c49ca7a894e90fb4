"""What every edge of a graph delivers in every round: decentralised training's trace.

Example:
    >>> from asgd.cluster import graphs
    >>> graph = graphs.two_cliques(6, bridge_delay=5)
    >>> schedule = random_delays(graph, num_rounds=4, seed=0)
    >>> print(schedule.delays[:, 2, 3])
    [1 3 2 5]
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Optional

import numpy as np

from asgd.cluster import storage
from asgd.cluster.checks import short, show
from asgd.cluster.graphs import LONGEST, Graph

_GRAPH = ("adjacency", "mixing", "clipped")
_FIELDS = _GRAPH + ("delays", "partners")


class Received(NamedTuple):
    r"""What agents mix in some rounds; K is one more than the largest degree.

    Attributes:
        agents: int32 [..., K], from whom; first the agent itself, then its neighbours, then the
            agent itself again with weight 0.
        delays: int32 [..., K], how many rounds old it is; 0 is reliable.
        mixing: float64 [..., K], the weights :math:`w_{ij}`.
        clipped: float64 [..., K], the weights :math:`\tilde w_{ij}`.
    """

    agents: np.ndarray
    delays: np.ndarray
    mixing: np.ndarray
    clipped: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class GossipSchedule:
    r"""Who mixes what in which round, as data: saved, loaded and replayed like a trace.

    An agent's :math:`\tilde w_{ij}` in a round are the graph's where the edges that are late are
    those that are late in the graph, and else :math:`w_{ij}` with the weights of late edges given to
    the agent itself.

    Attributes:
        graph: The graph; its own delays say which edges are unreliable and by how much at most.
        delays: int16 [R, N, N], rounds; row i is what agent i receives. R is the number of
            rounds, or 1 when all are alike.
        partners: int16 [R, N], with whom an agent averages (itself: with nobody), or None when
            everybody mixes with all neighbours.
    """

    graph: Graph
    delays: np.ndarray
    partners: Optional[np.ndarray] = None

    def __post_init__(self):
        num_agents = self.graph.num_agents
        delays = np.asarray(self.delays)
        if delays.ndim != 3 or delays.shape[1:] != (num_agents, num_agents) or not len(delays):
            raise ValueError(f"delays must be [rounds, {num_agents}, {num_agents}], "
                             f"not {list(delays.shape)}")
        if delays.dtype.kind not in "iu":
            raise ValueError(f"delays must be integers, a number of rounds, not {delays.dtype}")
        _refuse("delays", delays, (delays < 0) | (delays > LONGEST), f"must be 0 to {LONGEST}")
        _refuse("delays", delays, (delays > 0) & ~self.graph.adjacency, "belongs to no edge")
        self._freeze("delays", delays)
        if self.partners is not None:
            partners = np.asarray(self.partners)
            if partners.ndim != 2 or partners.shape[1] != num_agents:
                raise ValueError(f"partners must be [rounds, {num_agents}], not "
                                 f"{list(partners.shape)}")
            if partners.dtype.kind not in "iu":
                raise ValueError(f"partners must be integers, not {partners.dtype}")
            _refuse("partners", partners, (partners < 0) | (partners >= num_agents),
                    f"must be 0 to {num_agents - 1}")
            me = np.arange(num_agents)
            _refuse("partners", partners, np.take_along_axis(partners, partners, 1) != me,
                    "averages with another agent")
            _refuse("partners", partners, (partners != me) & ~self.graph.adjacency[me, partners],
                    "is no neighbour")
            self._freeze("partners", partners)

    def _freeze(self, name, array):
        array = array.astype(np.int16)
        array.flags.writeable = False
        object.__setattr__(self, name, array)

    @property
    def num_rounds(self) -> Optional[int]:
        """Rounds, or None when all are alike, so that there is no end."""
        lengths = [len(a) for a in (self.delays, self.partners) if a is not None and len(a) > 1]
        return min(lengths, default=None)

    @property
    def max_delay(self) -> int:
        return int(self.delays.max())

    def __str__(self):
        late = self.delays > 0
        rounds = "every round alike" if self.num_rounds is None else f"{self.num_rounds} rounds"
        text = (f"{self.graph}\nschedule: {rounds}, {late.sum(axis=(1, 2)).mean():.4g} late "
                f"directions a round, by {self.delays[late].mean() if late.any() else 0:.4g} rounds "
                f"on average, {self.max_delay} at most")
        return text if self.partners is None else f"{text}; everybody averages with one neighbour"

    def received(self, rounds: np.ndarray, agents: np.ndarray) -> Received:
        """Returns what agents mix.

        Args:
            rounds: integers [...], round numbers.
            agents: integers [...], of the same shape.

        Returns:
            A `Received`, fields [..., K].
        """
        graph = self.graph
        me = np.arange(self.neighbors.shape[1]) == 0
        other = self.neighbors[agents]
        padding = (other == agents[..., None]) & ~me
        here = agents[..., None], other
        delays = self.delays[rounds[..., None] % len(self.delays), *here].astype(np.int32)
        if self.partners is None:
            mixing = graph.mixing[here]
        else:
            partner = self.partners[rounds % len(self.partners), agents][..., None]
            mixing = np.where(me, 0.5, 0.0) + np.where(other == partner, 0.5, 0.0)
        mixing = np.where(padding, 0.0, mixing)
        kept = np.where(delays > 0, 0.0, mixing)
        kept += np.where(me, (mixing - kept).sum(-1, keepdims=True), 0.0)
        if self.partners is None:
            as_graph = ((delays > 0) == (graph.delays[here] > 0)).all(-1, keepdims=True)
            kept = np.where(as_graph, np.where(padding, 0.0, graph.clipped[here]), kept)
        return Received(other, delays, mixing, kept)

    @functools.cached_property
    def neighbors(self) -> np.ndarray:
        """int32 [N, K], whom each agent hears: `Received.agents`."""
        most = int(self.graph.adjacency.sum(1).max()) + 1
        out = np.repeat(np.arange(self.graph.num_agents, dtype=np.int32)[:, None], most, 1)
        for i, row in enumerate(self.graph.adjacency):
            found = np.flatnonzero(row)
            out[i, 1:len(found) + 1] = found
        return out

    def __eq__(self, other):
        if not isinstance(other, GossipSchedule):
            return NotImplemented
        return all(np.array_equal(a, b) for a, b in zip(
            self._arrays().values(), other._arrays().values(), strict=True))

    def _arrays(self):
        return {**{name: getattr(self.graph, name) for name in _GRAPH},
                "graph_delays": self.graph.delays, "delays": self.delays,
                "partners": np.zeros((0, 0)) if self.partners is None else self.partners}

    def save(self, path: Any) -> None:
        """Writes the schedule to an `.npz` file that `load` reads back equal, atomically."""
        storage.write_npz(path, self._arrays())

    @classmethod
    def load(cls, path: Any) -> "GossipSchedule":
        """Reads what `save` wrote; ValueError naming the path if the file is another."""
        fields = storage.read_npz(path, (*_FIELDS, "graph_delays"), "a gossip schedule")
        try:
            graph = Graph(*(fields[name] for name in _GRAPH), fields["graph_delays"])
            return cls(graph, fields["delays"],
                       fields["partners"] if fields["partners"].size else None)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def constant(graph: Graph) -> GossipSchedule:
    """Returns the schedule in which every round has the graph's own delays."""
    return GossipSchedule(graph, graph.delays[None])


def random_delays(graph: Graph, num_rounds: int, seed: int, *,
                  probability: float = 1.0) -> GossipSchedule:
    r"""Draws the delays of unreliable edges anew in each round.

    An edge whose delay in the graph is :math:`\tau > 0` is delayed in a round with a probability,
    then by a number of rounds drawn uniformly from :math:`1, \dots, \tau`, and is reliable else.

    Args:
        graph: The graph.
        num_rounds: Rounds.
        seed: 0 or more; equal seeds give equal schedules.
        probability: 0 to 1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be from 0 to 1, not {probability}")
    generator = np.random.default_rng([seed, 1])  # Another stream than that of random_matchings.
    shape = (_positive("num_rounds", num_rounds), *graph.delays.shape)
    longest = graph.delays.astype(np.int16)
    drawn = 1 + np.floor(generator.random(shape, np.float32) * longest).astype(np.int16)
    # A float32 below one may still round up to the limit.
    drawn = np.minimum(drawn, longest)
    late = generator.random(shape, np.float32) < probability
    return GossipSchedule(graph, np.where(late, drawn, 0).astype(np.int16))


def from_csv(graph: Graph, path: Any, num_rounds: int) -> GossipSchedule:
    """Reads the delays of single rounds from a CSV file; all others are the graph's own.

    Args:
        graph: The graph.
        path: A file with the header `round,agent,neighbor,delay`: in that round, counted from 0,
            the agent receives what the neighbor had `delay` rounds before. Rounds beyond the
            last are left out.
        num_rounds: Rounds.

    Raises:
        ValueError: naming the file, the row and what is wrong with it.
    """
    header, *rows = storage.read_rows(path)
    if header != ["round", "agent", "neighbor", "delay"]:
        raise ValueError(f"{path}: the header must be round,agent,neighbor,delay, not "
                         f"{short(','.join(header))}")
    delays = np.repeat(graph.delays[None].astype(np.int16), _positive("num_rounds", num_rounds), 0)
    for number, cells in enumerate(rows):
        try:
            when, agent, neighbor, delay = map(int, cells)
            if when < 0 or not 0 <= delay <= LONGEST:
                raise ValueError
        except ValueError:
            raise ValueError(f"{path}: row {number} is {short(','.join(cells))}; it must be four integers, "
                             "0 or more") from None
        if max(agent, neighbor) >= graph.num_agents or min(agent, neighbor) < 0 or (
                not graph.adjacency[agent, neighbor]):
            raise ValueError(f"{path}: row {number}: there is no edge between agents {show(agent)} and "
                             f"{show(neighbor)}")
        if when < num_rounds:
            delays[when, agent, neighbor] = delay
    return GossipSchedule(graph, delays)


def random_matchings(schedule: GossipSchedule, num_rounds: int, seed: int) -> GossipSchedule:
    """Lets every agent average with at most one neighbour a round, as AD-PSGD does.

    Each round takes the graph's edges in a random order, and an edge joins the round's matching
    when both of its agents are still free, so that no further pair could.

    Args:
        schedule: Whose graph and delays are used.
        num_rounds: Rounds.
        seed: 0 or more.

    References:
        Lian, Zhang, Zhang, Liu, "Asynchronous decentralized parallel stochastic gradient descent"
        (ICML 2018). There an agent averages with a neighbour whenever it is done with a gradient;
        here all are done once a round.
    """
    generator = np.random.default_rng(seed)
    edges = np.argwhere(np.triu(schedule.graph.adjacency))
    partners = np.repeat(np.arange(schedule.graph.num_agents)[None],
                         _positive("num_rounds", num_rounds), 0)
    for row in partners:
        for i, j in edges[generator.permutation(len(edges))].tolist():
            if row[i] == i and row[j] == j:
                row[i], row[j] = j, i
    return GossipSchedule(schedule.graph, schedule.delays, partners)


def _positive(name, number):
    if not number >= 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def _refuse(name, array, bad, why):
    places = np.argwhere(bad)
    if len(places):
        at = tuple(places[0])
        raise ValueError(f"{name}[{', '.join(map(str, at))}] is {array[at]}: {why}")
