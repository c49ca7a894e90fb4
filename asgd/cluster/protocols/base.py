"""What every protocol offers."""

import abc
import dataclasses
import re
from typing import Any

import numpy as np

from asgd.cluster.checks import integer


class Protocol(abc.ABC):
    """Turns the durations of the workers' cycles into the columns of a trace."""

    @abc.abstractmethod
    def columns(self, cluster, num_gradients: int) -> dict[str, np.ndarray]:
        """Returns `Trace` fields, each `[num_gradients]`, in (time, worker, sequence) order.

        Those left out are what `Trace` makes of the others.

        Args:
            cluster: An `asgd.cluster.simulate.Cluster`.
            num_gradients: Number of gradient events. The first k events must not depend on it.

        Raises:
            ValueError: If the protocol does not fit the cluster.
        """

    @abc.abstractmethod
    def gradients_per_update(self, num_workers: int) -> int:
        """Returns how many gradients make one update of the server.

        Raises:
            ValueError: If the protocol does not fit so many workers.
        """

    def describe(self) -> dict[str, Any]:
        """Returns a JSON-able dict for a trace's metadata.

        A protocol that cancels computations adds "cancels": True, and in "waits" whether a worker
        waits from its arrival to the next update. Without these the time before a worker's next
        start cannot be told apart into waiting and cancelled computing.
        """
        name = re.sub("(?<=.)(?=[A-Z])", "_", type(self).__name__).lower()
        return {"protocol": name, **dataclasses.asdict(self)}


def check_integer(protocol: Protocol, name: str, least: int) -> None:
    """Makes a field an int, or raises ValueError if it is not an integer >= `least`."""
    object.__setattr__(protocol, name, integer(name, getattr(protocol, name), least))
