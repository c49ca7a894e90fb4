"""Metrics of a run: one JSON object a line, and TensorBoard events."""

import json
import os
import pathlib
from typing import Any


class MetricsWriter:
    """Appends to ``metrics.jsonl`` and to TensorBoard events in a work directory.

    Args:
      workdir: where the files are.
      step: gradient events that were already logged.
      position: bytes of ``metrics.jsonl`` that are kept; what an interrupted run wrote after
        its last checkpoint is written again.
    """

    def __init__(self, workdir: pathlib.Path, step: int = 0, position: int = 0):
        from tensorboardX import SummaryWriter

        path = workdir / "metrics.jsonl"
        path.touch()
        os.truncate(path, position)
        self._file = path.open("a")
        self._summary = SummaryWriter(str(workdir), purge_step=step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes one line, at once."""
        self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._summary.add_scalar(name, value, step)

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self._summary.close()
