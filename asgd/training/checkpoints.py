"""Checkpoints of the whole emulated cluster, written by Orbax in the background."""

import contextlib
import logging
from typing import Any, NamedTuple, Optional
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from asgd.training import distributed
from asgd.training.fields import ConfigError

log = logging.getLogger("asgd")
_LOSSES = "losses"


class Found(NamedTuple):
    """A checkpoint that was read.

    Attributes:
      step: the number of gradient events it follows.
      arrays: the emulated cluster, as its `load` takes it.
      progress: what was saved with it, a JSON object.
      losses: of the last events, that are in no line of the metrics yet.
    """

    step: int
    arrays: list[Any]
    progress: dict[str, Any]
    losses: np.ndarray


def steps_in(workdir: Any) -> list[int]:
    """Returns the steps of the checkpoints in a work directory, which need not exist."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()
                  ) if folder.exists() else []


class Checkpoints:
    """The checkpoints of one run, named by the number of gradient events they follow.

    In a job of several processes each writes and reads its own devices' parts.

    Args:
      workdir: the run's directory, an `epath.Path`.
      keep: how many of the newest are kept.
      arrays: what is saved, from names to types and shapes.
    """

    def __init__(self, workdir: Any, keep: int, arrays: dict[str, str]):
        self._workdir, self._arrays = workdir, arrays
        policies = ocp.training
        self._checkpointer = ocp.training.Checkpointer(
            workdir / "checkpoints",
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.LatestN(keep))

    @property
    def steps(self) -> list[int]:
        """Their steps, growing."""
        return steps_in(self._workdir)

    def save(self, step: int, arrays: list[Any], progress: dict[str, Any],
             losses: np.ndarray = np.zeros(0)) -> None:
        """Starts to write a checkpoint; waits for the one before.

        Raises:
          OSError: when the one before could not be written.
        """
        tree = {f"{i:05d}": array for i, array in enumerate(arrays)}
        if len(losses):
            tree[_LOSSES] = losses
        sums = checksums(tree)
        with self._named_failure():
            self._checkpointer.wait()
            self._checkpointer.save_async(
                step, tree, custom_metadata={
                    "progress": progress, "checksums": sums, "arrays": self._arrays})

    def newest(self, like: Optional[list[Any]] = None) -> Optional[Found]:
        """Reads the newest checkpoint that is whole, or returns None if there is none.

        Newer ones are left out with a warning, and get another name, as the run will write them again.

        Args:
          like: shapes and shardings of the arrays that are wanted; NumPy arrays if None.

        Raises:
          ConfigError: when one is whole, but of another model or algorithm.
          ValueError: when there are some, but none can be read.
        """
        damaged = {}
        for step in reversed(self.steps):
            try:
                found, error = self._read(step, like), ValueError("another process cannot read it")
            except ConfigError:
                raise
            except Exception as problem:  # Whatever a damaged file makes the readers raise.
                found, error = None, problem
            if distributed.all_processes(found is not None):
                for other, why in damaged.items():
                    log.warning("Checkpoint %d is damaged, and left out for %d: %s", other, step, why)
                    self._set_aside(other)
                return found
            damaged[step] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if damaged:
            step, why = next(iter(damaged.items()))
            raise ValueError(f"no checkpoint in {self._checkpointer.directory} can be read (of {step}: "
                             f"{why}): to begin again remove them")
        return None

    def _read(self, step, like):
        metadata = self._checkpointer.metadata(step)
        saved = metadata.custom_metadata
        for name in sorted(saved["arrays"] | self._arrays):
            was, now = (arrays.get(name, "not there") for arrays in (saved["arrays"], self._arrays))
            if was != now:
                raise ConfigError(f"workdir: checkpoint {step} is of another model or algorithm than this "
                                  f"config's: {name} was {was}, and is {now}: choose a new workdir")
        there = metadata.metadata
        wanted = {name: np.zeros(there[name].shape, there[name].dtype) for name in there
                  if like is None or name == _LOSSES}
        if like is not None:
            wanted |= {f"{i:05d}": shape for i, shape in enumerate(like)}
        if wanted.keys() != there.keys():
            raise ValueError("it has other arrays than this run")
        context = ocp.Context()
        context.array.loading.enable_padding_and_truncation = True
        with context:
            tree = self._checkpointer.load(step, wanted)
        for name, expected in saved["checksums"].items():
            if checksums({name: tree[name]})[name] != expected:
                raise ValueError(f"array {name} has changed since it was written")
        losses = np.asarray(tree.pop(_LOSSES, np.zeros(0)))
        return Found(step, [tree[name] for name in sorted(tree)], saved["progress"], losses)

    def _set_aside(self, step):
        folder = self._workdir / "checkpoints"
        if distributed.is_first():
            aside = folder / f"{step}.damaged"
            if aside.exists():
                aside.rmtree()
            (folder / str(step)).rename(aside)
        distributed.wait_for_all(f"set aside {step}")
        self._checkpointer.reload()

    def wait(self) -> None:
        """Waits until everything is written; raises OSError if it could not be."""
        with self._named_failure():
            self._checkpointer.wait()

    def close(self) -> None:
        """Likewise, at the end."""
        with self._named_failure():
            self._checkpointer.close()

    @contextlib.contextmanager
    def _named_failure(self):
        try:
            yield
        except Exception as error:  # Whatever Orbax's writers raise.
            what = " ".join(f"{error}".split())[-160:]  # Why comes last.
            raise OSError(f"a checkpoint in {self._checkpointer.directory} could not be written, those "
                          f"before it are kept: {what}") from error


def checksums(tree: dict[str, Any]) -> dict[str, int]:
    """Returns a number for each array that any change of one of its elements changes.

    Of arrays on devices it does not depend on how they are split, nor on the zeros at their end.
    """
    on_devices = {name: x for name, x in tree.items() if isinstance(x, jax.Array)}
    out = {name: int(x) for name, x in jax.device_get(_sums(on_devices)).items()}
    return out | {name: zlib.crc32(np.ascontiguousarray(x)) for name, x in tree.items()
                  if name not in out}


@jax.jit
def _sums(arrays):
    def total(x):
        if x.dtype == bool:
            x = x.astype(jnp.uint8)
        words = jax.lax.bitcast_convert_type(x, f"uint{min(32, 8 * x.dtype.itemsize)}")
        words = words.astype(jnp.uint32)
        if words.ndim == x.ndim:
            words = words[..., None]
        rows = words.reshape((-1, *words.shape[-2:])) if x.ndim else words.reshape(1, 1, -1)
        row, column, half = (jax.lax.broadcasted_iota(jnp.uint32, rows.shape, i) for i in range(3))
        place = row * np.uint32(0x9E3779B1) + column * np.uint32(0x85EBCA77) + half
        # Odd factors: whatever bit of a word changes, its product does.
        return (rows * (2 * place + 1)).sum(dtype=jnp.uint32)

    return jax.tree.map(total, arrays)
