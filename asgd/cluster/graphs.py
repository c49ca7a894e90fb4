"""Who exchanges with whom in decentralised training: graphs, mixing weights, delays on edges.

Example:
    >>> graph = ring(4)
    >>> print(graph.mixing[0].round(3), round(graph.spectral_gap, 3))
    [0.333 0.333 0.    0.333] 0.667
"""

import dataclasses
from typing import Any, Union

import networkx as nx
import numpy as np

from asgd.cluster.checks import LONGEST_DELAY as LONGEST, MOST_AGENTS

RULES = ("metropolis", "uniform")
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    r"""An undirected connected graph of N agents; see `from_adjacency`.

    Attributes:
        adjacency: bool [N, N], symmetric with an empty diagonal.
        mixing: float64 [N, N], the doubly stochastic matrix W: agent i mixes
            :math:`\sum_j w_{ij} x^j`.
        clipped: float64 [N, N], the row stochastic matrix :math:`\tilde W` that leaves delayed
            neighbours out, for the clipping step of paper B.
        delays: int32 [N, N], by how many rounds what agent i gets from j is old; 0 is reliable.
    """

    adjacency: np.ndarray
    mixing: np.ndarray
    clipped: np.ndarray
    delays: np.ndarray

    def __post_init__(self):
        for name, dtype in (("adjacency", bool), ("mixing", np.float64), ("clipped", np.float64),
                            ("delays", np.int32)):
            array = np.asarray(getattr(self, name))
            if array.dtype.kind not in "biuf":
                raise ValueError(f"{name} must hold numbers, not {array.dtype}")
            if name == "delays":
                _check_delays(array)
            array = np.array(array, dtype)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        _check_adjacency(self.adjacency)
        for name in ("delays", "mixing", "clipped"):
            if getattr(self, name).shape != self.adjacency.shape:
                raise ValueError(f"{name} must be [{self.num_agents}, {self.num_agents}] like "
                                 f"adjacency, not {list(getattr(self, name).shape)}")
        edges = self.adjacency | np.eye(self.num_agents, dtype=bool)
        _refuse("delays", self.delays, (self.delays > 0) & ~self.adjacency, "belongs to no edge")
        _check_weights("mixing", self.mixing, edges)
        _check_connected("mixing", self.mixing > 0)
        _check_weights("clipped", self.clipped, edges & (self.delays == 0))
        _check_sums("mixing", "column", self.mixing.sum(axis=0))

    @property
    def num_agents(self) -> int:
        return len(self.adjacency)

    @property
    def contraction(self) -> float:
        """Second largest singular value of W: the factor by which a round without gradients
        shrinks the distance from consensus, at least."""
        mean = np.full_like(self.mixing, 1 / self.num_agents)
        return float(np.linalg.norm(self.mixing - mean, 2))

    @property
    def spectral_gap(self) -> float:
        """One minus `contraction`, from 0 (agents never agree) to 1 (at once)."""
        return 1.0 - self.contraction

    @property
    def max_delay(self) -> int:
        return int(self.delays.max(initial=0))

    def __str__(self):
        delayed = int((self.delays > 0).sum())
        return (f"graph: {self.num_agents} agents, {int(self.adjacency.sum()) // 2} edges, spectral "
                f"gap {self.spectral_gap:.4g}, {delayed} delayed directions, longest delay "
                f"{self.max_delay} rounds")


def from_adjacency(adjacency: Any, *, mixing: Union[str, Any] = "metropolis",
                   clipped: Any = None, delays: Any = 0) -> Graph:
    r"""Builds a graph with its mixing matrices.

    With degrees :math:`d_i`, the weights of neighbours are

    .. math::
      w_{ij} = \frac{1}{1 + \max(d_i, d_j)} \text{ (metropolis)}, \qquad
      w_{ij} = \frac{1}{1 + \max_k d_k} \text{ (uniform)}

    and an agent's own weight is what is left of one.

    Args:
        adjacency: [N, N], symmetric; what is not 0 is an edge. The diagonal is empty.
        mixing: `"metropolis"`, `"uniform"`, or W itself: doubly stochastic, positive on the
            diagonal and 0 where there is no edge.
        clipped: row stochastic, 0 on delayed edges. By default the same rule on the reliable
            edges alone; for a given W, its delayed weights go to the agent itself.
        delays: rounds, an integer for all edges or [N, N] with row i for what agent i receives.

    Returns:
        The graph.

    Raises:
        ValueError: naming the argument, the row and what is wrong with it.

    References:
        Metropolis-Hastings weights: Xiao, Boyd, Kim, "Distributed average consensus with
        least-mean-square deviation" (2007), section 3.

    Example:
        >>> path = from_adjacency([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
        >>> print(path.mixing.round(2).tolist())
        [[0.67, 0.33, 0.0], [0.33, 0.33, 0.33], [0.0, 0.33, 0.67]]
    """
    adjacency = np.asarray(adjacency)
    if adjacency.ndim == 2:
        _refuse("adjacency", adjacency, adjacency != adjacency, "must be a number")
    adjacency = adjacency != 0
    _check_adjacency(adjacency)
    delays = np.asarray(delays)
    if delays.ndim == 0:
        delays = np.where(adjacency, delays, 0)
    _check_delays(delays)
    reliable = adjacency & (delays == 0) if delays.shape == adjacency.shape else adjacency
    if isinstance(mixing, str):
        if mixing not in RULES:
            raise ValueError(f"mixing must be one of {', '.join(RULES)} or a matrix, not {mixing!r}")
        rule, mixing = mixing, _weights(mixing, adjacency)
        default = _weights(rule, reliable)
    else:
        mixing = np.asarray(mixing, np.float64)
        if mixing.shape != adjacency.shape:
            raise ValueError(f"mixing must be {list(adjacency.shape)} like adjacency, "
                             f"not {list(mixing.shape)}")
        default = np.where(reliable, mixing, 0.0)
        np.fill_diagonal(default, 1.0 - default.sum(axis=1))
    return Graph(adjacency, mixing, default if clipped is None else clipped, delays)


def ring(num_agents: int, **options: Any) -> Graph:
    """Returns a circle of agents; options as for `from_adjacency`."""
    return _from_networkx(nx.cycle_graph(_at_least(3, num_agents)), options)


def torus(rows: int, columns: int, **options: Any) -> Graph:
    """Returns a grid whose borders are joined; agent `r * columns + c` is in row r, column c."""
    return _from_networkx(
        nx.grid_2d_graph(_at_least(2, rows), _at_least(2, columns), periodic=True), options)


def complete(num_agents: int, **options: Any) -> Graph:
    """Returns the graph in which all agents are neighbours."""
    return _from_networkx(nx.complete_graph(_at_least(2, num_agents)), options)


def star(num_agents: int, **options: Any) -> Graph:
    """Returns the graph in which agent 0 is everybody's only neighbour."""
    return _from_networkx(nx.star_graph(_at_least(2, num_agents) - 1), options)


def erdos_renyi(num_agents: int, probability: float, seed: int, **options: Any) -> Graph:
    """Returns a graph in which each edge exists with a probability; refused if disconnected."""
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be from 0 to 1, not {probability}")
    return _from_networkx(
        nx.erdos_renyi_graph(_at_least(2, num_agents), probability, seed=seed), options)


def two_cliques(num_agents: int, bridge_delay: int = 0, **options: Any) -> Graph:
    """Returns two cliques of half the agents each, joined by one edge.

    Args:
        num_agents: an even number, at least 6; the bridge joins agents N/2 - 1 and N/2.
        bridge_delay: rounds by which what crosses the bridge is old, in both directions.
        **options: as for `from_adjacency`; `delays` go before `bridge_delay`.
    """
    if num_agents % 2 or num_agents < 6:
        raise ValueError(f"num_agents must be an even number, at least 6, not {num_agents}")
    half = num_agents // 2
    _check_delays(np.asarray(bridge_delay))
    delays = np.zeros((num_agents, num_agents), np.int32)
    delays[half - 1, half] = delays[half, half - 1] = bridge_delay
    return _from_networkx(nx.barbell_graph(half, 0), {"delays": delays, **options})


def _from_networkx(graph, options):
    return from_adjacency(nx.to_numpy_array(graph, nodelist=sorted(graph)), **options)


def _at_least(least, number):
    if number < least:
        raise ValueError(f"the graph needs at least {least}, got {number}")
    return number


def _weights(rule, adjacency):
    degrees = adjacency.sum(axis=1)
    larger = np.maximum.outer(degrees, degrees) if rule == "metropolis" else degrees.max()
    weights = adjacency / (1.0 + larger)
    np.fill_diagonal(weights, 1.0 - weights.sum(axis=1))
    return weights


def _check_adjacency(adjacency):
    if adjacency.ndim != 2 or len(adjacency) != adjacency.shape[1] or len(adjacency) < 2:
        raise ValueError(f"adjacency must be [N, N] with N at least 2, not {list(adjacency.shape)}")
    if len(adjacency) > MOST_AGENTS:
        raise ValueError(f"adjacency must be of at most {MOST_AGENTS} agents, not {len(adjacency)}")
    _refuse("adjacency", adjacency, np.diag(np.diag(adjacency)), "an agent is not its own neighbour")
    _refuse("adjacency", adjacency, adjacency != adjacency.T, "must be symmetric")
    _check_connected("adjacency", adjacency)


def _check_connected(name, edges):
    edges = edges | edges.T
    parts, left = [], np.ones(len(edges), bool)
    while left.any():
        reached, new = np.zeros(len(edges), bool), np.arange(len(edges)) == left.argmax()
        while new.any():
            reached |= new
            new = edges[new].any(axis=0) & ~reached
        parts.append(np.flatnonzero(reached).tolist())
        left &= ~reached
    if len(parts) > 1:
        raise ValueError(f"{name} must be connected, but agents {min(parts, key=len)} reach no other")


def _check_delays(delays):
    if delays.dtype.kind not in "iu" or delays.ndim > 2:
        raise ValueError("delays must be integers, numbers of rounds, in a matrix, not "
                         f"{delays.dtype} {list(delays.shape)}")
    _refuse("delays", np.atleast_2d(delays), np.atleast_2d((delays < 0) | (delays > LONGEST)),
            f"must be 0 to {LONGEST}")


def _check_weights(name, weights, allowed):
    _refuse(name, weights, ~np.isfinite(weights), "must be finite")
    _refuse(name, weights, weights < 0, "must not be negative")
    _refuse(name, weights, np.diag(np.diag(weights) <= 0), "must be positive on the diagonal")
    _refuse(name, weights, (weights != 0) & ~allowed,
            "must be 0 where there is no edge" if name == "mixing" else
            "must be 0 where there is no reliable edge")
    _check_sums(name, "row", weights.sum(axis=1))


def _check_sums(name, what, sums):
    wrong = np.flatnonzero(np.abs(sums - 1.0) > _TOLERANCE)
    if wrong.size:
        raise ValueError(f"{name}: every {what} must sum to 1, but {what} {wrong[0]} sums to "
                         f"{sums[wrong[0]]:.6g}")


def _refuse(name, array, bad, why):
    places = np.argwhere(bad)
    if len(places):
        i, j = places[0]
        raise ValueError(f"{name}[{i}, {j}] is {array[i, j]}: {why}")
