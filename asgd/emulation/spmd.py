"""One program on several devices: ``jit``, ``shard_map`` and ``pmap`` behind one call."""

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "workers"
BACKENDS = ("jit", "shard_map", "pmap")
WHOLE = PartitionSpec()


def split_axis(axis: int) -> PartitionSpec:
    """Returns the spec of an array that is split over the devices along an axis."""
    return PartitionSpec(*[None] * axis, AXIS)


class Spmd:
    """Compiles functions of one device's share for all devices.

    Which axis of an array is split over the devices, if any, is said by a ``PartitionSpec``. An
    axis of its own for the devices would have to be taken off in the program, for which XLA
    copies every donated buffer.

    In a job of several processes (``jax.distributed``) every process runs the same programs; each
    puts the shards of its own devices.

    Args:
      num_devices: devices used, the first ones of ``jax.devices()``; all of a job of several
        processes.
      backend: ``"shard_map"``, ``"pmap"`` (one process), or ``"jit"`` (one device).

    Attributes:
      devices: they, those of a process next to each other.
      local: slice of them that are this process's.

    Raises:
      ValueError: when there are fewer devices, or the backend does not exist or fit.
    """

    def __init__(self, num_devices: int, backend: str = "shard_map"):
        if backend not in BACKENDS:
            raise ValueError(
                f"backend {backend!r} is unknown; the backends are {', '.join(BACKENDS)}, debug")
        if num_devices < 1:
            raise ValueError(f"num_devices must be at least 1, got {num_devices}")
        if backend == "jit" and num_devices != 1:
            raise ValueError(f"backend='jit' runs on one device, but num_devices={num_devices}")
        devices = jax.devices()
        if num_devices > len(devices):
            kind = devices[0].platform
            hint = ("; on CPU start Python with JAX_NUM_CPU_DEVICES="
                    f"{num_devices} to emulate more" if kind == "cpu" else "")
            raise ValueError(
                f"num_devices={num_devices}, but JAX has {len(devices)} ({kind}){hint}")
        self._one_process = jax.process_count() == 1
        if not self._one_process and (num_devices != len(devices) or backend == "pmap"):
            raise ValueError(
                f"num_devices={num_devices} and backend={backend!r} do not fit a job of "
                f"{jax.process_count()} processes: it runs shard_map on all {len(devices)} devices")
        self.num_devices = num_devices
        self.backend = backend
        self.devices = sorted(devices, key=lambda d: (d.process_index, d.id))[:num_devices]
        mine = [i for i, d in enumerate(self.devices) if d.process_index == jax.process_index()]
        self.local = slice(mine[0], mine[-1] + 1)
        self._mesh = Mesh(np.asarray(self.devices), (AXIS,), axis_types=(AxisType.Auto,))

    def compile(self, fn: Callable[..., Any], in_specs: Any, out_specs: Any,
                donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        """Compiles a function of one device's share.

        Args:
          fn: the function.
          in_specs: a tuple of tree prefixes of PartitionSpecs, one for each argument.
          out_specs: a tree prefix for the result. What is whole must be alike on all devices.
          donate: arguments whose buffers are reused for the result (not by pmap, which folds
            them).

        Returns:
          The function of whole arrays.
        """
        if self.backend == "pmap":
            return self._pmap(fn, in_specs, out_specs)
        if self.backend == "shard_map":
            # Gradients are taken of what a device holds, so nothing is to be summed over the axis.
            fn = jax.shard_map(fn, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs,
                               check_vma=False)
        return jax.jit(fn, donate_argnums=donate)

    def put(self, tree: Any, specs: Any) -> Any:
        """Places arrays on the devices as a tree prefix of PartitionSpecs says.

        Every process has the whole arrays, and places its devices' shards.
        """
        shardings = jax.tree.map(self.sharding, jax.tree.broadcast(specs, tree))
        if self._one_process:
            return jax.device_put(tree, shardings)
        return jax.tree.map(_put_own, tree, shardings)

    def put_local(self, tree: Any) -> Any:
        """Places arrays of which this process has its devices' parts, split along the first axis."""
        sharding = self.sharding(split_axis(0))
        if self._one_process:
            return jax.device_put(tree, sharding)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)

    def get(self, tree: Any) -> Any:
        """Returns whole NumPy arrays, in every process."""
        return jax.device_get(tree if self._one_process else self._on_all(tree))

    @functools.cached_property
    def _on_all(self):
        return jax.jit(lambda tree: tree, out_shardings=self.sharding(WHOLE))

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """Returns the sharding over the devices that a spec stands for."""
        return NamedSharding(self._mesh, spec)

    def _pmap(self, fn, in_specs, out_specs):
        """pmap needs an axis for the devices, and an argument that has it."""

        def unfold(x, spec):  # [..., D * n, ...] -> [..., D, n, ...]
            axis = _axis(spec)
            return x if axis is None else x.reshape(
                x.shape[:axis] + (self.num_devices, x.shape[axis] // self.num_devices)
                + x.shape[axis + 1:])

        def fold(x, spec):  # [D, ..., n, ...] -> [..., D * n, ...]
            axis = _axis(spec)
            if axis is None:
                return x[0]
            x = jnp.moveaxis(x, 0, axis)
            return x.reshape(
                x.shape[:axis] + (self.num_devices * x.shape[axis + 1],) + x.shape[axis + 2:])

        @functools.cache
        def compiled(treedef, axes):
            return jax.pmap(lambda leaves, _: fn(*jax.tree.unflatten(treedef, leaves)), AXIS,
                            in_axes=(list(axes), 0), devices=self.devices)

        unfold_all = jax.jit(lambda args: jax.tree.map(
            unfold, args, jax.tree.broadcast(in_specs, args)))
        fold_all = jax.jit(lambda out: jax.tree.map(
            fold, out, jax.tree.broadcast(out_specs, out)))
        numbers = self.put(np.arange(self.num_devices), split_axis(0))

        def called(*args):
            leaves, treedef = jax.tree.flatten(unfold_all(args))
            axes = map(_axis, jax.tree.leaves(jax.tree.broadcast(in_specs, args)))
            return fold_all(compiled(treedef, tuple(axes))(leaves, numbers))

        return called


def _put_own(x, sharding):
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            _put_own(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _axis(spec):
    return len(spec) - 1 if len(spec) else None
