"""What is not finite: which gradients, and which leaf of the parameters."""

from typing import Any, Optional

import jax
import jax.numpy as jnp
from jax import lax

from asgd.emulation.spmd import AXIS

MODES = ("stop", "skip", "watch")


def finite_rows(tree: Any) -> jax.Array:
    """Returns for each row of a tree's leaves [k, ...] whether all its numbers are finite, bool [k]."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    rows = [jnp.isfinite(x).reshape(len(x), -1).all(1) for x in leaves]
    return jnp.stack(rows).all(0)


def finite_leaves(tree: Any, num_parts: int) -> jax.Array:
    """Returns for each leaf whether all its numbers are finite on all devices, bool [leaves].

    Args:
      tree: trees in the layout's form.
      num_parts: into how many parts a leaf is split.
    """
    flags = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).astype(jnp.int32)
    return (lax.pmin(flags, AXIS) if num_parts > 1 else flags).astype(bool)


def first_bad(tree: Any) -> Optional[str]:
    """Returns the path of the first leaf of False in a tree of bools, or None.

    Example:
      >>> first_bad({"bias": True, "kernel": False})
      "['kernel']"
    """
    for path, good in jax.tree_util.tree_leaves_with_path(tree):
        if not good:
            return jax.tree_util.keystr(path)
    return None
