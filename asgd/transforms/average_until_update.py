"""The server's accumulator: gradients are averaged until the trace asks for an update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class AverageUntilUpdateState(NamedTuple):
    """State of :func:`average_until_update`.

    Attributes:
      count: int32 scalar, gradients added up since the last update.
      total: tree like the parameters, their sum.
      inner_state: state of the inner transformation; moves only on updates.
    """

    count: jax.Array
    total: Any
    inner_state: Any


def average_until_update(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Gives ``inner`` the mean of the gradients since the last update, when ``update`` is true.

    With gradients :math:`u_1, \dots, u_c` since the last update, of which the last has
    ``update`` true, ``inner`` gets :math:`\frac1c \sum_l u_l` (paper A, Eq. 2); for the others
    the updates are zeros and ``inner``'s state stays as it was. How many gradients make an
    update is decided by whoever calls, so it may change from one update to the next.

    Args:
      inner: the optimizer that runs once per server update, such as ``optax.sgd(0.1, 0.9)``.

    Returns:
      A transformation whose update takes ``update``, a bool scalar.

    References:
      Zhang et al., Staleness-aware Async-SGD for distributed deep learning (paper A), Eq. 2.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import asgd
      >>> tx = asgd.average_until_update(optax.sgd(1.0))
      >>> state = tx.init(jnp.zeros(1))
      >>> updates, state = tx.update(jnp.array([1.0]), state, update=False)
      >>> print(updates)
      [0.]
      >>> updates, state = tx.update(jnp.array([3.0]), state, update=True)
      >>> print(updates)
      [-2.]
    """
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        return AverageUntilUpdateState(
            count=jnp.zeros([], jnp.int32),
            total=optax.tree.zeros_like(params),
            inner_state=inner.init(params),
        )

    def update_fn(updates, state, params=None, *, update, **extra_args):
        count = state.count + 1
        total = jax.tree.map(jnp.add, state.total, updates)

        def apply(total, inner_state):
            mean = jax.tree.map(lambda t: t / count.astype(t.dtype), total)
            new_updates, inner_state = inner.update(
                mean, inner_state, params, update=update, **extra_args)
            new_updates = jax.tree.map(lambda n, t: n.astype(t.dtype), new_updates, total)
            return new_updates, AverageUntilUpdateState(
                jnp.zeros_like(count), optax.tree.zeros_like(total), inner_state)

        def wait(total, inner_state):
            return optax.tree.zeros_like(total), AverageUntilUpdateState(count, total, inner_state)

        if isinstance(update, (bool, np.bool_)):
            return (apply if update else wait)(total, state.inner_state)
        return jax.lax.cond(update, apply, wait, total, state.inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
