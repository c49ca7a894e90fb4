"""The points of a sweep."""

import doctest
import math

import pytest

from launch import sweep_points
from launch.sweep_points import points

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # Of ml_collections.
DIGITS = "configs/digits.py"
RANDOM = "learning_rate=loguniform(1e-3,1) momentum=uniform(0,0.9) cluster.num_workers=randint(4,16)"


def test_grid():
    found = points(DIGITS, "learning_rate=0.1,0.5 model.hidden=(4,),(8, 8)", "", 0, 0, ["--config.seed=7"])
    assert [(point.config["learning_rate"], point.config["model"]["hidden"]) for point in found] == [
        (0.1, [4]), (0.1, [8, 8]), (0.5, [4]), (0.5, [8, 8])]
    assert all(point.config["seed"] == 7 for point in found)
    assert found[1].flags == ("--config=configs/digits.py", "--config.seed=7", "--config.learning_rate=0.1",
                              "--config.model.hidden=(8, 8)")


def test_names_are_file_names_and_do_not_depend_on_order():
    names = [point.name for point in points(DIGITS, "learning_rate=0.1 trace_path=a/b,ab,(a b)", "", 0, 0)]
    other = [point.name for point in points(DIGITS, "trace_path=a/b,ab,(a b) learning_rate=0.1", "", 0, 0)]
    assert names == other and len(set(names)) == 3
    assert names[1] == "learning_rate=0.1,trace_path=ab"
    assert all(set("/ ()").isdisjoint(name) for name in names)
    [long] = points(DIGITS, f"trace_path={'x' * 300}", "", 0, 0)
    assert len(long.name) < 120


def test_samples():
    found = points(DIGITS, "", RANDOM, 50, 3)
    rates = [point.config["learning_rate"] for point in found]
    assert all(1e-3 <= rate <= 1 for rate in rates)
    assert 15 < sum(math.log10(rate) < -1.5 for rate in rates) < 35  # Half of them, on a logarithmic scale.
    assert 15 < sum(point.config["momentum"] < 0.45 for point in found) < 35
    workers = {point.config["cluster"]["num_workers"] for point in found}
    assert {4, 16} < workers <= set(range(4, 17))
    assert found == points(DIGITS, "", RANDOM, 50, 3)
    assert found[:10] == points(DIGITS, "", RANDOM, 10, 3)
    assert rates != [point.config["learning_rate"] for point in points(DIGITS, "", RANDOM, 50, 4)]
    alone = points(DIGITS, "", RANDOM.split()[0], 50, 3)
    assert rates == [point.config["learning_rate"] for point in alone]


def test_every_sample_is_at_every_point_of_the_grid():
    found = points(DIGITS, "seed=1,2", "learning_rate=uniform(0,1) batch_size=choice(8,16)", 5, 0)
    assert [point.values["seed"] for point in found] == ["1"] * 5 + ["2"] * 5
    assert [point.values["learning_rate"] for point in found[:5]] == [
        point.values["learning_rate"] for point in found[5:]]
    assert {point.config["batch_size"] for point in found} == {8, 16}


def test_rounding_stays_within_bounds():
    found = points(DIGITS, "", "momentum=uniform(0.99996,0.99999)", 20, 0)
    assert all(0.99996 <= point.config["momentum"] <= 0.99999 for point in found)


@pytest.mark.parametrize("grid, randoms, samples, message", [
    ("", "", 0, "--grid or --random must name fields"),
    ("nope=1", "", 0, "--config has no field 'nope'"),
    ("cluster.nope=1", "", 0, "--config has no field 'nope'"),
    ("learning_rate=0.1,fast", "", 0, "--config.learning_rate=fast"),
    ("cluster.num_workers=4.5", "", 0, "--config.cluster.num_workers=4.5"),
    ("learning_rate=0.1,", "", 0, "'learning_rate=0.1,' must be FIELD="),
    ("learning_rate", "", 0, "'learning_rate' must be FIELD="),
    ("model.hidden=(4,", "", 0, "brackets in"),
    ("seed=1 seed=2", "", 0, "--grid has seed twice"),
    ("seed=1", "seed=uniform(0,1)", 1, "seed is set twice"),
    ("num_gradients=1", "", 0, "num_gradients is set twice"),
    ("learning_rate=0.1,0.10", "", 0, "points learning_rate=0.1 and learning_rate=0.10 are"),
    ("", "seed=choice(1,2)", 3, "are the same run"),
    ("", "learning_rate=uniform(0,1)", 0, "--num_samples=0 must be at least 1"),
    ("seed=1", "", 2, "--num_samples=2 must be at least 1 with --random, and 0 without"),
    ("", "learning_rate=normal(0,1)", 1, "must be uniform(a,b), loguniform(a,b)"),
    ("", "learning_rate=uniform(1,0)", 1, "must have two numbers, the smaller one first"),
    ("", "learning_rate=uniform(0,inf)", 1, "must have two numbers"),
    ("", "learning_rate=loguniform(0,1)", 1, "the smaller one first and above 0"),
    ("", "seed=randint(0.5,1)", 1, "the smaller one first and whole"),
    ("", "cluster.num_workers=uniform(4,16)", 1, "--config.cluster.num_workers="),
])
def test_errors(grid, randoms, samples, message):
    with pytest.raises(sweep_points.SweepError) as error:
        points(DIGITS, grid, randoms, samples, 0, ["--config.num_gradients=20"])
    assert message in str(error.value)


def test_missing_config():
    with pytest.raises(sweep_points.SweepError, match="configs/nope.py"):
        points("configs/nope.py", "seed=1", "", 0, 0)


def test_example():
    assert doctest.testmod(sweep_points).failed == 0
