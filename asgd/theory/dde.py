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

from asgd.cluster.checks import number
from asgd.cluster.timing import Distribution
from asgd.theory import times


def dde_rightmost_root(a: float, delay: Any) -> complex:
    r"""Returns the root s of :math:`s + a E[e^{-sD}] = 0` with the largest real part, Im s >= 0.

    For a fixed delay it is :math:`W_0(-aD) / D` with Lambert's W, otherwise it is found by Newton's
    method, and the argument principle counts that no other root is right of it.

    Args:
      a: gain, > 0, per virtual second.
      delay: D in virtual seconds, a number >= 0 or an `asgd.cluster.timing` distribution.

    Raises:
      ValueError: for arguments out of range; where x decays but :math:`E[e^{-sD}]` ends right of a
        root: at 0 for lognormal and Pareto delays, whose x decays slower than any exponential, at
        minus the rate of their tail for exponential and gamma delays.

    Example:
      >>> print(f"{dde_rightmost_root(1.0, 1.0):.6f}")
      -0.318132+1.337236j
    """
    a = number("a", a, above=0.0)
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
    high = unit
    while a * float(transform(np.array([high + 0j])).real[0]) >= high:  # |s| = a |E e^{-sD}| there.
        high *= 2
    low = 0.0 if left == 0 else max(-0.5 * unit, 0.999999 * left)
    while not _roots_right(a, transform, low, unit):
        if low <= 0.999999 * left or low < -1e3 * unit:
            raise ValueError(
                f"delay: with {delay.name} delays of mean {delay.mean:g} and a={a:g} the solution decays, "
                f"but no root right of {left:g} says how fast: such delays are too often long")
        low = max(4 * low, 0.999999 * left)
    # Newton's method needs a start that is near, and no other root as far right.
    for _ in range(60):
        root = _newton(a, transform, derivative, low, unit)
        if root is not None and not _roots_right(a, transform, root.real + 1e-6 * unit, unit):
            return root
        middle = (low + high) / 2
        low, high = (middle, high) if _roots_right(a, transform, middle, unit) else (low, middle)
    raise ArithmeticError(f"no root was found for a={a:g} and {delay.name} delays of mean {delay.mean:g}")


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
    gains, end = [], 60 / delay.mean
    start = end / 6000
    # As |E e^{-i omega D}| <= 1, a gain found is below any found at a frequency above it.
    while end < 1e4 / delay.mean and not (gains and min(gains) <= start):
        grid = np.linspace(start, end, 6001)
        real = transform(1j * grid).real
        for row in np.flatnonzero(np.signbit(real[1:]) != np.signbit(real[:-1])):
            omega = optimize.brentq(lambda w: transform(1j * np.array([w])).real[0],
                                    grid[row], grid[row + 1])
            imaginary = transform(1j * np.array([omega])).imag[0]
            if imaginary < -1e-6:
                gains.append(-omega / imaginary)
        start, end = end, 2 * end
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
    a = number("a", a, above=0.0)
    delay = number("delay", delay, least=0.0)
    sigma = number("sigma", sigma, least=0.0)
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


def _roots_right(a, transform, edge, unit):
    """Counts the roots with a real part above an edge, by the argument along it."""
    value, grids, top = _line(a, transform, edge, unit)
    turned = sum(_turned(value, y) for y in grids)
    # Back along an arc on which s is the larger term.
    return round((np.angle(value(np.array([top]))[0]) - turned) / np.pi)


def _line(a, transform, edge, unit):
    """Returns the function of y along an edge, the y in joined pieces, and their end.

    Beyond the end no root is right of the edge, as s alone is larger than the other term.
    """
    bound = a * float(transform(np.array([edge + 0j])).real[0])
    top = 1.05 * bound + abs(edge) + unit
    # Where delays are spread out the transform falls long before the bound.
    sparse = np.geomspace(1e-3 * unit, top, 2000)
    large = np.flatnonzero(a * np.abs(transform(edge + 1j * sparse)) > sparse / 2)
    top = min(top, 1.5 * sparse[min(large[-1] + 1, len(sparse) - 1)]) if large.size else top
    size = math.ceil(top / (0.05 * unit)) + 200
    if not math.isfinite(top) or size > 1_000_000:
        raise ValueError(f"a={a:g} is too large to be searched for the root: lower it to what is near "
                         "dde_critical_gain")
    grids = (top / size * np.arange(start, min(start + 4096, size) + 1)
             for start in range(0, size, 4096))
    return lambda y: edge + 1j * y + a * transform(edge + 1j * y), grids, top


def _turned(value, y, depth=5):
    """How far the argument turns along y, with more points where it turns fast."""
    values = value(y)
    angles = np.angle(values[1:] / values[:-1])
    fast = np.flatnonzero(np.abs(angles) > 1.0) if depth else np.zeros(0, int)
    finer = sum(_turned(value, np.linspace(y[i], y[i + 1], 33), depth - 1) for i in fast)
    return float(np.delete(angles, fast).sum() + finer)


def _newton(a, transform, derivative, edge, unit):
    """The rightmost of the roots that Newton's method finds from where an edge comes near them."""
    value, grids, _ = _line(a, transform, edge, unit)
    dips = [np.zeros(1)]
    for y in grids:
        sizes = np.abs(value(y))
        dips.append(y[1:-1][(sizes[1:-1] <= sizes[2:]) & (sizes[1:-1] <= sizes[:-2])])
    s = edge + 1j * np.concatenate(dips)
    with np.errstate(all="ignore"):
        first = np.abs(value(s.imag) / (1 + a * derivative(s)))
        s = s[np.argsort(first)[:200]]
        for _ in range(60):
            s = s - (s + a * transform(s)) / (1 + a * derivative(s))
            s = s[np.isfinite(s) & (s.real > edge - unit)]
        good = s[np.abs(s + a * transform(s)) < 1e-8 * max(1.0, a)]
    if not good.size:
        return None
    root = good[np.argmax(good.real)]
    return complex(root.real, abs(root.imag) if abs(root.imag) > 1e-9 * abs(root) else 0.0)
