"""Second moments against Kronecker products, closed forms and simulated paths."""

import math

import numpy as np
import pytest

from asgd import theory


@pytest.mark.parametrize("law, step, momentum", [
    ([0.5, 0.5], 0.7, 0.0), ([0.2, 0.3, 0.1, 0.4], 0.3, 0.0), ([0.1, 0.0, 0.9], 0.1, 0.5),
    ([0.3, 0.7], 0.9, 0.3)])
def test_radius_is_that_of_the_mean_kronecker_square(law, step, momentum):
    size = len(theory.companion(step, law, momentum))
    total = 0
    for tau, weight in enumerate(law):
        # Every matrix in the size of the largest.
        matrix = np.eye(size, k=-1)
        matrix[0, 0] += 1 + momentum
        if momentum:
            matrix[0, 1] -= momentum
        matrix[0, tau] -= step
        total = total + weight * np.kron(matrix, matrix)
    expected = np.abs(np.linalg.eigvals(total)).max()
    assert theory.mean_square_radius(step, law, momentum) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("tau", [0, 1, 4, 20])
def test_fixed_staleness_is_the_square(tau):
    step = 0.8 * theory.critical_step(tau)
    assert theory.mean_square_radius(step, tau) == pytest.approx(
        theory.spectral_radius(step, tau) ** 2, rel=1e-8)
    assert theory.mean_square_critical_step(tau) == pytest.approx(theory.critical_step(tau), rel=1e-6)


def test_rules_scale_the_steps_and_may_leave_the_longest_out():
    # Scaled to nothing beyond 1, and by a half at 1: x' = x - a x, x - a x_1 / 2, or x.
    def scale(tau):
        return np.array([1.0, 0.5, 0.0, 0.0])[: len(tau)]

    law, a = np.array([0.4, 0.3, 0.2, 0.1]), 0.7
    total = 0
    for weight, row in zip(law, ([1 - a, 0], [1, -a / 2], [1, 0], [1, 0])):
        matrix = np.array([row, [1, 0]])
        total = total + weight * np.kron(matrix, matrix)
    assert theory.mean_square_radius(a, law, scale=scale) == pytest.approx(
        np.abs(np.linalg.eigvals(total)).max(), rel=1e-12)


def test_spread_grows_before_the_mean_does():
    law = [0.5, 0.5]
    limit = theory.mean_square_critical_step(law)
    assert limit < theory.critical_step(law)
    assert theory.mean_square_radius(limit, law) == pytest.approx(1, abs=1e-8)
    rng = np.random.default_rng(0)
    for factor, grows in ((0.9, False), (1.15, True)):
        x = np.ones((2, 20_000))
        for _ in range(60):
            late = np.where(rng.random(x.shape[1]) < 0.5, x[0], x[1])
            x = np.stack([x[0] - factor * limit * late, x[0]])
        assert (np.mean(x[0] ** 2) > 1) == grows


def test_stationary_variance():
    a = 0.3
    assert theory.discrete_stationary_variance(a, 0) == pytest.approx(1 / (1 - (1 - a) ** 2), rel=1e-12)
    assert theory.discrete_stationary_variance(a, 1, sigma=2.0) == pytest.approx(
        4 * (1 + a) / (a * (1 - a) * (2 + a)), rel=1e-10)
    assert theory.discrete_stationary_variance(1.01, 1) == math.inf
    # Long delays take the iterative solver; small steps tend to the delay equation's.
    tau, gain = 50, 0.8
    step = gain / tau
    assert theory.discrete_stationary_variance(step, tau) * step == pytest.approx(
        theory.stationary_variance(gain, 1.0, 1.0) * gain, rel=0.03)


def test_stationary_variance_with_random_staleness():
    law, a = np.array([0.25, 0.25, 0.5]), 0.3
    rng = np.random.default_rng(0)
    x = np.zeros((3, 4000))
    total, count = 0.0, 0
    for step in range(1500):
        late = x[rng.choice(3, size=4000, p=law), np.arange(4000)]
        x = np.stack([x[0] - a * late + rng.normal(size=4000), x[0], x[1]])
        if step >= 100:
            total, count = total + np.mean(x[0] ** 2), count + 1
    # 4000 paths and some 100 correlation times: a relative standard error of sqrt(2 / 4e5).
    assert theory.discrete_stationary_variance(a, law) == pytest.approx(total / count, rel=0.012)
