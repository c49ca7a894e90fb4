"""One program on several devices: ``jit``, ``shard_map`` and ``pmap`` behind one call."""

from typing import Any, Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "workers"
BACKENDS = ("jit", "shard_map", "pmap")


class Spmd:
    """Compiles functions of one device's share for all devices.

    Everything that belongs to devices has a leading axis [num_devices]; a function sees its own
    share without that axis. What all devices get alike is passed as ``shared``.

    Args:
      num_devices: devices used, the first ones of ``jax.devices()``.
      backend: ``"shard_map"``, ``"pmap"``, or ``"jit"`` (one device).

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
        self.num_devices = num_devices
        self.backend = backend
        self._devices = devices[:num_devices]
        self._mesh = Mesh(np.asarray(self._devices), (AXIS,), axis_types=(AxisType.Auto,))

    def compile(self, fn: Callable[..., Any], donate: bool = True) -> Callable[..., Any]:
        """Compiles ``fn(carry, mine, shared) -> (carry, out)``.

        Args:
          fn: a function of one device's share. ``carry`` and ``mine`` belong to devices,
            ``shared`` is the same on all.
          donate: whether the buffers of ``carry`` are reused for the result.

        Returns:
          The function of whole arrays, with the leading axis [num_devices].
        """

        def stripped(carry, mine, shared):
            carry, mine = jax.tree.map(lambda x: x[0], (carry, mine))
            return jax.tree.map(lambda x: x[None], fn(carry, mine, shared))

        donated = (0,) if donate else ()
        if self.backend == "pmap":
            return jax.pmap(fn, AXIS, in_axes=(0, 0, None), devices=self._devices,
                            donate_argnums=donated)
        if self.backend == "shard_map":
            # Gradients are taken of what a device holds, so nothing is to be summed over the axis.
            stripped = jax.shard_map(
                stripped, mesh=self._mesh, check_vma=False,
                in_specs=(PartitionSpec(AXIS), PartitionSpec(AXIS), PartitionSpec()),
                out_specs=PartitionSpec(AXIS))
        return jax.jit(stripped, donate_argnums=donated)

    def put(self, tree: Any) -> Any:
        """Places arrays with a leading axis [num_devices], one row a device."""
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec(AXIS)))

    def put_shared(self, tree: Any) -> Any:
        """Places arrays whole on every device."""
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))
