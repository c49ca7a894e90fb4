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
        return float(abs(1 / _polish(coefficients, 1 / largest))) if largest else 0.0
    # Winding numbers find the circle of the largest root z, the smallest in w = 1 / z.
    low, high = -1.0, 1.0  # log(|w|) times the degree.
    while _roots_within(coefficients, low / degree):
        low, high = 2 * low, low
    while not _roots_within(coefficients, high / degree):
        low, high = high, 2 * high
    while high - low > 1e-3 * max(1.0, abs(low)):
        middle = (low + high) / 2
        low, high = (low, middle) if _roots_within(coefficients, middle / degree) else (middle, high)
    return float(abs(1 / _polish(coefficients, _nearest(coefficients, high / degree))))


def _polish(coefficients, root):
    """Newton's method in w = 1 / z, as eigenvalues of long laws lose digits."""
    derivative = np.polynomial.polynomial.polyder(coefficients)
    start = root
    for _ in range(50):
        slope = np.polynomial.polynomial.polyval(root, derivative)
        move = np.polynomial.polynomial.polyval(root, coefficients) / slope if slope else 0.0
        root = root - move
        if abs(move) < 1e-15 * abs(root):
            break
    # It may leave for another root.
    return root if abs(root - start) < 0.1 * abs(start) else start


def _circle(coefficients, log_radius):
    size = 1 << math.ceil(math.log2(16 * len(coefficients)))
    return np.fft.fft(coefficients * np.exp(log_radius * np.arange(len(coefficients))), size)


def _roots_within(coefficients, log_radius):
    values = _circle(coefficients, log_radius)
    turns = np.angle(np.roll(values, -1) * values.conj()).sum() / (2 * np.pi)
    return round(abs(turns))


def _nearest(coefficients, log_radius):
    values = _circle(coefficients, log_radius)
    row = int(np.argmin(np.abs(values)))
    return np.exp(log_radius - 2j * np.pi * row / len(values))
