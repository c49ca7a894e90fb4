"""Plans from configs: what they take from where, what they say, and what they refuse."""

import json
import subprocess
import sys

import numpy as np
import pytest

from asgd import plan as command, simulate, theory
from asgd.cluster import protocols, timing
from asgd.training import loop, planning, validation, workdir
from configs import digits


def config(**plan):
    out = digits.get_config()
    out.cluster.slowdown = ()
    out.plan.update({"protocols": ("asynchronous",), "workers": (1, 4), "eigenvalues": (2.0, 0.2),
                     "excess": 1.0, "noise": 0.0, **plan})
    return out


def test_given_curvature_needs_no_data(monkeypatch):
    monkeypatch.setattr(planning, "build", None)
    wanted = config(workers=(1, 8, 64, 96), protocols=("asynchronous", "hardsync"))
    wanted.algorithm, wanted.learning_rate, wanted.dataset.name = "asgd", 0.01, "mnist"
    wanted.cluster.compute_time.distribution = "constant"
    found = planning.make_plan(wanted)
    rows = {(row["protocol"], row["workers"]): row for row in found["rows"]}
    assert rows["asynchronous", 8]["staleness_mean"] == 7
    assert rows["asynchronous", 64]["largest_step"] == pytest.approx(
        theory.critical_step(63) / 2, rel=0.01)
    # Two sentences; 0.02 diverges from 80 workers on, which the numbers that were tried straddle.
    assert found["limits"]["asynchronous"]["first_diverging"] == 80
    assert found["limits"]["hardsync"] == {"enough_workers": 1, "first_diverging": None}
    assert found["best"]["protocol"] == "asynchronous"
    said = command.explain(found)
    assert said.startswith("Train with asynchronous and ") and said.count(". ") == 1
    assert "at the learning rate 0.01 it diverges from 80 workers on." in said
    json.dumps(found, allow_nan=False)


def test_the_rule_of_the_algorithm_counts():
    plain, scaled = config(workers=(9,)), config(workers=(9,))
    plain.algorithm, scaled.algorithm, scaled.staleness_rule = "asgd", "staleness_aware", "inverse"
    for each in (plain, scaled):
        each.cluster.compute_time.distribution = "constant"
    steps = [planning.make_plan(each)["rows"][0]["largest_step"] for each in (plain, scaled)]
    assert steps[1] / steps[0] == pytest.approx(8, rel=0.02)


def test_times_may_be_measured_in_a_trace(tmp_path):
    clock = timing.Timing(timing.gamma(3.0, cv=0.2), slowdown=[1, 1, 1, 4])
    trace = simulate(protocols.asynchronous(), clock, 4, 2000, seed=0)
    trace.save(tmp_path / "trace.npz")
    wanted = config(protocols=("asynchronous", "hardsync"))
    wanted.trace_path = str(tmp_path / "trace.npz")
    rows = planning.make_plan(wanted)["rows"]
    # Each worker has its own times, so the first alone is a fast one.
    rates = 1 / trace.per_worker()["delay"]
    assert [row["updates_per_second"] for row in rows[:2]] == pytest.approx(
        [rates[0], rates.sum()], rel=1e-9)
    # Three standard errors of the mean of the slow worker's 150 times.
    hardsync = theory.predict(protocols.hardsync(), clock, 4)
    assert rows[3]["updates_per_second"] == pytest.approx(hardsync.updates_per_second, rel=0.05)


def test_curvature_is_measured_where_the_run_is(tmp_path):
    wanted = config(eigenvalues=(), excess=None, noise=None, batches=3, workers=(2,))
    wanted.model.hidden, wanted.num_gradients = (8,), 200
    wanted.plan.gradients = 30
    first = planning.make_plan(wanted, tmp_path)["curvature"]
    points = first["measured"]["points"]
    assert list(points) == ["0 gradients", "3 gradients", "10 gradients", "30 gradients"]
    assert first["largest"] == max(point["largest_eigenvalue"] for point in points.values())
    assert points["30 gradients"]["loss"] < points["0 gradients"]["loss"] == first["excess"]
    assert first["smallest"] == pytest.approx(first["largest"] / wanted.plan.condition)
    # Ten classes at random, and an excess over 0.
    assert first["excess"] == pytest.approx(np.log(10), rel=0.2) and first["noise"] > 0
    wanted.num_epochs = None
    loop.train(wanted, tmp_path)
    later = planning.make_plan(wanted, tmp_path)["curvature"]
    assert list(later["measured"]["points"]) == ["checkpoint"]
    assert later["excess"] < 0.8 * first["excess"]
    # Fields of the plan are none of the run's.
    wanted.plan.target = 0.5
    workdir.check_unchanged(wanted, tmp_path / "config.json")


@pytest.mark.parametrize("field, value, message", [
    ("workers", (), "plan.workers must hold integers of at least 1"),
    ("workers", (0,), "plan.workers must hold integers from 1"),
    ("protocols", ("chaos",), "plan.protocols must be among hardsync, .*got 'chaos'"),
    ("protocols", (), "plan.protocols must name at least one"),
    ("eigenvalues", ("a", 1.0), "plan.eigenvalues must hold numbers, got 'a'"),
    ("target", 1.0, "plan.target must be a number .*below 1"),
    ("eigenvalues", (1.0,), "plan.eigenvalues must be the largest and the smallest"),
    ("eigenvalues", (1.0, -1.0), "plan.eigenvalues, plan.excess or plan.noise: eigenvalues must be"),
    ("noise", -1.0, "plan.noise must be a number at least 0"),
    ("batches", 1, "plan.batches must be an integer from 2"),
])
def test_bad_fields(field, value, message):
    with pytest.raises(validation.ConfigError, match=message):
        planning.make_plan(config(**{field: value}))


def test_what_is_said_of_more_workers_holds_in_the_table():
    for workers in ((1, 2), (1, 2, 4, 8, 16, 32)):
        found = planning.make_plan(config(workers=workers))
        said, rows = command.explain(found), found["rows"]
        enough = found["limits"]["asynchronous"]["enough_workers"]
        if enough == workers[-1]:
            assert f"No more than {enough} workers were tried" in said
            continue
        times = {row["workers"]: row["time_to_target"] for row in rows}
        assert f"More than {enough}, up to the 32 that were tried, gain less than 5 per cent" in said
        assert times[enough] <= 1.05 * min(times.values())
        falls = rows[-1]["largest_step"] < next(
            row["largest_step"] for row in rows if row["workers"] == enough)
        assert ("the largest stable learning rate falls" in said) == falls
    other = config()
    other.algorithm = "local_sgd"
    with pytest.raises(validation.ConfigError, match="algorithm='local_sgd' has no plan"):
        planning.make_plan(other)


def test_what_never_gets_there_is_said():
    found = planning.make_plan(config(noise=1e12))
    assert found["best"] is None and found["rows"][0]["time_to_target"] is None
    assert command.explain(found).startswith("No protocol reaches the target")
    assert "never" in command.table(found)


def test_the_command(tmp_path):
    flags = ["--config=configs/digits.py", "--config.plan.eigenvalues=(1.0, 0.1)",
             "--config.plan.excess=1.0", "--config.plan.noise=0.1", "--config.plan.workers=(1, 2)",
             "--config.plan.protocols=('asynchronous',)"]
    run = subprocess.run([sys.executable, "-m", "asgd.plan", f"--workdir={tmp_path}", *flags],
                         capture_output=True, text=True, check=True)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert run.stdout.splitlines()[-1] == plan["explanation"]
    assert len(plan["rows"]) == 2 and (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"
    for flag, message in (("--config.plan.target=2.0", "plan.target must be a number"),
                          ("--config.plan.targett=0.1", "--config has no field")):
        bad = subprocess.run([sys.executable, "-m", "asgd.plan", *flags, flag],
                             capture_output=True, text=True, check=False)
        assert bad.returncode == 2 and message in bad.stderr.splitlines()[-1]
        assert "Traceback" not in bad.stderr
