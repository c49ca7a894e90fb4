"""Roots of the delayed iteration against closed forms, and against the iteration itself."""

import math

import numpy as np
import pytest

import asgd
from asgd import theory

TAUS = {0: 2.0, 1: 1.0, 2: 0.618034, 3: 0.445042, 4: 0.347296, 8: 0.184537, 16: 0.095164,
        32: 0.048327}


def geometric(workers):
    law = (1 / workers) * (1 - 1 / workers) ** np.arange(60 * workers)
    return law / law.sum()


@pytest.mark.parametrize("tau", TAUS)
def test_critical_step(tau):
    expected = 2 * math.sin(math.pi / (2 * (2 * tau + 1)))
    assert theory.critical_step(tau) == pytest.approx(expected, rel=1e-12)
    assert theory.critical_step(tau) == pytest.approx(TAUS[tau], abs=5e-7)


@pytest.mark.parametrize("tau, step, radius",
                         [(1, 0.25, 0.5), (2, 0.148148, 0.6667), (4, 0.08192, 0.8), (8, 0.043305, 0.8889)])
def test_fastest_step(tau, step, radius):
    fastest = theory.fastest_step(tau)
    assert fastest == pytest.approx(tau**tau / (tau + 1) ** (tau + 1), rel=1e-12)
    assert fastest == pytest.approx(step, abs=5e-7)
    assert theory.spectral_radius(fastest, tau) == pytest.approx(tau / (tau + 1), abs=1e-6)
    assert theory.spectral_radius(fastest, tau) == pytest.approx(radius, abs=5e-5)
    assert theory.fastest_step(500) * 501 == pytest.approx((500 / 501) ** 500)
    # The search that other laws need finds the same minimum; a double root is flat to 1e-8.
    law = np.zeros(tau + 1)
    law[[0, tau]] = 1e-12, 1 - 1e-12
    assert theory.fastest_step(law) == pytest.approx(fastest, rel=1e-3)


@pytest.mark.parametrize("momentum, limits", [
    (0.9, {0: 3.8, 1: 0.1, 2: 0.05125, 4: 0.0265, 8: 0.01394, 16: 0.00749}),
    (0.5, {0: 3.0, 1: 0.5, 2: 0.28078, 4: 0.15585, 8: 0.08505, 16: 0.04525}),
])
def test_critical_step_with_momentum(momentum, limits):
    for tau, expected in limits.items():
        found = theory.critical_step(tau, momentum)
        assert found == pytest.approx(expected, abs=5.1e-6)
        assert theory.spectral_radius(found, tau, momentum) == pytest.approx(1, abs=1e-7)


def test_momentum_that_vanishes_is_no_momentum():
    assert theory.critical_step(4, 1e-12) == pytest.approx(theory.critical_step(4), rel=1e-9)


@pytest.mark.parametrize("tau, expected", [(1, 1), (2, 1.2361), (4, 1.3892), (8, 1.4763), (16, 1.5226)])
def test_rates_over_the_staleness_are_nearly_free_of_delay(tau, expected):
    found = theory.critical_step(tau, scale=asgd.inverse)
    assert found == pytest.approx(2 * tau * math.sin(math.pi / (2 * (2 * tau + 1))), rel=1e-6)
    assert found == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("workers", [2, 8, 64])
def test_geometric_staleness_is_heavy_ball(workers):
    # x_{k+1} = x_k + (1 - 1/M) (x_k - x_{k-1}) - eta / M x_k; 64 workers take the path of long laws.
    law = geometric(workers)
    for step in (0.3, 1.0, 1.9):
        momentum = 1 - 1 / workers
        expected = np.abs(np.roots([1, -(1 + momentum) + step / workers, momentum])).max()
        assert theory.spectral_radius(step, law) == pytest.approx(expected, abs=1e-8)
    assert theory.critical_step(law) == pytest.approx(2 * workers * (2 - 1 / workers), rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("atoms", [(0, 7), (0, 9), (1, 10), (0, 3, 11), (3, 17)])
def test_spiky_laws_are_stable_below_and_unstable_above(atoms, momentum):
    # (0, 7) has a zero of the series on the unit circle.
    law = np.zeros(atoms[-1] + 1)
    law[list(atoms)] = 1 / len(atoms)
    limit = theory.critical_step(law, momentum)
    radii = [theory.spectral_radius(limit * x, law, momentum) for x in np.linspace(0.02, 0.999, 60)]
    assert max(radii) < 1 < theory.spectral_radius(1.001 * limit, law, momentum)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sparse_long_laws_have_many_roots_of_nearly_one_size(momentum):
    law = np.zeros(201)
    law[[0, 200]] = 0.5
    for factor in (0.999, 1.0, 1.001):
        step = factor * theory.critical_step(law, momentum)
        dense = np.abs(np.linalg.eigvals(theory.companion(step, law, momentum))).max()
        # At the limit two roots meet.
        assert theory.spectral_radius(step, law, momentum) == pytest.approx(dense, rel=1e-7)


def test_long_laws_agree_with_all_eigenvalues():
    rng = np.random.default_rng(0)
    for length in (50, 130, 200):
        law = rng.dirichlet(np.ones(length))
        for factor in (0.1, 0.9, 1.3):
            step = factor * theory.critical_step(law)
            dense = np.abs(np.linalg.eigvals(theory.companion(step, law))).max()
            assert theory.spectral_radius(step, law) == pytest.approx(dense, rel=1e-8)


@pytest.mark.parametrize("tau, momentum, step", [(3, 0.0, 0.1), (2, 0.9, 0.06), (0, 0.5, 0.7)])
def test_the_iteration_follows_the_radius(tau, momentum, step):
    x = [1.0] * (tau + 2)
    for _ in range(100):
        x.append(x[-1] + momentum * (x[-1] - x[-2]) - step * x[-1 - tau])
    matrix = theory.companion(step, tau, momentum)
    state = np.array(x[50 - len(matrix) : 50][::-1])
    assert (matrix @ state)[0] == pytest.approx(x[50], rel=1e-9)
    # Gelfand: |A^n|^(1/n) for n = 2^20, by squaring.
    log, power = 0.0, matrix
    for _ in range(20):
        size = np.linalg.norm(power)
        power, log = (power / size) @ (power / size), 2 * (log + math.log(size))
    found = (log + math.log(np.linalg.norm(power))) / 2**20
    assert found == pytest.approx(math.log(theory.spectral_radius(step, tau, momentum)), abs=1e-5)


def test_answers():
    assert theory.answer(0.5, 1).verdict == "converges"
    assert theory.answer(1.0, 1) == ("stays", pytest.approx(0, abs=1e-12))
    verdict, rate = theory.answer(1.5, 0)
    assert verdict == "converges" and rate == pytest.approx(math.log(2))
    verdict, rate = theory.answer(3.0, 0)
    assert verdict == "diverges" and -rate == pytest.approx(math.log(2))


@pytest.mark.parametrize("call, message", [
    (lambda: theory.critical_step(-1), "tau must be at least 0, got -1"),
    (lambda: theory.critical_step(1.5), "tau must be an integer or a probability vector"),
    (lambda: theory.critical_step([0.5, 0.4]), "whose sum is 1"),
    (lambda: theory.critical_step([1.5, -0.5]), "entries at least 0"),
    (lambda: theory.critical_step(1, 1.0), r"momentum must be in \[0, 1\), got 1.0"),
    (lambda: theory.spectral_radius(math.nan, 1), "step must be a finite number, got nan"),
    (lambda: theory.critical_step(1, scale=lambda tau: 0 * tau), "scale must not be 0"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
