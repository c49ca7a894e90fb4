"""Reading ahead against reading directly, and how far ahead it reads."""

import collections
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from asgd.workloads.read_ahead import ReadAhead


class Reader:
    """Rows that tell their number, and counts of how often each was read."""

    def __init__(self):
        self.reads, self.directly = collections.Counter(), set()

    def __call__(self, number):
        self.reads[number] += 1
        if threading.current_thread() is threading.main_thread():
            self.directly.add(number)
        return {"x": np.full([2, 3], number, np.int32), "y": np.array(number / 2, np.float32)}


def _check(rows, numbers):
    numbers = np.asarray(numbers)
    assert rows["x"].dtype == np.int32 and rows["y"].dtype == np.float32
    np.testing.assert_array_equal(rows["x"], np.broadcast_to(
        numbers[:, None, None], (len(numbers), 2, 3)))
    np.testing.assert_array_equal(rows["y"], numbers / 2)


@pytest.mark.parametrize("threads, prefetch", [(3, 5), (1, 1), (8, 2), (0, 4), (4, 0)])
def test_rows_are_those_of_the_numbers_and_read_once(threads, prefetch):
    reader = Reader()
    rows = ReadAhead(reader, threads, prefetch)
    order = np.concatenate([np.arange(0, 40, 2), np.arange(41, 60)])  # Of one process of several.
    rows.expect(order)
    for piece in np.split(order, [1, 2, 9, 9 + 17]):
        _check(rows(piece), piece)
    assert reader.reads == dict.fromkeys(order.tolist(), 1)
    assert bool(reader.directly) == (threads * prefetch == 0)


def test_other_numbers_are_read_directly_and_do_not_disturb():
    reader = Reader()
    rows = ReadAhead(reader, 2, 4)
    rows.expect(np.arange(100))
    _check(rows(np.arange(10)), np.arange(10))
    for other in ([50], [3, 4], [11, 12], [10, 12], [99, 98, 97]):
        _check(rows(other), other)
    _check(rows(np.arange(10, 30)), np.arange(10, 30))
    assert reader.reads[20] == 1 and reader.reads[11] == 2
    assert reader.directly == {3, 4, 10, 11, 12, 50, 97, 98, 99}


def test_what_is_left_goes_on_and_anything_else_replaces():
    reader = Reader()
    rows = ReadAhead(reader, 2, 4)
    rows.expect(np.arange(30))
    rows(np.arange(7))
    rows.expect(np.arange(7, 30))
    _check(rows(np.arange(7, 20)), np.arange(7, 20))
    assert set(reader.reads.values()) == {1}
    rows.expect(np.arange(5, 15))  # Back, as when a run is done again.
    _check(rows(np.arange(5, 15)), np.arange(5, 15))
    assert reader.reads[5] == reader.reads[14] == 2 and reader.reads[4] == 1
    assert not reader.directly
    assert max(reader.reads) < 20 + 4 + 1
    rows.expect(np.arange(1000, 1003))
    _check(rows(np.array([2])), [2])
    _check(rows(np.arange(1000, 1003)), np.arange(1000, 1003))
    _check(rows(np.array([1003])), [1003])
    assert reader.reads[1001] == 1


def test_no_more_is_read_ahead_than_asked_for():
    given, furthest = 0, []

    def read(number):
        furthest.append(number - given)
        return {"x": np.zeros(1)}

    rows = ReadAhead(read, 3, 5)
    rows.expect(np.arange(200))
    for number in range(100):
        rows(np.array([number]))
        given = number + 1
    rows.close()
    # The row that is being given, and five.
    assert max(furthest) <= 5
    assert len(furthest) <= 100 + 5


@pytest.mark.parametrize("expect", [True, False])
def test_errors_of_threads_reach_the_caller(expect):
    broken = {5}

    def read(number):
        if number in broken:
            raise RuntimeError("example 12 cannot be read")
        return {"x": np.array(number)}

    rows = ReadAhead(read, 2, 8)
    if expect:
        rows.expect(np.arange(10))
    assert rows(np.arange(5))["x"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError) as caught:
        rows(np.arange(5, 10))
    assert str(caught.value) == "example 12 cannot be read"
    broken.clear()
    assert rows(np.arange(5, 10))["x"].tolist() == [5, 6, 7, 8, 9]


def _double(number):
    return {"x": np.array(2 * number)}


def test_a_copy_reads_for_itself():
    rows = ReadAhead(_double, 2, 4)
    rows.expect(np.arange(10))
    copy = pickle.loads(pickle.dumps(rows))
    assert copy(np.arange(3))["x"].tolist() == rows(np.arange(3))["x"].tolist() == [0, 2, 4]


def test_a_process_ends_while_rows_are_read():
    program = """if True:
        import time
        import numpy as np
        from asgd.workloads.read_ahead import ReadAhead

        def read(number):
            time.sleep(0.02)
            return {"x": np.array(number)}

        rows = ReadAhead(read, 2, 10)
        rows.expect(np.arange(10**6))
        print(rows(np.arange(2))["x"])
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0 1]\n", "")


@pytest.mark.parametrize("call, words", [
    (lambda: ReadAhead(_double, -1), "threads must be 0 or more, not -1"),
    (lambda: ReadAhead(_double, 1, -2), "prefetch must be 0 or more, not -2"),
    (lambda: ReadAhead(_double)(np.zeros(0, np.int64)), "numbers must be at least one"),
    (lambda: ReadAhead(_double)(np.zeros([2, 2], int)), "numbers must be a one-dimensional array of int"),
    (lambda: ReadAhead(_double).expect(np.zeros(3)), "numbers must be .* of integers, not float64"),
])
def test_bad_arguments_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
