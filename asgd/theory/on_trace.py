r"""Stability and speed on a trace: the quadratic's own iteration, with the staleness that there was.

The roots of `stability` say how the *mean* of x moves when each staleness is drawn anew. A run is one
path, in which every version is read once or a few times, and where staleness varies widely it diverges
at smaller steps than its mean: with 8 workers and exponential times the mean is stable up to
:math:`\eta h = 30`, second moments with independent staleness up to 0.51, and runs up to about 0.7. Here
the iteration

.. math::
  v_{k+1} = m v_k - \frac{a}{c} \sum_{e \text{ in update } k} s(\tau_e)\, x_{\mathrm{read}(e)}, \qquad
  x_{k+1} = x_k + v_{k+1}

is followed along a trace for many :math:`a = \eta h` at once, and its rate is
:math:`-\frac{d}{dk} \log |x_k|`, the Lyapunov exponent. It holds for any protocol and any recorded trace.
"""

from collections.abc import Sequence
from typing import Any, Callable, Optional

import numpy as np

from asgd.cluster import simulate
from asgd.theory import stability

_EVERY = 32  # Updates between two looks at the size of x.


def long_trace(protocol: Any, timing: Any, num_workers: int, seed: int = 0) -> Any:
    """Simulates a trace that is long enough to measure rates on, 20,000 gradients or more."""
    # 1000 updates at least, however many gradients they take, and every worker 200 times.
    length = max(20_000, 200 * num_workers, 1000 * protocol.gradients_per_update(num_workers))
    return simulate(protocol, timing, num_workers, length, seed)


def rates_on_trace(trace: Any, steps: Sequence[float], momentum: float = 0.0, *,
                   scale: Optional[Callable] = None) -> np.ndarray:
    """Returns the rate per update at which a mode decays on a trace, negative where it grows.

    Args:
      trace: an :class:`asgd.Trace` with 320 updates or more; its first fifth is left out.
      steps: values of step times eigenvalue, [n].
      momentum: heavy-ball momentum in [0, 1).

    Other args:
      scale: rule from staleness to factors on the step, such as `asgd.inverse`.

    Returns:
      float64 [n].

    Raises:
      ValueError: for a trace with too few updates, or arguments out of range.

    Example:
      >>> import asgd
      >>> from asgd.cluster import protocols, timing
      >>> trace = asgd.simulate(protocols.asynchronous(), timing.constant(1.0), 2, 4000, seed=0)
      >>> rates_on_trace(trace, [0.16, 1.5]).round(2)  # Staleness 1: -log 0.8, and growth.
      array([ 0.22, -0.2 ])
    """
    steps = _check(trace, steps)
    versions, velocity = _state(trace, steps, 1.0)
    logs, looks = np.zeros(len(steps)), []
    for version, _ in _updates(trace, steps, momentum, scale, versions, velocity):
        if version % _EVERY == 0:
            size = np.maximum(np.abs(versions).max(axis=0), 1e-300)
            logs += np.log(size)
            versions /= size
            velocity /= size
            looks.append(logs.copy())
    looks = np.array(looks[len(looks) // 5 :])
    # A fitted line, as sizes oscillate.
    time = (np.arange(len(looks)) - (len(looks) - 1) / 2) * _EVERY
    return -(time @ looks) / (time @ time)


def noise_on_trace(trace: Any, steps: Sequence[float], momentum: float = 0.0, *,
                   scale: Optional[Callable] = None, replicas: int = 8, seed: int = 0) -> np.ndarray:
    """Returns the mean of x^2 that gradient noise of variance 1 keeps up on a trace.

    Every gradient is x_read plus noise; the mean is over the last four fifths of the updates and over
    independent noises, so it is for steps that forget in far fewer updates than the trace has. Near
    the critical step it is made by rare bursts, and rises without bound.

    Args:
      trace: an :class:`asgd.Trace` with 320 updates or more.
      steps: values of step times eigenvalue, [n].
      momentum: heavy-ball momentum in [0, 1).

    Other args:
      scale: rule from staleness to factors on the step.
      replicas: independent noises.
      seed: of the noise.

    Returns:
      float64 [n], inf where it overflows.

    Example:
      >>> import asgd
      >>> from asgd.cluster import protocols, timing
      >>> trace = asgd.simulate(protocols.asynchronous(), timing.constant(1.0), 1, 20000, seed=0)
      >>> noise_on_trace(trace, [0.5]).round(2)  # 0.5^2 / (1 - 0.5^2)
      array([0.33])
    """
    steps = _check(trace, steps)[:, None]
    versions, velocity = _state(trace, np.repeat(steps, replicas, axis=1), 0.0)
    rng = np.random.default_rng(seed)
    squares, first = np.zeros(len(steps)), trace.num_updates // 5
    with np.errstate(over="ignore", invalid="ignore"):
        for version, x in _updates(trace, steps, momentum, scale, versions, velocity,
                                   lambda: rng.standard_normal(replicas)):
            if version > first:
                squares += (x * x).mean(axis=1)
    squares /= trace.num_updates - first
    return np.where(np.isfinite(squares), squares, np.inf)


def _check(trace, steps):
    if trace.num_updates < 10 * _EVERY:
        raise ValueError(f"trace must have {10 * _EVERY} updates or more, not {trace.num_updates}")
    steps = np.asarray(steps, np.float64)
    if steps.ndim != 1 or not np.isfinite(steps).all():
        raise ValueError(f"steps must be a list of finite numbers, got {steps!r}")
    return steps


def _state(trace, like, start):
    """The latest versions, as many as are read, in a ring, and the velocity."""
    depth = int(trace.staleness[trace.applied].max()) + 2
    return np.full((depth, *like.shape), start), np.zeros(like.shape)


def _updates(trace, steps, momentum, scale, versions, velocity, noise=lambda: 0.0):
    """Yields the number of each version and its x, from the arrays that hold the state.

    They are changed in place, and may be scaled between two updates.
    """
    momentum, depth = stability.check_momentum(momentum), len(versions)
    applied = np.flatnonzero(trace.applied)
    factors = np.ones(len(applied)) if scale is None else np.asarray(
        scale(trace.staleness[applied]), np.float64)
    total, count, version = np.zeros_like(velocity), 0, 0
    for slot, updates, factor in zip((trace.read_version[applied] % depth).tolist(),
                                     trace.updates[applied].tolist(), factors.tolist()):
        total += factor * (versions[slot] + noise())
        count += 1
        if updates:
            velocity *= momentum
            velocity -= steps / count * total
            x = versions[version % depth] + velocity
            version, count = version + 1, 0
            total[:] = 0
            versions[version % depth] = x
            yield version, x


def critical_step_on_trace(trace: Any, momentum: float = 0.0, *,
                           scale: Optional[Callable] = None) -> float:
    """Returns the step times eigenvalue above which x grows on a trace.

    It is found to about a per cent; with widely spread staleness, traces of 20,000 gradients that differ
    in their seed differ by 10 per cent.

    Arguments are those of :func:`rates_on_trace`.

    Example:
      >>> import asgd
      >>> from asgd.cluster import protocols, timing
      >>> trace = asgd.simulate(protocols.asynchronous(), timing.constant(1.0), 5, 4000, seed=0)
      >>> round(critical_step_on_trace(trace), 3)  # 2 sin(pi / 18)
      0.347
    """
    # Where the largest staleness would be that of all is stable; beyond 2 (1 + m) over the least
    # factor nothing is.
    largest = int(trace.staleness[trace.applied].max(initial=0))
    low = stability.critical_step(largest, momentum) / 4
    factors = 1.0 if scale is None else float(np.asarray(scale(np.arange(largest + 1))).min())
    grid = np.geomspace(low, 4.4 * (1 + momentum) / max(factors, 1e-3), 64)
    for _ in range(2):
        rates = rates_on_trace(trace, grid, momentum, scale=scale)
        above = np.flatnonzero(rates < 0)
        if not above.size or not above[0]:
            break
        row = above[0]
        bracket = grid[row - 1], grid[row]
        found = np.interp(0.0, [-rates[row - 1], -rates[row]], bracket)
        grid = np.linspace(*bracket, 16)
    else:
        return float(found)
    return float(grid[0] if above.size else grid[-1])
