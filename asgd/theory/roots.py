"""The largest root of a polynomial of any degree, by eigenvalues or by winding numbers."""

import math

import numpy as np

_DENSE = 48  # Up to this degree all eigenvalues of the companion matrix are computed.


def radius(coefficients: np.ndarray) -> float:
    """Returns the largest modulus of the roots z of a polynomial in 1 / z, lowest power first."""
    degree = len(coefficients) - 1
    if degree <= _DENSE:
        roots = np.roots(coefficients)
        largest = roots[np.argmax(np.abs(roots))] if len(roots) else 0.0
        return float(abs(1 / _polish(coefficients, 1 / largest)[0])) if largest else 0.0
    # Winding numbers find the circle of the largest root z, the smallest in w = 1 / z.
    low, high = -1.0, 1.0  # log(|w|) times the degree.
    while _roots_within(coefficients, low / degree):
        low, high = 2 * low, low
    while not _roots_within(coefficients, high / degree):
        low, high = high, 2 * high
    while high - low > 1e-3 * max(1.0, abs(low)):
        middle = (low + high) / 2
        low, high = (low, middle) if _roots_within(coefficients, middle / degree) else (middle, high)
    # Several roots may lie near that circle.
    starts = _dips(coefficients, high / degree)
    polished = _polish(coefficients, starts)
    inside = polished[np.abs(np.log(np.abs(polished)) * degree - high) < max(1.0, 0.1 * abs(high))]
    return float(1 / np.abs(inside).min()) if inside.size else math.exp(-high / degree)


def _polish(coefficients, roots):
    """Newton's method in w = 1 / z, as eigenvalues of long laws lose digits."""
    derivative = np.polynomial.polynomial.polyder(coefficients)
    start = roots = np.atleast_1d(np.asarray(roots, complex))
    with np.errstate(all="ignore"):
        for _ in range(50):
            move = (np.polynomial.polynomial.polyval(roots, coefficients)
                    / np.polynomial.polynomial.polyval(roots, derivative))
            move = np.where(np.isfinite(move), move, 0.0)
            roots = roots - move
            if (np.abs(move) <= 1e-15 * np.abs(roots)).all():
                break
    # It may leave for another root, or go on for ever.
    near = np.isfinite(roots) & (np.abs(roots - start) < 0.1 * np.abs(start)) & (
        np.abs(move) < 1e-6 * np.abs(roots))
    return roots[near] if near.any() else start


def _circle(coefficients, log_radius):
    size = 1 << math.ceil(math.log2(16 * len(coefficients)))
    return np.fft.fft(coefficients * np.exp(log_radius * np.arange(len(coefficients))), size)


def _roots_within(coefficients, log_radius):
    values = _circle(coefficients, log_radius)
    turns = np.angle(np.roll(values, -1) * values.conj()).sum() / (2 * np.pi)
    return round(abs(turns))


def _dips(coefficients, log_radius):
    """Where on the circle the polynomial is small: the 64 shortest of Newton's first steps."""
    values = np.abs(_circle(coefficients, log_radius))
    rows = np.flatnonzero((values <= np.roll(values, 1)) & (values <= np.roll(values, -1)))
    points = np.exp(log_radius - 2j * np.pi * rows / len(values))
    slopes = np.abs(np.polynomial.polynomial.polyval(
        points, np.polynomial.polynomial.polyder(coefficients)))
    return points[np.argsort(values[rows] / np.maximum(slopes, 1e-300))[:64]]
