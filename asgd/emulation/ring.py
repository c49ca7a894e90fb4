"""Where parameter trees live between waves, and how they travel to where they are needed.

A *ring* is a tree of buffers with a leading axis of rows (snapshot slots, or workers). In the
sharded layout every device has a D-th of each row; in the replicated one all of it. `fetch`
brings whole rows to the devices that compute on them and `collect` takes results back: one
all-to-all each way, or nothing and one all-gather.

For W = D * k events a wave, event d * k + j is computed on device d.
"""

import math
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asgd.emulation.spmd import AXIS, WHOLE, split_axis
from asgd.transforms.rows import read_row as read

_SMALL_BYTES = 2**16


def write(ring: Any, row: jax.Array, tree: Any) -> Any:
    """Returns the ring with one row replaced."""
    return jax.tree.map(lambda r, t: lax.dynamic_update_index_in_dim(r, t, row, 0), ring, tree)


def repeat(tree: Any, num_rows: int) -> Any:
    """Returns a ring with the tree in every row."""
    return jax.tree.map(lambda t: jnp.broadcast_to(t, (num_rows,) + t.shape), tree)


class Replicated:
    """Every device holds whole trees; with one device nothing is exchanged at all.

    Args:
      num_devices: D.
      multiple: what the size of a part is a multiple of, where there are several.

    Attributes:
      num_parts: into how many parts a leaf is split.
    """

    num_parts = 1

    def __init__(self, num_devices: int, multiple: int = 1):
        self.num_devices = num_devices
        self._multiple = multiple

    def placed(self, fn: Callable[..., Any], *whole: Any) -> tuple[Any, Any]:
        """Tells how what ``fn`` makes of devices' parts of the trees ``whole`` is placed.

        Returns:
          The shapes over all devices, and PartitionSpecs.
        """
        shapes = jax.eval_shape(fn, *whole)
        return shapes, jax.tree.map(lambda _: WHOLE, shapes)

    def fetch(self, ring: Any, rows: jax.Array, like: Any) -> Callable[[jax.Array], Any]:
        """Brings rows to where they are needed.

        Args:
          ring: this device's part.
          rows: int32 [W], the row that each event needs.
          like: shapes of whole trees.

        Returns:
          A function from j to the whole tree of this device's event j.
        """
        first = 0
        if self.num_devices > 1:
            first = lax.axis_index(AXIS) * (len(rows) // self.num_devices)
        return lambda j: jax.tree.map(
            lambda r, l: lax.dynamic_index_in_dim(r, rows[first + j]).reshape(l.shape), ring, like)

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

    @property
    def num_parts(self) -> int:
        return self.num_devices

    def part(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of a device's part of a leaf."""
        if not shape:
            return ()
        multiple = self._multiple if self.num_devices > 1 else 1
        size = -(-math.prod(shape) // (self.num_devices * multiple)) * multiple
        return (1,) * (len(shape) - 1) + (size,)

    def placed(self, fn: Callable[..., Any], *whole: Any) -> tuple[Any, Any]:
        def shapes(more):
            return jax.eval_shape(fn, *jax.tree.map(lambda x: jax.ShapeDtypeStruct(
                _longer(self.part(np.shape(x)), more), jnp.result_type(x)), whole))

        # What grows with the parts is split over the devices, along its last axis.
        specs = jax.tree.map(lambda a, b: WHOLE if a.shape == b.shape else split_axis(a.ndim - 1),
                             shapes(0), shapes(1))
        return jax.tree.map(
            lambda a, spec: a if spec == WHOLE else jax.ShapeDtypeStruct(
                _longer(a.shape, (self.num_devices - 1) * a.shape[-1]), a.dtype),
            shapes(0), specs), specs

    def fetch(self, ring: Any, rows: jax.Array, like: Any) -> Callable[[jax.Array], Any]:
        if self.num_devices == 1:
            return super().fetch(ring, rows, like)
        leaves, like_leaves = jax.tree.leaves(ring), jax.tree.leaves(like)
        scalars = super().fetch([r for r in leaves if r.ndim == 1], rows,
                                [l for l in like_leaves if not l.shape])
        wanted = rows.reshape(self.num_devices, -1)
        got = _exchange([[_rows(r, peer).reshape(len(peer), r.shape[-1])
                          for r in leaves if r.ndim > 1] for peer in wanted])
        whole = [jnp.concatenate(parts, axis=1)[:, : math.prod(l.shape)].reshape((-1,) + l.shape)
                 for parts, l in zip(zip(*got), [l for l in like_leaves if l.shape])]

        def event(j):
            split, own = iter(read(whole, j)), iter(scalars(j))
            return jax.tree.unflatten(jax.tree.structure(like), [
                next(split) if l.shape else next(own) for l in like_leaves])

        return event

    def collect(self, trees: Any) -> Any:
        if self.num_devices == 1:
            return jax.tree.map(lambda x: x.reshape((len(x),) + self.part(x.shape[1:])), trees)
        leaves, treedef = jax.tree.flatten(trees)
        scalars = iter(self.gather([x for x in leaves if x.ndim == 1]))
        split = []
        for x in (x for x in leaves if x.ndim > 1):
            size = self.part(x.shape[1:])[-1]
            flat = x.reshape(len(x), math.prod(x.shape[1:]))
            flat = jnp.pad(flat, ((0, 0), (0, self.num_devices * size - flat.shape[1])))
            split.append(jnp.split(flat, self.num_devices, axis=1))
        got = iter(zip(*_exchange(
            [[leaf[d] for leaf in split] for d in range(self.num_devices)])))
        return jax.tree.unflatten(treedef, [
            jnp.concatenate([g.reshape((-1,) + self.part(x.shape[1:])) for g in next(got)])
            if x.ndim > 1 else next(scalars) for x in leaves])


LAYOUTS = {"sharded": Sharded, "replicated": Replicated}


def layout(name: str, num_devices: int, multiple: int = 1) -> Replicated:
    """Returns the layout of that name."""
    if name not in LAYOUTS:
        raise ValueError(f"layout {name!r} is unknown; the layouts are {', '.join(LAYOUTS)}")
    return LAYOUTS[name](num_devices, multiple)


def to_parts(tree: Any, like: Any) -> Any:
    """Returns NumPy arrays that can be placed on the devices: flattened and padded with zeros.

    Args:
      tree: whole trees, rings or states.
      like: their shapes over all devices.
    """
    def leaf(x, like):
        x = np.asarray(x)
        if x.shape == like.shape:
            return x
        rows = x.reshape(math.prod(like.shape[:-1]), -1)
        out = np.zeros((len(rows), like.shape[-1]), x.dtype)
        out[:, : rows.shape[1]] = rows
        return out.reshape(like.shape)

    return jax.tree.map(leaf, tree, like)


def padded(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array whose last axis is cut, or filled up with zeros, to that of a shape."""
    size = min(x.shape[-1], shape[-1])
    out = np.zeros(shape, x.dtype)
    out[..., :size] = x[..., :size]
    return out


def to_whole(tree: Any, like: Any) -> Any:
    """Inverse of :func:`to_parts`: NumPy arrays of all devices to trees shaped like ``like``."""
    def leaf(x, like):
        if x.shape == like.shape:
            return x
        num_rows = math.prod(x.shape[:-1])
        rows = x.reshape(num_rows, x.shape[-1])[:, : math.prod(like.shape) // num_rows]
        return rows.reshape(like.shape)

    return jax.tree.map(leaf, tree, like)


def _longer(shape, more):
    return shape and shape[:-1] + (shape[-1] + more,)


def _rows(ring, rows):
    if len(rows) == 1:  # Faster than a gather.
        return lax.dynamic_slice_in_dim(ring, rows[0], 1)
    return ring[rows]


def _exchange(parts):
    """Sends ``parts[d]``, arrays [k, n], to device d; returns what each device sent here.

    Small arrays of one type travel together; packing a large one would cost more than a message.
    Everything is cut and joined device by device, which is how XLA does it.
    """
    out = [list(mine) for mine in parts]
    groups = {}
    for i, x in enumerate(parts[0]):
        groups.setdefault((x.dtype, i if x.nbytes > _SMALL_BYTES else None), []).append(i)
    for places in groups.values():
        packed = jnp.concatenate([
            jnp.concatenate([mine[i] for i in places], axis=1)[None] for mine in parts])
        packed = lax.all_to_all(packed, AXIS, split_axis=0, concat_axis=0)
        ends = np.cumsum([parts[0][i].shape[1] for i in places])[:-1]
        for d in range(len(parts)):
            for i, part in zip(places, jnp.split(packed[d], ends, axis=1)):
                out[d][i] = part
    return out
