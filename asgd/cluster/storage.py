"""Traces as files: `.npz` without pickle, and CSV logs of real clusters."""

import csv
import io
import json
import os
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

INTEGERS = ("worker", "read_version", "version", "batch")
BOOLS = ("applied", "updates")
TIMES = ("start_time", "finish_time")
COLUMNS = INTEGERS + BOOLS + TIMES
_LATER = ("batch",)  # Traces of earlier versions do not have these.

_BOOL_WORDS = {"0": False, "false": False, "1": True, "true": True}


def save(trace, path) -> None:
    """Writes the trace to `path`, which `Trace.load` reads back equal, atomically.

    The file is an `.npz` archive without pickle: one array per field and the metadata as a JSON
    string. It gets exactly the name `path`, and whoever reads `path` meanwhile sees the old file
    or the new one, never a part.

    Example:
        >>> import os, tempfile
        >>> from asgd.cluster import Trace
        >>> trace = Trace(worker=[0, 1], read_version=[0, 0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trace.save(os.path.join(folder, "trace.npz"))
        ...     Trace.load(os.path.join(folder, "trace.npz")) == trace
        True
    """
    write_npz(path, {
        **{name: getattr(trace, name) for name in COLUMNS},
        "num_workers": np.int64(trace.num_workers),
        "metadata": np.array(json.dumps(trace.metadata)),
    })


def write_npz(path, fields: dict[str, np.ndarray]) -> None:
    """Writes arrays to an `.npz` archive with exactly the name `path`, atomically."""
    path = os.fspath(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        # numpy.savez appends .npz to a name, but not to an open file.
        with open(temporary, "wb") as file:
            np.savez(file, **fields)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def load(path) -> dict[str, Any]:
    """Reads the fields that `save` wrote; ValueError naming the path if the file is another."""
    fields = read_npz(path, (*COLUMNS, "num_workers", "metadata"), "a trace", optional=_LATER)
    try:
        fields["num_workers"] = int(fields["num_workers"])
        fields["metadata"] = json.loads(str(fields["metadata"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a trace") from error
    return fields


def read_npz(path, names, what: str, optional=()) -> dict[str, np.ndarray]:
    """Reads arrays by name, those that are `optional` if they are there.

    Raises:
        ValueError: Saying that the file is not `what`.
    """
    with open(path, "rb") as file:
        content = io.BytesIO(file.read())  # What fails from here on is what the file holds.
    try:
        with np.load(content, allow_pickle=False) as archive:
            return {name: archive[name] for name in names
                    if name in archive.files or name not in optional}
    # What NumPy and zipfile raise on truncated archives and on files of other kinds.
    except (
        *(AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError),
        *(TypeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise ValueError(f"{path} is not {what}, or only a part of one") from error


def read_csv(path) -> dict[str, list]:
    """Reads the columns of a CSV file with a header row of field names, as `Trace.from_csv`."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            header, *rows = [cells for cells in csv.reader(file, strict=True) if cells] or [[]]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is not a CSV file: {error}") from error
    header = [name.strip() for name in header]
    for name in header:
        if name not in COLUMNS:
            raise ValueError(f"{path}: column {name!r} is unknown; it may be {', '.join(COLUMNS)}")
        if header.count(name) > 1:
            raise ValueError(f"{path}: column {name} occurs more than once")
    for name in ("worker", "read_version"):
        if name not in header:
            raise ValueError(f"{path}: column {name} is missing from the header row")
    for row, cells in enumerate(rows):
        if len(cells) != len(header):
            raise ValueError(f"{path}: row {row} has {len(cells)} cells, not {len(header)}")
    return {
        name: [_parse(path, name, row, cells[column]) for row, cells in enumerate(rows)]
        for column, name in enumerate(header)
    }


def _parse(path, name: str, row: int, cell: str) -> int | bool | float:
    text = cell.strip().lower()
    if name in BOOLS:
        if text in _BOOL_WORDS:
            return _BOOL_WORDS[text]
        raise ValueError(f"{path}: {name} at row {row} is {cell!r}; it must be 0, 1, true or false")
    convert, what = (int, "an integer") if name in INTEGERS else (float, "a time in seconds")
    try:
        return convert(text)
    except ValueError:
        message = f"{path}: {name} at row {row} is {cell!r}; it must be {what}"
        raise ValueError(message) from None


def build(cls, path, fields: dict[str, Any]):
    """Returns `cls(**fields)`, adding the path to what the constructor refuses."""
    try:
        return cls(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
