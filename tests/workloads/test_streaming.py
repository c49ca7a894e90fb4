"""Streamed data sets against the same examples in memory, bit for bit."""

import jax
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import protocols, timing
from asgd.workloads import datasets, models
from asgd.workloads.images import Crops
from asgd.workloads.sampling import AgentSampler, EventSampler
from asgd.workloads.streaming import StreamedDataset
from asgd.workloads.task import make_task

KNOBS = dict(threads=2, prefetch=3)


def _examples(rows):
    return [{"image": image, "label": label} for image, label in zip(rows["image"], rows["label"])]


@pytest.fixture(scope="module")
def memory():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def streamed(memory):
    return StreamedDataset(
        "digits", _examples(memory.train), _examples(memory.test), num_classes=10, **KNOBS)


def _same(found, expected):
    assert set(found) == set(expected)
    for name, rows in expected.items():
        assert found[name].dtype == rows.dtype
        np.testing.assert_array_equal(found[name], rows)


@pytest.mark.parametrize("sampler", [
    EventSampler(1437, 7, seed=3), AgentSampler(1437, 5, num_agents=4, seed=3)], ids=["event", "agent"])
def test_batches_are_those_in_memory(memory, streamed, sampler):
    expected, found = memory.batches(sampler), streamed.batches(sampler)
    found.expect(np.arange(400, 600))  # Beyond the first pass, as after an interruption.
    for piece in ([5, 0, 1000], np.arange(400, 430), np.arange(430, 600)):
        _same(found(np.asarray(piece)), expected(np.asarray(piece)))


def test_shape_labels_mean_and_test_batches_are_those_in_memory(memory, streamed):
    assert (streamed.num_examples, streamed.image_shape) == (1437, (8, 8, 1))
    np.testing.assert_array_equal(streamed.labels, memory.labels)
    assert streamed.mean.dtype == np.float32
    np.testing.assert_array_equal(streamed.mean, memory.mean)
    for size in (100, 360, 500):
        pairs = zip(streamed.test_batches(size), memory.test_batches(size), strict=True)
        for found, expected in pairs:
            _same(found, expected)


def test_training_and_evaluation_end_with_the_same_bits(memory, streamed):
    model = models.create("mlp", 10, hidden=(8,))
    trace = asgd.simulate(protocols.asynchronous(), timing.exponential(1.0), 4, 60, seed=0)
    ends = []
    for data in (memory, streamed):
        task = make_task(data, model)
        params, _ = task.init(0)
        batches = task.batches(EventSampler(task.num_examples, 8, seed=1))
        end = asgd.emulate(task.loss_fn, optax.sgd(0.1), params, trace, batches)
        ends.append((end.params, end.losses, task.evaluate(end.params)))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert ends[0][2]["eval_accuracy"] > 0.2


def test_files_give_what_they_give_in_memory(tiny_mnist):
    memory, streamed = (datasets.load("mnist", tiny_mnist, streaming=how, read_threads=2, prefetch=2)
                        for how in ("never", "always"))
    sampler = EventSampler(8, 3, seed=0)
    found = streamed.batches(sampler)
    found.expect(np.arange(9))
    _same(found(np.arange(9)), memory.batches(sampler)(np.arange(9)))
    np.testing.assert_array_equal(streamed.mean, memory.mean)
    _same(next(streamed.test_batches(4)), memory.test)


def test_imagenet_is_cut_by_seed_event_and_place_alone(tiny_imagenet):
    data = datasets.load("imagenet", tiny_imagenet, image_size=16, augment=True, read_threads=2,
                         prefetch=2)
    assert (data.num_examples, data.num_classes, data.image_shape) == (6, 1000, (16, 16, 3))
    assert data.labels is None and data.mean.shape == (3,)
    sampler, events = EventSampler(6, 3, seed=0), np.arange(8)
    expected = data.batches(sampler)(events)
    assert expected["image"].shape == (8, 3, 16, 16, 3) and expected["image"].dtype == np.uint8
    assert sorted(expected["label"][:2].ravel()) == [0, 100, 200, 300, 400, 500]
    again = data.batches(sampler)
    again.expect(events[2:])
    _same(again(events[2:]), {name: rows[2:] for name, rows in expected.items()})

    class Always:
        """Every place of every event has example 0."""

        def __init__(self, seed, batch_size):
            self.seed, self.batch_size = seed, batch_size

        def indices(self, events):
            return np.zeros((len(events), self.batch_size), np.int32)

    crops = data.batches(Always(0, 3))(events)["image"]
    assert len(np.unique(crops.reshape(24, -1), axis=0)) == 24
    np.testing.assert_array_equal(data.batches(Always(0, 2))(events)["image"], crops[:, :2])
    assert (data.batches(Always(1, 3))(events)["image"] != crops).any(axis=(2, 3, 4)).all()


def test_imagenet_is_tested_on_the_middle_of_its_validation_split(tiny_imagenet):
    data = datasets.load("imagenet", tiny_imagenet, image_size=16, augment=True)
    plain = datasets.load("imagenet", tiny_imagenet, image_size=16)
    (batch,) = data.test_batches(5)
    assert sorted(batch["label"]) == [0, 100, 200]
    source = datasets.tfds_source("imagenet2012", "validation", tiny_imagenet, encoded=True)
    crops = Crops(16, augment=False)
    np.testing.assert_array_equal(batch["image"], [crops(example["image"]) for example in source])
    _same(next(plain.test_batches(5)), batch)
    # Without augmentation training images are cut alike in every event.
    rows = plain.batches(EventSampler(6, 6, seed=0))(np.arange(2))
    first, second = (rows["image"][i][np.argsort(rows["label"][i])] for i in (0, 1))
    np.testing.assert_array_equal(first, second)
    grey = batch["image"][np.argmax(batch["label"])]
    assert (grey == grey[..., :1]).all()


@pytest.mark.parametrize("broken, words", [
    ({"image": np.zeros([2, 3, 1], np.uint8), "label": 1}, r"its image must be uint8 \[2, 2, 1\], not"),
    ({"image": np.zeros([2, 2, 1], np.uint8), "label": 3}, "its label must lie in 0 to 2, not 3"),
    ({"label": 1}, "'image'"),
])
@pytest.mark.parametrize("expect", [True, False])
def test_an_example_that_cannot_be_read_is_named(broken, words, expect):
    good = {"image": np.zeros([2, 2, 1], np.uint8), "label": 0}
    data = StreamedDataset("bad", [good] * 4 + [broken], [good], num_classes=3, **KNOBS)
    batches = data.batches(EventSampler(5, 5, seed=0))
    if expect:
        batches.expect(np.arange(3))
    with pytest.raises(RuntimeError, match=f"example 4 of the train split of bad cannot be read: {words}"):
        batches(np.arange(3))


def test_pictures_that_are_none_are_named():
    bad = [{"image": b"no picture", "label": 0}]
    with pytest.raises(RuntimeError, match="example 0 of the train split of x cannot be read: cannot ident"):
        StreamedDataset("x", bad, bad, num_classes=2, crops=Crops(8, False))
