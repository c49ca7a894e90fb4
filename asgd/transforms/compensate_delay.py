"""Delay compensation (paper E)."""

from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import optax

from asgd.transforms.rows import read_row


class CompensateDelayState(NamedTuple):
    """State of :func:`compensate_delay`.

    Attributes:
      count: int32 scalar, number of server updates so far (the clock of ``strength``).
      mean_square: tree like the parameters, with a leading axis [num_workers] when it is kept
        per worker; None for constant compensation.
    """

    count: jax.Array
    mean_square: Any


def compensate_delay(
    strength: optax.ScalarOrSchedule,
    decay: Optional[float] = None,
    eps: float = 1e-7,
    per_worker: Optional[bool] = None,
    num_workers: Optional[int] = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds a first-order estimate of how the gradient changed while it was under way.

    With g the gradient computed at the snapshot :math:`w_{bak}`, and w the parameters now,

    .. math::
      u = g + \lambda_t \odot g \odot g \odot (w - w_{bak})

    where :math:`\lambda_t = \lambda_0` (constant, DC-ASGD-c, ``decay=None``), or (adaptive,
    DC-ASGD-a, ``decay=m``)

    .. math::
      v_t = m\, v_{t-1} + (1 - m)\, g \odot g, \qquad \lambda_t = \lambda_0 / \sqrt{v_t + \epsilon}

    The mean square v starts at 0 without bias correction, takes the stale gradient before
    compensation, and is updated before it is used. Weight decay belongs after this
    transformation, or it is squared with the gradient.

    Args:
      strength: :math:`\lambda_0`, a number or a schedule over server updates.
      decay: m in [0, 1), or None for constant compensation.
      eps: :math:`\epsilon`.
      per_worker: whether every worker has a mean square of its own (the authors' code, costs
        num_workers times the parameters), or all share one (the paper's text). By default per
        worker when ``num_workers`` is given.
      num_workers: number of workers, needed when ``per_worker``; a worker beyond makes NaN.

    Returns:
      A transformation whose update takes ``stale_params`` (the snapshot, a tree like
      ``params``), ``worker`` (int32 scalar) when the mean square is per worker, and, when
      ``strength`` is a schedule, ``update`` (bool scalar).

    Raises:
      ValueError: when an argument is out of its range or ``num_workers`` is missing.

    References:
      Zheng et al., Asynchronous SGD with delay compensation, ICML 2017 (paper E), Eq. 10 and
      the adaptive form of its section 6.

    Example:
      >>> import jax.numpy as jnp
      >>> import asgd
      >>> tx = asgd.compensate_delay(strength=2.0)
      >>> params, stale_params, grads = jnp.array([0.8]), jnp.array([1.0]), jnp.array([0.5])
      >>> updates, _ = tx.update(grads, tx.init(params), params, stale_params=stale_params)
      >>> print(updates)
      [0.4]
    """
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(f"compensate_delay: decay must be None or in [0, 1), got {decay}")
    if not eps >= 0:
        raise ValueError(f"compensate_delay: eps must be at least 0, got {eps}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"compensate_delay: num_workers must be at least 1, got {num_workers}")
    if per_worker is None:
        per_worker = num_workers is not None
    if decay is not None and per_worker and num_workers is None:
        raise ValueError("compensate_delay: per_worker=True needs num_workers")

    def init_fn(params):
        if decay is None:
            mean_square = None
        else:
            lead = (num_workers,) if per_worker else ()
            mean_square = jax.tree.map(lambda p: jnp.zeros(lead + p.shape, p.dtype), params)
        return CompensateDelayState(jnp.zeros([], jnp.int32), mean_square)

    def update_fn(updates, state, params=None, *, stale_params, worker=None, update=True,
                  **extra_args):
        del extra_args
        if params is None:
            raise ValueError("compensate_delay: update needs the current params")
        strength_now = strength(state.count) if callable(strength) else strength
        count = jnp.where(update, optax.safe_increment(state.count), state.count)
        if decay is None:
            compensated = jax.tree.map(
                lambda g, w, b: g + _as(strength_now, g) * g * g * (w - b),
                updates, params, stale_params)
            return compensated, CompensateDelayState(count, None)
        if per_worker and worker is None:
            raise ValueError("compensate_delay: per_worker=True needs the extra argument worker")

        def average(previous):
            return jax.tree.map(lambda v, g: decay * v + (1 - decay) * (g * g), previous, updates)

        if per_worker:
            current = _of_row(average, state.mean_square, worker, num_workers)
        else:
            current = average(state.mean_square)
        compensated = jax.tree.map(
            lambda g, v, w, b: g + _as(strength_now, g) / jnp.sqrt(v + eps) * (g * g) * (w - b),
            updates, current, params, stale_params)
        if per_worker:
            current = jax.tree.map(
                lambda v, row: jax.lax.dynamic_update_index_in_dim(v, row, worker, 0),
                state.mean_square, current)
        return compensated, CompensateDelayState(count, current)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _of_row(fn, tree, row, num_rows):
    def refuse(tree):
        return jax.tree.map(lambda v: jnp.full(v.shape[1:], jnp.nan, v.dtype), tree)

    # What leaves a conditional has a buffer of its own; else XLA reads the row again where it is
    # used, after it is overwritten, for which it copies all workers'.
    return jax.lax.cond((row >= 0) & (row < num_rows),
                        lambda tree: fn(read_row(tree, row)), refuse, tree)


def _as(value, like):
    return jnp.asarray(value, like.dtype)
