"""The sample stream: permutations, purity, and hardsync against one big batch."""

import tracemalloc

import numpy as np
import pytest

from asgd.workloads.sampling import AgentSampler, EventSampler

SIZES = [(10, 3), (12, 4), (7, 7), (100, 1), (97, 32)]


@pytest.mark.parametrize("num_examples, batch_size", SIZES)
def test_each_pass_is_a_fresh_permutation(num_examples, batch_size):
    sampler = EventSampler(num_examples, batch_size, seed=3)
    passes = 4
    events = np.arange(-(-passes * num_examples // batch_size))
    rows = sampler.indices(events)
    assert rows.shape == (len(events), batch_size)
    assert rows.dtype == np.int32
    stream = rows.ravel()[: passes * num_examples].reshape(passes, num_examples)
    np.testing.assert_array_equal(np.sort(stream), [np.arange(num_examples)] * passes)
    assert len({tuple(one) for one in stream.tolist()}) == passes


@pytest.mark.parametrize("num_examples, batch_size", SIZES)
def test_rows_depend_on_the_event_alone(num_examples, batch_size):
    events = np.random.default_rng(0).integers(0, 1000, size=50)
    together = EventSampler(num_examples, batch_size, seed=1).indices(events)
    for event, row in zip(events, together, strict=True):
        alone = EventSampler(num_examples, batch_size, seed=1).indices([event])
        np.testing.assert_array_equal(alone, row[None])


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_hardsync_gradients_use_the_samples_of_one_big_batch(workers):
    small = EventSampler(num_examples=50, batch_size=4, seed=9)
    big = EventSampler(num_examples=50, batch_size=4 * workers, seed=9)
    updates = np.arange(40)
    gradients = small.indices(np.arange(40 * workers))
    np.testing.assert_array_equal(gradients.reshape(40, -1), big.indices(updates))


def test_pass_order_is_the_documented_one():
    for number in (0, 1, 5):
        seeds = np.random.SeedSequence([11, number])
        expected = np.random.default_rng(seeds).permutation(20)
        found = EventSampler(20, 5, seed=11).indices(np.arange(4 * number, 4 * number + 4))
        np.testing.assert_array_equal(found.ravel(), expected)


def test_seeds_differ():
    first, second = (EventSampler(100, 10, seed=seed).indices([0]) for seed in (0, 1))
    assert (first != second).any()


def test_far_events_and_no_events():
    sampler = EventSampler(num_examples=50000, batch_size=128, seed=0)
    number, offset = divmod(2**40 * 128, 50000)
    order = np.random.default_rng(np.random.SeedSequence([0, number])).permutation(50000)
    found = sampler.indices(np.array([2**40]))
    np.testing.assert_array_equal(found[0], order[offset:offset + 128])
    assert sampler.indices(np.array([], np.int64)).shape == (0, 128)


@pytest.mark.parametrize("arguments, message", [
    ((10, 11, 0), "batch_size must be an integer from 1 to 10 .num_examples"),
    ((10, 0, 0), "batch_size must be"),
    ((10, 2.5, 0), "batch_size must be"),
    ((0, 1, 0), "num_examples must be"),
    ((10, 1, -1), "seed must be an integer from 0 to 4294967295"),
    ((10, 1, 2**32), "seed must be"),
    ((10, True, 0), "batch_size must be"),
])
def test_bad_fields_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EventSampler(*arguments)


@pytest.mark.parametrize("events, message", [
    ([-1], "events must be 0 or more, not -1"),
    ([0.5], "events must be a one-dimensional array of integers"),
    (3, "events must be a one-dimensional array of integers"),
])
def test_bad_events_are_refused(events, message):
    with pytest.raises(ValueError, match=message):
        EventSampler(10, 2, 0).indices(events)


@pytest.mark.parametrize("num_examples, num_agents", [(20, 4), (23, 4), (9, 3)])
def test_agents_share_the_samples_between_them(num_examples, num_agents):
    batch_size = 3
    sampler = AgentSampler(num_examples, batch_size, num_agents, seed=5)
    rounds = 40
    rows = sampler.indices(np.arange(rounds * num_agents)).reshape(rounds, num_agents, batch_size)
    parts = [set(rows[:, i].ravel().tolist()) for i in range(num_agents)]
    assert set.union(*parts) == set(range(num_examples))
    assert sum(map(len, parts)) == num_examples  # No sample belongs to two.
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for i, part in enumerate(parts):  # Each pass over a part uses every sample of it once.
        first = rows[:, i].ravel()[: len(part)]
        assert set(first.tolist()) == part
    other = AgentSampler(num_examples, batch_size, num_agents, seed=6).indices(np.arange(8))
    assert (other != sampler.indices(np.arange(8))).any()


def test_agents_samples_depend_on_the_event_alone():
    sampler = AgentSampler(50, 4, 5, seed=1)
    together = sampler.indices(np.arange(100))
    for event in (0, 7, 99):
        np.testing.assert_array_equal(sampler.indices([event])[0], together[event])


def test_samples_split_by_label():
    labels = np.random.default_rng(0).integers(0, 4, 80)
    sampler = AgentSampler(80, 5, 4, seed=0, labels=labels)
    rows = sampler.indices(np.arange(4 * 20)).reshape(20, 4, 5)
    means = [labels[rows[:, i]].mean() for i in range(4)]
    assert means == sorted(means)
    spans = [np.ptp(labels[rows[:, i]]) for i in range(4)]
    assert max(spans) <= 2
    # The first agent has the lowest labels there are.
    lowest = np.sort(labels)[:20]
    assert sorted(labels[np.unique(rows[:, 0])]) == lowest.tolist()


def test_the_order_of_large_data_is_kept_for_few_passes():
    number = 2**18
    sampler = EventSampler(number, number, seed=8)
    tracemalloc.start()
    try:
        for event in range(20):
            sampler.indices(np.array([event]))
        assert tracemalloc.get_traced_memory()[0] < 10 * 4 * number
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fields, words", [
    (dict(num_agents=0), "num_agents must be an integer from 1 to 20"),
    (dict(num_agents=21), "num_agents must be"),
    (dict(batch_size=6), r"batch_size must be an integer from 1 to 5 \(an agent's part"),
    (dict(seed=-1), "seed must be|expected non-negative"),
])
def test_bad_agent_samplers(fields, words):
    with pytest.raises(ValueError, match=words):
        AgentSampler(**{**dict(num_examples=20, batch_size=3, num_agents=4), **fields})
