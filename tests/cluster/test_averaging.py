"""Schedules of averaging: what paper D's algorithms promise, and what files and arguments may be."""

import numpy as np
import pytest

from asgd.cluster import averaging, timing
from asgd.cluster.averaging import MEASURE, MERGE, RELEASE, TAKE, AveragingSchedule

SLOW = timing.Timing(timing.gamma(1.0, 0.5), slowdown=[1, 1, 1, 4])
N = 4


def actions(schedule, kind, member=None):
    chosen = schedule.action == kind
    if member is not None:
        chosen &= schedule.member == member
    return np.flatnonzero(chosen)


@pytest.mark.parametrize("max_drift", [1, 2, 3, 8, 30])
@pytest.mark.parametrize("merge_time", [0.0, 0.5, 7.0])
def test_whenever_ready_keeps_its_promises(max_drift, merge_time):
    schedule = averaging.whenever_ready(N, 600, max_drift, SLOW, merge_time=merge_time)
    drift = schedule.drift
    assert drift.max() <= max_drift
    # Whoever waits has reached the bound: the gradient before is the last that the copy allows.
    order = np.argsort(schedule.worker, kind="stable")
    same = schedule.worker[order][1:] == schedule.worker[order][:-1]
    before, after = order[:-1][same], order[1:][same]
    waited = schedule.waits[after] > 0
    assert (drift[before][waited] == max_drift).all()
    # Everybody releases at every merge, and takes each copy once before releasing again.
    merges = actions(schedule, MERGE)
    for w in range(N):
        releases, takes = actions(schedule, RELEASE, w), actions(schedule, TAKE, w)
        assert (releases < merges).all() and (releases[1:] > merges[:-1]).all()
        assert len(takes) >= len(merges) - 1
        assert (takes[:len(merges)] > merges[:len(takes)]).all()
        assert (takes[:len(merges) - 1] < releases[1:]).all()
        # Every release has a gradient in it.
        steps = [np.count_nonzero(schedule.worker[:a] == w) for a in schedule.after[releases]]
        assert (np.diff([0, *steps]) >= 1).all()
    # The server asks as soon as the slowest has a gradient and all have the copy.
    for k, merge in enumerate(merges):
        last_take = max((actions(schedule, TAKE, w)[k - 1] for w in range(N)), default=0) if k else 0
        ready = max(schedule.after[last_take] if k else 0, max(
            np.flatnonzero(schedule.worker == w)[np.searchsorted(
                np.flatnonzero(schedule.worker == w),
                schedule.after[actions(schedule, RELEASE, w)[k - 1]] if k else 0)]
            for w in range(N)) + 1)
        assert schedule.after[merge] == ready


def test_copies_arrive_after_the_merge_time():
    schedule = averaging.whenever_ready(N, 400, 6, SLOW, merge_time=2.5)
    merges = actions(schedule, MERGE)
    asked = schedule.finish_time[schedule.after[merges] - 1]
    for w in range(N):
        takes = actions(schedule, TAKE, w)
        for k, place in enumerate(schedule.after[takes]):
            mine = np.flatnonzero(schedule.worker == w)
            following = mine[mine >= place]
            if len(following):
                assert schedule.start_time[following[0]] >= asked[k] + 2.5 - 1e-9


def test_one_worker_without_delay_merges_after_each_gradient():
    schedule = averaging.whenever_ready(1, 5, 3, timing.constant(2.0))
    assert schedule.after[actions(schedule, MERGE)].tolist() == [1, 2, 3, 4, 5]
    assert schedule.finish_time.tolist() == [2, 4, 6, 8, 10] and schedule.drift.tolist() == [1] * 5


def test_idle_time_vanishes_with_the_bound():
    """D.3: almost none once the bound covers the slowest worker and the way to the server."""
    idle = [averaging.whenever_ready(N, 2000, bound, SLOW, merge_time=2.0).waits.sum()
            for bound in (1, 2, 4, 8, 16, 64)]
    assert (np.diff(idle) <= 0).all() and idle[-1] == 0 < idle[2]


def test_cyclic_drift_and_waiting():
    schedule = averaging.cyclic(2, 9, 3)
    steps = np.arange(9)
    # 1, 2, 3, then a period ahead: the copy of a period before.
    want = np.where(steps < 6, steps + 1, steps % 3 + 4)
    want = np.where((steps >= 6), want, steps + 1)
    assert schedule.drift.reshape(9, 2).T.tolist() == [want.tolist()] * 2
    assert schedule.drift.max() == 6
    # A merge of 5 seconds is 2 more than a period; it is waited for from the second on.
    waits = averaging.cyclic(2, 12, 3, merge_time=5.0).waits.reshape(12, 2)
    assert waits[:, 0].tolist() == [0] * 6 + [2, 0, 0, 2, 0, 0]
    # Local SGD waits for all of it, and for the slowest.
    clock = timing.Timing(timing.constant(1.0), slowdown=[1.0, 2.0])
    waits = averaging.cyclic(2, 6, 3, delay=0, timing=clock, merge_time=5.0).waits.reshape(6, 2)
    assert waits.tolist() == [[0, 0]] * 3 + [[8, 5]] + [[0, 0]] * 2


@pytest.mark.parametrize("delay", [0, 2, 4])
def test_in_cycles_nobody_goes_on_without_the_copy_or_before_being_done(delay):
    schedule = averaging.cyclic(N, 40, 4, delay=delay, timing=SLOW, merge_time=1.5)
    assert (schedule.waits >= 0).all()
    start, finish = (x.reshape(40, N) for x in (schedule.start_time, schedule.finish_time))
    for step in range(4, 41 - delay - 1, 4):
        there = finish[step - 1].max() + 1.5
        assert (start[step + delay] >= there - 1e-9).all()
        own = finish[step + delay - 1]
        np.testing.assert_allclose(start[step + delay], np.maximum(there, own), rtol=1e-12)


def test_independent_workers_send_after_steps_of_their_own():
    clock = timing.Timing(timing.constant(1.0), slowdown=[1.0, 2.0])
    schedule = averaging.independent(2, 40, [4, 2], clock, merge_time=1.0)
    for w, steps in ((0, 4), (1, 2)):
        mine = np.flatnonzero(schedule.worker == w)
        places = schedule.after[actions(schedule, RELEASE, w)]
        counts = np.searchsorted(mine, places)
        assert counts.tolist() == list(range(steps, steps * len(places) + 1, steps))
        waits = schedule.waits[mine]
        assert waits[steps::steps].tolist() == [1.0] * len(waits[steps::steps])
        assert np.count_nonzero(waits) == len(waits[steps::steps])
        assert schedule.drift[mine].max() == steps
    assert actions(schedule, TAKE).size == actions(schedule, MERGE).size
    assert not actions(averaging.independent(2, 40, 4, clock, takes=False), TAKE).size


@pytest.mark.parametrize("schedule", [
    averaging.cyclic(3, 14, 4, delay=2), averaging.whenever_ready(N, 90, 5, SLOW, merge_time=0.7),
    averaging.independent(N, 80, [3, 2, 4, 1], SLOW, merge_time=0.7)], ids=range(3))
def test_a_gradient_can_start_when_what_it_reads_is_there(schedule):
    earliest = schedule.earliest()
    for event, worker in enumerate(schedule.worker):
        mine = np.flatnonzero(schedule.worker[:event] == worker)
        takes = schedule.after[actions(schedule, TAKE, worker)]
        takes = takes[takes <= event]
        assert earliest[event] == max(mine.max(initial=-1) + 1, takes.max(initial=0))


def test_merges_are_done_when_the_copies_are_there():
    schedule = averaging.whenever_ready(N, 200, 6, SLOW, merge_time=2.5)
    merges = actions(schedule, MERGE)
    asked = schedule.finish_time[schedule.after[merges] - 1]
    np.testing.assert_allclose(schedule.time[merges], asked + 2.5, rtol=1e-12)
    for k, merge in enumerate(merges[:-1]):
        takes = [actions(schedule, TAKE, w)[k] for w in range(N)]
        assert (schedule.time[takes] >= schedule.time[merge]).all()
    schedule = averaging.cyclic(N, 12, 3, merge_time=2.0)
    assert schedule.time[actions(schedule, MERGE)].tolist() == [5.0, 8.0, 11.0, 14.0]


@pytest.mark.parametrize("every, count", [(0, 0), (1, 5), (2, 2)])
def test_measures_so_often(every, count):
    assert averaging.cyclic(N, 15, 3, measure_every=every).num_measured == count


def test_equal_arguments_give_equal_schedules_and_files(tmp_path):
    schedule = averaging.whenever_ready(N, 50, 5, SLOW, merge_time=0.7, seed=3)
    schedule.save(tmp_path / "a.npz")
    assert AveragingSchedule.load(tmp_path / "a.npz") == schedule
    assert averaging.whenever_ready(N, 50, 5, SLOW, merge_time=0.7, seed=3) == schedule
    assert averaging.whenever_ready(N, 50, 5, SLOW, merge_time=0.7, seed=4) != schedule
    (tmp_path / "b.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="b.npz is not an averaging schedule"):
        AveragingSchedule.load(tmp_path / "b.npz")


def test_the_head_is_the_schedule_of_a_shorter_run():
    for make in (lambda n: averaging.whenever_ready(N, n, 5, SLOW, merge_time=0.7),
                 lambda n: averaging.cyclic(N, n // N, 5)):
        assert make(80).head(40) == make(40)


FIELDS = dict(num_workers=2, worker=[0, 1], start_time=[0.0, 0.0], finish_time=[1.0, 1.0],
              after=[2], action=[MEASURE], member=[0], time=[1.0])


@pytest.mark.parametrize("changed, words", [
    (dict(worker=[0, 2]), r"worker\[1\] is 2: must be 0 to 1"),
    (dict(worker=[0.0, 1.0]), "worker must be a vector of int32"),
    (dict(start_time=[0.0]), "must be equally long"),
    (dict(worker=[0, 2**32]), r"worker\[1\] is 4294967296: must be 0 to 1"),
    (dict(action=[256]), r"action\[0\] is 256: must be 0 to 3"),
    (dict(num_workers=2.5), "num_workers must be an integer, 1 or more, got 2.5"),
    (dict(start_time=[0.0, -np.inf]), r"start_time\[1\] is -inf: must be finite, 0 or more"),
    (dict(worker=[0, 0]), r"start_time\[1\] is 0.0: is before the worker's last finish_time"),
    (dict(finish_time=[1.0, -1.0]), r"finish_time\[1\] is -1.0: must be finite and not before"),
    (dict(after=[3]), r"after\[0\] is 3: must be 1 to 2"),
    (dict(after=[0]), r"after\[0\] is 0: must be 1 to 2"),
    (dict(after=[2, 1], action=[2, 2], member=[0, 0], time=[1.0, 1.0]),
     r"after\[1\] is 1: is less than before"),
    (dict(action=[4]), r"action\[0\] is 4: must be 0 to 3"),
    (dict(member=[2]), r"member\[0\] is 2: must be 0 to 1"),
])
def test_bad_columns_are_refused(changed, words):
    AveragingSchedule(**FIELDS)
    with pytest.raises(ValueError, match=words):
        AveragingSchedule(**{**FIELDS, **changed})


@pytest.mark.parametrize("make, words", [
    (lambda: averaging.cyclic(0, 4, 2), "num_workers must be an integer, 1 or more, got 0"),
    (lambda: averaging.cyclic(2, 4, 2.5), "period must be an integer, 1 or more, got 2.5"),
    (lambda: averaging.cyclic(2, 4, 2, merge_time=-1.0), "merge_time must be seconds, 0 or more"),
    (lambda: averaging.whenever_ready(2, 4, 0, SLOW), "max_drift must be an integer, 1 or more"),
    (lambda: averaging.independent(2, 4, [1, 2, 3], SLOW), "steps must be a number or 2 of them"),
    (lambda: averaging.independent(2, 4, 0, timing.constant(1.0)), "steps must be an integer"),
    (lambda: averaging.cyclic(2, 4, 2, merge_time="a"), "merge_time must be seconds"),
    (lambda: averaging.cyclic(2, 4, 2, measure_every=-1), "measure_every must be an integer, 0"),
    (lambda: averaging.whenever_ready(2, 4, 2, timing.Timing(timing.constant(1.0), pull=5.0)),
     "timing: pull and push must be 0, as communication takes merge_time"),
])
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
