"""Distributions: moments, tails and sampling in parts."""

import json
import math

import numpy as np
import pytest

from asgd.cluster import timing

MEAN = 2.0
# name -> (distribution, its standard deviation over its mean, from the textbook).
DISTRIBUTIONS = {
    "constant": (timing.constant(MEAN), 0.0),
    "exponential": (timing.exponential(MEAN), 1.0),
    "shifted_exponential": (timing.shifted_exponential(shift=1.5, mean=MEAN), 0.25),
    "gamma": (timing.gamma(MEAN, cv=0.5), 0.5),
    "lognormal": (timing.lognormal(MEAN, cv=1.0), 1.0),
    "pareto": (timing.pareto(MEAN, shape=6.0), 1 / math.sqrt(24)),  # 1 / sqrt(a (a - 2))
    "empirical": (timing.empirical([1.0, 3.0]), 0.5),
}


@pytest.fixture(params=DISTRIBUTIONS)
def case(request):
    return DISTRIBUTIONS[request.param]


def test_mean_and_standard_deviation(case):
    distribution, cv = case
    size = 400_000
    times = distribution.sample(np.random.default_rng(1), size)
    assert times.shape == (size,) and times.dtype == np.float64 and (times >= 0).all()
    assert distribution.mean == MEAN
    # Five standard errors of a mean.
    assert abs(times.mean() / MEAN - 1) <= 5 * cv / math.sqrt(size)
    # A sample variance has standard error sqrt((kurtosis - 1) / size); the largest kurtosis here
    # is the lognormal's, 41 at cv 1 (the Pareto's is 38.7), so cv is known to about 2.5 %.
    assert abs(times.std() / MEAN - cv) <= 0.025 * cv + 1e-12


def test_drawing_in_parts_gives_the_same_numbers(case):
    distribution, _ = case
    whole = distribution.sample(np.random.default_rng(3), 1000)
    rng = np.random.default_rng(3)
    sizes = (1, 0, 7, 1, 491, 500)
    parts = np.concatenate([distribution.sample(rng, size) for size in sizes])
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize(
    "distribution, survival",
    [
        (timing.exponential(MEAN), lambda t: math.exp(-t / 2)),
        (timing.shifted_exponential(1.5, MEAN), lambda t: min(1.0, math.exp(-(t - 1.5) / 0.5))),
        (timing.gamma(MEAN, cv=math.sqrt(0.5)), lambda t: math.exp(-t) * (1 + t)),  # Erlang 2
        (
            timing.lognormal(MEAN, cv=1.0),
            # Of log(t) with variance log 2 and mean log(MEAN) - log(2) / 2.
            lambda t: math.erfc(math.log(t / math.sqrt(2)) / math.sqrt(2 * math.log(2))) / 2,
        ),
        (timing.pareto(MEAN, shape=2.5), lambda t: min(1.0, (1.2 / t) ** 2.5)),
        (timing.empirical([1.0, 1.0, 4.0]), lambda t: 1.0 if t < 1 else 1 / 3 if t < 4 else 0.0),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_survival_function(distribution, survival):
    size = 200_000
    times = distribution.sample(np.random.default_rng(5), size)
    for t in (0.5, 1.3, 1.6, 2.0, 3.0, 6.0):
        p = survival(t)
        # Five binomial standard errors.
        assert abs((times > t).mean() - p) <= 5 * math.sqrt(p * (1 - p) / size), t


def test_from_name_has_the_mean_and_the_cv():
    assert timing.from_name("constant", mean=3.0) == timing.constant(3.0)
    assert timing.from_name("exponential", mean=3.0) == timing.exponential(3.0)
    assert timing.from_name("gamma", 3.0, 0.5) == timing.gamma(3.0, cv=0.5)
    assert timing.from_name("lognormal", 3.0, 0.5) == timing.lognormal(3.0, cv=0.5)
    shifted = timing.from_name("shifted_exponential", 3.0, 0.25)
    assert shifted == timing.shifted_exponential(shift=2.25, mean=3.0)
    shape = dict(timing.from_name("pareto", 3.0, 0.5).parameters)["shape"]
    assert shape > 2 and 1 / (shape * (shape - 2)) == pytest.approx(0.25)


def test_describe_is_json_and_tells_distributions_apart(case):
    described = json.dumps(case[0].describe())
    assert json.loads(described)["mean"] == MEAN
    others = [json.dumps(other.describe()) for other, _ in DISTRIBUTIONS.values()]
    assert others.count(described) == 1
    assert timing.empirical([1.0, 3.0]).describe() != timing.empirical([3.0, 1.0]).describe()


def test_empirical_keeps_its_own_samples():
    samples = np.array([1.0, 3.0])
    distribution = timing.empirical(samples)
    samples[:] = 100.0
    assert distribution.sample(np.random.default_rng(0), 100).max() == 3.0


def test_timing_takes_numbers_and_bare_distributions():
    compute = timing.exponential(1.0)
    assert timing.as_timing(compute) == timing.Timing(compute)
    assert timing.Timing(compute) == timing.Timing(compute, pull=0, push=timing.constant(0.0))
    spelled = timing.Timing(compute, pull=0.25, push=timing.gamma(0.5, 1.0), slowdown=(1, 2))
    np.testing.assert_array_equal(spelled.cycle_means(2), [1.75, 2.75])
    described = json.loads(json.dumps(spelled.describe()))
    assert described["pull"] == {"distribution": "constant", "mean": 0.25}
    assert described["slowdown"] == [1.0, 2.0]


def test_workers_may_have_unlike_distributions():
    laws = [timing.constant(1.0), timing.gamma(3.0, cv=0.5)]
    spelled = timing.Timing(laws, pull=0.5, slowdown=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert spelled.distributions(5) == (*laws, *laws, laws[0])
    assert spelled.distributions(1) == (laws[0],)
    np.testing.assert_array_equal(spelled.cycle_means(5), [1.5, 6.5, 3.5, 12.5, 5.5])
    laws.pop()
    assert len(spelled.compute) == 2 and len({spelled, timing.Timing(laws)}) == 2
    described = json.loads(json.dumps(spelled.describe()))
    assert described["compute"] == [
        {"distribution": "constant", "mean": 1.0},
        {"distribution": "gamma", "mean": 3.0, "cv": 0.5},
    ]
    alike = timing.Timing(timing.constant(1.0))
    assert alike.distributions(2) == (timing.constant(1.0),) * 2
    assert alike.describe()["compute"] == {"distribution": "constant", "mean": 1.0}


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: timing.constant(-1.0), "mean must be a finite number >= 0, not -1"),
        (lambda: timing.exponential(0.0), "mean must be a finite number > 0, not 0"),
        (lambda: timing.exponential(math.nan), "mean must be a finite number > 0, not nan"),
        (lambda: timing.exponential(math.inf), "mean must be a finite number > 0, not inf"),
        (lambda: timing.exponential("1"), "mean must be a finite number > 0, not '1'"),
        (lambda: timing.exponential(True), "mean must be a finite number > 0, not True"),
        (lambda: timing.shifted_exponential(-1, 2), "shift must be a finite number >= 0"),
        (lambda: timing.shifted_exponential(2.0, 2.0), "mean .* must be a finite number > 2"),
        (lambda: timing.gamma(1.0, 0.0), "cv must be a finite number > 0, not 0"),
        (lambda: timing.lognormal(1.0, -1.0), "cv must be a finite number > 0, not -1"),
        (lambda: timing.pareto(1.0, 1.0), "shape must be a finite number > 1, not 1"),
        (lambda: timing.empirical([]), "samples must be a non-empty list"),
        (lambda: timing.empirical([[1.0]]), "samples must be a non-empty list"),
        (lambda: timing.empirical([1.0, -2.0]), "samples at row 1 is -2; .* finite and >= 0"),
        (lambda: timing.empirical([1.0, math.inf]), "samples at row 1 is inf"),
        (lambda: timing.empirical([0.0, 0.0]), "mean of samples must be a finite number > 0"),
        (
            lambda: timing.from_name("normal"),
            "must be one of constant, exponential, shifted_exponential, gamma, lognormal, pareto",
        ),
        (lambda: timing.from_name("shifted_exponential", 1, 1.5), r"cv .* in \(0, 1\], not 1.5"),
        (lambda: timing.from_name("pareto", 1.0, 0.0), "cv must be a finite number > 0"),
        (lambda: timing.Timing(timing.constant(0.0)), "compute must have a mean > 0"),
        (
            lambda: timing.Timing(1.0),
            "compute must be a Distribution, or a sequence of them, not 1.0",
        ),
        (lambda: timing.Timing([]), "compute must hold at least one Distribution"),
        (
            lambda: timing.Timing([timing.constant(1.0), 2.0]),
            "compute of worker 1 must be a Distribution, not 2.0",
        ),
        (
            lambda: timing.Timing([timing.constant(1.0), timing.constant(0.0)]),
            "compute of worker 1 must have a mean > 0",
        ),
        (lambda: timing.Timing(timing.constant(1.0), pull=-1), "pull must be .* >= 0, not -1"),
        (lambda: timing.Timing(timing.constant(1.0), push="a"), "push must be .* >= 0, not 'a'"),
        (
            lambda: timing.Timing(timing.constant(1.0), slowdown=[1.0, 0.0]),
            "slowdown of worker 1 must be a finite number > 0, not 0",
        ),
        (
            lambda: timing.Timing(timing.constant(1.0), slowdown=[1, 2, 3]).slowdowns(4),
            "slowdown has 3 factors but num_workers is 4",
        ),
        (lambda: timing.as_timing(3), "timing must be a Timing or a Distribution, not 3"),
    ],
)
def test_bad_input_names_the_field(build, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
