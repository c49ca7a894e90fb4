r"""Stability and speed of SGD with stale gradients on a quadratic, one update at a time.

With curvature h, learning rate :math:`\eta`, :math:`a = \eta h` and momentum m, the iteration is

.. math::
  x_{k+1} = x_k + m (x_k - x_{k-1}) - a\, s(\tau_k)\, x_{k-\tau_k}

where s is a rule that scales the learning rate by the staleness (1 without one). With independent
random :math:`\tau_k` of law p the mean of x follows the same iteration averaged over p, and moves
like :math:`z^k` with the roots z of

.. math::
  z^2 - (1 + m) z + m + a z \sum_\tau p_\tau s(\tau) z^{-\tau} = 0.

The largest modulus of a root, the spectral radius, is the factor that the slowest mode is
multiplied by in an update: below 1 it converges. How spread grows with random staleness is in
:mod:`asgd.theory.mean_square`.
"""

import math
import numbers
from typing import Any, Callable, NamedTuple, Optional, Union

import numpy as np
from scipy import optimize

from asgd.theory import roots

Law = Union[int, np.ndarray]


class Answer(NamedTuple):
    """What an iteration does.

    Attributes:
      verdict: "converges" or "diverges" (or "stays", on the boundary between them).
      rate: minus the logarithm of the spectral radius, per update; negative where it diverges,
        when ``-rate`` is the rate of growth.
    """

    verdict: str
    rate: float


def law_of(tau: Any) -> np.ndarray:
    """Returns the law of the staleness, float64 [largest + 1], of an int or a probability vector.

    Raises:
      ValueError: naming what is wrong with ``tau``.

    Example:
      >>> law_of(2).tolist()
      [0.0, 0.0, 1.0]
    """
    if isinstance(tau, numbers.Integral) and not isinstance(tau, bool):
        if tau < 0:
            raise ValueError(f"tau must be at least 0, got {tau}")
        law = np.zeros(int(tau) + 1)
        law[-1] = 1.0
        return law
    law = np.asarray(tau)
    if law.ndim != 1 or not law.size or law.dtype.kind not in "iuf":
        raise ValueError(f"tau must be an integer or a probability vector, got {tau!r}")
    law = law.astype(np.float64)
    if not (np.isfinite(law).all() and (law >= 0).all() and abs(law.sum() - 1) < 1e-6):
        raise ValueError("tau must be an integer or a probability vector: entries at least 0 whose "
                         f"sum is 1, got {law.min():g} as the least and {law.sum():g} as the sum")
    return np.trim_zeros(law / law.sum(), "b")


def spectral_radius(step: float, tau: Law, momentum: float = 0.0, *,
                    scale: Optional[Callable] = None) -> float:
    r"""Returns the factor by which the slowest mode is multiplied in an update.

    Args:
      step: :math:`a = \eta h`; the Hessian eigenvalue is 1 where it is the learning rate.
      tau: staleness in updates, an int or a probability vector [largest + 1].
      momentum: heavy-ball momentum m in [0, 1).

    Other args:
      scale: rule s from staleness, an array, to factors, such as :func:`asgd.inverse`.

    Raises:
      ValueError: for arguments out of range, naming them.

    Example:
      >>> round(spectral_radius(4 / 27, 2), 6)  # tau / (tau + 1), the fastest.
      0.666667
    """
    return roots.radius(polynomial(step, tau, momentum, scale=scale))


def answer(step: float, tau: Law, momentum: float = 0.0, *,
           scale: Optional[Callable] = None) -> Answer:
    """Returns whether the iteration converges, and how fast; arguments of `spectral_radius`.

    Example:
      >>> answer(3.0, 0).verdict, round(answer(3.0, 0).rate, 6)  # |x| doubles.
      ('diverges', -0.693147)
    """
    rate = -math.log(max(spectral_radius(step, tau, momentum, scale=scale), 1e-300))
    verdict = "stays" if abs(rate) < 1e-9 else "converges" if rate > 0 else "diverges"
    return Answer(verdict, rate)


def critical_step(tau: Law, momentum: float = 0.0, *, scale: Optional[Callable] = None) -> float:
    r"""Returns the step :math:`\eta h` above which the iteration diverges.

    It is the least a for which a root lies on the unit circle, where
    :math:`a = -(z - 1)(z - m) / (z \sum_\tau p_\tau s(\tau) z^{-\tau})` is real and positive; without
    momentum and for a fixed staleness, :math:`2 \sin(\pi / (2 (2 \tau + 1)))`.

    Arguments are those of :func:`spectral_radius`.

    Example:
      >>> [round(critical_step(tau), 6) for tau in (0, 1, 2, 16)]
      [2.0, 1.0, 0.618034, 0.095164]
    """
    weights, momentum = _weights(tau, scale), check_momentum(momentum)
    largest = len(weights) - 1

    def value(angle):
        z = np.exp(1j * angle)
        # For one angle, so that what brentq sees is exact.
        series = np.polynomial.polynomial.polyval(1 / z, weights)
        return -(z - 1) * (z - momentum) / z, series

    def imaginary(angle):
        left, series = value(angle)
        return (left * series.conjugate()).imag

    size = 1 << max(12, math.ceil(math.log2(64 * (largest + 1))))
    angles = 2 * np.pi / size * np.arange(1, size // 2)
    series = np.fft.rfft(weights, size)[1:-1]
    z = np.exp(1j * angles)
    signs = np.sign((-(z - 1) * (z - momentum) / z * series.conj()).imag)
    steps = []
    for row in np.flatnonzero(signs[1:] * signs[:-1] < 0):
        ends = angles[row], angles[row + 1]
        if imaginary(ends[0]) * imaginary(ends[1]) < 0:
            steps.append(value(optimize.brentq(imaginary, *ends, xtol=1e-15, rtol=1e-14)))
        else:  # On a zero but for rounding.
            steps.append(value(min(ends, key=lambda angle: abs(imaginary(angle)))))
    steps.append((2 * (1 + momentum), np.sum(weights * (-1.0) ** np.arange(largest + 1))))
    steps += [value(angles[row]) for row in np.flatnonzero(signs == 0)]
    found = [(left / series).real for left, series in steps if abs(series) > 1e-12]
    return float(min((step for step in found if step > 0), default=math.inf))


def fastest_step(tau: Law, momentum: float = 0.0, *, scale: Optional[Callable] = None) -> float:
    r"""Returns the step with the smallest spectral radius.

    For a fixed staleness and no momentum it is :math:`\tau^\tau / (\tau + 1)^{\tau + 1}`, a double
    root, with the radius :math:`\tau / (\tau + 1)`; else it is searched for.

    Arguments are those of :func:`spectral_radius`.

    Example:
      >>> fastest_step(1), round(fastest_step(4), 6)
      (0.25, 0.08192)
    """
    weights, momentum = _weights(tau, scale), check_momentum(momentum)
    if momentum == 0 and np.count_nonzero(weights) == 1:
        fixed = len(weights) - 1
        return float((fixed / (fixed + 1)) ** fixed / (fixed + 1) / weights[-1])
    limit = critical_step(tau, momentum, scale=scale)
    grid = limit * np.linspace(0, 1, 66)[1:-1]
    values = [roots.radius(_polynomial(a, weights, momentum)) for a in grid]
    best = int(np.argmin(values))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    return float(optimize.minimize_scalar(
        lambda a: roots.radius(_polynomial(a, weights, momentum)), bounds=around, method="bounded",
        options={"xatol": 1e-9 * limit}).x)


def polynomial(step: float, tau: Law, momentum: float = 0.0, *,
               scale: Optional[Callable] = None) -> np.ndarray:
    r"""Returns the coefficients of :math:`1, z^{-1}, z^{-2}, \dots` whose roots z are the modes.

    Arguments are those of :func:`spectral_radius`.

    Example:
      >>> polynomial(0.5, 1).tolist()
      [1.0, -1.0, 0.5]
    """
    return _polynomial(_finite("step", step), _weights(tau, scale), check_momentum(momentum))


def companion(step: float, tau: Law, momentum: float = 0.0, *,
              scale: Optional[Callable] = None) -> np.ndarray:
    """Returns the matrix [n, n] that takes (x_k, x_{k-1}, ...) to (x_{k+1}, x_k, ...), in the mean.

    Example:
      >>> companion(0.5, 1).tolist()
      [[1.0, -0.5], [1.0, 0.0]]
    """
    row = -polynomial(step, tau, momentum, scale=scale)[1:]
    out = np.eye(len(row), k=-1)
    out[0] = row
    return out


def _weights(tau, scale):
    law = law_of(tau)
    if scale is None:
        return law
    factors = np.asarray(scale(np.arange(len(law))), np.float64)
    if factors.shape != law.shape or not np.isfinite(factors).all() or (factors < 0).any():
        raise ValueError("scale must give a finite factor of at least 0 for every staleness, as "
                         "asgd.inverse does")
    weights = np.trim_zeros(law * factors, "b")
    if not weights.size:
        raise ValueError("scale must not be 0 for every staleness: no gradient would be applied")
    return weights


def _polynomial(step, weights, momentum):
    """Coefficients in 1 / z, from the constant one on."""
    out = np.zeros(max(len(weights) + 1, 3 if momentum else 2))
    out[:2] = 1, -(1 + momentum)
    if momentum:
        out[2] = momentum
    out[1 : len(weights) + 1] += step * weights
    return out


def check_momentum(momentum: float) -> float:
    """Returns a momentum as a float; ValueError unless it is in [0, 1)."""
    if not (isinstance(momentum, numbers.Real) and 0 <= momentum < 1):
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
    return float(momentum)


def _finite(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)
