"""The number of workers and the planner against exact roots and the iteration itself."""

import math

import numpy as np
import pytest

import asgd
from asgd import simulate, theory
from asgd.cluster import protocols, timing
from asgd.theory import planner


@pytest.mark.parametrize("eigenvalues, best, rate", [
    ([1.0], 19, 1.023), ([1.0, 0.25], 49, 0.343), ([1.0, 0.5, 0.1], 64, 0.148)])
def test_optimal_number_of_workers(eigenvalues, best, rate):
    found = theory.optimal_workers(0.02, eigenvalues, timing.constant(1.0))
    assert (found.best, found.first_diverging) == (best, 80)
    assert found.rate == pytest.approx(rate, abs=5e-4)
    # M > (1 + pi / (2 asin(step h / 2))) / 2.
    assert (1 + math.pi / (2 * math.asin(0.01))) / 2 == pytest.approx(79.04, abs=0.005)
    assert (found.rates[:-1] > 0).all() and found.rates[-1] < 0


def test_workers_with_random_times_are_judged_on_traces():
    found = theory.optimal_workers(0.3, [1.0, 0.1], timing.exponential(1.0), most=24, seed=3)
    for workers in (1, 5, 12):
        trace = simulate(protocols.asynchronous(), timing.exponential(1.0), workers, 20_000, 3)
        rates = theory.rates_on_trace(trace, [0.3, 0.03])
        assert found.rates[workers - 1] == pytest.approx(workers * rates.min(), rel=1e-9)
    assert found.rates[0] == pytest.approx(-math.log(1 - 0.03), rel=1e-6)
    assert found.best == int(np.argmax(found.rates)) + 1 and found.rate == found.rates.max()


def cluster(tau):
    """A trace whose staleness is tau, but for its first tau events."""
    return simulate(protocols.asynchronous(), timing.constant(1.0), tau + 1, 20_000, 0)


def excess_by_iteration(problem, tau, step, updates):
    """E[loss] - minimum after each update, from the second moments of every mode."""
    out = np.zeros(updates + 1)
    for h, excess, noise in zip(*problem):
        matrix = theory.companion(step * h, tau)
        size = len(matrix)
        second = np.full((size, size), 2 * excess / h)  # All of the past at the start.
        for k in range(updates + 1):
            out[k] += h / 2 * second[0, 0]
            second = matrix @ second @ matrix.T
            second[0, 0] += step**2 * noise
    return out


@pytest.mark.parametrize("tau", [0, 1, 3])
def test_times_to_a_target_are_those_of_the_iteration(tau):
    problem = planner.make_problem(2.0, 0.2, noise=0.05, modes=3)
    modes = planner.Modes(problem, cluster(tau))
    for step in (0.02, 0.1):
        path = excess_by_iteration(problem, tau, step, 4000)
        # Above a tenth of the limit simulated: 1e5 numbers, of which one in 5 is independent.
        assert modes.floor(step) == pytest.approx(path[-1], rel=0.03)
        target = 2 * path[-1] + 0.02
        reached = int(np.argmax(path <= target))
        # The transient starts late by about the staleness, and is rounded up to whole updates.
        assert modes.updates_to(target, step) == pytest.approx(reached, rel=0.05, abs=2 + tau)
    assert modes.updates_to(path[-1] / 2, step) == math.inf
    assert modes.largest_step == pytest.approx(theory.critical_step(tau) / 2, rel=0.01)
    assert modes.rates(1.5 * modes.largest_step)[0] < 0


def test_noise_with_random_staleness_is_that_of_the_run():
    trace = simulate(protocols.asynchronous(), timing.exponential(1.0), 8, 20_000, 0)
    modes = planner.Modes(planner.make_problem(2.0, 2.0, noise=3.0), trace)
    for factor, tolerance in ((0.05, 0.1), (0.3, 0.1), (0.6, 0.3)):
        step = factor * modes.largest_step
        rng = np.random.default_rng(1)
        # Gradients of x^2 with noise of variance 3, 40 runs at once.
        x = [np.zeros(40)]
        for read in trace.read_version.tolist():
            x.append(x[-1] - step * (2 * x[read] + math.sqrt(3) * rng.standard_normal(40)))
        excess = float(np.mean(np.square(x[4000:])))
        # Bursts make it heavy-tailed near the limit.
        assert modes.floor(step) == pytest.approx(excess, rel=tolerance)
    assert modes.floor(0.95 * modes.largest_step) > 100 * modes.floor(0.6 * modes.largest_step)


def test_the_best_step_is_the_best():
    problem = planner.make_problem(1.0, 0.05, noise=0.02, modes=4)
    modes = planner.Modes(problem, simulate(
        protocols.softsync(4), timing.gamma(1.0, cv=0.5), 9, 20_000, 0))
    step, updates = modes.best_step(0.05)
    others = [modes.updates_to(0.05, s) for s in modes.largest_step * np.linspace(0.01, 0.99, 400)]
    assert updates <= min(others) * 1.01
    assert modes.updates_to(0.05, step) == pytest.approx(updates)


def test_gradients_per_update_divide_the_noise_and_rules_scale_it():
    problem = planner.make_problem(1.0, 1.0, noise=1.0)
    one, four = (planner.Modes(problem, simulate(
        protocols.hardsync(), timing.constant(1.0), workers, 8000, 0)) for workers in (1, 4))
    assert four.floor(0.1) == pytest.approx(one.floor(0.1) / 4, rel=0.03)
    # x' = (1 - step) x + step n: h / 2 step^2 / (1 - (1 - step)^2).
    assert one.floor(0.1) == pytest.approx(0.5 * 0.01 / (1 - 0.81), rel=2e-3)
    plain, scaled = planner.Modes(problem, cluster(4)), planner.Modes(
        problem, cluster(4), scale=asgd.inverse)
    assert scaled.largest_step == pytest.approx(4 * plain.largest_step, rel=0.01)
    assert scaled.floor(0.4) == pytest.approx(plain.floor(0.1), rel=5e-3)


def test_plans():
    rows = planner.plan(
        planner.make_problem(1.0, 0.1), {
            "asynchronous": lambda workers: protocols.asynchronous(),
            "hardsync": lambda workers: protocols.hardsync()},
        lambda workers: timing.constant(1.0), [1, 8, 79, 80], 0.02, 0.01)
    assert [(row.protocol, row.workers) for row in rows] == [
        (name, m) for name in ("asynchronous", "hardsync") for m in (1, 8, 79, 80)]
    stale = rows[:4]
    assert [row.verdict for row in stale] == ["converges"] * 3 + ["diverges"]
    assert stale[3].rate == pytest.approx(80 * theory.answer(0.02, 79).rate, rel=0.02) and stale[3].rate < 0
    assert stale[3].time_at_rate is None and stale[3].time_to_target > 0
    assert [row.updates_per_second for row in stale] == [1, 8, 79, 80]
    assert [row.staleness_99 for row in stale] == [0, 7, 78, 79]
    # Waiting for equal workers costs no time, and without noise gains nothing.
    assert np.ptp([row.time_to_target for row in rows[4:]]) < 1e-3 * rows[4].time_to_target


@pytest.mark.parametrize("call, message", [
    (lambda: planner.make_problem(1.0, 0.0), "eigenvalues must be finite and positive"),
    (lambda: planner.make_problem(1.0, 2.0), "the largest at least the smallest"),
    (lambda: planner.make_problem(1.0, 1.0, excess=0.0), "excess must be a positive number"),
    (lambda: planner.make_problem(1.0, 1.0, noise=-1.0), "noise must be a number of at least 0"),
    (lambda: planner.plan(None, {}, None, [], 0.1, 1.0), r"target must be in \(0, 1\)"),
    (lambda: theory.optimal_workers(0.1, [0.0], timing.constant(1.0)), "eigenvalues must be positive"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
