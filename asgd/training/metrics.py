"""Metrics of a run: one JSON object a line, and TensorBoard events."""

import json
import os
import time
from typing import Any

from etils import epath
from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2, summary_pb2

from asgd.training.workdir import is_bucket


class MetricsWriter:
    """Appends to ``metrics.jsonl`` and to TensorBoard events in a work directory.

    A file in a bucket cannot be appended to: there the lines are written as a whole, by `flush`.

    Args:
      workdir: where the files are; None writes nothing, in all processes but the first.
      step: gradient events that were already logged.
      position: bytes of ``metrics.jsonl`` that are kept; what an interrupted run wrote after
        its last checkpoint is written again.

    Raises:
      ValueError: when the file has lost some of them.
    """

    def __init__(self, workdir: epath.Path | None, step: int = 0, position: int = 0):
        self.position = position
        self._file = self._events = self._whole = None
        if workdir is None:
            return
        self._path = workdir / "metrics.jsonl"
        size = self._path.stat().length if self._path.exists() else 0
        if size < position:
            raise ValueError(f"{self._path} has {size} bytes, but had {position} when the checkpoint was "
                             "written: put it back, or remove checkpoints/ to begin again")
        if is_bucket(workdir):
            self._whole = bytearray(self._path.read_bytes()[:position] if position else b"")
        else:
            self._path.touch()
            os.truncate(self._path, position)
            self._file = open(self._path, "ab")
        # Its SummaryWriter writes from a thread, and waits for ever for one that met a full disk.
        self._events = event_file_writer.EventsWriter(
            os.fspath(workdir / "events"), filename_suffix=f".{os.getpid()}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # TensorBoard forgets what was written for later steps.
        self._events.write_event(event_pb2.Event(step=step + 1, session_log=start))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes one line, at once."""
        line = (json.dumps({"step": step, **values}, allow_nan=False) + "\n").encode()
        self.position += len(line)
        if self._events is None:
            return
        if self._whole is not None:
            self._whole += line
        else:
            self._file.write(line)
            self._file.flush()
        self._events.write_event(event_pb2.Event(
            wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=[
                summary_pb2.Summary.Value(tag=name, simple_value=value)
                for name, value in values.items() if isinstance(value, (int, float))])))

    def flush(self) -> None:
        """Makes sure that all lines are where a machine that goes away leaves them."""
        if self._whole is not None:
            self._path.write_bytes(bytes(self._whole))
        elif self._file:
            os.fsync(self._file.fileno())
        if self._events:
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self.flush()
        if self._file:
            self._file.close()
        if self._events:
            self._events.close()
