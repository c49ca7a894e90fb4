"""Decentralised training against an independent NumPy loop and the oracles of paper B."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import graphs, schedules
from asgd.emulation.decentralized import ALGORITHMS
from asgd.transforms.predict_clip import predict

N, T, ROWS, WIDTH = 6, 12, 4, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(T, N, ROWS, WIDTH))
Y = RNG.normal(size=(T, N, ROWS))
START = RNG.normal(size=(N, WIDTH))
# Two triangles and two bridges; every direction has a delay of its own.
ADJACENCY = np.array([[0, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 1], [1, 1, 0, 1, 0, 0],
                      [0, 0, 1, 0, 1, 1], [0, 0, 0, 1, 0, 1], [0, 1, 0, 1, 1, 0]])
DELAYS = np.zeros((N, N), int)
DELAYS[2, 3], DELAYS[3, 2], DELAYS[1, 5], DELAYS[4, 5] = 4, 1, 2, 3
GRAPH = graphs.from_adjacency(ADJACENCY, delays=DELAYS)
RATE = 0.1


def loss_fn(w, batch):
    return jnp.mean((jnp.tanh(batch[0] @ w) - batch[1]) ** 2) / 2


def gradient(i, t, w):
    out = np.tanh(X[t, i] @ w)
    return X[t, i].T @ ((out - Y[t, i]) * (1 - out ** 2)) / ROWS


def emulate(algorithm, graph=GRAPH, tx=None, params=START, batches=(X, Y), **options):
    options.setdefault("params_per_agent", True)
    return asgd.emulate_gossip(loss_fn, tx or optax.sgd(RATE), params, graph, batches,
                               algorithm=algorithm, **options)


def schedule_rate(t):
    return 0.1 * 0.8 ** t


RANDOM = schedules.random_delays(GRAPH, T, seed=3, probability=0.7)


def random_clipped(t):
    """W with what is delayed in this round given to the agent itself, or the graph's own."""
    late = RANDOM.delays[t] > 0
    w = np.where(late, 0, GRAPH.mixing)
    w += np.diag(1 - w.sum(1))
    same = (late == (GRAPH.delays > 0)).all(1)
    return np.where(same[:, None], GRAPH.clipped, w)


CASES = {
    "dsgd": ("dsgd", {}, {}),
    "predict": ("p_asgd", {}, dict(theta=lambda t: 1.0)),
    "clip": ("c_asgd", {}, dict(theta=lambda t: 0.0)),
    "both": ("pc_asgd", dict(theta=0.3, strength=0.7), dict(theta=lambda t: 0.3, strength=0.7)),
    "one gradient": ("pc_asgd", dict(all_steps=False), dict(theta=lambda t: 0.5, all_steps=False)),
    "warm-up": ("pc_asgd", dict(warmup_rounds=4, theta=0.8),
                dict(theta=lambda t: 0.8, warmup_rounds=4)),
    "schedule": ("pc_asgd", dict(theta=lambda t: 1 / (t + 1.0)), dict(theta=lambda t: 1 / (t + 1))),
    "paper": ("pc_asgd_pv", {}, dict(criterion="paper")),
    "descent": ("pc_asgd_pv", dict(theta="descent"), dict(criterion="descent")),
    "momentum": ("pc_asgd", dict(tx=optax.sgd(RATE, 0.9)), dict(theta=lambda t: 0.5, momentum=0.9)),
    "decreasing rate": ("p_asgd", dict(tx=optax.sgd(schedule_rate)),
                        dict(theta=lambda t: 1.0, rate=schedule_rate)),
    "other rate": ("p_asgd", dict(tx=optax.adam(0.0), learning_rate=0.0),
                   dict(theta=lambda t: 1.0, rate=lambda t: 0.0)),
}


VARYING = "both", "paper", "momentum", "warm-up"  # The others have constant delays.


@pytest.mark.parametrize("case", CASES)
def test_equals_numpy_agent_by_agent(x64, numpy_gossip, case):
    algorithm, options, expected = CASES[case]
    varying = case in VARYING
    result = emulate(algorithm, RANDOM if varying else GRAPH, num_devices=4 if varying else 1,
                     **options)
    want = numpy_gossip.run(
        gradient, START, (lambda t: RANDOM.delays[t]) if varying else (lambda t: GRAPH.delays),
        GRAPH.mixing, random_clipped if varying else (lambda t: GRAPH.clipped), T,
        **{"rate": lambda t: RATE, **expected})
    np.testing.assert_allclose(result.params, want[-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.average, want[-1].mean(0), rtol=0, atol=1e-12)
    spread = [np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean()) for x in want[1:]]
    np.testing.assert_allclose(result.consensus_distance, spread, rtol=0, atol=1e-12)
    losses = [[np.mean((np.tanh(X[t, i] @ want[t, i]) - Y[t, i]) ** 2) / 2 for i in range(N)]
              for t in range(T)]
    np.testing.assert_allclose(result.losses, losses, rtol=0, atol=1e-12)


def test_random_matchings_equal_numpy(x64, numpy_gossip):
    schedule = schedules.random_matchings(schedules.constant(GRAPH), T, seed=0)

    def mixing(t):
        pairs = np.eye(N)[schedule.partners[t]]
        return (np.eye(N) + pairs) / 2

    want = numpy_gossip.run(gradient, START, lambda t: GRAPH.delays, mixing, mixing, T,
                            rate=lambda t: RATE)
    for graph in (schedule, GRAPH):  # The same seed makes the same matchings.
        np.testing.assert_allclose(emulate("ad_psgd", graph).params, want[-1], rtol=0, atol=1e-12)


def test_without_delays_predict_clip_and_dsgd_are_one(x64):
    reliable = graphs.from_adjacency(ADJACENCY)
    want = emulate("dsgd", reliable)
    for algorithm in ("p_asgd", "c_asgd", "pc_asgd", "pc_asgd_pv"):
        np.testing.assert_allclose(emulate(algorithm, reliable).params, want.params,
                                   rtol=0, atol=1e-14)


def test_clipping_is_independent_of_what_a_delayed_neighbour_sends():
    delays = np.zeros((N, N), int)
    delays[:, 3] = 2 * ADJACENCY[:, 3]  # Whatever agent 3 sends is late.
    graph = graphs.from_adjacency(ADJACENCY, delays=delays)
    batches = np.float32(X), np.float32(Y)
    broken = np.float32(X), np.float32(Y).copy()
    broken[1][:, 3] = np.nan
    start = np.float32(START)
    others = np.arange(N) != 3
    kept, clipped = (emulate("c_asgd", graph, params=start, batches=rows, num_devices=4)
                     for rows in (batches, broken))
    assert np.isnan(clipped.params[3]).all() and np.isnan(clipped.losses[:, 3]).all()
    np.testing.assert_array_equal(clipped.params[others], kept.params[others])
    predicted = emulate("p_asgd", graph, params=start, batches=broken, num_devices=4)
    assert np.isnan(predicted.params[2]).all()


def test_predicting_is_independent_of_the_clipped_weights():
    for algorithm, same in (("p_asgd", True), ("c_asgd", False)):
        other = np.diag(np.full(N, 1.0))
        results = [emulate(algorithm, graphs.from_adjacency(
            ADJACENCY, delays=DELAYS, clipped=clipped)) for clipped in (None, other)]
        assert np.array_equal(results[0].params, results[1].params) == same


def test_constant_gradients_are_predicted_exactly(x64):
    """An isolated agent with gradient c is at x - rate * tau * c, tau rounds later."""
    path = jnp.asarray(RNG.normal(size=(6, 7)))
    for delay in (1, 5):
        start, c = RNG.normal(size=(2, 7))
        predicted = predict(start, c, lambda age: path[age], jnp.asarray(delay), RATE, strength=0.0)
        np.testing.assert_allclose(predicted, start - RATE * delay * c, rtol=0, atol=1e-15)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_doubly_stochastic_mixing_moves_the_average_by_the_mean_gradient(x64, algorithm):
    graph = graphs.torus(2, 3)
    result = emulate(algorithm, graph, batches=(X[:1], Y[:1]))
    mean = np.mean([gradient(i, 0, START[i]) for i in range(N)], axis=0)
    np.testing.assert_allclose(result.average, START.mean(0) - RATE * mean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("graph", [graphs.ring(6), graphs.star(6), graphs.two_cliques(6)])
def test_consensus_contracts_at_the_second_eigenvalue(x64, graph):
    values, vectors = np.linalg.eigh(graph.mixing)
    second = np.argsort(np.abs(values))[-2]
    assert abs(values[second]) == pytest.approx(graph.contraction, abs=1e-12)
    start = np.outer(vectors[:, second], np.ones(WIDTH)) + 3.0
    still = np.zeros_like(X), np.zeros_like(Y)
    distance = emulate("dsgd", graph, params=start, batches=still).consensus_distance
    first = np.sqrt(((start - start.mean(0)) ** 2).sum(1).mean())
    np.testing.assert_allclose(
        distance, first * graph.contraction ** np.arange(1, T + 1), rtol=1e-9, atol=1e-14)


TREE = {"kernel": jnp.asarray(RNG.normal(size=(WIDTH, 2027)), jnp.float32),
        "head": jnp.asarray(RNG.normal(size=(2027, 3)), jnp.float32), "scale": jnp.ones(())}


def tree_loss(p, batch, key):
    hidden = jnp.tanh(batch[0] @ p["kernel"])
    kept = jax.random.bernoulli(key, 0.9, hidden.shape)
    return jnp.mean((jnp.where(kept, hidden, 0) @ p["head"] * p["scale"] - batch[1][..., None]) ** 2)


def tree_run(graph=RANDOM, algorithm="pc_asgd_pv", tx=optax.sgd(0.05, 0.9), **options):
    return asgd.emulate_gossip(
        tree_loss, tx, TREE, graph, (np.float32(X), np.float32(Y)),
        algorithm=algorithm, worker_tx=optax.clip_by_global_norm(1.0), **options)


@pytest.mark.parametrize("options, how", [
    (dict(algorithm="ad_psgd"), dict(layout="replicated")),
    (dict(algorithm="pc_asgd_pv"), dict(waves_per_call=5)),
    (dict(algorithm="pc_asgd", theta=0.3, tx=optax.adam(0.01), learning_rate=0.01), {}),
], ids=["ad_psgd", "pc_asgd_pv", "pc_asgd, adam"])
def test_same_bits_on_any_number_of_devices(options, how):
    want, result = tree_run(**options), tree_run(**options, **how, num_devices=8)
    jax.tree.map(np.testing.assert_array_equal, result, want)


@pytest.mark.parametrize("rounds", [0, 1])
def test_few_rounds(rounds):
    result = emulate("pc_asgd", batches=(np.float32(X[:rounds]), np.float32(Y[:rounds])),
                     params=np.float32(START), num_devices=4)
    assert result.losses.shape == (rounds, N) and result.consensus_distance.shape == (rounds,)
    assert np.array_equal(result.params, np.float32(START)) == (rounds == 0)


def test_given_weights_and_several_tensors_equal_numpy(x64, numpy_gossip):
    """W that is doubly stochastic but not symmetric, a clipped W of its own, a tree of leaves."""
    shift = np.roll(np.eye(N), 1, axis=0)
    mixing = 0.5 * np.eye(N) + 0.3 * shift + 0.2 * np.roll(np.eye(N), 2, axis=0)
    adjacency = (mixing + mixing.T > 0) & ~np.eye(N, dtype=bool)
    delays = np.where(mixing - np.diag(np.diag(mixing)) == 0.2, 3, 0)
    clipped = np.where(delays > 0, 0, mixing) / np.where(delays > 0, 0, mixing).sum(1)[:, None]
    graph = graphs.from_adjacency(adjacency, mixing=mixing, clipped=clipped, delays=delays)
    want = numpy_gossip.run(gradient, START, lambda t: delays, mixing, lambda t: clipped, T,
                            rate=lambda t: RATE, criterion="descent")

    def loss(tree, batch):
        return loss_fn(jnp.concatenate([tree["a"], tree["b"][0]]), batch)

    result = asgd.emulate_gossip(
        loss, optax.sgd(RATE), {"a": START[:, :2], "b": [START[:, 2:]]}, graph, (X, Y),
        algorithm="pc_asgd_pv", theta="descent", params_per_agent=True, num_devices=2)
    got = np.concatenate([result.params["a"], result.params["b"][0]], axis=1)
    np.testing.assert_allclose(got, want[-1], rtol=0, atol=1e-12)


def test_agents_keep_statistics_of_their_own(x64):
    def loss(w, batch):
        return loss_fn(w, batch), {"mean": batch[0].mean(0)}

    result = asgd.emulate_gossip(
        loss, optax.sgd(RATE), START[0], GRAPH, (X, Y), algorithm="dsgd", num_devices=2,
        model_state={"mean": np.zeros(WIDTH)}, model_state_decay=0.8)
    want = np.zeros((N, WIDTH))
    for t in range(T):
        want = 0.8 * want + 0.2 * X[t].mean(1)
    np.testing.assert_allclose(result.model_state["mean"], want, rtol=0, atol=1e-14)


def test_a_remedy_of_ones_own(x64):
    """Any transformation that takes what was received will do."""
    def update(updates, state, params=None, *, past_params, neighbor_rows, delays,
               **extra_args):
        fresh = delays == 0
        return asgd.weighted_sum(fresh / fresh.sum(), past_params, neighbor_rows) - params, state

    tx = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    graph = graphs.complete(N, delays=np.triu(np.ones((N, N), int), 1))
    result = emulate(None, graph, tx=tx, batches=(X[:2], Y[:2]))
    # Round 0: what agents had before they began is not old. Round 1: agent i hears j <= i.
    first = np.tile(START.mean(0), (N, 1))
    np.testing.assert_allclose(result.params, first, rtol=0, atol=1e-14)


def test_a_remedy_that_mixes_elements_is_refused():
    def update(updates, state, params=None, **extra_args):
        return updates / jnp.linalg.norm(updates), state

    tx = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    with pytest.raises(ValueError, match="elementwise"):
        emulate(None, tx=tx)
    emulate(None, tx=tx, layout="replicated")


@pytest.mark.parametrize("options, words", [
    (dict(algorithm="gossip"), "algorithm must be one of dsgd"),
    (dict(algorithm="dsgd", theta=0.5), "no option 'theta'"),
    (dict(algorithm="p_asgd", theta=0.5), "theta=1"),
    (dict(algorithm="pc_asgd", theta=1.5), "theta must be a number from 0 to 1"),
    (dict(algorithm="pc_asgd", tetha=0.5), "has no option 'tetha'"),
    (dict(algorithm=None, theta=0.5), "algorithm=None takes no option 'theta'"),
    (dict(algorithm="pc_asgd", tx=0.1), "tx must be an Optax transformation, got 0.1"),
    (dict(algorithm="pc_asgd", tx=optax.adam(0.1)), "learning_rate must be given"),
    (dict(algorithm="dsgd", history=4.5), "history must be an integer, 0 or more, got 4.5"),
    (dict(algorithm="dsgd", batches=lambda e: X, num_rounds=-1), "num_rounds must be an integer"),
    (dict(algorithm="pc_asgd", graph=schedules.random_matchings(schedules.constant(GRAPH), T, 0)),
     "random pairs of ad_psgd, but algorithm='pc_asgd'"),
    (dict(algorithm="pc_asgd_pv", theta="best"), "paper, descent"),
    (dict(algorithm="dsgd", history=3), "delays reach 4 rounds, but history=3"),
    (dict(algorithm="dsgd", batches=(X[:, :5], Y[:, :5])), r"leading axes \[rounds, 6\]"),
    (dict(algorithm="dsgd", batches=(X, Y[:3])), r"leading axes \[rounds, 6\]"),
    (dict(algorithm="dsgd", params=START[:3]), "leading axis of 6"),
    (dict(algorithm="dsgd", graph=ADJACENCY), "graph must be a Graph"),
    (dict(algorithm="dsgd", graph=schedules.random_delays(GRAPH, 3, 0)), "has 3 rounds"),
    (dict(algorithm="dsgd", batches=lambda events: X), "num_rounds must be given"),
])
def test_bad_input_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        emulate(**options)
