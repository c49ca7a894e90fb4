"""Nesterov momentum for a server that gets one worker's update at a time (asynchronous DiLoCo)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class DelayedNesterovState(NamedTuple):
    """State of :func:`delayed_nesterov`.

    Attributes:
      count: int32 scalar, gradients so far.
      total: tree like the parameters, sum of the gradients since the momentum moved.
      momentum: tree like the parameters, m.
    """

    count: jax.Array
    total: Any
    momentum: Any


def delayed_nesterov(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    *,
    every: int,
    spread: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Moves the momentum once every N gradients, and the parameters with each of them.

    For gradient :math:`g_t`, t = 0, 1, ..., with :math:`\Delta` the sum of the gradients since,

    .. math::
      \text{if } N \mid t + 1:\quad & m \leftarrow \beta m + \Delta / N, \quad
        \theta \leftarrow \theta - \epsilon \big((1 - cN + c) \beta m + g_t / N\big) \\
      \text{else}:\quad & \theta \leftarrow \theta - \epsilon \big(c \beta m + g_t / N\big)

    Momentum that moves with every single worker's update is too fast by a factor of N.

    Args:
      learning_rate: :math:`\epsilon`, a number or a schedule over gradients.
      momentum: :math:`\beta`, in [0, 1).
      every: N, such as the number of workers.
      spread: c, from 0 to 1 / N: how much of the momentum enters with each of the gradients in
        between.

    Returns:
      A transformation, meant as ``outer_tx`` of :func:`asgd.emulate_averaging`.

    Raises:
      ValueError: when an argument is out of its range.

    References:
      Liu et al., Asynchronous Local-SGD training for language modeling (arXiv 2401.09135),
      delayed Nesterov.

    Example:
      >>> import jax.numpy as jnp
      >>> import asgd
      >>> tx = asgd.delayed_nesterov(1.0, momentum=0.5, every=2)
      >>> state = tx.init(jnp.zeros(1))
      >>> for gradient in (2.0, 4.0):  # The mean is 3, which is also m.
      ...     updates, state = tx.update(jnp.array([gradient]), state)
      ...     print(updates)
      [-1.]
      [-3.5]
    """
    if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
        raise ValueError(f"delayed_nesterov: every must be an integer, 1 or more, got {every!r}")
    if not isinstance(momentum, jax.core.Tracer) and not 0 <= momentum < 1:
        raise ValueError(f"delayed_nesterov: momentum must be in [0, 1), got {momentum!r}")
    if not isinstance(spread, jax.core.Tracer) and not 0 <= spread <= 1 / every:
        raise ValueError(
            f"delayed_nesterov: spread must be from 0 to {1 / every:g}, got {spread!r}")

    def init_fn(params):
        zeros = optax.tree.zeros_like(params)
        return DelayedNesterovState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        count = optax.safe_increment(state.count)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        moves = count % every == 0
        total = jax.tree.map(jnp.add, state.total, updates)
        new = jax.tree.map(lambda m, t: jnp.where(moves, momentum * m + t / every, m),
                           state.momentum, total)
        share = jnp.where(moves, 1 - spread * every + spread, spread)

        def step(g, m):
            return -jnp.asarray(rate, g.dtype) * (
                jnp.asarray(share, g.dtype) * (momentum * m) + g / every)

        steps = jax.tree.map(step, updates, new)
        total = jax.tree.map(lambda t: jnp.where(moves, 0, t).astype(t.dtype), total)
        return steps, DelayedNesterovState(count, total, new)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
