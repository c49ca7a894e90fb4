"""Checkpoints of the whole emulated cluster, written by Orbax in the background."""

import pathlib
from typing import Any, Optional

import numpy as np
from orbax.checkpoint import v1 as ocp


class Checkpoints:
    """The checkpoints of one run, named by the number of gradient events they follow.

    Args:
      workdir: the run's directory.
      keep: how many of the newest are kept.
    """

    def __init__(self, workdir: pathlib.Path, keep: int):
        self._checkpointer = ocp.training.Checkpointer(
            (workdir / "checkpoints").absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep))

    def save(self, step: int, arrays: list[np.ndarray], progress: dict[str, Any]) -> None:
        """Starts to write a checkpoint; waits for the one before."""
        tree = {f"{i:05d}": np.asarray(array) for i, array in enumerate(arrays)}
        self._checkpointer.save_async(step, tree, custom_metadata=progress)

    def latest(self) -> Optional[tuple[int, list[np.ndarray], dict[str, Any]]]:
        """Returns step, arrays and progress of the newest checkpoint, or None."""
        found = self._checkpointer.latest
        if found is None:
            return None
        tree = self._checkpointer.load(found.step)
        progress = self._checkpointer.metadata(found.step).custom_metadata
        return found.step, [tree[name] for name in sorted(tree)], progress

    def close(self) -> None:
        """Waits until everything is written."""
        self._checkpointer.close()
