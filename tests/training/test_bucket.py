"""Small files in a bucket, for which a file system in memory stands."""

import json

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
import pytest
from tensorboardX import record_writer

from asgd.cluster import Trace
from asgd.training import metrics, workdir


class Bucket(MemoryFileSystem):
    protocol = ("gs", "gcs")
    store: dict = {}
    pseudo_dirs = [""]


class Events:
    """As tensorboardX's own writers of buckets: what was written is there after a flush."""

    def open(self, path):
        return self

    def directory_check(self, path):
        """Buckets have no directories."""

    def write(self, data):
        self.written = getattr(self, "written", b"") + data

    def flush(self):
        """Uploads."""

    close = flush


@pytest.fixture
def folder(monkeypatch):
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
    Bucket.store.clear()
    monkeypatch.setitem(record_writer.REGISTERED_FACTORIES, "gs", Events())
    return workdir.workdir_path("gs://bucket/run")


def test_addresses(folder, tmp_path):
    assert workdir.is_bucket(folder) and str(folder) == "gs://bucket/run"
    local = workdir.workdir_path(str(tmp_path))
    assert not workdir.is_bucket(local) and local.is_absolute()
    with workdir.locked(folder):
        pass


def test_small_files(folder):
    workdir.write_text(folder / "config.json", "{}")
    assert (folder / "config.json").read_text() == "{}"
    trace = Trace(worker=[0, 1], read_version=[0, 0])
    workdir.save_at(folder / "trace.npz", trace.save)
    assert workdir.load_at(folder / "trace.npz", Trace.load) == trace


def test_metrics_are_written_as_a_whole_and_cut_where_a_checkpoint_was(folder):
    def lines():
        return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]

    writer = metrics.MetricsWriter(folder)
    writer.write(1, {"loss": 2.0})
    writer.flush()
    position = writer.position
    assert lines() == [1]
    writer.write(2, {"loss": 1.0})
    writer.close()
    assert lines() == [1, 2]
    writer = metrics.MetricsWriter(folder, 1, position)
    writer.write(3, {"loss": 0.5})
    writer.close()
    assert lines() == [1, 3]
    with pytest.raises(ValueError, match="metrics.jsonl has .* bytes, but had 1000"):
        metrics.MetricsWriter(folder, 1, 1000)
