"""Graphs and their mixing matrices, against closed forms."""

import numpy as np
import pytest

from asgd.cluster import graphs

ALL = {
    "ring": lambda **o: graphs.ring(7, **o),
    "torus": lambda **o: graphs.torus(3, 4, **o),
    "complete": lambda **o: graphs.complete(5, **o),
    "star": lambda **o: graphs.star(6, **o),
    "erdos_renyi": lambda **o: graphs.erdos_renyi(9, 0.5, seed=3, **o),
    "two_cliques": lambda **o: graphs.two_cliques(8, **o),
}


@pytest.mark.parametrize("mixing", graphs.RULES)
@pytest.mark.parametrize("name", ALL)
def test_mixing_is_doubly_stochastic_and_symmetric(name, mixing):
    graph = ALL[name](mixing=mixing)
    np.testing.assert_allclose(graph.mixing.sum(axis=0), 1, atol=1e-15)
    np.testing.assert_allclose(graph.mixing.sum(axis=1), 1, atol=1e-15)
    np.testing.assert_array_equal(graph.mixing, graph.mixing.T)
    assert (np.diag(graph.mixing) > 0).all()
    off_diagonal = graph.mixing - np.diag(np.diag(graph.mixing))
    np.testing.assert_array_equal(off_diagonal > 0, graph.adjacency)
    # Without delays nothing is clipped.
    np.testing.assert_array_equal(graph.clipped, graph.mixing)


@pytest.mark.parametrize("name, edges", [
    ("ring", 7), ("torus", 24), ("complete", 10), ("star", 5), ("two_cliques", 13)])
def test_edges(name, edges):
    assert ALL[name]().adjacency.sum() == 2 * edges


def test_neighbours():
    assert np.flatnonzero(graphs.ring(7).adjacency[0]).tolist() == [1, 6]
    assert np.flatnonzero(graphs.torus(3, 4).adjacency[5]).tolist() == [1, 4, 6, 9]
    assert np.flatnonzero(graphs.star(6).adjacency[3]).tolist() == [0]
    bridge = graphs.two_cliques(8).adjacency[3]
    assert np.flatnonzero(bridge).tolist() == [0, 1, 2, 4]


def test_metropolis_and_uniform_weights():
    # In a star the centre has degree n - 1, the others 1.
    star = graphs.star(6)
    np.testing.assert_allclose(star.mixing[0], 1 / 6)
    np.testing.assert_allclose(star.mixing[1], [1 / 6, 5 / 6, 0, 0, 0, 0])
    # A path 0-1-2-3: the middle has degree 2, the ends 1.
    path = np.eye(4, k=1) + np.eye(4, k=-1)
    np.testing.assert_allclose(graphs.from_adjacency(path).mixing[0], [2 / 3, 1 / 3, 0, 0])
    uniform = graphs.from_adjacency(np.kron(np.eye(1), path), mixing="uniform")
    np.testing.assert_allclose(uniform.mixing[1], [1 / 3, 1 / 3, 1 / 3, 0])
    two = graphs.two_cliques(6)
    # Inside a clique of 3 the bridge's agent has degree 3, the others 2.
    np.testing.assert_allclose(two.mixing[0], [5 / 12, 1 / 3, 1 / 4, 0, 0, 0])


@pytest.mark.parametrize("num_agents", [3, 4, 7, 12])
def test_spectral_gaps_in_closed_form(num_agents):
    # A ring's W is circulant with eigenvalues (1 + 2 cos(2 pi k / n)) / 3.
    eigenvalues = (1 + 2 * np.cos(2 * np.pi * np.arange(1, num_agents) / num_agents)) / 3
    np.testing.assert_allclose(graphs.ring(num_agents).spectral_gap,
                               1 - np.abs(eigenvalues).max(), atol=1e-14)
    np.testing.assert_allclose(graphs.complete(num_agents).spectral_gap, 1, atol=1e-14)
    # A star's: 1, 0 and 1 - 1/n.
    np.testing.assert_allclose(graphs.star(num_agents).spectral_gap, 1 / num_agents, atol=1e-14)


def test_a_round_shrinks_the_distance_from_consensus_by_the_contraction():
    graph = graphs.two_cliques(8)
    values, vectors = np.linalg.eigh(graph.mixing)
    x = vectors[:, np.argsort(np.abs(values))[-2]]
    np.testing.assert_allclose(np.linalg.norm(graph.mixing @ x), graph.contraction, rtol=1e-12)


def test_delays_and_clipping():
    graph = graphs.two_cliques(6, bridge_delay=5)
    assert graph.delays[2, 3] == graph.delays[3, 2] == 5 == graph.max_delay
    assert (graph.delays > 0).sum() == 2
    # Clipped, two cliques of three remain, in which everybody has degree 2.
    np.testing.assert_allclose(graph.clipped, np.kron(np.eye(2), np.full((3, 3), 1 / 3)))
    given = graphs.from_adjacency(graph.adjacency, mixing=graph.mixing, delays=graph.delays)
    # A given W keeps its weights, and the agent itself those of delayed neighbours.
    np.testing.assert_allclose(given.clipped[2, 2], graph.mixing[2, 2] + graph.mixing[2, 3])
    np.testing.assert_allclose(given.clipped[2, :2], graph.mixing[2, :2])
    everywhere = graphs.ring(5, delays=2)
    np.testing.assert_array_equal(everywhere.delays, 2 * everywhere.adjacency)
    np.testing.assert_array_equal(everywhere.clipped, np.eye(5))


def test_delays_in_one_direction():
    delays = np.zeros((4, 4), int)
    delays[0, 1] = 3
    graph = graphs.ring(4, delays=delays)
    np.testing.assert_allclose(graph.clipped[0], [2 / 3, 0, 0, 1 / 3])
    assert graph.clipped[1, 0] > 0


def test_seeds():
    a, b, c = (graphs.erdos_renyi(12, 0.6, seed=s).adjacency for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_arrays_are_frozen():
    graph = graphs.ring(4)
    with pytest.raises(ValueError, match="read-only"):
        graph.mixing[0, 0] = 1
    assert "4 agents, 4 edges, spectral gap 0.6667, 0 delayed directions" in str(graph)


PATH = np.eye(3, k=1) + np.eye(3, k=-1)


@pytest.mark.parametrize("arguments, message", [
    (dict(adjacency=np.ones((2, 3))), r"adjacency must be \[N, N\]"),
    (dict(adjacency=np.eye(1)), "N at least 2"),
    (dict(adjacency=PATH + np.eye(3)), r"adjacency\[0, 0\] is True: an agent is not its own"),
    (dict(adjacency=np.eye(3, k=1)), r"adjacency\[0, 1\] is True: must be symmetric"),
    (dict(adjacency=np.kron(np.eye(2), 1 - np.eye(2))), r"connected, but agents \[0, 1\]"),
    (dict(mixing="random"), "mixing must be one of metropolis, uniform or a matrix, not 'random'"),
    (dict(mixing=np.eye(2)), r"mixing must be \[3, 3\] like adjacency, not \[2, 2\]"),
    (dict(mixing=[[0.5, 0.5, 0], [0.5, -0.5, 1], [0, 1, 0]]), r"mixing\[1, 1\] is -0.5: must not"),
    (dict(mixing=[[0.5, 0.5, 0], [0.5, 0.2, 0.5], [0, 0.5, 0.5]]), "row must sum to 1, but row 1 "
                                                                  "sums to 1.2"),
    (dict(mixing=[[0.5, 0.5, 0], [0.2, 0.6, 0.2], [0, 0.5, 0.5]]), "column must sum to 1, but "
                                                                  "column 0 sums to 0.7"),
    (dict(mixing=[[0, 1, 0], [1, 0, 0], [0, 0, 1]]), r"mixing\[0, 0\] is 0.0: must be positive on"),
    (dict(mixing=[[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]), r"mixing\[0, 2\] is 0.5: must be 0 "
                                                            "where there is no edge"),
    (dict(mixing=np.full((3, 3), np.nan)), r"mixing\[0, 0\] is nan: must be finite"),
    (dict(delays=-1), r"delays\[0, 1\] is -1: must be 0 to 32767"),
    (dict(delays=1.5), "delays must be integers"),
    (dict(delays=np.ones((3, 3), int)), r"delays\[0, 0\] is 1: belongs to no edge"),
    (dict(delays=np.ones(3, int)), r"delays must be \[3, 3\]"),
    (dict(clipped=np.ones((3, 3)) / 3), r"clipped\[0, 2\] is 0.3333.*: must be 0 where there is no "
                                        "reliable edge"),
    (dict(clipped=np.eye(3) * 0.5), "clipped: every row must sum to 1, but row 0 sums to 0.5"),
    (dict(delays=2, clipped=graphs.from_adjacency(PATH).mixing), "no reliable edge"),
])
def test_bad_graphs(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        graphs.from_adjacency(**{"adjacency": PATH, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [
    lambda: graphs.ring(2), lambda: graphs.star(1), lambda: graphs.torus(1, 4),
    lambda: graphs.complete(1)])
def test_too_few_agents(make):
    with pytest.raises(ValueError, match="needs at least"):
        make()


def test_two_cliques_need_an_even_number():
    with pytest.raises(ValueError, match="even number, at least 6, not 7"):
        graphs.two_cliques(7)


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_probabilities(probability):
    with pytest.raises(ValueError, match="probability must be from 0 to 1"):
        graphs.erdos_renyi(6, probability, seed=0)


@pytest.mark.parametrize("make, words", [
    (lambda: graphs.from_adjacency([[0, 1], [1, 0]], delays=2**32), r"delays.* is 4294967296: must be"),
    (lambda: graphs.from_adjacency([[0, 1], [1, 0]], delays=40000), r"is 40000: must be 0 to 32767"),
    (lambda: graphs.two_cliques(8, 2.7), "delays must be integers"),
    (lambda: graphs.from_adjacency([[0, 1], [1, 0]], mixing=np.eye(2)),
     r"mixing must be connected, but agents \[0\] reach no other"),
    (lambda: graphs.from_adjacency([[0, np.nan], [np.nan, 0]]), "adjacency.* is nan: must be a number"),
])
def test_what_would_be_taken_for_something_else(make, words):
    with pytest.raises(ValueError, match=words):
        make()
