"""Brings the rows of each event to the device that computes on them."""

import dataclasses
import math
from typing import Any, Callable, Optional

import jax
import jax.numpy as jnp
import numpy as np

from asgd.emulation import ring
from asgd.emulation.spmd import WHOLE, Spmd


@dataclasses.dataclass(frozen=True, eq=False)
class IndexedBatches:
    """Batches that are rows of a data set: ``arrays[indices(events)]``.

    A data set that fits is placed on every device once, and the batches are gathered there.

    Attributes:
      arrays: tree of arrays with a leading axis [N].
      indices: function from event numbers, int64 [n], to integers [n, ...] in 0 .. N - 1.
      on_device: whether the data set is placed on the devices; None when it fits there.

    Raises:
      ValueError: when the leaves differ in their leading axis.

    Example:
      >>> data = IndexedBatches({"x": np.arange(6.0)}, lambda events: events[:, None] + [0, 1])
      >>> print(data(np.arange(2))["x"].tolist())
      [[0.0, 1.0], [1.0, 2.0]]
    """

    arrays: Any
    indices: Callable[[np.ndarray], np.ndarray]
    on_device: Optional[bool] = None

    def __post_init__(self):
        object.__setattr__(self, "arrays", _on_host(self.arrays))
        sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(self.arrays)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError("IndexedBatches: arrays must have one leading axis [N] in common, "
                             f"got {sorted(sizes)}")

    def __call__(self, events: np.ndarray) -> Any:
        """Returns the rows of events, NumPy arrays with a leading axis [n]."""
        rows = self.indices(events)
        return jax.tree.map(lambda x: x[rows], self.arrays)

    @property
    def num_rows(self) -> int:
        return len(jax.tree.leaves(self.arrays)[0])

    @property
    def num_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.arrays))


class Feed:
    """Rows of events, from a data set on the devices or, when it does not fit, from the host.

    Args:
      batches: tree with a leading axis [T], function of event numbers, or IndexedBatches.
      num_events: T.
      spmd: the devices.
      numbers: int [T], the number of each event's batch; by default its own number.

    Attributes:
      data: what lies on every device; the program is given it.
      row: the rows of event 0, or None.
    """

    def __init__(self, batches: Any, num_events: int, spmd: Spmd,
                 numbers: Optional[np.ndarray] = None):
        self._numbers = np.arange(num_events) if numbers is None else numbers
        self._batches = batches = checked(batches, self._numbers)
        self._spmd = spmd
        resident = isinstance(batches, IndexedBatches) and (
            _fits(batches.num_bytes, spmd.num_devices) if batches.on_device is None
            else batches.on_device)
        self._in_order = resident and batches.indices is _in_order
        self._gathers = resident and not self._in_order
        self.data = spmd.put(batches.arrays, WHOLE) if resident else ()
        self.row = first_row(batches, self._numbers) if num_events else None

    @property
    def reads_ahead(self) -> bool:
        """Whether the batches want to know what will be asked for."""
        return hasattr(self._batches, "expect")

    def expect(self, events: np.ndarray) -> None:
        """Tells the batches which events' rows this process will send, in order."""
        self._batches.expect(np.asarray(self._numbers[events], np.int64))

    def send(self, events: np.ndarray, taken: np.ndarray) -> Any:
        """Sends what devices need for a call.

        Args:
          events: [waves, W], the event at each place.
          taken: bool [waves, W], whether there is one.

        Returns:
          Arrays [D * waves * k, ...], split along their first axis. A process has read what its
          own devices need.
        """
        if self._in_order:
            return ()
        events, taken = self._own(events), self._own(taken)
        needed = np.unique(events[taken] if taken.any() else events)
        if self._gathers:
            rows = self._batches.indices(self._numbers[needed])
            rows = _checked_indices(rows, len(needed), self._batches.num_rows)
        else:
            rows = rows_of(self._batches, self._numbers[needed])
        places = np.searchsorted(needed, np.where(taken, events, needed[0]))
        if not np.array_equal(places, np.arange(len(needed))):
            rows = jax.tree.map(lambda r: r[places], rows)
        return self._spmd.put_local(rows)

    def _own(self, places):
        """Returns what belongs to this process's devices, device by device."""
        by_device = places.reshape(len(places), self._spmd.num_devices, -1)
        return by_device[:, self._spmd.local].swapaxes(0, 1).ravel()

    def reader(self, data: Any, sent: Any) -> Callable[[Any, Any], Any]:
        """Returns a function of (place, batch number) to the row of an event, on the device.

        Leaves of the row are flat, or XLA would copy them into another layout; see `shaped`.

        Args:
          data: :attr:`data`.
          sent: what :meth:`send` returned, this device's [waves * k, ...].
        """
        if self._in_order:
            return lambda place, number: _flat_row(data, number)
        if self._gathers:  # For the whole call: in the loop it would run on one core.
            sent = jax.tree.map(lambda x: x.at[sent].get(mode="promise_in_bounds"), data)
        return lambda place, number: _flat_row(sent, place)

    def shaped(self, row: Any) -> Any:
        """Returns the row that a flat one stands for."""
        return jax.tree.map(lambda x, like: x.reshape(like.shape), row, self.row)


def checked(batches: Any, numbers: np.ndarray) -> Callable[..., Any]:
    """Returns batches as a function of their numbers.

    Args:
      batches: tree with a leading axis, or such a function.
      numbers: int [T], which will be asked for.

    Raises:
      ValueError: when a leaf of a tree has another leading axis than T; where numbers are not those
        of the events, when it is too short.
    """
    if callable(batches):
        return batches
    batches = _on_host(batches)
    count = len(numbers)
    if not np.array_equal(numbers, np.arange(count)):
        least = int(numbers.max()) + 1
        count = max([least, *(np.shape(x)[0] for x in jax.tree.leaves(batches) if np.ndim(x))])
    _check(batches, count, "every leaf")
    if not jax.tree.leaves(batches):  # A loss without data.
        return lambda events: batches
    return IndexedBatches(batches, _in_order)


def _in_order(numbers):
    # A slice is no copy.
    consecutive = numbers[-1] - numbers[0] == len(numbers) - 1 and (np.diff(numbers) == 1).all()
    return slice(numbers[0], numbers[-1] + 1) if consecutive else numbers


def rows_of(batches: Callable[..., Any], numbers: np.ndarray) -> Any:
    """Returns the rows of the batches of these numbers, at least one, leading axis first.

    Raises:
      ValueError: when the function returns another number of rows.
    """
    out = _on_host(batches(np.asarray(numbers, np.int64)))
    _check(out, len(numbers), "the rows returned")
    return out


def first_row(batches: Callable[..., Any], numbers: np.ndarray) -> Any:
    """Returns the row of the first event."""
    return jax.tree.map(lambda x: x[0], rows_of(batches, numbers[:1]))


def _flat_row(rows, place):
    return ring.read(jax.tree.map(
        lambda x: x.reshape(len(x), math.prod(x.shape[1:])), rows), place)


def _on_host(tree):
    """Returns NumPy arrays, as indexing others compiles a program for every length."""
    def leaf(path, x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            raise ValueError(f"batches: {jax.tree_util.keystr(path) or 'the array'} holds typed keys: "
                             "pass jax.random.key_data of them, or use the loss's own key")
        return np.asarray(x)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _check(tree, count, what):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape = np.shape(leaf)
        if not shape or shape[0] != count:
            name = jax.tree_util.keystr(path) or "the array"
            raise ValueError(f"batches: {what} must have a leading axis of {count}, one row "
                             f"for each event, but {name} has shape {shape}")


def _checked_indices(rows, count, num_rows):
    rows = np.asarray(rows)
    if len(rows) != count or not np.issubdtype(rows.dtype, np.integer) or (
            rows.size and not 0 <= rows.min() <= rows.max() < num_rows):
        raise ValueError("batches: indices must return one row for each event, of integers "
                         f"from 0 to {num_rows - 1}")
    return rows.astype(np.int32)


def _fits(num_bytes, num_devices):
    memory = jax.local_devices()[0].memory_stats()
    if memory and "bytes_limit" in memory:
        return num_bytes <= memory["bytes_limit"] // 4
    # Devices that share the host's memory.
    return num_bytes * num_devices <= 2**31
