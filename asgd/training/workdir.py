"""The work directory: whose it is, what ran in it before, and small files in it, also in a bucket."""

import contextlib
import json
import logging
import os
import pathlib
import tempfile
from typing import Any, Callable, Iterator

from etils import epath
import filelock

from asgd.training import distributed
from asgd.training.fields import FREE, ConfigError

log = logging.getLogger("asgd")


def workdir_path(name: Any) -> epath.Path:
    """Returns the path of a work directory, absolute unless it is a bucket's address."""
    text = os.fspath(name)
    return epath.Path(text if "://" in text else os.path.abspath(text))


def is_bucket(path: Any) -> bool:
    """Tells whether a path is in a bucket, where files are written as a whole."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[None]:
    """Makes the directory and keeps other runs out of it, until this process ends, however it does.

    In a job the first process does so for all. Buckets have no locks.

    Raises:
      ConfigError: when another run has it.
    """
    lock, ours = None, True
    if distributed.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        if not is_bucket(workdir):
            lock = filelock.FileLock(os.fspath(workdir / ".lock"), timeout=0)
            try:
                lock.acquire()
            except filelock.Timeout:
                ours = False
    if not distributed.all_processes(ours):
        raise ConfigError(f"workdir: another run is writing to {workdir}: wait for it, or choose another")
    try:
        yield
    finally:
        if lock:
            lock.release()


def check_unchanged(config: Any, path: epath.Path) -> None:
    """Checks the config against that of the run at ``path`` (its config.json), if there is one.

    Fields that change how a run is executed, but not what it computes, may differ.

    Raises:
      ConfigError: naming the fields that changed, unless ``checkpoint.allow_changes``.
    """
    if not path.exists():
        return
    try:
        old = _flat(json.loads(path.read_text()))
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"workdir: {path} cannot be read ({error}): choose a new workdir") from None
    new = _flat(json.loads(config.to_json()))
    changed = [name for name in sorted(old.keys() | new.keys())
               if old.get(name) != new.get(name) and name not in FREE
               and not name.startswith("plan.")]
    if changed:
        was = ", ".join(f"{name}={old.get(name)!r}, now {new.get(name)!r}" for name in changed)
        if not config.checkpoint.allow_changes:
            raise ConfigError(f"workdir holds a run with another config ({was}): choose a new workdir, or "
                              "go on with --config.checkpoint.allow_changes")
        log.warning("Goes on with another config: %s", was)


def _flat(tree, prefix=""):
    out = {}
    for name, value in tree.items():
        out.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict)
                   else {prefix + name: value})
    return out


def write_text(path: epath.Path, text: str) -> None:
    """Writes a small file as a whole: readers see the old one or the new one."""
    if is_bucket(path):
        path.write_text(text)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def save_at(path: epath.Path, save: Callable[[Any], None]) -> None:
    """Lets ``save`` write a local file, and copies it to where it belongs."""
    if not is_bucket(path):
        save(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder, path.name)
        save(local)
        path.write_bytes(local.read_bytes())


def load_at(path: epath.Path, load: Callable[[Any], Any]) -> Any:
    """Returns what ``load`` makes of a file, of a local copy if it is in a bucket."""
    if not is_bucket(path):
        return load(path)
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder, path.name)
        local.write_bytes(path.read_bytes())
        return load(local)
