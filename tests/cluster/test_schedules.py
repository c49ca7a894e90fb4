"""What edges deliver, as data: who mixes what, files, random draws."""

import numpy as np
import pytest

from asgd.cluster import graphs, schedules
from asgd.cluster.schedules import GossipSchedule

GRAPH = graphs.two_cliques(6, bridge_delay=4)
ROUNDS = 200


def matrices(schedule, when):
    """Returns delays, mixing and clipped of a round as [N, N], from what agents receive."""
    num_agents = schedule.graph.num_agents
    agents = np.arange(num_agents)
    received = schedule.received(np.full(num_agents, when), agents)
    assert (received.agents[:, 0] == agents).all() and (received.delays[:, 0] == 0).all()
    out = np.zeros((3, num_agents, num_agents))
    for k in range(received.agents.shape[1]):
        for values, matrix in zip(received[1:], out):
            matrix[agents, received.agents[:, k]] += values[:, k]
    return out


def test_constant_schedule_is_the_graph():
    schedule = schedules.constant(GRAPH)
    assert schedule.num_rounds is None and schedule.max_delay == 4
    for when in (0, 7, 10 ** 6):
        delays, mixing, clipped = matrices(schedule, when)
        np.testing.assert_array_equal(delays, GRAPH.delays)
        np.testing.assert_array_equal(mixing, GRAPH.mixing)
        np.testing.assert_array_equal(clipped, GRAPH.clipped)


def test_random_delays():
    schedule = schedules.random_delays(GRAPH, ROUNDS, seed=1, probability=0.6)
    assert schedule.num_rounds == ROUNDS
    drawn = schedule.delays[:, GRAPH.delays > 0]
    assert (schedule.delays[:, GRAPH.delays == 0] == 0).all()
    assert set(np.unique(drawn)) == {0, 1, 2, 3, 4}
    # Of 400 draws, 0.6 * 400 = 240 late, standard deviation 9.8; each length 60, 7.1.
    assert abs((drawn > 0).sum() - 240) < 50
    assert all(abs((drawn == tau).sum() - 60) < 36 for tau in (1, 2, 3, 4))
    assert (drawn[:, 0] != drawn[:, 1]).any()
    assert schedule == schedules.random_delays(GRAPH, ROUNDS, seed=1, probability=0.6)
    assert schedule != schedules.random_delays(GRAPH, ROUNDS, seed=2, probability=0.6)


def test_weights_of_a_round_with_other_delays_than_the_graphs():
    graph = graphs.ring(6, delays=4)  # Of an agent's two edges none, one or both are late.
    schedule = schedules.random_delays(graph, ROUNDS, seed=1, probability=0.6)
    seen = set()
    for when in range(20):
        delays, mixing, clipped = matrices(schedule, when)
        np.testing.assert_array_equal(delays, schedule.delays[when])
        np.testing.assert_array_equal(mixing, graph.mixing)
        np.testing.assert_allclose(clipped.sum(1), 1, atol=1e-15)
        for i in range(6):
            late = delays[i] > 0
            seen.add(int(late.sum()))
            want = np.where(late, 0, graph.mixing[i])
            want[i] += graph.mixing[i][late].sum()
            if late.sum() == 2:
                want = graph.clipped[i]
            np.testing.assert_allclose(clipped[i], want, atol=1e-15)
    assert seen == {0, 1, 2}


def test_matchings_average_pairs_of_neighbours():
    graph = graphs.ring(7)
    schedule = schedules.random_matchings(schedules.constant(graph), ROUNDS, seed=0)
    assert schedule.num_rounds == ROUNDS
    counts = np.zeros((7, 7))
    for when in range(ROUNDS):
        _, mixing, clipped = matrices(schedule, when)
        np.testing.assert_array_equal(mixing, clipped)
        np.testing.assert_array_equal(mixing, mixing.T)
        np.testing.assert_array_equal(mixing.sum(1), 1)
        assert set(np.unique(mixing)) <= {0, 0.5, 1}
        pairs = mixing - np.diag(np.diag(mixing)) > 0
        assert (pairs <= graph.adjacency).all()
        alone = np.flatnonzero(np.diag(mixing) == 1)
        assert not graph.adjacency[np.ix_(alone, alone)].any()  # No further pair was possible.
        counts += pairs
    # By symmetry every edge is as likely. A matching has 2 or 3 of 7 edges.
    per_edge = counts[graph.adjacency] / ROUNDS
    assert (abs(per_edge - per_edge.mean()) < 0.15).all() and 2 / 7 <= per_edge.mean() <= 3 / 7


@pytest.mark.parametrize("make", [
    schedules.constant,
    lambda g: schedules.random_delays(g, 5, 0),
    lambda g: schedules.random_matchings(schedules.random_delays(g, 5, 0), 5, 1)])
def test_save_and_load(tmp_path, make):
    schedule = make(GRAPH)
    schedule.save(tmp_path / "schedule.npz")
    loaded = GossipSchedule.load(tmp_path / "schedule.npz")
    assert loaded == schedule
    for when in range(5):
        np.testing.assert_array_equal(matrices(loaded, when), matrices(schedule, when))
    assert [p.name for p in tmp_path.iterdir()] == ["schedule.npz"]


def test_summary():
    text = str(schedules.constant(GRAPH))
    assert "6 agents, 7 edges, spectral gap" in text
    assert "every round alike, 2 late directions a round, by 4 rounds on average, 4 at most" in text
    matched = schedules.random_matchings(schedules.constant(graphs.ring(4)), 3, 0)
    assert str(matched).endswith("0 at most; everybody averages with one neighbour")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="x.npz is not a gossip schedule"):
        GossipSchedule.load(path)


def test_csv(tmp_path):
    path = tmp_path / "delays.csv"
    path.write_text("round,agent,neighbor,delay\n0,2,3,1\n2,0,1,3\n9,0,1,2\n")
    schedule = schedules.from_csv(GRAPH, path, num_rounds=3)
    want = np.repeat(GRAPH.delays[None], 3, 0)
    want[0, 2, 3], want[2, 0, 1] = 1, 3
    np.testing.assert_array_equal(schedule.delays, want)


@pytest.mark.parametrize("text, words", [
    ("round,agent\n0,1\n", "header must be round,agent,neighbor,delay, not round,agent"),
    ("", "header must be"),
    ("round,agent,neighbor,delay\n0,2,3,1\n0,2,x,1\n", "row 1 is 0,2,x,1; it must be four integers"),
    ("round,agent,neighbor,delay\n0,2,3,-1\n", "row 0 is .*0 or more"),
    ("round,agent,neighbor,delay\n0,0,5,1\n", "row 0: there is no edge between agents 0 and 5"),
    ("round,agent,neighbor,delay\n0,0,9,1\n", "row 0: there is no edge between agents 0 and 9"),
])
def test_bad_csv(tmp_path, text, words):
    path = tmp_path / "delays.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        schedules.from_csv(GRAPH, path, 3)


@pytest.mark.parametrize("fields, words", [
    (dict(delays=np.zeros((6, 6), int)), r"delays must be \[rounds, 6, 6\], not \[6, 6\]"),
    (dict(delays=np.full((1, 6, 6), -1)), r"delays\[0, 0, 0\] is -1: must be 0"),
    (dict(delays=np.ones((1, 6, 6), int)), "belongs to no edge"),
    (dict(delays=1.7 * GRAPH.delays[None]), "delays must be integers"),
    (dict(delays=10_000 * GRAPH.delays[None]), r"is 40000: must be 0 to 32767"),
    (dict(partners=np.zeros((4, 5), int)), r"partners must be \[rounds, 6\]"),
    (dict(partners=np.array([[1, 2, 0, 3, 4, 5]])), "averages with another agent"),
    (dict(partners=np.array([[5, 1, 2, 3, 4, 0]])), "is no neighbour"),
    (dict(partners=np.array([[6, 1, 2, 3, 4, 5]])), "must be 0 to 5"),
])
def test_bad_schedules(fields, words):
    with pytest.raises(ValueError, match=words):
        GossipSchedule(**{"graph": GRAPH, "delays": GRAPH.delays[None], **fields})


@pytest.mark.parametrize("call, words", [
    (lambda: schedules.random_delays(GRAPH, 0, 0), "num_rounds must be at least 1, got 0"),
    (lambda: schedules.random_delays(GRAPH, 3, 0, probability=2), "probability must be"),
    (lambda: schedules.random_matchings(schedules.constant(GRAPH), 0, 0), "num_rounds must be"),
])
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()
