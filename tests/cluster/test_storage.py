"""Traces as files: what is written comes back, and nothing else is taken for a trace."""

import os
import zipfile

import numpy as np
import pytest

from asgd.cluster import Trace, protocols, simulate, timing

GOOD = {
    "worker": [0, 1, 0, 2],
    "read_version": [0, 0, 1, 0],
    "version": [0, 0, 1, 1],
    "applied": [True, True, False, True],
    "updates": [False, True, False, True],
    "start_time": [0.0, 0.0, 2.0, 0.5],
    "finish_time": [1.0, 2.0, 3.0, 3.0],
    "num_workers": 4,
    "metadata": {"host": "test"},
    "batch": [0, 2, 1, 9],
}
ARRAYS = [*list(GOOD)[:7], "batch"]


@pytest.mark.parametrize("name", ["trace.npz", "trace", "trace.bin"])
def test_save_and_load(tmp_path, name):
    trace = Trace(**{**GOOD, "metadata": {"text": "ä\n", "list": [1, 2.5, None], "map": {"a": 1}}})
    path = tmp_path / name
    path.write_text("replaced")
    trace.save(path)
    assert os.listdir(tmp_path) == [name]
    assert Trace.load(path) == trace == Trace.load(str(path))
    with np.load(path, allow_pickle=False) as archive:
        assert set(ARRAYS) < set(archive.files)


def test_metadata_is_kept_as_json_gives_it_back(tmp_path):
    metadata = {"tuple": (1, 2)}
    trace = Trace([0], [0], metadata=metadata)
    metadata["tuple"] = None
    assert trace.metadata == {"tuple": [1, 2]}
    trace.save(tmp_path / "t")
    assert Trace.load(tmp_path / "t") == trace


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "trace.npz"
    Trace(**GOOD).save(path)

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        Trace([0], [0]).save(path)
    assert os.listdir(tmp_path) == ["trace.npz"] and Trace.load(path) == Trace(**GOOD)


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / "trace.npz"
    simulate(protocols.asynchronous(), timing.exponential(1.0), 3, 50, 0).save(path)
    whole = path.read_bytes()

    def refused(content):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="trace.npz is not a trace") as caught:
            Trace.load(path)
        assert "\n" not in str(caught.value)

    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        refused(whole[:length])
    refused(b"worker,read_version\n0,0\n")
    middle = len(whole) // 2
    refused(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    for save in (np.save, np.savez):
        with open(tmp_path / "other", "wb") as file:
            save(file, np.arange(5))
        refused((tmp_path / "other").read_bytes())
    with zipfile.ZipFile(tmp_path / "other", "w") as archive:
        archive.writestr("worker", "text")
    refused((tmp_path / "other").read_bytes())
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "missing")


def test_load_checks_the_invariants_and_never_unpickles(tmp_path):
    path = tmp_path / "trace.npz"
    extra = {"num_workers": 4, "metadata": "{}"}
    np.savez(path, **{**{name: GOOD[name] for name in ARRAYS}, **extra, "worker": [0, 9, 0, 2]})
    with pytest.raises(ValueError, match="trace.npz: worker at row 1 is 9"):
        Trace.load(path)
    pickled = np.array([0, 1, 0, None], dtype=object)
    np.savez(path, **{**{name: GOOD[name] for name in ARRAYS}, **extra, "worker": pickled})
    with pytest.raises(ValueError, match="trace.npz is not a trace"):
        Trace.load(path)


def test_a_trace_without_batches_is_read(tmp_path):
    extra = {"num_workers": 4, "metadata": "{}"}
    np.savez(tmp_path / "old.npz", **{name: GOOD[name] for name in ARRAYS if name != "batch"}, **extra)
    trace = Trace.load(tmp_path / "old.npz")
    assert trace.batch.tolist() == [0, 1, 2, 3] and trace.worker.tolist() == GOOD["worker"]


def test_from_csv(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("worker,read_version\n0,0\n1,0\n0,1\n")
    assert Trace.from_csv(path) == Trace([0, 1, 0], [0, 0, 1])
    assert Trace.from_csv(str(path), num_workers=9).num_workers == 9
    rows = zip(*(GOOD[name] for name in reversed(ARRAYS)), strict=True)
    lines = [", ".join(reversed(ARRAYS)), *(", ".join(map(str, row)) for row in rows)]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    assert Trace.from_csv(path, num_workers=4) == Trace(**{**GOOD, "metadata": {}})
    path.write_text("worker,read_version,applied\n0,0,true\n1,0,FALSE\n0,1,1\n0,1,0\n")
    assert Trace.from_csv(path).applied.tolist() == [True, False, True, False]
    path.write_text("worker,read_version\n")
    assert len(Trace.from_csv(path)) == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "column worker is missing"),
        ("worker,version\n0,0\n", "column read_version is missing"),
        ("worker,read_version,finish_tme\n0,0,1\n", "column 'finish_tme' is unknown; it may be wo"),
        ("worker,read_version,worker\n0,0,0\n", "column worker occurs more than once"),
        ("worker,read_version\n0,0\n1\n", "row 1 has 1 cells, not 2"),
        ("worker,read_version\n0,0\n1,0\nx,0\n", "worker at row 2 is 'x'; it must be an integer"),
        ("worker,read_version\n0,0\n1,0.5\n", "read_version at row 1 is '0.5'; .* an integer"),
        ("worker,read_version,batch\n0,0,-1\n", "batch at row 0 is -1; it must be >= 0"),
        ("worker,read_version,applied\n0,0,yes\n", "applied at row 0 is 'yes'; it must be 0, 1,"),
        ("worker,read_version,start_time\n0,0,\n", "start_time at row 0 is ''; .* a time in sec"),
        ("worker,read_version\n0,0\n1,5\n", "read_version at row 1 is 5; it must be at most"),
        ("worker,read_version,finish_time\n0,0,2\n1,0,1\n", "finish_time at row 1 is 1.0"),
        ('worker,read_version\n"0,0\n', "is not a CSV file"),
    ],
)
def test_from_csv_names_column_and_row(tmp_path, text, message):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Trace.from_csv(path)
    assert "log.csv" in str(caught.value) and "\n" not in str(caught.value)
