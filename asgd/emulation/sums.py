"""Sums in an order of their own: XLA's depends on the size of the array."""

import jax
import jax.numpy as jnp
from jax import lax

from asgd.emulation.spmd import AXIS

CHUNK = 64  # Elements that are summed on one device, whatever the number of devices.


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


def sum_rows(rows: jax.Array, size: int, num_parts: int) -> jax.Array:
    """Sums each row of a ring over all devices.

    Chunks are summed where they lie, and their sums in order on every device, so that the bits do
    not depend on the number of devices.

    Args:
      rows: [N, ...], this device's part of the rows, a multiple of ``CHUNK`` elements where there
        are several parts.
      size: elements of a whole row.
      num_parts: into how many parts a row is split.

    Returns:
      [N], the same on all devices.
    """
    if not size:
        return jnp.zeros(len(rows), rows.dtype)
    x = rows.reshape(len(rows), -1)
    # A product that comes to a barrier is rounded before, not fused with the sum.
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK))))
    x = x.reshape(len(rows), -1, CHUNK // 8, 8)
    chunks = pairwise_sum(pairwise_sum(x, 2), 2)
    if num_parts > 1:
        chunks = lax.all_gather(chunks, AXIS, axis=1, tiled=True)
    return pairwise_sum(chunks[:, : -(-size // CHUNK)], 1)
