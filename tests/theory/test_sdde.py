"""The integrator against exact solutions, characteristic roots and exact moments."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, special

from asgd.cluster import timing
from asgd.theory.sdde import Coefficients, coefficients, integrate


def _by_steps(a, delay, times):
    """x' = -a x(t - D), x = 1 up to 0: a polynomial on each [kD, (k + 1)D]."""
    terms = range(int(times.max() / delay) + 3)
    return sum((-a) ** k * np.maximum(times - (k - 1) * delay, 0.0) ** k / math.factorial(k)
               for k in terms)


@pytest.mark.parametrize("delay", [1.0, 0.7183])
def test_constant_delay_follows_the_method_of_steps(delay):
    errors = []
    for step in (0.05, 0.025, 0.0125):
        times, paths, _ = integrate(1.3, delay, 0.0, 1.0, step=step, num_steps=round(3 / step))
        assert paths.dtype == np.float64
        errors.append(np.abs(paths[:, 0] - _by_steps(1.3, delay, times)).max())
        if delay == 1.0:
            first = times <= delay
            np.testing.assert_allclose(paths[first, 0], 1 - 1.3 * times[first], atol=1e-14)
    assert errors[-1] < 0.015
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.08)


def _rate(a, step):
    """Real part of the rightmost root, of late states; the delay is 1."""
    paths = integrate(a, 1.0, 0.0, 1.0, step=step, num_steps=round(40 / step), bound=1e300,
                      every=round(0.5 / step)).paths[:, 0]
    if a < 1 / math.e:
        return 2 * math.log(paths[-1] / paths[-2])
    # Two roots are left, and their product is a coefficient of the recurrence they obey.
    rows = paths[-41:]
    solution = np.linalg.lstsq(np.stack([rows[1:-1], rows[:-2]], 1) / rows[2:, None],
                               np.ones(39), rcond=None)[0]
    return math.log(-solution[1])


@pytest.mark.parametrize("a", [0.2, 1.0, 2.0])
def test_rate_is_that_of_the_characteristic_root(a):
    """Decay below a D = pi / 2 and growth beyond."""
    root = special.lambertw(-a).real
    coarse, fine = _rate(a, 0.02), _rate(a, 0.01)
    assert fine == pytest.approx(root, abs=0.02)
    assert 2 * fine - coarse == pytest.approx(root, abs=3e-4)


def test_no_delay_is_euler_of_ornstein_uhlenbeck():
    a, sigma, step, paths = 1.0, np.array([0.8, 0.4]), 0.5, 10_000
    result = integrate(a, 0.0, sigma, [2.0, 1.0], step=step, num_steps=20, num_paths=paths).paths
    factor = (1 - a * step) ** np.arange(21)[:, None]
    variance = sigma**2 * step * (1 - factor**2) / (1 - (1 - a * step) ** 2)
    assert (result[0] == [2.0, 1.0]).all()
    mean_error = np.abs(result.mean(axis=1) - factor * [2.0, 1.0])
    assert (mean_error <= 5 * np.sqrt(variance / paths)).all()
    np.testing.assert_allclose(result.var(axis=1)[1:], variance[1:], rtol=5 * (2 / paths) ** 0.5)
    noise = np.diff(result, axis=0) + a * step * result[:-1]
    together = np.corrcoef(noise[:2].transpose(0, 2, 1).reshape(4, paths))
    np.testing.assert_allclose(together, np.eye(4), atol=5 / paths**0.5)


def test_stationary_variance():
    """sigma^2 / (2a) (1 + sin aD) / cos aD, known to be that of Kuechler and Mensch."""
    a, delay, sigma, step, paths = 1.0, 0.8, 0.5, 0.04, 4000
    late = integrate(a, delay, sigma, 0.0, step=step, num_steps=600, num_paths=paths,
                     every=150).paths[2:]
    expected = sigma**2 / (2 * a) * (1 + math.sin(a * delay)) / math.cos(a * delay)
    assert late.var() == pytest.approx(expected, rel=5 * (2 / late.size) ** 0.5 + step)
    assert np.abs(late.mean(axis=1)).max() < 5 * math.sqrt(expected / paths)


@pytest.mark.parametrize("k, delay", [(1, timing.exponential(1.0)),
                                      (2, timing.gamma(1.0, cv=0.5**0.5))])
def test_gamma_distributed_delay_is_a_chain_of_linear_equations(k, delay):
    """Its filter is k stages of rate k: y_i' = k (y_(i-1) - y_i), and x' = -a y_k."""
    a = 1.5
    chain = np.diag([0.0] + [-float(k)] * k) + np.diag([float(k)] * k, -1)
    chain[0, -1] = -a
    errors = []
    for step in (0.04, 0.02):
        times, paths, _ = integrate(a, delay, 0.0, 1.0, step=step, num_steps=round(6 / step),
                                    every=round(2 / step), mode="distributed")
        exact = [(linalg.expm(chain * t) @ np.ones(k + 1))[0] for t in times]
        errors.append(np.abs(paths[:, 0] - exact).max())
    assert errors[1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)


def _moments(a, law, sigma, step, num_steps):
    """Exact mean and variance for delays of 0, 1, ... steps with the probabilities `law`."""
    size = len(law)
    mean, second = np.ones(size), np.ones((size, size))
    companions = np.stack([np.eye(size, k=-1)] * size)
    companions[:, 0, 0] = 1.0
    for lag, matrix in enumerate(companions):
        matrix[0, lag] -= a * step
    for _ in range(num_steps):
        mean = np.tensordot(law, companions, 1) @ mean
        second = sum(p * m @ second @ m.T for p, m in zip(law, companions))
        second[0, 0] += sigma**2 * step
    return mean[0], second[0, 0] - mean[0] ** 2


def test_random_delays_have_the_exact_moments_of_independent_ones():
    a, sigma, step, delays = 1.2, 0.1, 0.5, [0.0, 1.0, 1.0, 1.5]
    mean, variance = _moments(a, [0.25, 0.0, 0.5, 0.25], sigma, step, 12)
    assert variance > 2 * _moments(0.0, [1.0], sigma, step, 12)[1]
    arguments = dict(x0=1.0, step=step, num_steps=12, every=12)
    last = integrate(a, delays, sigma, **arguments, num_paths=40_000).paths[-1]
    assert abs(last.mean() - mean) < 5 * np.sqrt(variance / len(last))
    kurtosis = ((last - mean) ** 4).mean() / variance**2
    assert last.var() == pytest.approx(variance, rel=5 * math.sqrt((kurtosis - 1) / len(last)))
    distributed = integrate(a, delays, 0.0, **arguments, mode="distributed").paths[-1]
    np.testing.assert_allclose(distributed, mean, rtol=1e-12)


def test_random_delays_between_grid_points_agree_with_distributed_ones():
    delay = timing.gamma(0.6, cv=0.5)
    arguments = dict(sigma=0.0, x0=1.0, step=0.1, num_steps=60, every=20)
    mean = integrate(1.5, delay, **arguments, mode="distributed").paths[1:, 0]
    last = integrate(1.5, delay, **arguments, num_paths=4000).paths[1:]
    assert (last.std(axis=1) > 0).all()
    assert (np.abs(last.mean(axis=1) - mean) < 5 * last.std(axis=1) / 4000**0.5).all()


def test_long_delays_are_cut():
    arguments = dict(sigma=0.0, x0=1.0, step=0.1, num_steps=60)
    cut = integrate(1.0, [0.5, 0.5, 7.0], **arguments, longest_delay=1.0, num_paths=3)
    short = integrate(1.0, [0.5, 0.5, 1.0], **arguments, num_paths=3)
    np.testing.assert_array_equal(cut.paths, short.paths)
    np.testing.assert_array_equal(
        integrate(1.0, 7.0, **arguments, longest_delay=1.0).paths,
        integrate(1.0, timing.constant(1.0), **arguments).paths)
    constant = integrate(1.0, 0.5, **arguments).paths
    for samples, cut in ((20_000, True), (100, False)):
        delays = np.append(np.full(samples - 1, 0.5), 7.0)
        rare = integrate(1.0, delays, **arguments, mode="distributed").paths
        assert np.array_equal(rare, constant) == cut


def test_vector_systems():
    arguments = dict(delay=0.6, step=0.05, num_steps=80)
    modes = [integrate(a, sigma=0.0, x0=2.0, **arguments).paths for a in (0.5, 1.5, 2.5)]
    for drift in (np.diag([0.5, 1.5, 2.5]), [0.5, 1.5, 2.5]):
        system = integrate(drift, sigma=0.0, x0=[2.0, 2.0, 2.0], **arguments)
        assert system.paths.shape == (81, 1, 3) and system.diverged_at.shape == (1,)
        np.testing.assert_allclose(system.paths, np.stack(modes, axis=-1), rtol=1e-12, atol=1e-12)
    matrix, x0 = np.array([[1.0, 2.0], [0.0, 0.5]]), np.array([1.0, 3.0])
    turned = integrate(matrix, sigma=0.0, x0=x0, **arguments).paths[:, 0]
    np.testing.assert_allclose(turned[12], x0 - 0.6 * matrix @ x0, rtol=1e-12)


def test_a_matrix_correlates_the_noise():
    root = np.array([[1.0, 2.0], [0.0, 0.5]])
    moved = integrate(0.0, 0.0, root, [0.0, 0.0], step=0.25, num_steps=1, num_paths=20_000).paths[1]
    np.testing.assert_allclose(np.cov(moved.T), 0.25 * root @ root.T, atol=0.05)


def test_a_gradient_function_is_the_drift():
    hessian = np.array([[2.0, 0.5], [0.5, 1.0]])
    arguments = dict(sigma=0.0, x0=[1.0, -1.0], step=0.05, num_steps=60, num_paths=5)
    expected = integrate(hessian, 0.7, **arguments)
    result = integrate(jax.grad(lambda x: x @ hessian @ x / 2), 0.7, **arguments)
    np.testing.assert_allclose(result.paths, expected.paths, rtol=1e-12, atol=1e-12)


def test_distributed_delay_averages_gradients_not_states():
    """x' = -(x(t)^2 + x(t - D)^2) / 2 from 1 is tan(pi / 4 - t / 2) until D."""
    times, paths, _ = integrate(lambda x: x**2, [0.0, 1.0], 0.0, 1.0, step=0.002, num_steps=500,
                                mode="distributed")
    np.testing.assert_allclose(paths[:, 0], np.tan(math.pi / 4 - times / 2), atol=1e-3)


def test_a_function_may_change_between_calls():
    scale = 1.0

    def drift(x):
        return scale * x

    arguments = dict(delay=0.5, sigma=0.0, x0=1.0, step=0.1, num_steps=20)
    for scale in (1.0, 2.0):
        np.testing.assert_allclose(integrate(drift, **arguments).paths,
                                   integrate(scale, **arguments).paths, rtol=1e-13)


def test_divergence_is_flagged_and_the_path_frozen():
    arguments = dict(delay=1.0, sigma=0.3, x0=1.0, step=0.05, num_steps=400, num_paths=4)
    free = integrate(2.0, **arguments)
    assert np.isinf(free.diverged_at).all()
    bounded = integrate(2.0, **arguments, bound=20.0)
    for path, at, kept in zip(free.paths.T, bounded.diverged_at, bounded.paths.T):
        first = np.argmax(np.abs(path) > 20.0)
        assert at == free.times[first]
        np.testing.assert_array_equal(kept[:first], path[:first])
        assert (kept[first:] == path[first - 1]).all()
    assert len(set(bounded.diverged_at)) > 1
    one_component = integrate([2.0, 0.1], 1.0, 0.0, [1.0, 1.0], step=0.05, num_steps=400, bound=9.0)
    assert np.isfinite(one_component.diverged_at)
    assert np.abs(one_component.paths).max() <= 9.0


def test_a_drift_that_is_not_a_number_is_divergence():
    result = integrate(lambda x: 1 + 0 * jnp.sqrt(x), 0.0, 0.0, 1.05, step=0.1, num_steps=40)
    assert np.isfinite(result.paths).all()
    assert result.diverged_at[0] == pytest.approx(1.2)


def test_seeds_repeat_and_the_global_precision_stays():
    arguments = dict(sigma=0.3, x0=1.0, step=0.1, num_steps=40, num_paths=3)
    first, again, other = (integrate(1.0, [0.2, 0.9], **arguments, seed=s) for s in (7, 7, 8))
    np.testing.assert_array_equal(first.paths, again.paths)
    assert not np.isclose(first.paths[1:], other.paths[1:]).any()
    assert len(np.unique(first.paths[1])) == 3
    sparse = integrate(1.0, [0.2, 0.9], **arguments, seed=7, every=8)
    np.testing.assert_array_equal(sparse.times, first.times[::8])
    np.testing.assert_array_equal(sparse.paths, first.paths[::8])
    assert jnp.ones(1).dtype == jnp.float32


def test_coefficients_make_one_step_one_update():
    drift, sigma = coefficients(0.1, 8, 2.0, eigenvalue=0.5, gradient_noise=3.0)
    assert (drift, sigma) == pytest.approx((0.2, 0.6))
    states, staleness = [1.0] * 8, 7
    for _ in range(30):
        states.append(states[-1] - 0.1 * 0.5 * states[-1 - staleness])
    result = integrate(drift, 7 * 0.25, 0.0, 1.0, step=2.0 / 8, num_steps=30)
    np.testing.assert_allclose(result.paths[:, 0], states[7:], rtol=1e-12)
    assert sigma * math.sqrt(2.0 / 8) == pytest.approx(0.1 * 3.0)
    spectrum = coefficients(0.1, 8, 2.0, [0.5, 1.0], np.eye(2))
    np.testing.assert_allclose(spectrum.drift, [0.2, 0.4])
    assert isinstance(spectrum, Coefficients) and spectrum.sigma.shape == (2, 2)


_GOOD = dict(drift=1.0, delay=1.0, sigma=0.1, x0=1.0, step=0.1, num_steps=10)


@pytest.mark.parametrize("bad, message", [
    (dict(drift="steep"), "drift must be a function, a number, a vector or a matrix"),
    (dict(drift=[1.0, 2.0]), "drift must be .* fits x0 of shape"),
    (dict(drift=lambda x: jnp.ones(3)), "drift must return an array of x0's shape"),
    (dict(drift=math.nan), "drift must be .* finite"),
    (dict(delay=-1.0), "delay must be >= 0, not -1"),
    (dict(delay=[]), "delay must be a number, samples or a Distribution"),
    (dict(delay=[[1.0]]), "delay must be a number, samples or a Distribution"),
    (dict(sigma=np.eye(2)), "sigma must be .* fits x0 of shape"),
    (dict(sigma=[[1.0], [1.0, 2.0]]), "sigma must be a number, a vector or a matrix"),
    (dict(x0=[[1.0]]), "x0 must be a number or a vector"),
    (dict(step=0.0), "step must be a finite number > 0"),
    (dict(num_steps=1.5), "num_steps must be an integer >= 1"),
    (dict(num_paths=0), "num_paths must be an integer >= 1"),
    (dict(seed=-1), "seed must be an integer >= 0"),
    (dict(every=3), "every must divide num_steps = 10, not 3"),
    (dict(mode="both"), "mode must be 'random' or 'distributed'"),
    (dict(longest_delay=-1.0), "longest_delay must be a finite number >= 0"),
    (dict(bound=0.5), "bound must be at least the size of x0"),
])
def test_errors_name_the_argument(bad, message):
    with pytest.raises(ValueError, match=message):
        integrate(**{**_GOOD, **bad})


def test_errors_of_coefficients():
    for bad in (dict(learning_rate=0.0), dict(num_workers=1.5), dict(mean_time=math.inf),
                dict(eigenvalue="h"), dict(gradient_noise=[math.nan])):
        arguments = dict(learning_rate=0.1, num_workers=8, mean_time=1.0, eigenvalue=1.0,
                         gradient_noise=1.0)
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            coefficients(**{**arguments, **bad})
