"""What the benchmarks compare with computes the same thing, and ratios are what they say."""

import importlib
import itertools
import json
import types

import jax
import numpy as np
import optax
import pytest

from asgd.cluster import averaging, timing
from asgd.workloads import sampling
from benchmarks import discrepancy, event_loops, measure, synchronous, theory, workloads
from benchmarks.setup import cluster_trace, emulation


@pytest.mark.parametrize("algorithm", ["asgd", "dc_asgd_a"])
def test_the_plain_event_loop_ends_with_the_same_parameters(algorithm):
    work, trace = workloads.make("mlp", 24, hidden=(16,)), cluster_trace(24, workers=5)
    emulator, _ = emulation(work, event_loops.transformation(algorithm, 5), trace)
    params = emulator.params(emulator.run(emulator.init())[0])
    other = event_loops.jax_loop(work, trace, algorithm)()()
    assert event_loops.largest_difference(params, other) < 1e-6
    assert event_loops.largest_difference(params, work.params) > 1e-3


@pytest.mark.parametrize("options", [{}, {"scan": True}, {"scan": True, "unroll": 4},
                                     {"rewritten": True}], ids=str)
def test_synchronous_loops_take_every_batch(options, monkeypatch):
    work = workloads.make("mlp", 3, hidden=(4,))
    ran = []
    compiled = jax.jit
    monkeypatch.setattr(jax, "jit", lambda f, **options: lambda *args: ran.append(
        compiled(f)(*args)) or ran[-1])
    synchronous.one_device(work, optax.sgd(0.1), **options)()()
    params = work.params
    for step in range(3):
        batch = jax.tree.map(lambda x: x[step], work.batches)
        params = jax.tree.map(lambda w, g: w - 0.1 * g, params, jax.grad(work.loss)(params, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 ran[-1][0][0], params)


def test_ratios():
    assert measure.spread(np.array([1.0, 2.0, 4.0])) == {"ratio": 2.0, "low": 1.5, "high": 3.0}
    seconds = {"a": np.array([3.0, 1.0, 3.0]), "b": np.array([2.0, 2.0, 2.0])}
    assert measure.fastest(seconds, ["a", "b"]) == "b"


def test_runs_alternate(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    order = []
    runs = {name: lambda name=name: lambda: order.append(name) for name in "ab"}
    seconds = measure.interleaved(runs, repeats=2)
    assert "".join(order) == "baabba"
    assert all(len(times) == 2 for times in seconds.values())


@pytest.mark.parametrize("figure, fewer", [("overhead", {"_LOOPS": {"step": {}}}), ("profile", {})],
                         ids=["overhead", "profile"])
def test_figures_that_reach_into_the_program_run(figure, fewer, monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(workloads, "GRADIENTS", dict.fromkeys(workloads.GRADIENTS, 8))
    module = importlib.import_module(f"benchmarks.{figure}")
    for name, value in fewer.items():
        monkeypatch.setattr(module, name, value)
    options = types.SimpleNamespace(models=["mlp"], algorithms=["dc_asgd_a"], repeats=1,
                                    devices=min(module.DEVICES))
    row = json.loads(json.dumps(next(module.rows(options))))
    assert row and all(isinstance(value, (str, int, float)) for value in row.values())


def test_the_discrepancy_is_of_each_workers_own_data(monkeypatch):
    monkeypatch.setattr(discrepancy, "STEPS", 8)
    monkeypatch.setattr(discrepancy, "PERIODS", (2,))
    monkeypatch.setattr(discrepancy, "WORKERS", (8,))
    alike, by_label = discrepancy.rows(None)
    assert 0 < 1.5 * alike["delayed_averaging"] < by_label["delayed_averaging"]
    clock = timing.gamma(1.0, 0.5)
    schedule = averaging.independent(3, 30, 2, clock)
    sampler = sampling.AgentSampler(60, 4, 3)
    indices = discrepancy.of_worker(sampler, schedule)(np.arange(30))
    for worker in range(3):
        mine = indices[schedule.worker == worker]
        np.testing.assert_array_equal(mine, sampler.indices(np.arange(len(mine)) * 3 + worker))


def test_theory_is_measured_on_the_same_thing(monkeypatch):
    monkeypatch.setattr(theory, "WORKERS", (4,))
    monkeypatch.setattr(theory, "STALENESS", (6,))
    monkeypatch.setattr(theory, "UPDATES", 1500)
    rows = list(itertools.islice(theory.rows(None), 3))
    assert [row["claim"] for row in rows] == ["workers", "little staleness", "much staleness"]
    for row in rows:
        assert row["measured"] == pytest.approx(row["predicted"], rel=0.05)
    assert rows[2]["measured"] < 0 < rows[1]["measured"]


def test_the_plain_torch_loop_ends_with_the_same_parameters():
    pytest.importorskip("torch")
    work, trace = workloads.make("mlp", 24, hidden=(16,)), cluster_trace(24, workers=5)
    emulator, _ = emulation(work, event_loops.transformation("dc_asgd_a", 5), trace)
    params = emulator.params(emulator.run(emulator.init())[0])
    other = event_loops.torch_loop(work, trace, "dc_asgd_a")()()
    assert event_loops.largest_difference(params, other) < 1e-4
