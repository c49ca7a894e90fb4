"""Delayed Nesterov against its recursion written in NumPy, and oracle O-13."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd


def run(gradients, **options):
    tx = asgd.delayed_nesterov(**options)
    state, theta, path = tx.init(jnp.zeros(3)), jnp.ones(3), []
    for g in gradients:
        updates, state = tx.update(jnp.asarray(g), state)
        theta = optax.apply_updates(theta, updates)
        path.append(theta)
    return np.array(path), state


@pytest.mark.parametrize("every, spread", [(1, 0.0), (1, 1.0), (3, 0.0), (3, 0.2), (4, 0.25)])
def test_equals_numpy(x64, every, spread):
    gradients = np.random.default_rng(0).normal(size=(11, 3))
    theta, m, total, want = np.ones(3), np.zeros(3), np.zeros(3), []
    for t, g in enumerate(gradients):
        total = total + g
        if (t + 1) % every == 0:
            m, total = 0.9 * m + total / every, np.zeros(3)
            theta = theta - 0.3 * ((1 - spread * every + spread) * 0.9 * m + g / every)
        else:
            theta = theta - 0.3 * (spread * 0.9 * m + g / every)
        want.append(theta)
    got, _ = run(gradients, learning_rate=0.3, momentum=0.9, every=every, spread=spread)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)


def test_a_round_of_updates_is_one_nesterov_step_on_their_mean(x64):
    """O-13: with c = 0 it moves by -eps (beta m_new + mean g)."""
    gradients = np.random.default_rng(1).normal(size=(8, 3))
    path, _ = run(gradients, learning_rate=0.3, momentum=0.9, every=4)
    means = gradients.reshape(2, 4, 3).mean(1)
    first = 0.9 * 0 + means[0]
    second = 0.9 * first + means[1]
    np.testing.assert_allclose(path[3] - 1, -0.3 * (0.9 * first + means[0]), rtol=0, atol=1e-15)
    np.testing.assert_allclose(path[7] - path[3], -0.3 * (0.9 * second + means[1]),
                               rtol=0, atol=1e-15)
    nesterov = optax.sgd(0.3, 0.9, nesterov=True)
    state = nesterov.init(jnp.zeros(3))
    for mean, moved in zip(means, (path[3] - 1, path[7] - path[3])):
        updates, state = nesterov.update(jnp.asarray(mean), state)
        np.testing.assert_allclose(moved, updates, rtol=0, atol=1e-15)


def test_the_rate_follows_a_schedule_over_gradients(x64):
    gradients = np.ones((4, 3))
    path, _ = run(gradients, learning_rate=lambda t: 0.1 * (t + 1), momentum=0.0, every=2)
    np.testing.assert_allclose(-np.diff(path[:, 0], prepend=1), [0.05, 0.1, 0.15, 0.2], atol=1e-15)


@pytest.mark.parametrize("options, words", [
    (dict(every=0), "every must be an integer, 1 or more, got 0"),
    (dict(every=1.5), "every must be an integer"),
    (dict(every=2, momentum=-0.1), r"momentum must be in \[0, 1\), got -0.1"),
    (dict(every=2, momentum=1.0), "momentum must be in"),
    (dict(every=4, spread=0.3), "spread must be from 0 to 0.25, got 0.3"),
])
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        asgd.delayed_nesterov(0.1, **options)
