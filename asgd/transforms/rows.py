"""Rows of a table: a tree with a leading axis, such as what agents had in the last rounds."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def read_row(table: Any, row: jax.Array) -> Any:
    """Returns the tree in one row of a table; nothing else of it is read.

    Example:
      >>> print(read_row({"a": jnp.array([[1.0], [2.0], [3.0]])}, 2))
      {'a': Array([3.], dtype=float32)}
    """
    return jax.tree.map(
        lambda x: lax.dynamic_index_in_dim(jnp.asarray(x), row, keepdims=False), table)


def weighted_sum(weights: jax.Array, table: Any, rows: jax.Array) -> Any:
    r"""Returns :math:`\sum_k w_k x_{r_k}`; a weight of 0 leaves a row out, whatever it holds.

    One row after the other is read and added, so no time and memory go into rows without weight.

    Args:
      weights: floats [K].
      table: a tree with a leading axis.
      rows: int32 [K], :math:`r_k`.

    Returns:
      A tree like one row.

    Example:
      >>> table = jnp.array([[jnp.inf, 5.0], [1.0, 2.0], [3.0, 4.0]])
      >>> print(weighted_sum(jnp.array([0.5, 0.5, 0.0]), table, jnp.array([2, 1, 0])))
      [2. 3.]
    """
    weights, rows = jnp.asarray(weights), jnp.asarray(rows)
    places = jnp.argsort(weights == 0)  # Those that count come first.

    def add(n, total):
        k = places[n]
        return jax.tree.map(
            lambda t, x: t + weights[k].astype(x.dtype) * x, total, read_row(table, rows[k]))

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), table)
    return lax.fori_loop(0, (weights != 0).sum(), add, zeros)
