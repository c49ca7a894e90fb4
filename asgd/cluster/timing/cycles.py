"""Times of a worker's cycle: pull, computing, push, in virtual seconds."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from asgd.cluster.checks import number
from asgd.cluster.timing.distributions import Distribution, constant


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one cycle of a worker: pull transit, computing, push transit.

    A gradient read at `start_time` arrives at `start_time + pull + compute + push`. The push
    blocks, so the worker's next cycle starts when its gradient has arrived.

    Attributes:
        compute: Distribution of computing times, of mean > 0; or a sequence of them, of which
            worker w has the one at w modulo their number.
        pull: Distribution of pull times, or a number >= 0, or None for no time.
        push: The same for pushes.
        slowdown: One positive factor per worker, which multiplies its computing times only.

    Example:
        >>> from asgd.cluster.timing import exponential
        >>> Timing(exponential(1.0), pull=0.1, slowdown=[1.0, 3.0]).cycle_means(2).tolist()
        [1.1, 3.1]
        >>> Timing([constant(1.0), exponential(2.0)]).cycle_means(3).tolist()
        [1.0, 2.0, 1.0]
    """

    compute: Distribution | Sequence[Distribution]
    pull: Distribution | float | None = None
    push: Distribution | float | None = None
    slowdown: Sequence[float] | None = None

    def __post_init__(self):
        if isinstance(self.compute, Distribution):
            _check_compute("compute", self.compute)
        elif isinstance(self.compute, Sequence):
            object.__setattr__(self, "compute", tuple(self.compute))
            if not self.compute:
                raise ValueError("compute must hold at least one Distribution")
            for worker, distribution in enumerate(self.compute):
                _check_compute(f"compute of worker {worker}", distribution)
        else:
            allowed = "a Distribution, or a sequence of them"
            raise TypeError(f"compute must be {allowed}, not {self.compute!r}")
        for name in ("pull", "push"):
            value = getattr(self, name)
            if not isinstance(value, Distribution):
                value = constant(number(name, 0.0 if value is None else value, least=0.0))
            object.__setattr__(self, name, value)
        if self.slowdown is not None:
            factors = enumerate(self.slowdown)
            factors = tuple(number(f"slowdown of worker {w}", f, above=0.0) for w, f in factors)
            object.__setattr__(self, "slowdown", factors)

    def distributions(self, num_workers: int) -> tuple[Distribution, ...]:
        """Returns every worker's distribution of computing times, before its slowdown.

        Example:
            >>> [d.mean for d in Timing([constant(1.0), constant(2.0)]).distributions(3)]
            [1.0, 2.0, 1.0]
        """
        laws = (self.compute,) if isinstance(self.compute, Distribution) else self.compute
        return (laws * -(-num_workers // len(laws)))[:num_workers]

    def slowdowns(self, num_workers: int) -> np.ndarray:
        """Returns the factors, float64 `[num_workers]`; ValueError if there are more or fewer."""
        if self.slowdown is None:
            return np.ones(num_workers)
        if len(self.slowdown) != num_workers:
            raise ValueError(
                f"slowdown has {len(self.slowdown)} factors but num_workers is {num_workers}; "
                "give one factor per worker"
            )
        return np.array(self.slowdown)

    def cycle_means(self, num_workers: int) -> np.ndarray:
        """Returns every worker's mean cycle time, float64 `[num_workers]`."""
        means = np.array([law.mean for law in self.distributions(num_workers)])
        return self.pull.mean + means * self.slowdowns(num_workers) + self.push.mean

    def describe(self) -> dict[str, Any]:
        """Returns a JSON-able dict for a trace's metadata."""
        parts = {name: getattr(self, name) for name in ("compute", "pull", "push")}
        described = {
            name: [law.describe() for law in part] if isinstance(part, tuple) else part.describe()
            for name, part in parts.items()
        }
        return {**described, "slowdown": None if self.slowdown is None else list(self.slowdown)}


def _check_compute(name, value):
    if not isinstance(value, Distribution):
        raise TypeError(f"{name} must be a Distribution, not {value!r}")
    if value.mean <= 0:
        raise ValueError(f"{name} must have a mean > 0")


def as_timing(timing: Timing | Distribution) -> Timing:
    """Returns `timing`, taking a bare distribution as that of the computing times.

    Example:
        >>> as_timing(constant(1.0)) == Timing(compute=constant(1.0))
        True
    """
    if isinstance(timing, Distribution):
        return Timing(compute=timing)
    if not isinstance(timing, Timing):
        raise TypeError(f"timing must be a Timing or a Distribution, not {timing!r}")
    return timing
