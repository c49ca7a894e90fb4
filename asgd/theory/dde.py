r"""The delay differential equation :math:`x'(t) = -a\, x(t - D)`, the limit of many small updates.

With M workers of mean cycle time E[T], learning rate :math:`\eta` and curvature h the natural model has
:math:`a = \eta h M / E[T]` and D = the age of an applied gradient. (What the paper of Yu, Chen and Poor,
arXiv 2406.11159, writes exactly could not be had; this is derived here.) Solutions :math:`e^{st}`
have

.. math::
  s + a\, E[e^{-sD}] = 0,

and the root with the largest real part decides. For a random D the mean is meant, with delays drawn
independently of the past.
"""

import math
from typing import Any, Callable

import numpy as np
from scipy import optimize, special

from asgd.cluster.timing import Distribution
from asgd.theory import times


def dde_rightmost_root(a: float, delay: Any) -> complex:
    r"""Returns the root s of :math:`s + a E[e^{-sD}] = 0` with the largest real part, Im s >= 0.

    For a fixed delay it is :math:`W_0(-aD) / D` with Lambert's W, otherwise it is found by Newton's
    method from a grid that covers every root right of the one that is returned.

    Args:
      a: gain, > 0, per virtual second.
      delay: D in virtual seconds, a number >= 0 or an `asgd.cluster.timing` distribution.

    Raises:
      ValueError: for arguments out of range; for lognormal and Pareto delays that let x decay, as it
        decays slower than any exponential, and there is no such root.

    Example:
      >>> print(f"{dde_rightmost_root(1.0, 1.0):.6f}")
      -0.318132+1.337236j
    """
    a = times.number("a", a, above=0.0)
    delay = times.as_delay(delay)
    if delay.name == "constant":
        if delay.mean == 0:
            return complex(-a)
        if abs(a * delay.mean * math.e - 1) < 1e-14:  # A double root, where lambertw may be NaN.
            return complex(-1 / delay.mean)
        root = complex(special.lambertw(-a * delay.mean, 0) / delay.mean)
        return complex(root.real, abs(root.imag))
    transform, derivative, left = _laplace(delay)
    unit = 1 / delay.mean
    for leftmost in (-0.5 * unit, -2 * unit, -8 * unit, -32 * unit):
        edge = max(leftmost, left + 1e-9 * unit if math.isfinite(left) else leftmost)
        root = _rightmost(a, transform, derivative, edge)
        if root is not None:
            return root
        if edge > leftmost:
            break
    raise ValueError(
        f"delay: with {delay.name} delays of mean {delay.mean:g} and a={a:g} the solution decays, but no "
        "root says how fast: such delays are too often long for an exponential")


def dde_critical_gain(delay: Any) -> float:
    r"""Returns the gain a above which :math:`x' = -a\, x(t - D)` diverges.

    :math:`\pi / (2 D)` for a fixed delay; for a random one the least
    :math:`a = -\omega / \mathrm{Im}\, E[e^{-i \omega D}]` where :math:`\mathrm{Re}\, E[e^{-i \omega D}] = 0`,
    infinite if there is none, as for exponential delays.

    Example:
      >>> from asgd.cluster import timing
      >>> round(dde_critical_gain(2.0), 6), round(dde_critical_gain(timing.gamma(1.0, cv=0.5)), 3)
      (0.785398, 2.274)
      >>> dde_critical_gain(timing.exponential(1.0))
      inf
    """
    delay = times.as_delay(delay)
    if delay.mean == 0:
        return math.inf
    if delay.name == "constant":
        return math.pi / (2 * delay.mean)
    transform, _, _ = _laplace(delay)
    # Beyond, what is left of the transform asks for a gain that is out of sight.
    grid = np.linspace(0, 60, 6001)[1:] / delay.mean
    real = transform(1j * grid).real
    gains = []
    for row in np.flatnonzero(np.signbit(real[1:]) != np.signbit(real[:-1])):
        omega = optimize.brentq(lambda w: transform(1j * np.array([w])).real[0], grid[row], grid[row + 1])
        imaginary = transform(1j * np.array([omega])).imag[0]
        if imaginary < -1e-6:
            gains.append(-omega / imaginary)
    return float(min(gains, default=math.inf))


def stationary_variance(a: float, delay: float, sigma: float) -> float:
    r"""Returns the variance of :math:`dx = -a\, x(t - D)\, dt + \sigma\, dB` in the long run.

    .. math::
      \frac{\sigma^2}{2 a} \cdot \frac{1 + \sin(aD)}{\cos(aD)}

    (Küchler and Mensch 1992), or ``inf`` where :math:`aD \ge \pi / 2`.

    Args:
      a: gain, > 0, per virtual second.
      delay: fixed delay D >= 0, virtual seconds.
      sigma: noise per square root of a virtual second.

    Example:
      >>> stationary_variance(2.0, 0.0, 1.0)
      0.25
    """
    a = times.number("a", a, above=0.0)
    delay = times.number("delay", delay, least=0.0)
    if a * delay >= math.pi / 2:
        return math.inf
    return sigma**2 / (2 * a) * (1 + math.sin(a * delay)) / math.cos(a * delay)


def _laplace(delay: Distribution) -> tuple[Callable, Callable, float]:
    """Returns E[e^{-sD}], its derivative, and the real part right of which they exist."""
    p = dict(delay.parameters)
    if delay.name in ("exponential", "shifted_exponential", "gamma"):
        shift = p.get("shift", 0.0)
        shape = p["cv"] ** -2 if delay.name == "gamma" else 1.0
        scale = (delay.mean - shift) / shape

        def closed(s):
            return np.exp(-s * shift) * (1 + s * scale) ** -shape

        return closed, lambda s: -closed(s) * (shift + shape * scale / (1 + s * scale)), -1 / scale
    nodes, weights = times.quadrature(delay)

    def transform(s):
        return np.exp(-np.multiply.outer(s, nodes)) @ weights

    def derivative(s):
        return np.exp(-np.multiply.outer(s, nodes)) @ (-nodes * weights)

    return transform, derivative, -math.inf if delay.name == "empirical" else 0.0


def _rightmost(a, transform, derivative, left):
    """Newton's method from a grid right of `left`; None if no root is found there."""
    # |s| = a |E e^{-sD}| <= a E e^{-left D}: no root is further out.
    radius = float(a * transform(np.array([left + 0j])).real[0])
    if not radius < 1e6 * a:
        radius = 1e3 * a
    real, imaginary = np.linspace(left, radius, 24), np.linspace(0, radius, 48)
    s = (real[:, None] + 1j * imaginary).ravel()
    found = []
    with np.errstate(all="ignore"):
        for _ in range(60):
            move = (s + a * transform(s)) / (1 + a * derivative(s))
            s = s - move
            s, move = s[keep := np.isfinite(s) & (s.real > left - radius)], move[keep]
            # A double root is approached slowly, and may go on to the end.
            done = np.abs(move) < 1e-14 * radius
            found.append(s[done])
            s = s[~done]
        s = np.concatenate([*found, s])
        residual = np.abs(s + a * transform(s))
    good = s[(residual < 1e-9 * max(1.0, a)) & (s.real >= left)]
    if not good.size:
        return None
    root = good[np.argmax(good.real)]
    return complex(root.real, abs(root.imag) if abs(root.imag) > 1e-12 * abs(root) else 0.0)
