"""Staleness laws and run times against closed forms and simulated clusters."""

import math

import numpy as np
import pytest

from asgd import simulate, theory
from asgd.cluster import Timing, protocols, timing

TIMES = {
    "exponential": timing.exponential(2.0),
    "gamma": timing.gamma(2.0, cv=0.5),
    "lognormal": timing.lognormal(2.0, cv=math.sqrt(math.e - 1)),
    "pareto": timing.pareto(2.0, shape=2.5),
    "constant": timing.constant(2.0),
    "shifted": timing.shifted_exponential(1.0, 2.0),
    "measured": timing.empirical([1.0, 1.0, 2.0, 4.0]),
}
WORKERS = 30


def mean(law):
    return float(law @ np.arange(len(law)))


@pytest.mark.parametrize("n, after, before", [(1, 0.967, 1), (2, 1.933, 2), (15, 14.5, 15), (30, 29, 30)])
def test_mean_staleness(n, after, before):
    assert theory.mean_staleness(protocols.softsync(n), WORKERS) == pytest.approx(after, abs=5e-4)
    assert theory.mean_staleness(protocols.softsync(n, pull="before"), WORKERS) == before
    for pull, expected in (("after", after), ("before", before)):
        law = theory.staleness_law(protocols.softsync(n, pull), timing.exponential(1.0), WORKERS)
        assert mean(law) == pytest.approx(expected, abs=5e-4)
        assert law.sum() == pytest.approx(1, abs=1e-12)


def test_exponential_times_give_a_geometric_law():
    law = theory.staleness_law(protocols.asynchronous(), timing.exponential(1.0), 8)
    k = np.arange(40)
    assert law[:40] == pytest.approx((1 / 8) * (7 / 8) ** k, rel=1e-7)
    poisson = theory.staleness_law(protocols.asynchronous(), timing.exponential(1.0), 8, method="poisson")
    assert poisson[:40] == pytest.approx(law[:40], abs=1e-6)
    assert theory.tail(theory.staleness_law(protocols.asynchronous(), timing.exponential(1.0), 30),
                       60) == pytest.approx(0.127, abs=1e-3)


def test_gamma_times_give_a_negative_binomial_law_by_poisson():
    # Poisson mixed over gamma times of shape 4: success probability 4 / (4 + M - 1).
    from scipy import stats

    law = theory.staleness_law(protocols.asynchronous(), TIMES["gamma"], 9, method="poisson")
    assert law[:40] == pytest.approx(stats.nbinom.pmf(np.arange(40), 4, 4 / 12), abs=1e-7)


def test_constant_times_give_constant_staleness():
    law = theory.staleness_law(protocols.asynchronous(), timing.constant(1.0), 7)
    assert law.tolist() == [0] * 6 + [1]
    # Which a Poisson law would be wrong about: variance M - 1.
    poisson = theory.staleness_law(protocols.asynchronous(), timing.constant(1.0), 7, method="poisson")
    assert mean(poisson) == pytest.approx(6, abs=1e-5)
    assert poisson @ np.arange(len(poisson)) ** 2 - 36 == pytest.approx(6, abs=1e-3)


@pytest.mark.parametrize("pull", ["after", "before"])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_exact_laws_are_those_of_simulated_clusters(n, pull):
    protocol = protocols.softsync(n, pull)
    for times in (timing.exponential(1.0), timing.constant(1.0)):
        law = theory.staleness_law(protocol, times, 8, method="exact")
        seen = theory.staleness_law(protocol, times, 8, method="simulation", num_gradients=100_000)
        size = max(len(law), len(seen))
        # Neighbouring events overlap: one in 8 counts, three standard errors of a probability of 1/2.
        assert np.abs(np.pad(law, (0, size - len(law))) - np.pad(seen, (0, size - len(seen)))).max() < (
            1.5 / math.sqrt(90_000 / 8) if times.name == "exponential" else 1e-4)


@pytest.mark.parametrize("name", TIMES)
def test_rates_and_staleness_within_two_per_cent_of_simulated_clusters(name):
    for clock in (Timing(TIMES[name]), Timing(TIMES[name], pull=0.1, push=timing.exponential(0.2),
                                              slowdown=[1.0] * 15 + [3.0] * 15)):
        predicted = theory.predict(protocols.asynchronous(), clock, WORKERS)
        trace = simulate(protocols.asynchronous(), clock, WORKERS, 100_000, seed=1)
        late = trace.staleness[10_000:]
        rate = 90_000 / (trace.finish_time[-1] - trace.finish_time[9_999])
        assert predicted.updates_per_second == pytest.approx(rate, rel=0.02)
        assert predicted.mean_staleness == pytest.approx(late.mean(), rel=0.02)
        assert predicted.idle_fraction == 0


UNLIKE = Timing(list(TIMES.values()), pull=0.1, slowdown=[1.0] * 20 + [3.0] * 10)


@pytest.mark.parametrize("protocol, mean", [
    (protocols.asynchronous(), 29), (protocols.softsync(15), 14.5),
    (protocols.k_batch_async(3), 29 / 3)])
def test_unlike_workers_have_the_rate_and_staleness_of_simulated_clusters(protocol, mean):
    predicted = theory.predict(protocol, UNLIKE, WORKERS)
    trace = simulate(protocol, UNLIKE, WORKERS, 100_000, seed=1)
    rate = np.count_nonzero(trace.updates[10_000:]) / (trace.finish_time[-1] - trace.finish_time[9_999])
    assert predicted.updates_per_second == pytest.approx(rate, rel=0.02)
    assert predicted.mean_staleness == pytest.approx(mean)
    assert trace.staleness[10_000:].mean() == pytest.approx(mean, rel=0.02)
    # Of so many workers the others' arrivals are nearly a Poisson process.
    law = theory.staleness_law(protocol, UNLIKE, WORKERS, method="poisson")
    seen = theory.staleness_law(protocol, UNLIKE, WORKERS, method="simulation")
    size = max(len(law), len(seen))
    law, seen = (np.cumsum(np.pad(x, (0, size - len(x)))) for x in (law, seen))
    assert np.abs(law - seen).max() < 0.025


def test_unlike_workers_mix_their_laws_by_poisson():
    # Five send 5 of 7 gradients, and meet 6 others' in a cycle; four meet 6.5 in a second.
    from scipy import stats

    clock = Timing([timing.gamma(1.0, cv=0.5)] * 5 + [timing.constant(2.0)] * 4)
    law = theory.staleness_law(protocols.asynchronous(), clock, 9, method="poisson")
    n = np.arange(40)
    expected = 5 / 7 * stats.nbinom.pmf(n, 4, 4 / 10) + 2 / 7 * stats.poisson.pmf(n, 13)
    assert law[:40] == pytest.approx(expected, abs=1e-6)
    assert mean(law) == pytest.approx(8, abs=1e-3)


@pytest.mark.parametrize("protocol", [protocols.asynchronous(), protocols.softsync(2),
                                      protocols.softsync(2, "before")])
def test_unlike_memoryless_workers_have_an_exact_law(protocol):
    clock = Timing([timing.exponential(1.0), timing.exponential(4.0)], slowdown=[1, 1, 1, 1, 2])
    law = theory.staleness_law(protocol, clock, 5, method="exact")
    assert mean(law) == pytest.approx(theory.mean_staleness(protocol, 5), rel=1e-9)
    seen = theory.staleness_law(protocol, clock, 5, method="simulation", num_gradients=200_000)
    # As of equal workers above: one event in 5 counts, three standard errors.
    assert law[:len(seen)] == pytest.approx(seen, abs=1.5 / math.sqrt(180_000 / 5))
    if protocol == protocols.asynchronous():  # 1, 1 / 4, 1, 1 / 4 and 1 / 2 per second.
        shares = np.array([1, 1 / 4, 1, 1 / 4, 1 / 2]) / 3
        n = np.arange(30)[:, None]
        assert law[:30] == pytest.approx((shares**2 * (1 - shares) ** n).sum(axis=1), rel=1e-9)
    batches = theory.predict(protocols.k_batch_sync(6), clock, 5)
    assert batches.sources["update_period"] == "memoryless times"
    rounds = simulate(protocols.k_batch_sync(6), clock, 5, 60_000, seed=0)
    assert batches.update_period == 2 == pytest.approx(rounds.finish_time[-1] / 10_000, rel=0.02)


def test_distributions_that_repeat_are_one_with_factors():
    for one, repeated in (
            (Timing(timing.exponential(2.0)), Timing([timing.exponential(2.0)] * 3)),
            (Timing(timing.constant(2.0), pull=0.5), Timing([timing.constant(2.0)] * 2, pull=0.5)),
            (Timing(timing.gamma(1.0, 0.5), slowdown=[1, 1, 3, 3]),
             Timing([timing.gamma(1.0, 0.5)] * 2 + [timing.gamma(3.0, 0.5)] * 2))):
        for protocol in (protocols.asynchronous(), protocols.hardsync(), protocols.k_async(2)):
            a, b = (theory.predict(protocol, clock, 4, num_gradients=4000) for clock in (one, repeated))
            assert a.sources == b.sources
            assert a.update_period == pytest.approx(b.update_period, rel=1e-9)
            assert a.staleness_law == pytest.approx(b.staleness_law, rel=1e-9)



def test_unlike_workers_without_a_formula_are_simulated():
    clock = Timing([timing.exponential(1.0), timing.constant(1.0)])
    for protocol, name in ((protocols.hardsync(), "update_period"),
                           (protocols.k_async(2), "update_period"),
                           (protocols.k_batch_sync(2), "update_period"),
                           (protocols.asynchronous(), "staleness_law")):
        found = theory.predict(protocol, clock, 4, num_gradients=4000)
        assert found.sources[name] == "simulation", protocol
    # One worker is memoryless: it reads before its own update.
    assert theory.staleness_law(protocols.asynchronous("before"), clock, 1).tolist() == [0, 1]


@pytest.mark.parametrize("times, dispersions", [
    (timing.exponential(1.0), (1.0, 1.0, 1.0, 1.0)),
    (timing.gamma(1.0, cv=0.5), (0.98, 0.89, 0.41, 0.27)),
    (timing.gamma(1.0, cv=0.1), (0.98, 0.90, 0.08, 0.02)),
    (timing.lognormal(1.0, cv=math.sqrt(math.e - 1)), (0.99, 0.91, 1.0, 1.5)),
], ids=["exponential", "gamma4", "gamma100", "lognormal1"])
def test_aggregated_arrivals_are_poisson_in_short_windows_only(times, dispersions):
    # Index of dispersion of counts, 30 workers, windows of 0.02, 0.1, 1 and 10 mean times.
    trace = simulate(protocols.asynchronous(), times, WORKERS, 1_000_000, seed=0)
    end = trace.finish_time[-1]
    for window, expected in zip((0.02, 0.1, 1.0, 10.0), dispersions):
        edges = np.arange(0.3 * end, end, window)
        counts = np.diff(np.searchsorted(trace.finish_time, edges))
        # A variance of n counts that are nearly normal has a relative error of sqrt(2 / n), with
        # counts of some 1 added by their fourth moment; half a unit of the last digit.
        error = 3 * expected * math.sqrt((2 + 1 / counts.mean()) / len(counts)) + 0.05 * (
            expected in (1.0, 1.5)) + 0.006
        assert counts.var() / counts.mean() == pytest.approx(expected, abs=error)


def test_run_times_of_memoryless_clusters():
    harmonic = np.cumsum(1 / np.arange(1, 9))
    exponential = timing.exponential(2.0)
    for k, expected in ((8, harmonic[7]), (3, harmonic[7] - harmonic[4]), (1, 1 / 8)):
        found = theory.expected_order_statistic(exponential, k, 8)
        assert found == pytest.approx(2 * expected, rel=1e-8)
        assert theory.predict(protocols.k_sync(k), exponential, 8).update_period == found
        k_async = theory.predict(protocols.k_async(k), exponential, 8, num_gradients=20_000)
        assert k_async.update_period == pytest.approx(2 * expected, rel=1e-12)
        batches = theory.predict(protocols.k_batch_sync(k), exponential, 8)
        assert batches.update_period == pytest.approx(2 * k / 8, rel=1e-12)
        batches = theory.predict(protocols.k_batch_async(k), TIMES["lognormal"], 8)
        assert batches.update_period == pytest.approx(2 * k / 8, rel=1e-12)
    hard = theory.predict(protocols.hardsync(), exponential, 8)
    assert hard.update_period == pytest.approx(2 * harmonic[7], rel=1e-8)
    assert hard.idle_fraction == pytest.approx(1 - 1 / harmonic[7], rel=1e-8)


@pytest.mark.parametrize("name", TIMES)
def test_order_statistics_of_any_times(name):
    drawn = TIMES[name].sample(np.random.default_rng(0), 400_000).reshape(-1, 8)
    for k in (1, 5, 8):
        kth = np.sort(drawn, axis=1)[:, k - 1]
        error = 4 * kth.std() / math.sqrt(len(kth)) + 1e-12
        assert theory.expected_order_statistic(TIMES[name], k, 8) == pytest.approx(kth.mean(), abs=error)


def test_order_statistics_of_heavy_tails():
    # P (m / t)^(shape k): the least of P Pareto times is one of shape P k; the largest by Beta functions.
    shape = 1.05
    least = (shape - 1) / shape
    heavy = timing.pareto(1.0, shape)
    assert theory.expected_order_statistic(heavy, 1, 1) == pytest.approx(1, rel=1e-9)
    assert theory.expected_order_statistic(heavy, 1, 5) == pytest.approx(
        least * 5 * shape / (5 * shape - 1), rel=1e-9)
    largest = least * math.gamma(6) * math.gamma(1 - 1 / shape) / math.gamma(6 - 1 / shape)
    assert theory.expected_order_statistic(heavy, 5, 5) == pytest.approx(largest, rel=1e-9)


@pytest.mark.parametrize("name", ["exponential", "gamma", "pareto"])
def test_k_async_has_an_exact_mean(name):
    trace = simulate(protocols.k_async(3), TIMES[name], 8, 60_000, seed=0)
    # What the running computations miss at the end: at most 8 times the longest.
    assert theory.mean_staleness(protocols.k_async(3), 8) == pytest.approx(8 / 3 - 1)
    assert trace.staleness.mean() == pytest.approx(8 / 3 - 1, rel=0.01)


def test_what_has_no_formula_is_simulated():
    found = theory.predict(protocols.ssp(1), timing.exponential(1.0), 4, num_gradients=20_000)
    assert found.sources["update_period"] == found.sources["staleness_law"] == "simulation"
    assert 0 < found.idle_fraction < 1 and found.updates_per_second < 4
    law = theory.staleness_law(protocols.staleness_threshold(2), timing.exponential(1.0), 8,
                               num_gradients=20_000)
    assert len(law) == 3 and theory.tail(law, 1) == law[2]


def test_bad_input():
    with pytest.raises(ValueError, match="method must be auto, exact, poisson or simulation"):
        theory.staleness_law(protocols.asynchronous(), timing.exponential(1.0), 4, method="guess")
    with pytest.raises(ValueError, match="method='poisson' is for workers that never wait"):
        theory.staleness_law(protocols.hardsync(), timing.exponential(1.0), 4, method="poisson")
    with pytest.raises(ValueError, match="method='exact' has no law"):
        theory.staleness_law(protocols.asynchronous(), timing.gamma(1.0, 0.5), 4, method="exact")
    for call in (lambda: theory.predict(protocols.asynchronous(), timing.exponential(1.0), 0),
                 lambda: theory.mean_staleness(protocols.asynchronous(), 0),
                 lambda: theory.staleness_law(protocols.asynchronous(), timing.exponential(1.0), 0)):
        with pytest.raises(ValueError, match="num_workers must be an integer >= 1, not 0"):
            call()
    with pytest.raises(ValueError, match="k must be an integer from 1 to 3, not 4"):
        theory.expected_order_statistic(timing.exponential(1.0), 4, 3)
    assert theory.tail(np.ones(1), math.inf) == 0
    with pytest.raises(ValueError, match="n of softsync"):
        theory.predict(protocols.softsync(5), timing.exponential(1.0), 4)
