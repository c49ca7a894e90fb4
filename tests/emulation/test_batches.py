"""A trace may say which batch an event used: its data and its key follow that number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asgd
from asgd.cluster import protocols, timing
from asgd.emulation import feed

EVENTS, NUMBERS = 23, 30
PLAIN = asgd.simulate(protocols.asynchronous(), timing.gamma(1.0, 0.5), 4, EVENTS, seed=0)
BATCH = np.random.default_rng(0).permutation(NUMBERS)[:EVENTS]
TRACE = dataclasses.replace(PLAIN, batch=BATCH)
ROWS = {"x": np.random.default_rng(1).normal(size=(NUMBERS, 2, 3)).astype(np.float32),
        "y": np.random.default_rng(2).normal(size=(NUMBERS, 2)).astype(np.float32)}
INDICES = np.random.default_rng(3).integers(0, NUMBERS, (NUMBERS, 4))
TX = asgd.staleness_aware_sgd(0.05, momentum=0.5)


def noisy(params, batch, key):
    return jnp.mean((batch["x"] @ params - batch["y"] + jax.random.normal(key)) ** 2)


def given(params, batch):
    return jnp.mean((batch["x"] @ params - batch["y"] + batch["noise"]) ** 2)


def noise(numbers, seed=7):
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(jnp.asarray(numbers))
    return np.asarray(jax.vmap(jax.random.normal)(keys))


SOURCES = {
    "rows": (ROWS, ROWS),
    "function": (lambda n: {k: x[n] for k, x in ROWS.items()}, ROWS),
    "indexed": (asgd.IndexedBatches({k: x[:, 0] for k, x in ROWS.items()}, lambda n: INDICES[n]),
                {k: x[:, 0][INDICES] for k, x in ROWS.items()}),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("options, fits", [
    ({}, True), ({}, False), ({"num_devices": 4, "waves_per_call": 2}, True),
    ({"num_devices": 4, "waves_per_call": 2}, False), ({"backend": "debug"}, True)])
def test_data_and_keys_follow_the_number(source, options, fits, monkeypatch):
    monkeypatch.setattr(feed, "_fits", lambda *_: fits)
    batches, rows = SOURCES[source]
    result = asgd.emulate(noisy, TX, jnp.ones(3), TRACE, batches, seed=7, **options)
    # Event by event: the rows and the noise of each event's own number.
    expected = asgd.emulate(given, TX, jnp.ones(3), PLAIN,
                            {**{k: x[BATCH] for k, x in rows.items()}, "noise": noise(BATCH)})
    np.testing.assert_allclose(result.losses, expected.losses, rtol=2e-5)
    np.testing.assert_allclose(result.params, expected.params, rtol=2e-5)


def test_event_triggered_keeps_the_numbers():
    result = asgd.emulate_event_triggered(noisy, TX, jnp.ones(3), TRACE, ROWS, threshold=2.0, num_devices=2)
    assert 0 < result.trace.applied.sum() < EVENTS
    np.testing.assert_array_equal(result.trace.batch, BATCH)
    replay = asgd.emulate(noisy, TX, jnp.ones(3), result.trace, ROWS)
    assert np.asarray(replay.params).tobytes() == np.asarray(result.params).tobytes()
    # The first gradient, by hand.
    x, y = (ROWS[name][BATCH[0]].astype(float) for name in ("x", "y"))
    gradient = x.T @ (x @ np.ones(3) - y + noise(BATCH[:1], seed=0))
    assert (np.linalg.norm(gradient) > 2.0) == result.trace.applied[0]


def test_too_few_rows():
    short = {name: x[:BATCH.max()] for name, x in ROWS.items()}
    with pytest.raises(ValueError, match=f"must have a leading axis of {BATCH.max() + 1}"):
        asgd.emulate(noisy, TX, jnp.ones(3), TRACE, short)
