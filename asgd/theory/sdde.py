"""Integrates stochastic delay differential equations, the model of asynchronous SGD in time."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asgd.cluster.checks import integer, number
from asgd.cluster.timing import Distribution
from asgd.theory import times

# Quantiles that stand for a distribution; the longest delay cuts the tail before they end.
_QUANTILES = 2**16


class Coefficients(NamedTuple):
    """What `coefficients` returns: `drift` in 1 / s, `sigma` in parameter units / sqrt(s)."""

    drift: Any
    sigma: Any


class Paths(NamedTuple):
    """What `integrate` returns.

    Attributes:
        times: float64 [n], virtual seconds, the first one 0.
        paths: float64 [n, num_paths] for a scalar x0 and [n, num_paths, d] for a vector. A path
            that diverges keeps its last state within the bound.
        diverged_at: float64 [num_paths], virtual seconds when a path was first beyond the bound
            or not a number; inf for a path that never was.
    """

    times: np.ndarray
    paths: np.ndarray
    diverged_at: np.ndarray


def coefficients(learning_rate: float, num_workers: int, mean_time: float, eigenvalue: Any,
                 gradient_noise: Any) -> Coefficients:
    r"""Computes the drift and the noise of asynchronous SGD in continuous time.

    M workers that take E[T] seconds a gradient make :math:`\nu = M / E[T]` updates a second.
    Along an eigenvector of the Hessian, of eigenvalue h,

    .. math::
      dx(t) = -a\, x(t - D)\, dt + \sigma\, dB(t), \qquad
      a = \eta \nu h, \qquad \sigma = \eta \sqrt{\nu}\, \sigma_g

    Args:
        learning_rate: :math:`\eta` > 0, of one gradient, each applied as it arrives.
        num_workers: M, workers that are always busy.
        mean_time: E[T] > 0, virtual seconds of one gradient, communication included.
        eigenvalue: h; a vector [d] of eigenvalues or a whole Hessian [d, d] works as well.
        gradient_noise: :math:`\sigma_g`, standard deviation of one worker's gradient; a vector
            [d], or a square root [d, d] of the covariance, works as well.

    Returns:
        `(drift, sigma)`, of the shapes of `eigenvalue` and `gradient_noise`, for `integrate`.

    Raises:
        ValueError: On a number that is out of range or not finite.

    Source:
        Derived here, see `integrate`.

    Example:
        >>> coefficients(0.25, num_workers=8, mean_time=2.0, eigenvalue=0.5, gradient_noise=3.0)
        Coefficients(drift=0.5, sigma=1.5)
    """
    learning_rate = number("learning_rate", learning_rate, above=0.0)
    rate = integer("num_workers", num_workers, 1) / number("mean_time", mean_time, above=0.0)
    eigenvalue = _array("eigenvalue", eigenvalue, "a number, a vector or a matrix")
    noise = _array("gradient_noise", gradient_noise, "a number, a vector or a matrix")
    pair = learning_rate * rate * eigenvalue, learning_rate * math.sqrt(rate) * noise
    return Coefficients(*(value if value.ndim else float(value) for value in pair))


def integrate(drift: float | np.ndarray | Callable, delay: float | Sequence[float] | Distribution,
              sigma: float | np.ndarray, x0: float | np.ndarray, *, step: float, num_steps: int,
              num_paths: int = 1, seed: int = 0, every: int = 1, mode: str = "random",
              longest_delay: float | None = None, bound: float = 1e12) -> Paths:
    r"""Integrates a stochastic delay differential equation by the Euler-Maruyama method.

    .. math::
      dx(t) = -g(x(t - D))\, dt + \sigma\, dB(t), \qquad x(t) = x_0 \text{ for } t \le 0

    with steps of h seconds, :math:`\xi_n` standard normal and g between two steps interpolated
    linearly:

    .. math::
      x_{n+1} = x_n - h\, g(x(nh - D)) + \sqrt{h}\, \sigma\, \xi_n

    The error of means, rates and variances falls linearly with the step. A delay with a law is
    either `"random"`, drawn anew for every step and path, or `"distributed"`: the drift is
    :math:`E_D[g(x(t - D))]`. The two agree in mean where g is linear. The variance that a random
    delay adds falls linearly with the step too, so both are the same equation in the limit; with
    a step of E[T] / M a step is one update, and random delays fluctuate as independent ones do.

    Args:
        drift: g, with the learning rate and the rate of updates in it (see `coefficients`), in
            1 / s: a number a or a vector [d] for a x, elementwise; a matrix [d, d] for A x; or a
            function of one state that returns its like, which JAX can trace.
        delay: D >= 0 in virtual seconds: a number, samples of it, or a distribution.
        sigma: A number or a vector [d], one noise a component, or a matrix [d, d], in parameter
            units / sqrt(s).
        x0: The state up to time 0, a number or a vector [d].
        step: h > 0, virtual seconds.
        num_steps: Steps, a multiple of `every`.
        num_paths: Independent paths, side by side.
        seed: Of noise and random delays, an integer >= 0. The same call gives the same paths.
        every: Keeps one state in so many.
        mode: What a delay with a law is, `"random"` or `"distributed"`.
        longest_delay: Longer delays are cut to this, in virtual seconds, for the history of
            longest_delay / step states is all in memory. By default the quantile 0.9999 of
            the delay, and its maximum for less than 10^4 samples.
        bound: A path with a component larger than this has diverged; it stops before.

    Returns:
        Times, paths and when they diverged, float64; n is num_steps / every + 1.

    Raises:
        ValueError: On an argument that is out of range or of the wrong shape, naming it.

    Source:
        The natural continuous model of asynchronous SGD, derived here (`coefficients`). It is
        the setting of Yu, Chen and Poor, arXiv 2406.11159, whose exact equation could not be
        had: nothing here is quoted from that paper.

    Example:
        Stable exactly where the drift times the delay is less than pi / 2:

        >>> from asgd.theory.sdde import integrate
        >>> for a in (1.0, 2.0):
        ...     result = integrate(a, delay=1.0, sigma=0.0, x0=1.0, step=0.01, num_steps=20_000,
        ...                        every=10_000)
        ...     print(result.times, f"{result.paths[-1, 0]:.0e}", result.diverged_at)
        [  0. 100. 200.] -6e-28 [inf]
        [  0. 100. 200.] 1e+12 [157.51]
    """
    x0 = _array("x0", x0, "a number or a vector", max_ndim=1)
    sigma = _array("sigma", sigma, "a number, a vector or a matrix", like=x0)
    if not callable(drift):
        drift = _array("drift", drift, "a function, a number, a vector or a matrix", like=x0)
    step, bound = number("step", step, above=0.0), number("bound", bound, above=0.0)
    if np.abs(x0).max() > bound:
        raise ValueError(f"bound must be at least the size of x0, not {bound:g}")
    num_steps, every = integer("num_steps", num_steps, 1), integer("every", every, 1)
    if num_steps % every:
        raise ValueError(f"every must divide num_steps = {num_steps}, not {every}")
    num_paths, seed = integer("num_paths", num_paths, 1), integer("seed", seed, 0)
    if mode not in ("random", "distributed"):
        raise ValueError(f"mode must be 'random' or 'distributed', not {mode!r}")
    lags = _delays(delay, longest_delay) / step
    whole = np.floor(lags).astype(np.int64)
    part = lags - whole
    length = int(whole.max()) + 2
    if len(lags) > 1 and mode == "random":
        law = whole, part
    else:
        mode = "distributed"
        weights = np.bincount(whole, 1 - part, length) + np.bincount(whole + 1, part, length)
        nonzero = np.flatnonzero(weights)
        law = nonzero, weights[nonzero] / len(lags)

    with jax.enable_x64(True):
        run, coefficient = _run, drift
        if callable(drift):
            like = jax.eval_shape(drift, jax.ShapeDtypeStruct(x0.shape, np.float64))
            if getattr(like, "shape", None) != x0.shape:
                raise ValueError(f"drift must return an array of x0's shape {x0.shape}, not {like}")
            # Compiled anew for every call: what the function closes over may have changed.
            run = jax.jit(functools.partial(_euler_maruyama, drift), static_argnames=_STATIC)
            coefficient = 0.0
        paths, diverged_at = run(
            coefficient, law, sigma, x0, step, bound, jax.random.key(seed), every, mode=mode,
            noisy=bool(sigma.any()), length=length, num_paths=num_paths,
            num_kept=num_steps // every)
        paths, diverged_at = np.asarray(paths), np.asarray(diverged_at)
    return Paths(np.arange(0, num_steps + 1, every) * step, paths, diverged_at)


_STATIC = ("mode", "noisy", "length", "num_paths", "num_kept")


def _euler_maruyama(gradient, drift, law, sigma, x0, step, bound, key, every, *, mode, noisy,
                    length, num_paths, num_kept):
    def force(x):
        if gradient is not None:
            return jax.vmap(gradient)(x).astype(x.dtype)
        return x @ drift.T if drift.ndim == 2 else drift * x

    noise_key, delay_key = jax.random.split(key)

    def delayed(ring, n):
        if mode == "distributed":
            lags, weights = law
            return jnp.tensordot(weights, ring[(n - lags) % length], 1)
        drawn = jax.random.uniform(jax.random.fold_in(delay_key, n), num_paths) * len(law[0])
        whole, part = (of_sample[drawn.astype(int)] for of_sample in law)
        part = part.reshape(-1, *[1] * x0.ndim)
        path = jnp.arange(num_paths)
        return ((1 - part) * ring[(n - whole) % length, path]
                + part * ring[(n - whole - 1) % length, path])

    def advance(n, carry):
        x, diverged_at, ring = carry
        # The ring holds forces, not states: then one evaluation a step serves every delay.
        ring = ring.at[n % length].set(force(x))
        moved = x - step * delayed(ring, n)
        if noisy:
            xi = jax.random.normal(jax.random.fold_in(noise_key, n), x.shape) * jnp.sqrt(step)
            moved += xi @ sigma.T if sigma.ndim == 2 else sigma * xi
        inside = (jnp.abs(moved) <= bound).reshape(num_paths, -1).all(axis=1)
        diverged_at = jnp.where(inside, diverged_at, jnp.minimum(diverged_at, (n + 1) * step))
        alive = jnp.isinf(diverged_at).reshape(-1, *[1] * x0.ndim)
        return jnp.where(alive, moved, x), diverged_at, ring

    def keep_last(carry, start):
        carry = jax.lax.fori_loop(start, start + every, advance, carry)
        return carry, carry[0]

    x = jnp.broadcast_to(x0, (num_paths, *x0.shape))
    carry = x, jnp.full(num_paths, jnp.inf), jnp.broadcast_to(force(x), (length, *x.shape))
    (_, diverged_at, _), kept = jax.lax.scan(keep_last, carry, every * jnp.arange(num_kept))
    return jnp.concatenate([x[None], kept]), diverged_at


_run = jax.jit(functools.partial(_euler_maruyama, None), static_argnames=_STATIC)


def _delays(delay, longest_delay):
    """Returns samples of the delay in seconds, one if it is constant, all within the longest."""
    if isinstance(delay, Distribution) and delay.samples is None:
        samples = times.upper_quantile(delay, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    else:
        samples = np.atleast_1d(_array(
            "delay", delay.samples if isinstance(delay, Distribution) else delay,
            "a number, samples or a Distribution of virtual seconds", max_ndim=1))
    if samples.min() < 0:
        raise ValueError(f"delay must be >= 0, not {samples.min():g}")
    if longest_delay is None:
        longest_delay = np.quantile(samples, 0.9999, method="higher")
    else:
        longest_delay = number("longest_delay", longest_delay, least=0.0)
    samples = np.minimum(samples, longest_delay)
    return samples[:1] if samples.min() == samples.max() else samples


def _array(name, value, allowed, max_ndim=2, like=None):
    """Returns `value` as a finite float64 array, one that acts on states like `like` if given."""
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0)
    if (array.dtype.kind not in "iuf" or array.ndim > max_ndim or not array.size
            or not np.isfinite(array).all()):
        raise ValueError(f"{name} must be {allowed}, finite and not empty, not {value!r}")
    if like is not None and array.shape not in ((), like.shape, 2 * like.shape):
        raise ValueError(f"{name} must be {allowed} that fits x0 of shape {like.shape}, "
                         f"not of shape {array.shape}")
    return array.astype(np.float64)
