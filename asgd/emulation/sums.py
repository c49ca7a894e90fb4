"""Sums in an order of their own: XLA's depends on the size of the array."""

import jax
from jax import lax


def pairwise_sum(x: jax.Array, axis: int) -> jax.Array:
    """Sums over an axis by adding halves of it, which is elementwise addition of slices.

    Example:
      >>> import jax.numpy as jnp
      >>> print(pairwise_sum(jnp.arange(10.0).reshape(5, 2), 0))
      [20. 25.]
    """
    rest = None
    while (length := x.shape[axis]) > 1:
        half = length // 2
        if length % 2:
            last = lax.slice_in_dim(x, length - 1, length, axis=axis)
            rest = last if rest is None else rest + last
        x = (lax.slice_in_dim(x, 0, half, axis=axis)
             + lax.slice_in_dim(x, half, 2 * half, axis=axis))
    return lax.squeeze(x if rest is None else x + rest, [axis])
