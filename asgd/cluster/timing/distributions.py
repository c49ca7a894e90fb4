"""Distributions of times in virtual seconds."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from asgd.cluster.checks import number

NAMES = ("constant", "exponential", "shifted_exponential", "gamma", "lognormal", "pareto")


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A distribution of non-negative times; build one with the functions of this module.

    Attributes:
        name: The constructor's name.
        mean: Expected time in virtual seconds.
        parameters: The further parameters as (name, value) pairs.
        samples: What `empirical` draws from, None for the others.
    """

    name: str
    mean: float
    parameters: tuple[tuple[str, Any], ...] = ()
    samples: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)

    def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draws `size` independent times, float64 `[size]`, in virtual seconds.

        Drawing n and then m times gives the same numbers as drawing n + m at once.

        Example:
            >>> exponential(mean=2.0).sample(np.random.default_rng(0), 3).shape
            (3,)
        """
        p = dict(self.parameters)
        match self.name:
            case "constant":
                return np.full(size, self.mean)
            case "exponential":
                return self.mean * rng.standard_exponential(size)
            case "shifted_exponential":
                return p["shift"] + (self.mean - p["shift"]) * rng.standard_exponential(size)
            case "gamma":
                return (self.mean * p["cv"] ** 2) * rng.standard_gamma(p["cv"] ** -2, size)
            case "lognormal":
                variance = math.log1p(p["cv"] ** 2)
                return rng.lognormal(math.log(self.mean) - variance / 2, variance**0.5, size)
            case "pareto":
                least = self.mean * (p["shape"] - 1) / p["shape"]
                return least * (1 + rng.pareto(p["shape"], size))
            case "empirical":
                return self.samples[rng.integers(len(self.samples), size=size)]
        raise ValueError(f"no distribution has the name {self.name!r}")

    def describe(self) -> dict[str, Any]:
        """Returns the name and the parameters as a JSON-able dict.

        Example:
            >>> gamma(mean=1.0, cv=0.5).describe()
            {'distribution': 'gamma', 'mean': 1.0, 'cv': 0.5}
        """
        return {"distribution": self.name, "mean": self.mean, **dict(self.parameters)}


def constant(mean: float) -> Distribution:
    """Always `mean` >= 0 virtual seconds.

    Example:
        >>> constant(2.0).sample(np.random.default_rng(0), 2).tolist()
        [2.0, 2.0]
    """
    return Distribution("constant", number("mean", mean, least=0.0))


def exponential(mean: float) -> Distribution:
    """Exponential times, P(T > t) = exp(-t / mean): the only memoryless ones.

    Example:
        >>> exponential(2.0).mean
        2.0
    """
    return Distribution("exponential", number("mean", mean, above=0.0))


def shifted_exponential(shift: float, mean: float) -> Distribution:
    """A fixed `shift` plus an exponential time: P(T > t) = exp(-(t - shift) / (mean - shift)).

    `shift` >= 0 is the shortest time, `mean` > `shift` the mean of the whole time.

    Example:
        >>> shifted_exponential(shift=0.5, mean=2.0).mean
        2.0
    """
    shift = number("shift", shift, least=0.0)
    mean = number("mean (of the whole time, the shift included)", mean, above=shift)
    return Distribution("shifted_exponential", mean, (("shift", shift),))


def gamma(mean: float, cv: float) -> Distribution:
    """Gamma times of shape 1 / cv^2, where cv is the standard deviation over the mean.

    Example:
        >>> gamma(mean=128.0, cv=0.1).mean
        128.0
    """
    mean = number("mean", mean, above=0.0)
    return Distribution("gamma", mean, (("cv", number("cv", cv, above=0.0)),))


def lognormal(mean: float, cv: float) -> Distribution:
    """exp(N(log(mean) - s^2 / 2, s^2)) with s^2 = log(1 + cv^2), so that mean and cv are exact.

    Example:
        >>> lognormal(mean=1.0, cv=2.0).mean
        1.0
    """
    mean = number("mean", mean, above=0.0)
    return Distribution("lognormal", mean, (("cv", number("cv", cv, above=0.0)),))


def pareto(mean: float, shape: float) -> Distribution:
    """Classical Pareto times, P(T > t) = (m / t)^shape for t >= m = mean (shape - 1) / shape.

    `shape` must be > 1, for the mean is infinite otherwise; the variance is finite above 2.

    Example:
        >>> pareto(mean=1.0, shape=2.5).mean
        1.0
    """
    mean = number("mean", mean, above=0.0)
    shape = number("shape", shape, above=1.0)
    return Distribution("pareto", mean, (("shape", shape),))


def empirical(samples: Sequence[float]) -> Distribution:
    """Draws with replacement from measured times, all finite and >= 0, of mean > 0.

    Example:
        >>> empirical([0.5, 0.5, 2.0]).mean
        1.0
    """
    array = np.asarray(samples)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iuf":
        raise ValueError("samples must be a non-empty list of times in seconds")
    array = array.astype(np.float64)
    for row in np.flatnonzero(~(np.isfinite(array) & (array >= 0)))[:1]:
        raise ValueError(f"samples at row {row} is {array[row]:g}; it must be finite and >= 0")
    mean = number("mean of samples", array.mean(), above=0.0)
    array.setflags(write=False)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return Distribution(
        "empirical", mean, (("num_samples", array.size), ("sha256", digest)), samples=array
    )


def scaled(distribution: Distribution, factor: float) -> Distribution:
    """Returns the distribution of times that are `factor` > 0 times as long.

    Example:
        >>> scaled(shifted_exponential(shift=0.5, mean=2.0), 2.0)
        Distribution(name='shifted_exponential', mean=4.0, parameters=(('shift', 1.0),))
    """
    factor = number("factor", factor, above=0.0)
    if distribution.samples is not None:
        return empirical(distribution.samples * factor)
    parameters = tuple((name, factor * value if name == "shift" else value)
                       for name, value in distribution.parameters)
    return Distribution(distribution.name, factor * distribution.mean, parameters)


def from_name(distribution: str, mean: float = 1.0, cv: float = 1.0) -> Distribution:
    """Builds a distribution from its name, its mean and its coefficient of variation.

    Args:
        distribution: One of `NAMES`.
        mean: Expected time in virtual seconds.
        cv: Standard deviation over the mean. It sets the shift, mean (1 - cv), of a shifted
            exponential (cv <= 1) and the shape, 1 + sqrt(1 + 1 / cv^2), of a Pareto. Constant
            and exponential times have a cv of their own and ignore it.

    Raises:
        ValueError: On an unknown name or a number out of range.

    Example:
        >>> from_name("shifted_exponential", mean=2.0, cv=0.25)
        Distribution(name='shifted_exponential', mean=2.0, parameters=(('shift', 1.5),))
    """
    match distribution:
        case "constant" | "exponential":
            return {"constant": constant, "exponential": exponential}[distribution](mean)
        case "shifted_exponential":
            if number("cv", cv, above=0.0) > 1:
                raise ValueError(f"cv of a shifted_exponential must be in (0, 1], not {cv:g}")
            return shifted_exponential(number("mean", mean, above=0.0) * (1 - cv), mean)
        case "gamma" | "lognormal":
            return {"gamma": gamma, "lognormal": lognormal}[distribution](mean, cv)
        case "pareto":
            return pareto(mean, shape=1 + math.sqrt(1 + number("cv", cv, above=0.0) ** -2))
    raise ValueError(f"distribution must be one of {', '.join(NAMES)}, not {distribution!r}")
