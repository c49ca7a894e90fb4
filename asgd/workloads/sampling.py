"""Which training samples a gradient event uses: a pure function of the seed and the event.

Every worker draws from one shared stream of samples, in the order in which gradients *arrive*.
The samples of event e are positions e*b to (e+1)*b - 1 of an endless stream made of one fresh
permutation of the training set per pass, so N synchronous gradients of batch b see exactly the
samples of one gradient of batch N*b, and nothing depends on the number of devices, on how events
are grouped, or on where a run was resumed.
"""

import dataclasses
import functools
import threading
from typing import Any

import numpy as np

_SPLIT = 2**31  # No pass has this number.


@dataclasses.dataclass(frozen=True)
class EventSampler:
    """Sample indices of gradient events.

    The last batch of a pass continues into the next one: no sample is ever left out, and every
    pass uses every sample once.

    Args:
        num_examples: Number of training samples, N.
        batch_size: Samples per gradient event, b; at most `num_examples`.
        seed: 0 to 2**32 - 1. Pass p uses the permutation that
            `numpy.random.default_rng(SeedSequence([seed, p]))` draws.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> sampler = EventSampler(num_examples=5, batch_size=2, seed=0)
        >>> first_pass = sampler.indices(np.arange(3)).ravel()[:5]
        >>> sorted(first_pass.tolist())
        [0, 1, 2, 3, 4]
        >>> bool((sampler.indices([7]) == sampler.indices([3, 7])[1]).all())
        True
    """

    num_examples: int
    batch_size: int
    seed: int = 0

    def __post_init__(self):
        # An index is an int32.
        _check_range("num_examples", self.num_examples, 1, 2**31 - 1)
        _check_range("batch_size", self.batch_size, 1, self.num_examples,
                     "num_examples, as no batch may hold a sample twice")
        # A larger seed would fill several words of the SeedSequence and could collide.
        _check_range("seed", self.seed, 0, 2**32 - 1)

    def indices(self, events) -> np.ndarray:
        """Computes the samples of some events, in any order.

        Args:
            events: Integers [n], the event numbers, counted from 0.

        Returns:
            int32 [n, batch_size]: for each event, positions in the training set.

        Raises:
            ValueError: If `events` is not a one-dimensional array of integers from 0 up.
        """
        events = np.asarray(events)
        if events.ndim != 1 or not (events.size == 0 or np.issubdtype(events.dtype, np.integer)):
            raise ValueError(f"events must be a one-dimensional array of integers, "
                             f"not {events.dtype} {list(events.shape)}")
        if events.size and events.min() < 0:
            raise ValueError(f"events must be 0 or more, not {events.min()}")
        position = events.astype(np.int64)[:, None] * self.batch_size + np.arange(self.batch_size)
        passes, offset = np.divmod(position, self.num_examples)
        rows = np.empty(position.shape, np.int32)
        for number in np.unique(passes):
            here = passes == number
            rows[here] = _permutation(self.num_examples, self.seed, int(number))[offset[here]]
        return rows


@dataclasses.dataclass(frozen=True, eq=False)
class AgentSampler:
    """Sample indices of decentralised training, in which every agent has data of its own.

    The training set is split into N parts that differ by at most one sample. Event t * N + i, agent
    i's in round t, uses the samples of event t of an `EventSampler` over part i.

    Args:
        num_examples: Number of training samples.
        batch_size: Samples per gradient; at most the size of a part.
        num_agents: N.
        seed: 0 to 2**32 - 1.
        labels: Integers [num_examples], to give an agent samples of neighbouring labels only; by
            default parts are drawn at random.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> sampler = AgentSampler(num_examples=6, batch_size=3, num_agents=2)
        >>> sorted(sampler.indices(np.arange(2)).ravel().tolist())
        [0, 1, 2, 3, 4, 5]
    """

    num_examples: int
    batch_size: int
    num_agents: int
    seed: int = 0
    labels: Any = None

    def __post_init__(self):
        _check_range("num_agents", self.num_agents, 1, self.num_examples)
        _check_range("batch_size", self.batch_size, 1, self.num_examples // self.num_agents,
                     "an agent's part of the samples, as no batch may hold a sample twice")
        self._parts  # So that a bad seed is refused here.

    @functools.cached_property
    def _parts(self):
        order = _permutation(self.num_examples, self.seed, _SPLIT)
        if self.labels is not None:
            order = order[np.argsort(np.asarray(self.labels)[order], kind="stable")]
        seeds = np.random.SeedSequence([self.seed, _SPLIT]).generate_state(self.num_agents)
        return [(part, EventSampler(len(part), self.batch_size, int(seed)))
                for part, seed in zip(np.array_split(order, self.num_agents), seeds)]

    def indices(self, events) -> np.ndarray:
        """Computes the samples of some events; see `EventSampler.indices`."""
        events = np.asarray(events)
        rows = np.empty((len(events), self.batch_size), np.int32)
        for agent, (part, sampler) in enumerate(self._parts):
            here = events % self.num_agents == agent
            rows[here] = part[sampler.indices(events[here] // self.num_agents)]
        return rows


def _permutation(num_examples, seed, number):
    # Threads that read ahead would each draw the same one.
    with _drawing:
        return (_many if num_examples < 2**18 else _few)(num_examples, seed, number)


def _draw(num_examples, seed, number):
    generator = np.random.default_rng(np.random.SeedSequence([seed, number]))
    order = generator.permutation(num_examples).astype(np.int32)
    order.flags.writeable = False
    return order


# Events in flight straddle two passes at most, unless a batch is a large part of the data; there
# may be many agents. Memory is bounded, also of large data sets.
_drawing = threading.Lock()
_many = functools.lru_cache(maxsize=128)(_draw)
_few = functools.lru_cache(maxsize=8)(_draw)


def _check_range(field, value, low, high, meaning=None):
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integer or not low <= value <= high:
        end = high if meaning is None else f"{high} ({meaning})"
        raise ValueError(f"{field} must be an integer from {low} to {end}, not {value!r}")
