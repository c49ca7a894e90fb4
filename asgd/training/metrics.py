"""Metrics of a run: one JSON object a line, and TensorBoard events."""

import json
import os
from typing import Any

from etils import epath

from asgd.training.workdir import is_bucket


class MetricsWriter:
    """Appends to ``metrics.jsonl`` and to TensorBoard events in a work directory.

    A file in a bucket cannot be appended to: there the lines are written as a whole, by `flush`.

    Args:
      workdir: where the files are; None writes nothing, in all processes but the first.
      step: gradient events that were already logged.
      position: bytes of ``metrics.jsonl`` that are kept; what an interrupted run wrote after
        its last checkpoint is written again.
    """

    def __init__(self, workdir: epath.Path | None, step: int = 0, position: int = 0):
        self.position = position
        self._file = self._summary = self._whole = None
        if workdir is None:
            return
        from tensorboardX import SummaryWriter

        self._path = workdir / "metrics.jsonl"
        if is_bucket(workdir):
            before = self._path.read_bytes() if self._path.exists() else b""
            self._whole = bytearray(before[:position])
        else:
            self._path.touch()
            os.truncate(self._path, position)
            self._file = open(self._path, "ab")
        self._summary = SummaryWriter(os.fspath(workdir), purge_step=step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes one line, at once."""
        line = (json.dumps({"step": step, **values}, allow_nan=False) + "\n").encode()
        self.position += len(line)
        if self._summary is None:
            return
        if self._whole is not None:
            self._whole += line
        else:
            self._file.write(line)
            self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._summary.add_scalar(name, value, step)

    def flush(self) -> None:
        """Makes sure that all lines are where a machine that goes away leaves them."""
        if self._whole is not None:
            self._path.write_bytes(bytes(self._whole))
        elif self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        if self._file:
            self._file.close()
        if self._summary:
            self._summary.close()
