"""Recordings as runs: files, metrics, resumption, refusals, and the comparison of algorithms."""

import json
import shutil

import numpy as np
import pytest

from asgd import compare
from asgd.cluster import Trace, protocols, simulate, timing
from asgd.training import loop, validation
from asgd.training.build import build
from asgd.training.validation import ConfigError
from configs import digits


def small(**fields):
    config = digits.get_config()
    config.update({"num_gradients": 60, "batch_size": 32, "log_every": 20, "evaluate_every_epochs": 0.5,
                   "learning_rate": 0.05, "mode": "record"})
    config.model.hidden = (16,)
    config.cluster.num_workers = 3
    config.cluster.slowdown = ()
    config.emulation.num_devices = 2
    for name, value in fields.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def replay_of(workdir, **fields):
    return small(mode="emulate", trace_path=str(workdir / "trace.npz"), **fields)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("recorded")
    return workdir, loop.train(small(), workdir)


def test_files_and_metrics_are_those_of_its_replay(recorded, tmp_path, read_metrics):
    workdir, result = recorded
    replayed = loop.train(replay_of(workdir, emulation__num_devices=4), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == (workdir / "metrics.jsonl").read_text()
    assert [line["step"] for line in read_metrics(workdir)] == [20, 23, 40, 45, 60]
    for name in ("params_digest", "eval_loss", "eval_accuracy", "gradients", "updates", "virtual_time"):
        assert replayed[name] == result[name]
    trace = Trace.load(workdir / "trace.npz")
    assert len(trace) == 60 and result["virtual_time"] == trace.finish_time[-1]
    assert result["gradients_per_second"] == round(60 / trace.finish_time[-1], 1)
    assert trace.metadata["recording"]["recorder"] == "threads"
    assert {path.name for path in workdir.iterdir()} >= {"config.json", "trace.npz", "checkpoints"}


def test_the_same_command_again_changes_nothing(recorded):
    workdir, result = recorded
    before = Trace.load(workdir / "trace.npz")
    assert loop.train(small(), workdir) == result
    assert Trace.load(workdir / "trace.npz") == before


def test_an_interrupted_recording_goes_on(tmp_path, interrupted, read_metrics):
    config = small(checkpoint__every_gradients=16, log_every=1)
    saves = interrupted(config, tmp_path / "a")
    assert saves[-1] == 32
    first = Trace.load(tmp_path / "a/trace.npz")
    # The trace is for others: what a recording goes on from is in its checkpoints.
    (tmp_path / "a/trace.npz").write_text("damaged")
    config.emulation.layout = "replicated"
    result = loop.train(config, tmp_path / "a")
    trace = Trace.load(tmp_path / "a/trace.npz")
    assert len(first) == 32 and len(trace) == 60 and trace.head(32) == first
    assert len(set(trace.batch.tolist())) == 60 and trace.batch.max() < 63
    assert (trace.read_version[32:] >= 32).all()
    assert [line["step"] for line in read_metrics(tmp_path / "a")] == list(range(1, 61))
    replayed = loop.train(replay_of(tmp_path / "a", log_every=1), tmp_path / "b")
    assert replayed["params_digest"] == result["params_digest"]
    assert (tmp_path / "a/metrics.jsonl").read_text() == (tmp_path / "b/metrics.jsonl").read_text()


def test_sleeps_are_the_clusters_times(tmp_path):
    config = small(num_gradients=12, recording__sleep=0.01)
    config.cluster.compute_time.distribution = "constant"
    config.cluster.slowdown = (1.0, 1.0, 5.0)
    config.cluster.push_time = 1.0
    loop.train(config, tmp_path)
    trace = Trace.load(tmp_path / "trace.npz")
    assert (trace.delay >= np.array([0.02, 0.02, 0.06])[trace.worker]).all()


@pytest.mark.parametrize("fields, message", [
    ({"mode": "watch"}, "mode must be one of emulate, record"),
    ({"recorder": "mpi"}, "recorder must be one of threads, ray"),
    ({"algorithm": "dsgd"}, "algorithm='dsgd' do not fit: recordings have a server"),
    ({"algorithm": "ssgd"}, "cluster.protocol='hardsync' do not fit: it must be asynchronous or softsync"),
    ({"cluster__protocol": "ssp", "cluster__staleness_bound": 2}, "cluster.protocol='ssp' do not fit"),
    ({"cluster__pull": "before"}, "cluster.pull='before' do not fit: it must be 'after'"),
    ({"trace_path": "t.npz"}, "trace_path='t.npz' do not fit: a recording makes a trace"),
    ({"emulation__snapshot_dtype": "bfloat16"}, "emulation.snapshot_dtype='bfloat16' do not fit"),
    ({"recording__sleep": -1.0}, "recording.sleep must be a number at least 0"),
    ({"recording__sleep": 1e300}, "recording.sleep must be a number at least 0 and at most 1e"),
])
def test_what_cannot_be_recorded_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        validation.validate(small(**fields))


def test_a_trace_of_something_else_is_refused_before_anything_runs(recorded, tmp_path):
    workdir, _ = recorded
    cases = [({"cluster__num_workers": 4}, "was recorded with 3 workers, but cluster.num_workers=4"),
             ({"model__hidden": (8,)}, r"another model .*\['Dense_0'\]\['bias'\] was float32\[16\], and is "
                                       r"float32\[8\]"),
             ({"model__hidden": (16, 16)}, r"\['Dense_1'\]\['bias'\] was float32\[10\], and is float32\[16\]")]
    for fields, message in cases:
        with pytest.raises(ConfigError, match=message):
            loop.train(replay_of(workdir, **fields), tmp_path / "run")
    shutil.copy(workdir / "trace.npz", tmp_path / "trace.npz")
    content = (workdir / "trace.npz").read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "trace.npz").write_bytes(content[:length])
        with pytest.raises(ConfigError, match="trace.npz is not a trace, or only a part of one"):
            loop.train(replay_of(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_data_are_warned_of(recorded, tmp_path, caplog):
    workdir, _ = recorded
    with caplog.at_level("WARNING", logger="asgd"):
        build(replay_of(workdir))
        assert not caplog.records
        build(replay_of(workdir, seed=5, batch_size=16))
    assert [record.getMessage().split("was recorded with ")[1] for record in caplog.records] == [
        "seed=0, and is replayed with 5: it will not end with the same parameters",
        "batch_size=32, and is replayed with 16: it will not end with the same parameters"]
    # Metadata are anybody's, and no reason to refuse.
    Trace([0, 1], [0, 0], metadata={"recording": "by hand", "model": "mlp"}).save(tmp_path / "t.npz")
    assert len(build(small(mode="emulate", trace_path=str(tmp_path / "t.npz"), num_gradients=2)).trace) == 2


def test_algorithms_are_compared_on_one_recording(tmp_path):
    config = small(algorithm="asgd", num_gradients=40)
    rows = compare.compare(config, tmp_path, ["asgd", "dc_asgd_a"], [0.05, 1e30])
    trace = Trace.load(tmp_path / "recording/trace.npz")
    for row in rows:
        folder = tmp_path / f"{row['algorithm']}-{row['learning_rate']!r}"
        assert Trace.load(folder / "trace.npz") == trace
    assert [(row["algorithm"], row["learning_rate"]) for row in rows] == [
        (name, rate) for name in ("asgd", "dc_asgd_a") for rate in (0.05, 1e30)]
    digests = [row["params_digest"] for row in rows if row["learning_rate"] == 0.05]
    assert len(set(digests)) == 2
    # The recording itself was made with the first of them.
    assert digests[0] == loop.train(config, tmp_path / "recording")["params_digest"]
    assert all("loss is" in row["error"] for row in rows if row["learning_rate"] == 1e30)
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written == {"trace": str(tmp_path / "recording/trace.npz"), "rows": rows}
    lines = compare.table(rows).splitlines()
    assert len(lines) == 6 and digests[0][:12] in lines[2] and "loss is" in lines[3]
    with pytest.raises(ConfigError, match="algorithm must be one of sgd, ssgd, asgd"):
        compare.compare(config, tmp_path / "other", ["asgd", "dsgd"], [])
    with pytest.raises(ConfigError, match="--algorithms must name at least one"):
        compare.compare(config, tmp_path, [], [])
    with pytest.raises(ConfigError, match="algorithm must be one of sgd, ssgd, asgd, .*got 'dsgd'"):
        compare.compare(small(mode="emulate", algorithm="dsgd"), tmp_path, ["asgd"], [])
    with pytest.raises(ConfigError, match="algorithm='ssgd' and trace_path"):
        compare.compare(config, tmp_path, ["asgd", "ssgd"], [])


def test_algorithms_are_compared_on_one_simulated_trace(tmp_path):
    config = small(mode="emulate", num_gradients=40)
    rows = compare.compare(config, tmp_path, ["asgd", "dc_asgd_c"], [])
    traces = [Trace.load(tmp_path / name / "trace.npz")
              for name in (".", f"asgd-{config.learning_rate!r}", f"dc_asgd_c-{config.learning_rate!r}")]
    assert traces[0] == traces[1] == traces[2] and len(traces[0]) == 40
    assert [row["gradients"] for row in rows] == [40, 40]


def test_a_cluster_has_the_times_of_a_recording(recorded, tmp_path):
    workdir, _ = recorded
    path = str(workdir / "trace.npz")
    config = small(mode="emulate", cluster__times_from=path, cluster__num_workers=7)
    loop.train(config, tmp_path / "more")
    more, fitted = Trace.load(tmp_path / "more/trace.npz"), timing.fit(Trace.load(path))
    assert more.num_workers == 7
    assert more == simulate(protocols.asynchronous(), fitted, 7, 60, config.seed)
    (tmp_path / "empty.csv").write_text("worker,read_version\n")
    for name, message in (("missing.npz", "No such file"), ("empty.csv", "at least one gradient")):
        with pytest.raises(ConfigError, match=f"^cluster.times_from: .*{message}"):
            loop.train(small(mode="emulate", cluster__times_from=str(tmp_path / name)), tmp_path / "run")
    with pytest.raises(ConfigError, match="cluster.times_from='.*' do not fit"):
        validation.validate(small(cluster__times_from=path))
