r"""Bytes that a wave moves between devices and that a device holds: from formulas, and counted.

With D devices, k events a device and :math:`P_D` bytes of a device's parts of all leaves (a leaf of n
elements has parts of :math:`\lceil n / (D m) \rceil m`, scalars are whole), a wave in the sharded layout
brings every device k snapshots and takes k gradients back: two exchanges of :math:`k D P_D` bytes, of
which the D-th part is the device's own. Both other topologies have the same waves, with m = 64. See
docs/scaling.md.
"""

import math
import re
from typing import Any, NamedTuple

import jax

from asgd.emulation import ring
from asgd.emulation.server import keep_as
from asgd.emulation.sums import CHUNK

_COLLECTIVE = re.compile(
    r"= (.*?) (all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute)(?:-done)?\((.*)")
_ARRAY = re.compile(r"([a-z]+)(\d*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """An operation between devices.

    Attributes:
      kind: "all-to-all" or "all-gather", of which a device receives the other devices' parts,
        ``num_bytes * (D - 1) / D``; compilers may make others of them.
      num_bytes: of its result on one device.
    """

    kind: str
    num_bytes: int


def wave(params: Any, num_devices: int, events_per_device: int = 1, *, layout: str = "sharded",
         multiple: int = 1, worker_state: Any = (), statistics: Any = (),
         snapshot_dtype: Any = None) -> list[Collective]:
    """Returns what a wave moves.

    Args:
      params: parameters, arrays or their shapes.
      num_devices: D.
      events_per_device: k.

    Other args:
      layout: "sharded" or "replicated".
      multiple: m, 1 for the parameter server; ``CHUNK`` for gossip and averaging.
      worker_state: state of one worker's transformation of whole gradients.
      statistics: running statistics, of batch normalisation.
      snapshot_dtype: floating type of the parameter server's snapshots.

    Returns:
      Collectives.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.zeros((784, 256)), "bias": jnp.zeros(256), "scale": jnp.zeros(())}
      >>> for collective in wave(params, num_devices=4):
      ...     print(*collective)
      all-to-all 1024
      all-to-all 802816
      all-to-all 1024
      all-to-all 802816
      all-gather 16
    """
    if num_devices == 1:
        return []
    sent = jax.tree.leaves(_shapes((params, worker_state)))
    gathered = jax.tree.leaves(_shapes(statistics))
    place = ring.layout(layout, num_devices, multiple)
    out = []
    if place.num_parts == 1:
        gathered = sent + gathered
    else:
        gathered = [x for x in sent if not x.shape] + gathered
        kept = jax.eval_shape(lambda tree: keep_as(snapshot_dtype, tree), _shapes(params))
        for leaves in (jax.tree.leaves(kept), jax.tree.leaves(_shapes(worker_state)), sent):
            out += _exchange([x for x in leaves if x.shape], place, events_per_device)
    width = num_devices * events_per_device
    return out + [Collective("all-gather", width * _num_bytes(x)) for x in gathered]


def sums(params: Any, num_devices: int, num_rows: int) -> list[Collective]:
    """Returns what a sum over each leaf, of so many rows at once, moves: see :func:`sum_rows`.

    Gossip's consensus distance is one such sum of one row a round; averaging's discrepancy of N
    workers is N sums of N rows a measurement.

    Example:
      >>> import jax.numpy as jnp
      >>> sums(jnp.zeros((784, 256)), num_devices=4, num_rows=1)
      [Collective(kind='all-gather', num_bytes=12544)]
    """
    if num_devices == 1:
        return []
    place = ring.layout("sharded", num_devices, CHUNK)
    chunks = [-(-math.prod(place.part(x.shape)) // CHUNK) for x in jax.tree.leaves(_shapes(params))]
    return [Collective("all-gather", num_rows * num_devices * n * x.dtype.itemsize)
            for n, x in zip(chunks, jax.tree.leaves(_shapes(params)))]


def received(collectives: list[Collective], num_devices: int) -> int:
    """Returns the bytes that a device receives from others in all, and sends to them.

    Example:
      >>> received([Collective("all-gather", 400), Collective("all-reduce", 400)], num_devices=4)
      900
    """
    parts = {"all-to-all": 1, "all-gather": 1, "all-reduce": 2, "reduce-scatter": num_devices,
             "collective-permute": num_devices / (num_devices - 1)}
    return round(sum(parts[c.kind] * c.num_bytes for c in collectives) * (num_devices - 1) / num_devices)


def held(tree: Any, num_devices: int, multiple: int = 1) -> int:
    r"""Returns the bytes of a tree that a device holds in the sharded layout, :math:`P_D`.

    The parameter server's state takes
    ``held(params) + num_slots * held(snapshots) + held(opt_state) + num_workers * held(worker_state)``,
    and running statistics whole. This is for leaves that grow with the parameters, and for scalars.

    Example:
      >>> import jax.numpy as jnp
      >>> held({"kernel": jnp.zeros((784, 256)), "step": jnp.zeros((), int)}, num_devices=4)
      200708
    """
    place = ring.layout("sharded", num_devices, multiple)
    return sum(math.prod(place.part(x.shape)) * x.dtype.itemsize
               for x in jax.tree.leaves(_shapes(tree)))


def counted(hlo: str) -> dict[str, list[Collective]]:
    """Finds the operations between devices in the text of a driver's compiled program.

    Returns:
      Those of a "call", of a "wave" (in the loop over waves) and in loops "within" a wave.

    Example:
      >>> counted('  %x = (f32[1,2,8]{2,1,0}, bf16[4]{0}) all-to-all(%a, %b), channel_id=1, '
      ...         'metadata={op_name="jit(program)/shard_map/while/body/all_to_all"}')["wave"]
      [Collective(kind='all-to-all', num_bytes=72)]
    """
    out = {"call": [], "wave": [], "within": []}
    for shapes, kind, rest in _COLLECTIVE.findall(hlo):
        num_bytes = sum(  # A bool is a byte.
            math.prod(int(n) for n in sizes.split(",") if n) * int(bits or 8) // 8
            for _, bits, sizes in _ARRAY.findall(shapes))
        out[list(out)[min(rest.count("while/body"), 2)]].append(Collective(kind, num_bytes))
    return out


def _exchange(leaves, place, num_rows):
    """Small leaves of one type travel together, as :mod:`asgd.emulation.ring` packs them."""
    groups = {}
    for i, x in enumerate(leaves):
        size = num_rows * math.prod(place.part(x.shape)) * x.dtype.itemsize
        groups.setdefault((x.dtype, i if size > ring._SMALL_BYTES else None), []).append(size)
    return [Collective("all-to-all", place.num_devices * sum(sizes)) for sizes in groups.values()]


def _shapes(tree):
    return jax.eval_shape(lambda tree: tree, tree)


def _num_bytes(x):
    return math.prod(x.shape) * x.dtype.itemsize
