"""Traces as files: `.npz` without pickle, and CSV logs of real clusters."""

import csv
import io
import json
import math
import os
import zipfile
from typing import Any

import numpy as np
from numpy.lib import format as npy

from asgd.cluster.checks import show

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
        fields["num_workers"] = scalar("num_workers", fields["num_workers"], "iu")
        fields["metadata"] = json.loads(scalar("metadata", fields["metadata"], "U"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not a trace: {error}") from error
    return fields


def scalar(name: str, array: np.ndarray, kinds: str) -> Any:
    """Returns the one value of an array of shape [] and of one of the dtype kinds."""
    if array.ndim or array.dtype.kind not in kinds:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, and not one "
                         f"{'text' if kinds == 'U' else 'integer'}")
    return array.item()


def read_npz(path, names, what: str, optional=()) -> dict[str, np.ndarray]:
    """Reads arrays by name, those that are `optional` if they are there.

    Raises:
        ValueError: Saying that the file is not `what`.
    """
    with open_file(path) as file:
        content = file.read()  # What fails from here on is what the file holds.
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: _read_array(archive, archive.getinfo(f"{name}.npy")) for name in names
                    if f"{name}.npy" in archive.namelist() or name not in optional}
    except Exception as error:  # NumPy and zipfile raise a dozen types on what is no archive of arrays.
        raise ValueError(f"{path} is not {what}, or only a part of one") from error


def _read_array(archive, info):
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("other compressions expand without a bound, deflate 1032 times at most")
    file = io.BytesIO(archive.read(info))
    versions = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = versions[npy.read_magic(file)](file)
    # NumPy allocates what the header says before it reads.
    if math.prod(shape) * dtype.itemsize != len(file.getbuffer()) - file.tell():
        raise ValueError("the header is of another array")
    file.seek(0)
    return npy.read_array(file, allow_pickle=False)


def open_file(path, **options):
    """Opens a file to read; OSError, or ValueError if it is something else."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is not a file")  # A device may never end, a pipe never begin.
    return open(path, **{"mode": "rb", **options})


def read_csv(path) -> dict[str, list]:
    """Reads the columns of a CSV file with a header row of field names, as `Trace.from_csv`."""
    header, *rows = read_rows(path)
    for name in header:
        if name not in COLUMNS:
            raise ValueError(f"{path}: column {show(name)} is unknown; it may be {', '.join(COLUMNS)}")
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


def read_rows(path) -> list[list[str]]:
    """Reads a CSV file's rows, blank ones left out; the first is the header, maybe []."""
    with open_file(path, mode="r", newline="", encoding="utf-8-sig") as file:
        try:
            header, *rows = [cells for cells in csv.reader(file, strict=True) if cells] or [[]]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is not a CSV file: {error}") from error
    return [[name.strip() for name in header], *rows]


def _parse(path, name: str, row: int, cell: str) -> int | bool | float:
    text = cell.strip().lower()
    if name in BOOLS:
        if text in _BOOL_WORDS:
            return _BOOL_WORDS[text]
        raise ValueError(f"{path}: {name} at row {row} is {show(cell)}; it must be 0, 1, true or false")
    convert, what = (int, "an integer") if name in INTEGERS else (float, "a time in seconds")
    try:
        value = convert(text)
        if convert is int and not -(2**31) <= value < 2**31:
            what = "within int32"
            raise ValueError
        return value
    except ValueError:
        message = f"{path}: {name} at row {row} is {show(cell)}; it must be {what}"
        raise ValueError(message) from None


def build(cls, path, fields: dict[str, Any]):
    """Returns `cls(**fields)`, adding the path to what the constructor refuses."""
    try:
        return cls(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
