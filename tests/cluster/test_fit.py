"""Laws that are fitted to times: maximum likelihood, AIC and goodness of fit against textbooks."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import special

from asgd.cluster import Timing, Trace, protocols, simulate, timing

SIZE = 4000
LAWS = {
    "exponential": timing.exponential(2.0),
    "shifted_exponential": timing.shifted_exponential(shift=1.5, mean=2.0),
    "gamma": timing.gamma(2.0, cv=0.5),
    "lognormal": timing.lognormal(2.0, cv=0.8),
    "pareto": timing.pareto(2.0, shape=3.0),
}
# The textbook's densities, and how many parameters a fit has; a least time counts twice.
COUNTS = {"exponential": 1, "shifted_exponential": 3, "gamma": 2, "lognormal": 2, "pareto": 3}
WRONG = {
    "exponential": "lognormal",
    "shifted_exponential": "gamma",
    "gamma": "exponential",
    "lognormal": "gamma",
    "pareto": "lognormal",
}


def log_density(law, t):
    p = dict(law.parameters)
    match law.name:
        case "exponential":
            return -t / law.mean - math.log(law.mean)
        case "shifted_exponential":
            scale = law.mean - p["shift"]
            return -(t - p["shift"]) / scale - math.log(scale)
        case "gamma":
            shape, scale = p["cv"] ** -2, law.mean * p["cv"] ** 2
            return (shape - 1) * np.log(t) - t / scale - shape * math.log(scale) - math.lgamma(shape)
        case "lognormal":
            variance = math.log(1 + p["cv"] ** 2)
            z2 = (np.log(t / law.mean) + variance / 2) ** 2 / variance
            return -z2 / 2 - np.log(t) - math.log(2 * math.pi * variance) / 2
        case "pareto":
            least = law.mean * (p["shape"] - 1) / p["shape"]
            return math.log(p["shape"] / least) - (p["shape"] + 1) * np.log(t / least)


def standard_errors(law, n):
    """Of the mean's and the further parameter's maximum likelihood, from the Fisher information."""
    p, mean = dict(law.parameters), law.mean
    match law.name:
        case "exponential":
            return mean / math.sqrt(n), None
        case "shifted_exponential":  # The least of n is above the shift by scale / n on average.
            return (mean - p["shift"]) / math.sqrt(n), (mean - p["shift"]) / n
        case "gamma":
            shape = p["cv"] ** -2
            of_shape = math.sqrt(shape / (n * (shape * special.polygamma(1, shape) - 1)))
            return mean * p["cv"] / math.sqrt(n), of_shape * shape**-1.5 / 2
        case "lognormal":
            variance = math.log(1 + p["cv"] ** 2)
            of_log_mean = math.sqrt((variance + variance**2 / 2) / n)
            return mean * of_log_mean, variance * (1 + p["cv"] ** 2) / p["cv"] / math.sqrt(2 * n)
        case "pareto":
            return mean / (p["shape"] - 1) / math.sqrt(n), p["shape"] / math.sqrt(n)


def recorded(law, workers=1, size=SIZE, seed=0):
    return simulate(protocols.asynchronous(), law, workers, size, seed)


@pytest.mark.parametrize("name", LAWS)
def test_parameters_are_recovered_within_four_standard_errors(name):
    for seed in range(3):
        law = LAWS[name]
        (found,) = timing.fit(recorded(law, seed=seed), (name,)).compute
        assert found.name == name
        of_mean, of_other = standard_errors(law, SIZE)
        assert abs(found.mean - law.mean) <= 4 * of_mean
        if of_other is not None:
            (key, value), (other, true) = found.parameters[0], law.parameters[0]
            # A least time is an exponential time too large: e^-10 is beyond 10 of them.
            assert key == other and abs(value - true) <= (10 if key == "shift" else 4) * of_other


@pytest.mark.parametrize("name", LAWS)
def test_the_likelihood_is_the_textbooks_and_the_largest(name):
    trace = recorded(LAWS[name], seed=1)
    times = np.diff(trace.finish_time, prepend=0.0)
    (fit,) = timing.fit(trace, (name,)).fits
    largest = fit.log_likelihood
    assert largest == pytest.approx(log_density(fit.distribution, times).sum(), rel=1e-9)
    assert fit.aic == pytest.approx(2 * COUNTS[name] - 2 * largest)
    assert (fit.worker, fit.num_times, fit.pooled) == (0, SIZE, False)
    # Twice the gain over the truth is chi-squared with 1 to 3 degrees of freedom: 40 is rare.
    assert 0 <= largest - log_density(LAWS[name], times).sum() <= 20
    if name in ("exponential", "gamma", "lognormal"):  # A least time is at the edge of what can be.
        others = dict(fit.distribution.parameters)
        for factor in (0.99, 1.01):
            neighbours = [timing.from_name(name, factor * fit.distribution.mean, **others)]
            neighbours += [timing.from_name(name, fit.distribution.mean, factor * x)
                           for x in others.values()]
            for neighbour in neighbours:
                assert log_density(neighbour, times).sum() < largest


@pytest.mark.parametrize("name", [name for name in LAWS if name != "exponential"])
def test_aic_picks_the_family(name):
    (fit,) = timing.fit(recorded(LAWS[name], seed=2)).fits
    assert fit.distribution.name == name
    others = [other for other in LAWS if other not in (name, "pareto")]
    assert fit.aic < min(timing.fit(recorded(LAWS[name], seed=2), (o,)).fits[0].aic for o in others)


def test_aic_rarely_takes_more_parameters_than_there_are():
    workers = 400
    fits = timing.fit(recorded(timing.exponential(1.0), workers, 200 * workers)).fits
    names = [fit.distribution.name for fit in fits]
    # Twice the gain by a shift is chi-squared with 2 degrees of freedom, by a shape with 1.
    for name, chance in (("shifted_exponential", math.exp(-2)), ("gamma", math.erfc(1.0))):
        allowed = chance + 4 * math.sqrt(chance * (1 - chance) / workers)
        assert names.count(name) <= allowed * workers, name
    assert set(names) == {"exponential", "shifted_exponential", "gamma"}


@pytest.mark.parametrize("name", LAWS)
def test_kolmogorov_and_smirnov_reject_a_wrong_family_only(name):
    trace = recorded(LAWS[name], seed=3)
    assert timing.fit(trace, (name,)).fits[0].p_value > 1e-3
    wrong = timing.fit(trace, (WRONG[name],)).fits[0]
    assert wrong.p_value < 1e-3
    if WRONG[name] == "exponential":
        times = np.sort(np.diff(trace.finish_time, prepend=0.0))
        below = -np.expm1(-times / times.mean())
        steps = np.arange(SIZE + 1) / SIZE
        distance = max((steps[1:] - below).max(), (below - steps[:-1]).max())
        assert wrong.ks_statistic == pytest.approx(distance, rel=1e-9)


def test_constant_is_for_equal_times():
    trace = recorded(Timing(timing.constant(0.1), slowdown=[1.0, 3.0]), workers=2)
    fitted = timing.fit(trace)
    assert [law.name for law in fitted.compute] == ["constant"] * 2
    assert [law.mean for law in fitted.compute] == pytest.approx([0.1, 0.3], rel=1e-9)
    assert fitted.fits[0].aic == -math.inf and fitted.fits[0].p_value == 1
    jitter = recorded(timing.gamma(1.0, cv=1e-4))
    assert timing.fit(jitter).compute[0].name != "constant"


def test_zeros_and_infinite_means_leave_families_out():
    law = timing.empirical([0.0] + [1.0, 2.0, 3.0] * 4)
    assert timing.fit(recorded(law)).compute[0].name in ("exponential", "shifted_exponential")
    trace = recorded(timing.exponential(1.0))
    with pytest.raises(ValueError, match="none of pareto fits the 4000 times of worker 0"):
        timing.fit(trace, ("pareto",))  # The shape is about 1 / log(4000).


def test_scipy_is_imported_when_fitting_only():
    code = "import asgd.cluster, sys; asgd.cluster.timing.fit; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


GOOD = recorded(timing.gamma(1.0, 0.5), size=100)
# Worker 0 takes no time, worker 1 a second.
SECONDS = np.repeat(np.arange(20.0), 2)
ZERO = Trace([0, 1] * 20, [0] * 40, start_time=SECONDS - np.tile([0, 1], 20), finish_time=SECONDS)


@pytest.mark.parametrize(
    "trace, names, message",
    [
        (Trace([], []), timing.NAMES, "trace must hold at least one gradient, but it is empty"),
        (ZERO, timing.NAMES, "trace: the times of worker 0 are all 0"),
        (ZERO, ("empirical",), "trace: the times of worker 0 are all 0"),
        (ZERO.head(1), timing.NAMES, "trace: the times of all workers are all 0"),
        (GOOD, ("weibull",), "must be among constant, .*, pareto, empirical, not 'weibull'"),
        (GOOD, "normal", "distributions must be among .*, not 'normal'"),
        (GOOD, (), "distributions must name one of constant, "),
        (GOOD, ("gamma", "empirical"), "empirical has no likelihood to compare; give it alone"),
        (GOOD, ("constant",), "none of constant fits the 100 times of worker 0"),
    ],
)
def test_bad_input_names_what_it_may_be(trace, names, message):
    with pytest.raises(ValueError, match=message) as caught:
        timing.fit(trace, names)
    assert "\n" not in str(caught.value)
