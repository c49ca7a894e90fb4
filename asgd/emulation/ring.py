"""Where parameter trees live between waves, and how they travel to where they are needed.

A *ring* is a tree of buffers with a leading axis of rows (snapshot slots, or workers). In the
sharded layout every device has a D-th of each row; in the replicated one all of it. `fetch`
brings whole rows to the devices that compute on them and `collect` takes results back: one
all-to-all each way, or nothing and one all-gather.

For W = D * k events a wave, event d * k + j is computed on device d.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asgd.emulation.spmd import AXIS


def read(ring: Any, row: jax.Array) -> Any:
    """Returns the tree in one row of a ring."""
    return jax.tree.map(lambda r: lax.dynamic_index_in_dim(r, row, keepdims=False), ring)


def write(ring: Any, row: jax.Array, tree: Any) -> Any:
    """Returns the ring with one row replaced."""
    return jax.tree.map(lambda r, t: lax.dynamic_update_index_in_dim(r, t, row, 0), ring, tree)


def repeat(tree: Any, num_rows: int) -> Any:
    """Returns a ring with the tree in every row."""
    return jax.tree.map(lambda t: jnp.broadcast_to(t, (num_rows,) + t.shape), tree)


class Replicated:
    """Every device holds whole trees; with one device nothing is exchanged at all."""

    def __init__(self, num_devices: int):
        self.num_devices = num_devices

    def split(self, tree: Any, like: Any = None) -> Any:
        """Returns NumPy arrays with a leading axis [D]: what each device holds of the tree.

        Args:
          tree: whole trees.
          like: shapes of a device's part; needed for rings and states, whose leaves may have
            an axis of rows or not be split at all.
        """
        del like
        return jax.tree.map(
            lambda x: np.broadcast_to(np.asarray(x), (self.num_devices,) + np.shape(x)), tree)

    def join(self, tree: Any, like: Any) -> Any:
        """Inverse of :meth:`split`, in NumPy, also of trees that were made from split ones.

        Args:
          tree: arrays with a leading axis [D].
          like: shapes of the result.
        """
        del like
        return jax.tree.map(lambda x: x[0], tree)

    def fetch(self, ring: Any, rows: jax.Array, like: Any) -> Any:
        """Returns trees with a leading axis [k], the rows [W] that this device's events need."""
        del like
        if self.num_devices > 1:
            rows = lax.dynamic_index_in_dim(
                rows.reshape(self.num_devices, -1), lax.axis_index(AXIS), keepdims=False)
        if rows.shape == (1,):
            return jax.tree.map(lambda r: lax.dynamic_slice_in_dim(r, rows[0], 1), ring)
        return jax.tree.map(lambda r: r[rows], ring)

    def collect(self, trees: Any) -> Any:
        """Returns what each device holds of all W trees, from [k] whole trees a device."""
        return self.gather(trees)

    def gather(self, trees: Any) -> Any:
        """Returns all W whole trees, from [k] whole trees a device."""
        if self.num_devices == 1:
            return trees
        return jax.tree.map(lambda x: lax.all_gather(x, AXIS, tiled=True), trees)


class Sharded(Replicated):
    """Every device holds a D-th of each leaf: flattened, padded with zeros and split.

    A shard keeps the number of dimensions of its leaf, all but the last of size 1, so that
    transformations that look at ``ndim`` (weight decay of matrices only) do the same on shards.
    Scalars are held whole. One device flattens too, which moves nothing: compilers may round a
    loop over short rows unlike one over a long one.
    """

    def split(self, tree: Any, like: Any = None) -> Any:
        def split_leaf(x, like=None):
            x = np.asarray(x)
            part = like.shape if like is not None else self._part(x.shape)
            if part == x.shape:
                return np.broadcast_to(x, (self.num_devices,) + x.shape)
            rows = x.reshape(_num_rows(part), x.size // _num_rows(part))
            padded = np.zeros((len(rows), self.num_devices * part[-1]), x.dtype)
            padded[:, : rows.shape[1]] = rows
            padded = padded.reshape(len(rows), self.num_devices, part[-1]).swapaxes(0, 1)
            return padded.reshape((self.num_devices,) + part)

        return jax.tree.map(split_leaf, tree, *([] if like is None else [like]))

    def join(self, tree: Any, like: Any) -> Any:
        def join_leaf(x, like):
            if x.shape[1:] == like.shape:
                return x[0]
            num_rows = _num_rows(x.shape[1:])
            rows = x.reshape(self.num_devices, num_rows, x.shape[-1]).swapaxes(0, 1)
            rows = rows.reshape(num_rows, self.num_devices * x.shape[-1])
            return rows[:, : math.prod(like.shape) // num_rows].reshape(like.shape)

        return jax.tree.map(join_leaf, tree, like)

    def _part(self, shape):
        if not shape:
            return ()
        return (1,) * (len(shape) - 1) + (-(-math.prod(shape) // self.num_devices),)

    def fetch(self, ring: Any, rows: jax.Array, like: Any) -> Any:
        if self.num_devices == 1:
            return jax.tree.map(lambda x, l: x.reshape((len(x),) + l.shape),
                                super().fetch(ring, rows, like), like)
        leaves, like_leaves = jax.tree.leaves(ring), jax.tree.leaves(like)
        scalars = iter(super().fetch([r for r in leaves if r.ndim == 1], rows, None))
        shards = [r[rows] for r in leaves if r.ndim > 1]
        got = iter(_exchange([
            s.reshape(self.num_devices, len(rows) // self.num_devices, s.shape[-1])
            for s in shards]))

        def whole(like):
            if not like.shape:
                return next(scalars)
            x = next(got).swapaxes(0, 1)
            x = x.reshape(len(x), self.num_devices * x.shape[-1])[:, : math.prod(like.shape)]
            return x.reshape((len(x),) + like.shape)

        return jax.tree.unflatten(jax.tree.structure(like), map(whole, like_leaves))

    def collect(self, trees: Any) -> Any:
        if self.num_devices == 1:
            return jax.tree.map(lambda x: x.reshape((len(x),) + self._part(x.shape[1:])), trees)
        leaves, treedef = jax.tree.flatten(trees)

        def to_shards(x):  # [k, ...] -> [D, k, shard]
            size = self._part(x.shape[1:])[-1]
            flat = x.reshape(len(x), math.prod(x.shape[1:]))
            flat = jnp.pad(flat, ((0, 0), (0, self.num_devices * size - flat.shape[1])))
            return flat.reshape(len(x), self.num_devices, size).swapaxes(0, 1)

        scalars = iter(self.gather([x for x in leaves if x.ndim == 1]))
        got = iter(_exchange([to_shards(x) for x in leaves if x.ndim > 1]))
        return jax.tree.unflatten(treedef, [
            next(got).reshape((self.num_devices * len(x),) + self._part(x.shape[1:]))
            if x.ndim > 1 else next(scalars) for x in leaves])


def _num_rows(part):
    """Rows of a ring's part; that of a tree has one, as all but its last axis have size 1."""
    return part[0] if len(part) > 1 else 1


def _exchange(arrays):
    """All-to-all over the leading axis [D]; leaves of one type travel together."""
    out = list(arrays)
    for dtype in dict.fromkeys(x.dtype for x in arrays):
        places = [i for i, x in enumerate(arrays) if x.dtype == dtype]
        packed = jnp.concatenate([arrays[i] for i in places], axis=-1)
        packed = lax.all_to_all(packed, AXIS, split_axis=0, concat_axis=0)
        ends = np.cumsum([arrays[i].shape[-1] for i in places])[:-1]
        for i, part in zip(places, jnp.split(packed, ends, axis=-1)):
            out[i] = part
    return out
