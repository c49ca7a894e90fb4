"""Characteristic roots of delay equations against Lambert's W, polynomials and closed forms."""

import math

import numpy as np
import pytest

from asgd import theory
from asgd.cluster import timing
from asgd.theory import dde


@pytest.mark.parametrize("gain, root", [(0.1, -0.11183), (0.5, -0.7940 + 0.7701j),
                                        (1.0, -0.3181 + 1.3372j)])
def test_fixed_delay(gain, root):
    for delay in (1.0, 3.0):
        found = theory.dde_rightmost_root(gain / delay, delay) * delay
        assert found == pytest.approx(root, abs=7.1e-5)
        assert abs(found + gain * np.exp(-found)) < 1e-12


def test_fixed_delay_is_fastest_and_critical_where_it_should_be():
    # A double root: a rounding error moves it by its square root.
    assert theory.dde_rightmost_root(1 / math.e, 1.0) == pytest.approx(-1, abs=1e-7)
    assert theory.dde_critical_gain(2.0) == pytest.approx(math.pi / 4)
    assert theory.dde_rightmost_root(math.pi / 2, 1.0).real == pytest.approx(0, abs=1e-12)
    assert theory.dde_rightmost_root(2.0, 0.0) == -2
    assert theory.dde_critical_gain(0.0) == math.inf


@pytest.mark.parametrize("shape, limit", [(2, 4), (3, 2.667), (4, 2.274), (10, 1.793), (100, 1.590)])
def test_gamma_delays(shape, limit):
    found = theory.dde_critical_gain(timing.gamma(2.0, cv=shape**-0.5)) * 2
    angle = math.pi / (2 * shape)
    assert found == pytest.approx(shape * math.tan(angle) / math.cos(angle) ** shape, rel=1e-9)
    assert found == pytest.approx(limit, abs=5.1e-4)


@pytest.mark.parametrize("gain", [0.1, 0.5, 1.0, 2.0, 3.0, 100.0, 1e5])
def test_gamma_delays_have_a_characteristic_polynomial(gain):
    # s (1 + s theta)^4 + a = 0, theta = 1 / 4.
    roots = np.roots(np.polyadd(np.polymul([1, 0], np.poly1d([0.25, 1]) ** 4), [gain]))
    expected = roots[np.argmax(roots.real)]
    found = theory.dde_rightmost_root(gain, timing.gamma(1.0, cv=0.5))
    assert found == pytest.approx(complex(expected.real, abs(expected.imag)), rel=1e-9, abs=1e-9)


def test_delays_of_two_sizes():
    # Newton's method from a fine grid: nine short delays of ten, and a hundred times as long.
    short_and_long = timing.empirical([0.01] * 9 + [10.0])
    found = theory.dde_rightmost_root(150.0, short_and_long)
    s = (np.linspace(-0.1, 0.1, 9)[:, None] + 1j * np.linspace(0, 170, 2000)).ravel()
    s = s[s.real > -0.05]
    for _ in range(40):
        s = s[s.real > -1]  # Others leave for where the exponentials overflow.
        value = 0.9 * np.exp(-0.01 * s) + 0.1 * np.exp(-10 * s)
        slope = -0.009 * np.exp(-0.01 * s) - np.exp(-10 * s)
        s = s - (s + 150 * value) / (1 + 150 * slope)
    s = s[np.abs(s + 150 * (0.9 * np.exp(-0.01 * s) + 0.1 * np.exp(-10 * s))) < 1e-9]
    assert found.real == pytest.approx(s.real.max(), abs=1e-9)
    transform = dde._laplace(short_and_long)[0]
    near = [dde._roots_right(150.0, transform, found.real + d, 1.0) for d in (1e-5, -1e-5)]
    assert near == [0, 2]
    limit = theory.dde_critical_gain(short_and_long)
    assert limit > 150 and abs(theory.dde_rightmost_root(limit, short_and_long).real) < 1e-6
    with pytest.raises(ValueError, match="a=1e.09 is too large to be searched"):
        theory.dde_rightmost_root(1e9, short_and_long)
    with pytest.raises(ValueError, match="no root right of -0.25 says how fast"):
        theory.dde_rightmost_root(0.3, timing.gamma(1.0, cv=2.0))


def test_other_delays():
    assert theory.dde_critical_gain(timing.exponential(1.0)) == math.inf
    # s (1 + s) + 1/2 = 0.
    assert theory.dde_rightmost_root(0.5, timing.exponential(1.0)) == pytest.approx(-0.5 + 0.5j, abs=1e-9)
    shifted = timing.shifted_exponential(0.5, 1.0)
    root = theory.dde_rightmost_root(1.0, shifted)
    assert abs(root + np.exp(-0.5 * root) / (1 + 0.5 * root)) < 1e-9
    two = theory.dde_rightmost_root(1.0, timing.empirical([0.5, 1.5]))
    assert abs(two + (np.exp(-0.5 * two) + np.exp(-1.5 * two)) / 2) < 1e-9
    narrow = timing.lognormal(1.0, cv=0.01)
    assert theory.dde_critical_gain(narrow) == pytest.approx(math.pi / 2, rel=1e-3)


def test_the_rightmost_of_several_roots_is_found():
    # Two pairs of Lambert's W are right of zero; as a law of one time it is searched for.
    for gain in (8.0, 20.0):
        found = theory.dde_rightmost_root(gain, timing.empirical([1.0]))
        assert found == pytest.approx(theory.dde_rightmost_root(gain, 1.0), abs=1e-9)


def test_heavy_tails_have_no_rate_of_decay():
    heavy = timing.lognormal(1.0, cv=1.0)
    with pytest.raises(ValueError, match="lognormal delays of mean 1 and a=0.5 the solution decays"):
        theory.dde_rightmost_root(0.5, heavy)
    limit = theory.dde_critical_gain(heavy)
    growing = theory.dde_rightmost_root(1.2 * limit, heavy)
    assert growing.real > 0
    # The transform by another quadrature: 2e5 equally likely times.
    rank = (np.arange(200_000) + 0.5) / 200_000
    from scipy import stats

    sigma = math.sqrt(math.log(2))
    times = stats.lognorm.ppf(rank, sigma, scale=math.exp(-sigma**2 / 2))
    assert abs(growing + 1.2 * limit * np.exp(-growing * times).mean()) < 1e-4


def test_stationary_variance():
    assert theory.stationary_variance(1.0, 0.81, 1.0) == pytest.approx(1.250, abs=5e-3)
    assert theory.stationary_variance(2.0, 0.0, 3.0) == 9 / 4
    assert theory.stationary_variance(1.0, 1.6, 1.0) == math.inf


@pytest.mark.parametrize("call, message", [
    (lambda: theory.dde_rightmost_root(0.0, 1.0), "a must be a finite number > 0, not 0"),
    (lambda: theory.dde_rightmost_root(1.0, -1.0), "delay must be a finite number >= 0, not -1"),
    (lambda: theory.stationary_variance(1.0, math.nan, 1.0), "delay must be a finite number >= 0"),
    (lambda: timing.pareto(1.0, shape=1.0), "shape must be a finite number > 1"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
