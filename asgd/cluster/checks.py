"""Checks of numbers that are given as arguments."""

import math
import numbers
from typing import Any

MOST_WORKERS = 10**6  # Each has a random generator and rows in tables.
MOST_AGENTS = 4096  # Weights and delays are N x N.
LONGEST_DELAY = 2**15 - 1  # Rounds, an int16.


def show(value: Any) -> str:
    """Returns a value's repr as one short line."""
    try:
        return short(repr(value))
    except Exception:  # An integer of thousands of digits, or whatever has a repr of its own.
        return f"of type {type(value).__name__}"


def short(text: str) -> str:
    """Returns a text as one short line."""
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def number(name: str, value: Any, above: float = -math.inf, least: float = -math.inf) -> float:
    """Returns `value` as a finite float > `above` and >= `least`, or raises ValueError."""
    allowed = f"> {above:g}" if above > -math.inf else f">= {least:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a finite number {allowed}, not {value!r}")
    value = float(value)
    if not (math.isfinite(value) and value > above and value >= least):
        raise ValueError(f"{name} must be a finite number {allowed}, not {value:g}")
    return value


def integer(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> int:
    """Returns `value` as an int from `least` to `most`, or raises ValueError."""
    if (isinstance(value, bool) or not isinstance(value, numbers.Integral)
            or not least <= value <= most):
        allowed = f"from {least} to {most}" if most < math.inf else f">= {least}"
        raise ValueError(f"{name} must be an integer {allowed}, not {value!r}")
    return int(value)
