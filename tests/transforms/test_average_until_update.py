"""The server's accumulator: a mean, and an inner transformation that moves on updates only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd

# Groups of 3, 1, 2 and 4 gradients, and one gradient left over.
SIZES = [3, 1, 2, 4]
UPDATES = np.concatenate([np.arange(c) == c - 1 for c in SIZES] + [[False]])
SEQUENCE = np.random.default_rng(0).normal(size=(len(UPDATES), 6))
# A sum of up to four float32 terms, a division and a few steps of momentum.
TOLERANCE = dict(rtol=2e-6, atol=2e-6)


def run(tx, jit=False, **options):
    step = jax.jit(tx.update) if jit else tx.update
    params = jnp.zeros(6)
    state, out = tx.init(params), []
    for gradient, update in zip(SEQUENCE, UPDATES, strict=True):
        updates, state = step(jnp.asarray(gradient, jnp.float32), state, params,
                              update=jnp.bool_(update), **options)
        params = optax.apply_updates(params, updates)
        out.append(np.asarray(updates))
    return np.asarray(out), np.asarray(params), state


def means():
    ends = np.cumsum(SIZES)
    return np.asarray([SEQUENCE[e - c:e].mean(0) for c, e in zip(SIZES, ends, strict=True)])


@pytest.mark.parametrize("jit", [False, True])
def test_mean_of_groups_of_varying_size(jit):
    out, _, state = run(asgd.average_until_update(optax.identity()), jit)
    np.testing.assert_allclose(out[UPDATES], means(), **TOLERANCE)
    assert not out[~UPDATES].any()
    assert int(state.count) == 1  # The gradient left over.
    np.testing.assert_array_equal(state.total, SEQUENCE[-1].astype(np.float32))


def test_mean_by_hand():
    tx = asgd.average_until_update(optax.identity())
    state = tx.init(jnp.zeros(()))
    out = []
    for gradient, update in [(1, 0), (2, 0), (6, 1), (5, 1), (1, 0), (2, 1)]:
        updates, state = tx.update(jnp.float32(gradient), state, update=bool(update))
        out.append(float(updates))
    np.testing.assert_allclose(out, [0, 0, 3, 5, 0, 1.5], rtol=1e-6)


def test_momentum_counts_updates():
    """Paper A: v = 0.9 v + the mean, theta = theta - rate v, once per update."""
    out, params, _ = run(asgd.average_until_update(optax.sgd(0.1, 0.9)))
    velocity, theta = np.zeros(6), np.zeros(6)
    for mean, got in zip(means(), out[UPDATES], strict=True):
        velocity = 0.9 * velocity + mean
        theta = theta - 0.1 * velocity
        np.testing.assert_allclose(got, -0.1 * velocity, **TOLERANCE)
    np.testing.assert_allclose(params, theta, **TOLERANCE)


def test_schedule_counts_updates():
    rates = np.array([1.0, 0.5, 0.25, 0.125])
    schedule = lambda count: jnp.asarray(rates)[count]
    out, _, state = run(asgd.average_until_update(optax.sgd(schedule)))
    np.testing.assert_allclose(out[UPDATES], -rates[:, None] * means(), **TOLERANCE)
    assert int(optax.tree.get(state.inner_state, "count")) == len(SIZES)


@pytest.mark.parametrize("jit", [False, True])
def test_inner_state_is_left_alone_between_updates(jit):
    tx = asgd.average_until_update(optax.adam(0.1))
    step = jax.jit(tx.update) if jit else tx.update
    state = tx.init(jnp.zeros(6))
    for gradient, update in zip(SEQUENCE, UPDATES, strict=True):
        before = state.inner_state
        _, state = step(jnp.asarray(gradient, jnp.float32), state, update=jnp.bool_(update))
        same = [np.array_equal(a, b) for a, b in zip(
            jax.tree.leaves(before), jax.tree.leaves(state.inner_state), strict=True)]
        # All of Adam's count and moments move with an update, and none without.
        assert not any(same) if update else all(same)


def test_zeros_between_updates_even_where_inner_would_move():
    """Weight decay moves parameters without a gradient."""
    tx = asgd.average_until_update(optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1.0)))
    params = jnp.full(3, 2.0)
    updates, state = tx.update(jnp.zeros(3), tx.init(params), params, update=False)
    np.testing.assert_array_equal(updates, 0)
    updates, _ = tx.update(jnp.zeros(3), state, params, update=True)
    np.testing.assert_allclose(updates, -0.2, rtol=1e-6)


def test_extra_arguments_reach_inner():
    seen = {}

    def update_fn(updates, state, params=None, **extra_args):
        seen.update(extra_args, params=params)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update_fn)
    tx, params = asgd.average_until_update(inner), jnp.ones(2)
    extra = dict(staleness=jnp.int32(3), stale_params=jnp.zeros(2), worker=jnp.int32(1),
                 delay=jnp.float32(2.5))
    tx.update(params, tx.init(params), params, update=True, **extra)
    assert set(seen) == {*extra, "update", "params"}


def test_inner_without_extra_arguments():
    inner = optax.GradientTransformation(*optax.sgd(1.0)[:2])
    tx = asgd.average_until_update(inner)
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), update=True, staleness=3)
    np.testing.assert_array_equal(updates, -1)


@pytest.mark.parametrize("update", [True, np.True_, jnp.bool_(True), np.bool_(True)])
def test_every_kind_of_true(update):
    tx = asgd.average_until_update(optax.sgd(1.0))
    updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), update=update)
    np.testing.assert_array_equal(updates, -1)
    assert int(state.count) == 0 and not state.total.any()


def test_update_is_required():
    tx = asgd.average_until_update(optax.sgd(1.0))
    with pytest.raises(TypeError, match="update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
