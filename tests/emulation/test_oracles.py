"""Analytic facts about delayed SGD that an exact emulation must reproduce."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd

STEPS = 500


def _final_iterates(tx, steps, tau):
    """Returns [len(steps), 4]: the last four iterates of x <- x - a x_{t-tau} for each a.

    Copy j of an iterate starts j events late, so it ends j steps behind. The constant
    staleness holds from the start: before event tau nothing moves.
    """
    event = np.arange(STEPS)
    trace = asgd.Trace(worker=event % (tau + 1), read_version=np.maximum(event - tau, 0))
    started = (event[:, None] >= tau + np.arange(4)).astype(np.float64)
    curvature = jnp.array(steps)[:, None]
    result = asgd.emulate(
        lambda x, started: 0.5 * jnp.sum(curvature * started * x**2), tx,
        jnp.ones((len(steps), 4)), trace, started)
    return np.asarray(result.params)


def _roots(tau, a, momentum=0.0):
    """Roots of z^(tau+1) - (1+m) z^tau + m z^(tau-1) + a, largest modulus last."""
    coefficients = np.zeros(max(tau, 1) + 2)
    coefficients[:3] = 1, -1 - momentum, momentum
    coefficients[tau + 1] += a
    roots = np.roots(coefficients)
    return roots[np.argsort(abs(roots))]


def _growth(iterates, dominant):
    """Growth a step; a dominant pair of roots obeys a recurrence of two terms exactly."""
    x0, x1, x2, x3 = iterates
    if abs(dominant.imag) < 1e-6:
        return abs(x0 / x1)
    return math.sqrt((x1 * x1 - x0 * x2) / (x2 * x2 - x1 * x3))


def _check_growth(tx, steps, tau, momentum=0.0):
    """Compares with the companion matrix' spectral radius; returns the measured growth."""
    growth = []
    for a, iterates in zip(steps, _final_iterates(tx(1.0), steps, tau), strict=True):
        dominant = _roots(tau, a, momentum)[-1]
        growth.append(_growth(iterates, dominant))
        # The differences of products in `_growth` cancel up to four of sixteen digits.
        np.testing.assert_allclose(growth[-1], abs(dominant), rtol=1e-12)
    return growth


@pytest.mark.parametrize("tau", [0, 1, 2, 4, 8])
def test_critical_step_of_delayed_gradient_descent(x64, tau):
    critical = 2 * math.sin(math.pi / (2 * (2 * tau + 1)))
    below, above = _check_growth(optax.sgd, [0.99 * critical, 1.01 * critical], tau)
    assert below < 1 < above


@pytest.mark.parametrize("tau", [1, 2, 4, 8])
def test_fastest_step_is_the_double_root(x64, tau):
    fastest = tau**tau / (tau + 1) ** (tau + 1)
    slower = [0.95 * fastest, 1.05 * fastest]
    below, above = _check_growth(optax.sgd, slower, tau)
    at = _growth(_final_iterates(optax.sgd(1.0), [fastest], tau)[0], 1j)
    # x_t = (A + B t) z^t: the differences of products cancel a factor of t^2 = 10^5.
    np.testing.assert_allclose(at, tau / (tau + 1), rtol=2e-10)
    assert at < min(below, above)


HEAVY_BALL = {
    0.9: {0: 3.8, 1: 0.1, 2: 0.05125, 4: 0.0265, 8: 0.01394, 16: 0.00749},
    0.5: {0: 3.0, 1: 0.5, 2: 0.28078, 4: 0.15585, 8: 0.08505, 16: 0.04525},
}


@pytest.mark.parametrize("tau", [0, 1, 2, 4, 8, 16])
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_heavy_ball_limit_with_delay(x64, tau, momentum):
    limit = HEAVY_BALL[momentum][tau]
    tx = functools.partial(
        asgd.staleness_aware_sgd, momentum=momentum, rule=asgd.constant)
    below, above = _check_growth(tx, [0.99 * limit, 1.01 * limit], tau, momentum)
    assert below < 1 < above


@pytest.mark.parametrize("tau, limit", [(1, 1.0), (2, 1.2361), (4, 1.3892), (8, 1.4763)])
def test_staleness_aware_limit_is_nearly_free_of_delay(x64, tau, limit):
    exact = 2 * tau * math.sin(math.pi / (2 * (2 * tau + 1)))
    assert abs(exact - limit) < 5e-5
    below, above = (
        _growth(iterates, _roots(tau, a / tau)[-1])
        for a, iterates in zip(
            (0.99 * exact, 1.01 * exact),
            _final_iterates(asgd.staleness_aware_sgd(1.0), [0.99 * exact, 1.01 * exact], tau)))
    np.testing.assert_allclose(below, abs(_roots(tau, 0.99 * exact / tau)[-1]), rtol=1e-12)
    np.testing.assert_allclose(above, abs(_roots(tau, 1.01 * exact / tau)[-1]), rtol=1e-12)
    assert below < 1 < above


def test_geometric_staleness_is_momentum_in_the_mean(x64):
    """E[x] over i.i.d. geometric staleness is heavy ball with m = 1 - 1/M and step eta / M.

    The expectation is exact: every sequence of stalenesses is one episode with an element of x
    to itself. A staleness that reaches beyond the episode's start gives no gradient.
    """
    length, step = 6, 0.7
    paths = np.array(list(itertools.product(*[range(t + 2) for t in range(length)])))
    time = np.broadcast_to(np.arange(length), paths.shape)
    inside = paths <= time
    event = np.arange(paths.size).reshape(paths.shape)
    trace = asgd.Trace(
        worker=np.zeros(paths.size), read_version=(event - np.minimum(paths, time)).ravel())
    result = asgd.emulate(
        lambda x, batch: 0.5 * batch[1] * x[batch[0]] ** 2, optax.sgd(step),
        jnp.ones(len(paths)), trace,
        (np.repeat(np.arange(len(paths)), length), inside.ravel().astype(np.float64)))

    for workers in (2, 4, 8):
        stay = 1 - 1 / workers
        weight = np.where(inside, stay**paths / workers, stay ** (time + 1)).prod(axis=1)
        np.testing.assert_allclose(weight.sum(), 1, rtol=1e-13)
        x, velocity = 1.0, 0.0
        for _ in range(length):
            velocity = stay * velocity - step / workers * x
            x += velocity
        np.testing.assert_allclose(weight @ result.params, x, rtol=1e-12)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_exact_diagonal_hessian_gives_sequential_sgd(x64, num_devices):
    """On a separable quadratic the compensated gradient is the one at the current weights."""

    def compensate_exactly():
        def update_fn(updates, state, params, *, stale_params, **extra_args):
            del extra_args
            moved = params["h"] * (params["x"] - stale_params["x"])
            return {"x": updates["x"] + moved, "h": 0 * updates["h"]}, state

        return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update_fn)

    rng = np.random.default_rng(4)
    curvature, centres = rng.uniform(0.1, 3.0, 11), rng.normal(size=(300, 11))
    trace = asgd.simulate(
        asgd.cluster.protocols.asynchronous(), asgd.cluster.timing.exponential(1.0), 8, 300, 2)
    assert trace.staleness.max() > 8
    rate, momentum = 0.3, 0.8
    result = asgd.emulate(
        lambda p, c: 0.5 * jnp.sum(p["h"] * (p["x"] - c) ** 2),
        optax.chain(compensate_exactly(), optax.sgd(rate, momentum)),
        {"x": jnp.zeros(11), "h": jnp.array(curvature)}, trace, centres, num_devices=num_devices)
    x = velocity = np.zeros(11)
    for centre in centres:
        velocity = momentum * velocity + curvature * (x - centre)
        x = x - rate * velocity
    np.testing.assert_allclose(result.params["x"], x, rtol=0, atol=1e-12 * abs(x).max())


@pytest.mark.parametrize("shape", [(1,), ()], ids=["vector", "scalar"])
def test_numeric_examples_of_delay_compensation(x64, shape):
    # The first gradient moves w from 1 to 0.8; the second, 0.5, was computed at 1.
    trace = asgd.Trace(worker=[0, 1], read_version=[0, 0])

    def final(tx):
        result = asgd.emulate(lambda w, slope: jnp.sum(slope * w), tx, jnp.ones(shape), trace,
                              jnp.array([2.0, 0.5]))
        return result.params.item()

    np.testing.assert_allclose(final(asgd.dc_asgd_c(0.1, 2.0)), 0.76, rtol=1e-15)
    adaptive = final(asgd.dc_asgd_a(0.1, 2.0, 0.95, 1e-7, num_workers=2))
    assert round(adaptive, 5) == 0.83944
    expected = 0.8 - 0.1 * (0.5 - 0.2 * 2 / math.sqrt(0.05 * 0.25 + 1e-7) * 0.25)
    np.testing.assert_allclose(adaptive, expected, rtol=1e-14)
    # One mean square for all: 0.95 * 0.05 * 4 + 0.05 * 0.25 = 0.45 ** 2.
    shared = final(asgd.dc_asgd_a(0.1, 2.0, 0.95, 0.0))
    np.testing.assert_allclose(shared, 0.8 - 0.1 * (0.5 - 0.2 * 2 / 0.45 * 0.25), rtol=1e-14)


def _perceptron(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["in"]) @ params["out"] - targets) ** 2)


def _train_perceptron(train):
    """Returns the bytes of what `train(params, batches)` makes of 120 float32 batches."""
    rng = np.random.default_rng(6)
    params = {"in": rng.normal(size=(9, 16)), "out": rng.normal(size=(16, 3))}
    batches = rng.normal(size=(120, 8, 9)), rng.normal(size=(120, 8, 3))
    params, batches = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, batches))
    trained = train(params, batches)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(trained))
    assert np.abs(trained["out"] - params["out"]).max() > 0.1
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trained))


def _emulated(tx, num_workers):
    trace = asgd.simulate(asgd.cluster.protocols.asynchronous(),
                          asgd.cluster.timing.exponential(1.0), num_workers, 120, seed=1)
    return _train_perceptron(
        lambda params, batches: asgd.emulate(_perceptron, tx, params, trace, batches).params)


def test_no_strength_is_asynchronous_sgd_bit_for_bit():
    plain = _emulated(asgd.staleness_aware_sgd(0.01, 0.9, rule=asgd.constant), 6)
    assert _emulated(asgd.dc_asgd_c(0.01, 0.0, 0.9), 6) == plain
    assert _emulated(asgd.dc_asgd_a(0.01, 0.0, momentum=0.9, num_workers=6), 6) == plain
    assert _emulated(asgd.dc_asgd_c(0.01, 0.5, 0.9), 6) != plain


def test_one_worker_is_sequential_sgd_bit_for_bit(momentum=0.9):
    def loop(params, batches):
        tx = optax.sgd(0.01, momentum)

        @jax.jit
        def step(params, state, batch):
            updates, state = tx.update(jax.grad(_perceptron)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for batch in zip(*batches):
            params, state = step(params, state, batch)
        return params

    sequential = _train_perceptron(loop)
    assert _emulated(asgd.staleness_aware_sgd(0.01, momentum, rule=asgd.constant), 1) == sequential
    assert _emulated(asgd.staleness_aware_sgd(0.01, momentum), 1) == sequential
    assert _emulated(asgd.dc_asgd_c(0.01, 3.0, momentum), 1) == sequential
    assert _emulated(asgd.dc_asgd_a(0.01, 3.0, momentum=momentum), 1) == sequential
