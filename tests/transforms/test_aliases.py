"""Aliases: equal to the chain written out, and to the papers' updates in NumPy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd

SCALE, COMPENSATE, AVERAGE = (
    asgd.scale_by_staleness, asgd.compensate_delay, asgd.average_until_update)
SCHEDULE = optax.exponential_decay(0.1, 2, 0.5)
UPDATES = [False, True, True, False, False, True, True]
TAUS = [0, 1, 3, 2, 0, 5, 1]
WORKERS = [0, 1, 2, 0, 0, 1, 2]
SIZE = 4
# Seven steps of some ten float32 roundings each.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def sgd(rate, momentum=None, weight_decay=0.0, nesterov=False):
    return optax.chain(optax.add_decayed_weights(weight_decay),
                       optax.sgd(rate, momentum, nesterov=nesterov))


CHAINS = {
    "aware": (asgd.staleness_aware_sgd(0.1), optax.chain(SCALE("inverse"), AVERAGE(sgd(0.1)))),
    "aware_all": (
        asgd.staleness_aware_sgd(SCHEDULE, 0.9, "hinge(1, 2)", weight_decay=0.2, nesterov=True),
        optax.chain(SCALE(asgd.hinge(1, 2)), AVERAGE(sgd(SCHEDULE, 0.9, 0.2, True)))),
    "dc_c": (asgd.dc_asgd_c(0.1), optax.chain(COMPENSATE(0.04), AVERAGE(sgd(0.1)))),
    "dc_c_all": (
        asgd.dc_asgd_c(SCHEDULE, 0.5, 0.9, weight_decay=0.2, nesterov=True),
        optax.chain(COMPENSATE(0.5), AVERAGE(sgd(SCHEDULE, 0.9, 0.2, True)))),
    "dc_a": (asgd.dc_asgd_a(0.1), optax.chain(COMPENSATE(2.0, 0.95, 1e-7), AVERAGE(sgd(0.1)))),
    "dc_a_all": (
        asgd.dc_asgd_a(SCHEDULE, 0.5, 0.8, 1e-3, 0.9, num_workers=3, weight_decay=0.2,
                       nesterov=True),
        optax.chain(COMPENSATE(0.5, 0.8, 1e-3, True, 3), AVERAGE(sgd(SCHEDULE, 0.9, 0.2, True)))),
    "dc_a_global": (
        asgd.dc_asgd_a(0.1, num_workers=3, per_worker=False),
        optax.chain(COMPENSATE(2.0, 0.95, 1e-7, False, 3), AVERAGE(sgd(0.1)))),
}


def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(len(UPDATES), SIZE)), rng.normal(size=(len(UPDATES), SIZE)), np.ones(4)


def run(tx):
    """Returns the parameters after every gradient."""
    gradients, stale, params = problem()
    params = jnp.asarray(params, jnp.float32)
    state, out = tx.init(params), []
    for event, gradient in enumerate(gradients):
        updates, state = tx.update(
            jnp.asarray(gradient, jnp.float32), state, params,
            staleness=jnp.int32(TAUS[event]), worker=jnp.int32(WORKERS[event]),
            stale_params=jnp.asarray(stale[event], jnp.float32), delay=jnp.float32(1),
            update=jnp.bool_(UPDATES[event]))
        params = optax.apply_updates(params, updates)
        out.append(np.asarray(params, np.float64))
    return np.asarray(out)


def by_hand(per_gradient, rate, momentum, weight_decay):
    """A server in NumPy: `per_gradient(g, event, params, stale)`, mean, decay, heavy ball."""
    gradients, stale, params = problem()
    velocity, group, updates, out = np.zeros(SIZE), [], 0, []
    for event, gradient in enumerate(gradients):
        group.append(per_gradient(gradient, event, params, stale[event]))
        if UPDATES[event]:
            velocity = momentum * velocity + np.mean(group, 0) + weight_decay * params
            params = params - rate(updates) * velocity
            group, updates = [], updates + 1
        out.append(params)
    return np.asarray(out)


@pytest.mark.parametrize("name", CHAINS)
def test_alias_is_its_chain(name):
    alias, chain = CHAINS[name]
    np.testing.assert_array_equal(run(alias), run(chain))


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_staleness_aware_sgd(momentum, weight_decay):
    """Paper A, Eq. 2 and 3: rates are divided gradient by gradient, before the mean."""
    got = run(asgd.staleness_aware_sgd(SCHEDULE, momentum, weight_decay=weight_decay))
    want = by_hand(lambda g, e, w, b: g / TAUS[e] if TAUS[e] else g,
                   lambda k: 0.1 * 0.5 ** (k / 2), momentum or 0, weight_decay)
    np.testing.assert_allclose(got, want, **TOLERANCE)


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_dc_asgd_c(momentum, weight_decay):
    """Paper E, Eq. 10; the decay stays outside of the square."""
    got = run(asgd.dc_asgd_c(0.1, 0.5, momentum, weight_decay=weight_decay))
    want = by_hand(lambda g, e, w, b: g + 0.5 * g * g * (w - b), lambda k: 0.1,
                   momentum or 0, weight_decay)
    np.testing.assert_allclose(got, want, **TOLERANCE)


@pytest.mark.parametrize("num_workers", [None, 3])
def test_dc_asgd_a(num_workers):
    mean_square = np.zeros((3, SIZE))

    def compensated(g, event, w, b):
        row = mean_square[WORKERS[event] if num_workers else 0]
        row[:] = 0.9 * row + 0.1 * g * g
        return g + 0.5 / np.sqrt(row + 1e-7) * g * g * (w - b)

    got = run(asgd.dc_asgd_a(0.1, 0.5, 0.9, momentum=0.9, num_workers=num_workers,
                             weight_decay=0.2))
    np.testing.assert_allclose(got, by_hand(compensated, lambda k: 0.1, 0.9, 0.2), **TOLERANCE)


def test_numbers_of_the_paper():
    """E.6: w_bak = 1, w = 0.8, g = 0.5, rate 0.1, strength 2 gives 0.76 and 0.83944."""
    w = jnp.float32(0.8)
    for tx, want, atol in [(asgd.dc_asgd_c(0.1, 2.0), 0.76, 1e-7), (asgd.dc_asgd_a(0.1), 0.83944,
                                                                     5e-6)]:
        updates, _ = tx.update(jnp.float32(0.5), tx.init(w), w, stale_params=jnp.float32(1),
                               update=True)
        np.testing.assert_allclose(float(w + updates), want, atol=atol, rtol=1e-7)


def test_plain_sgd_is_a_special_case():
    """E.6: no strength, or nothing stale, is asynchronous SGD bit by bit."""
    plain = run(AVERAGE(optax.sgd(0.1, 0.9)))
    for tx in (asgd.dc_asgd_c(0.1, 0.0, 0.9), asgd.dc_asgd_a(0.1, 0.0, momentum=0.9),
               asgd.staleness_aware_sgd(0.1, 0.9, "constant")):
        np.testing.assert_array_equal(run(tx), plain)


def test_defaults_are_the_papers():
    def default(alias, name):
        return inspect.signature(alias).parameters[name].default

    assert default(asgd.dc_asgd_c, "strength") == 0.04
    assert default(asgd.dc_asgd_a, "strength") == 2.0
    assert default(asgd.dc_asgd_a, "decay") == 0.95
    assert default(asgd.dc_asgd_a, "eps") == 1e-7
    assert all(default(alias, "momentum") is None for alias in (
        asgd.staleness_aware_sgd, asgd.dc_asgd_c, asgd.dc_asgd_a))


@pytest.mark.parametrize("build, words", [
    (lambda: asgd.staleness_aware_sgd(0.1, rule="oracle"), "oracle.*unknown"),
    (lambda: asgd.staleness_aware_sgd(0.1, rule=3), "rule must be"),
    (lambda: asgd.dc_asgd_a(0.1, decay=2.0), "decay"),
    (lambda: asgd.dc_asgd_a(0.1, eps=-1.0), "eps"),
    (lambda: asgd.dc_asgd_a(0.1, per_worker=True), "num_workers"),
    (lambda: asgd.dc_asgd_a(0.1, num_workers=-1), "num_workers"),
])
def test_errors_at_construction(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_jit_of_the_whole_step():
    alias = CHAINS["dc_a_all"][0]
    jitted = optax.GradientTransformationExtraArgs(alias.init, jax.jit(alias.update))
    np.testing.assert_allclose(run(jitted), run(alias), **TOLERANCE)
