r"""Spread of SGD with random staleness: second moments of the iteration of `stability`.

Where the mean converges the variance may still grow, as each update draws its own :math:`\tau_k`.
With :math:`\tau_k` independent of each other (of the trace's, an approximation) the second moments
:math:`C_{ij} = E[x_{k-i} x_{k-j}]` follow the linear map

.. math::
  C \mapsto E[A_\tau C A_\tau^T] + \sigma^2 e_0 e_0^T

with the companion matrices :math:`A_\tau`. Its spectral radius is that of :math:`E[A_\tau \otimes A_\tau]`:
below 1 the second moments stay bounded. Derived here, as `stability` is.
"""

import math
from typing import Callable, Optional

import numpy as np
from scipy import optimize
from scipy.sparse import linalg

from asgd.cluster.checks import number
from asgd.theory import stability


def mean_square_radius(step: float, tau: stability.Law, momentum: float = 0.0, *,
                       scale: Optional[Callable] = None) -> float:
    """Returns the spectral radius of the second moments; for a fixed staleness, its square.

    Arguments are those of :func:`asgd.theory.spectral_radius`. The work grows with the cube of the
    largest staleness, so laws are for up to some hundreds.

    Example:
      >>> round(mean_square_radius(0.5, 1), 6)  # z^2 - z + 1/2 = 0.
      0.5
    """
    moments, size = _moments(step, tau, momentum, scale)
    if size <= 12:
        return float(np.abs(np.linalg.eigvals(_dense(moments, size))).max())
    operator = linalg.LinearOperator(
        (size**2, size**2), matvec=lambda c: moments(c.reshape(size, size)).ravel(),
        dtype=np.float64)
    start = np.eye(size).ravel()
    return float(np.abs(linalg.eigs(operator, k=1, v0=start, tol=1e-9,
                                    return_eigenvectors=False, maxiter=20_000)).max())


def mean_square_critical_step(tau: stability.Law, momentum: float = 0.0, *,
                              scale: Optional[Callable] = None) -> float:
    r"""Returns the step above which the second moments grow; at most the `critical_step` of the mean.

    Example:
      >>> round(mean_square_critical_step([0.5, 0.5]), 4)  # The mean converges up to 2.
      1.2361
    """
    limit = stability.critical_step(tau, momentum, scale=scale)
    limit = limit if math.isfinite(limit) else 4.0 * (1 + momentum)

    def excess(a):
        return mean_square_radius(a, tau, momentum, scale=scale) - 1

    if excess(limit * (1 - 1e-9)) <= 0:
        return limit
    low = limit / 2
    while excess(low) > 0:
        low /= 2
    return float(optimize.brentq(excess, low, limit, xtol=1e-10 * limit))


def discrete_stationary_variance(step: float, tau: stability.Law, sigma: float = 1.0,
                                 momentum: float = 0.0, *,
                                 scale: Optional[Callable] = None) -> float:
    r"""Returns the variance that :math:`x_{k+1} = \dots + \sigma \xi_k`, :math:`\xi_k` of variance 1, settles at.

    Args:
      step: :math:`\eta h`.
      tau: staleness, an int or a probability vector.
      sigma: standard deviation of an update's noise, :math:`\eta \sigma_g` for gradient noise
        :math:`\sigma_g`.
      momentum: heavy-ball momentum.

    Other args:
      scale: rule from staleness to factors on the step; the noise is not scaled.

    Returns:
      The variance, or ``inf`` where second moments grow.

    Example:
      >>> round(discrete_stationary_variance(0.5, 0), 6), discrete_stationary_variance(1.5, 1)
      (1.333333, inf)
    """
    sigma = number("sigma", sigma, least=0.0)
    if mean_square_radius(step, tau, momentum, scale=scale) >= 1:
        return math.inf
    moments, size = _moments(step, tau, momentum, scale)
    noise = np.zeros((size, size))
    noise[0, 0] = sigma**2
    if size <= 40:
        return float(np.linalg.solve(np.eye(size**2) - _dense(moments, size), noise.ravel())[0])
    operator = linalg.LinearOperator(
        (size**2, size**2), matvec=lambda c: c - moments(c.reshape(size, size)).ravel(),
        dtype=np.float64)
    found, failed = linalg.gmres(operator, noise.ravel(), rtol=1e-10, restart=200, maxiter=200)
    if failed:
        raise ArithmeticError("the stationary variance did not converge: step is close to the limit")
    return float(found[0])


def _moments(step, tau, momentum, scale):
    row = stability.companion(step, tau, momentum, scale=scale)[0]
    law = stability.law_of(tau)
    size = len(row)
    # The random part of the first row: -a s(tau) at tau, with its mean in `row` already.
    factors = np.ones(len(law)) if scale is None else np.asarray(scale(np.arange(len(law))), float)
    # A rule may be 0 for the longest, which the matrix then leaves out.
    length = min(size, len(law))
    spread, mean = np.zeros(size), np.zeros(size)
    spread[:length] = (law * (step * factors) ** 2)[:length]
    mean[:length] = (step * law * factors)[:length]

    def moments(c):
        out = np.empty_like(c)
        out[1:, 1:] = c[:-1, :-1]
        ahead = row @ c
        out[0, 1:] = ahead[:-1]
        out[1:, 0] = (c @ row)[:-1]
        out[0, 0] = ahead @ row + spread @ np.diagonal(c) - mean @ c @ mean
        return out

    return moments, size


def _dense(moments, size):
    return np.stack([moments(e.reshape(size, size)).ravel() for e in np.eye(size**2)], axis=1)
