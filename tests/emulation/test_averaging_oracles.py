"""Local steps and averaging against the oracles of paper D."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import averaging, timing
from tests.emulation.averaging_problem import (
    N, T, ROWS, WIDTH, RNG, X, Y, START, RATE, gradient, emulate)


@pytest.mark.parametrize("period", [1, 5, 14])
def test_one_worker_is_sequential_sgd(x64, period):
    """D.5; with momentum too, as its own optimizer is."""
    tx, params = optax.sgd(RATE, 0.9), START
    state = tx.init(jnp.asarray(START))
    for step in range(T):
        updates, state = tx.update(gradient(0, step, np.asarray(params)), state)
        params = params + np.asarray(updates)
    result = emulate(period, tx, batches=(X[:, :1], Y[:, :1]))
    np.testing.assert_allclose(result.worker_params[0], params, rtol=0, atol=1e-13)
    if T % period == 0:
        np.testing.assert_allclose(result.params, params, rtol=0, atol=1e-13)


@pytest.mark.parametrize("period", [1, 5])
def test_with_a_common_hessian_the_average_is_synchronous_sgd(x64, period):
    """D.5: f = x'Ax/2 - b'x with one A."""
    root = RNG.normal(size=(WIDTH, WIDTH))
    hessian = root @ root.T / WIDTH
    b = RNG.normal(size=(T, N, WIDTH))
    result = asgd.emulate_averaging(
        lambda x, b: x @ hessian @ x / 2 - b @ x, optax.sgd(RATE), START, b, period=period)
    x = START
    for step in range(T):
        x = x - RATE * (hessian @ x - b[step].mean(0))
    np.testing.assert_allclose(result.worker_params.mean(0), x, rtol=0, atol=1e-13)
    assert np.abs(result.worker_params - x).max() > 1e-2


def test_merges_leave_the_mean_alone_and_the_server_gets_the_mean_before(x64):
    """Lemmas 3.1 and 3.2: with and without the actions at the end."""
    whole = averaging.cyclic(N, 12, 3)
    kept = whole.after < 12 * N
    cut = dataclasses.replace(whole, after=whole.after[kept], action=whole.action[kept],
                              member=whole.member[kept], time=whole.time[kept])
    batches = X[:12].reshape(-1, ROWS, WIDTH), Y[:12].reshape(-1, ROWS)
    after, before = (emulate(None, schedule=schedule, batches=batches) for schedule in (whole, cut))
    assert np.abs(after.worker_params - before.worker_params).max() > 1e-3
    np.testing.assert_allclose(after.worker_params.mean(0), before.worker_params.mean(0), atol=1e-14)
    np.testing.assert_allclose(after.params, before.worker_params.mean(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("period", [1, 4])
def test_identical_data_keep_identical_workers(x64, period):
    same = np.repeat(X[:, :1], N, 1), np.repeat(Y[:, :1], N, 1)
    result = emulate(period, batches=same)
    alone = emulate(period, batches=(X[:, :1], Y[:, :1]))
    np.testing.assert_allclose(result.worker_params, np.repeat(alone.worker_params, N, 0), atol=1e-14)
    assert (result.discrepancy == 0).all()


def test_workers_are_no_further_apart_than_two_periods(x64):
    """Lemma 3.3: at most 2 period L rate, with gradients of length up to L = 1."""
    directions = RNG.normal(size=(64, 16, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    directions[:, 0], directions[:, 1] = [1, 0, 0], [-1, 0, 0]
    for period in (1, 8):
        result = asgd.emulate_averaging(lambda x, d: d @ x, optax.sgd(RATE), np.zeros(3), directions,
                                        period=period)
        bound = 2 * period * RATE
        # Two opposite workers drift apart by 2 rates a step, and a merge of both keeps one period.
        np.testing.assert_allclose(result.discrepancy, bound, rtol=1e-12)


def schedules_of_own_pace():
    clock = timing.Timing(timing.gamma(1.0, 0.5), slowdown=[1, 1, 1, 4])
    for max_drift, merge_time in ((1, 0.0), (4, 1.5), (9, 6.0)):
        yield averaging.whenever_ready(N, T * N, max_drift, clock, merge_time=merge_time)
    yield averaging.independent(N, T * N, [3, 2, 4, 1], clock, merge_time=0.7)


@pytest.mark.parametrize("schedule", list(schedules_of_own_pace()), ids=range(4))
def test_no_gain_is_lost_or_doubled(x64, schedule):
    """With constant gradients the server has what was released, workers that and their own."""
    c = RNG.normal(size=(N, 3))
    result = asgd.emulate_averaging(lambda x, b: b @ x, optax.sgd(1.0), np.zeros(3),
                                    c[schedule.worker], schedule=schedule, num_devices=2)
    copy, steps, released = np.zeros((N, 3)), np.zeros(N), np.zeros(N)
    server, sum_, members = np.zeros(3), np.zeros(3), 0
    actions = list(zip(schedule.after, schedule.action, schedule.member))
    for event in range(len(schedule) + 1):
        while actions and actions[0][0] == event:
            _, action, w = actions.pop(0)
            if action == averaging.RELEASE:
                sum_ = sum_ - (steps[w] - released[w]) * c[w]
                released[w], members = steps[w], members + 1
            elif action == averaging.MERGE:
                server, sum_, members = server + sum_ / members, 0, 0
            elif action == averaging.TAKE:
                copy[w] = server + 0
        if event < len(schedule):
            steps[schedule.worker[event]] += 1
    holds = np.array([np.flatnonzero((schedule.action == averaging.TAKE) & (
        schedule.member == w))[-1] for w in range(N)])
    since = [np.flatnonzero((schedule.action == averaging.RELEASE) & (
        schedule.member == w) & (np.arange(len(schedule.action)) < holds[w]))[-1] for w in range(N)]
    own = [np.count_nonzero(schedule.worker[schedule.after[since[w]]:] == w) for w in range(N)]
    np.testing.assert_allclose(result.params, server, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        result.worker_params, copy - np.array(own)[:, None] * c, rtol=0, atol=1e-12)
    assert (schedule.drift[[np.flatnonzero(schedule.worker == w)[-1] for w in range(N)]] >= 1).all()


def test_the_servers_optimizer_steps_along_the_mean_update(x64):
    """O-14: four equal gradients through Nesterov momentum."""
    beta, rate, g = 0.9, 0.3, np.array([0.5, -1.0])
    schedule = averaging.independent(1, 4, 1, timing.constant(1.0))
    result = asgd.emulate_averaging(
        lambda x, b: g @ x, optax.sgd(1.0), np.zeros(2), np.zeros(4), schedule=schedule,
        outer_tx=optax.sgd(rate, beta, nesterov=True))
    total = 4 + 4 * beta + 3 * beta**2 + 2 * beta**3 + beta**4
    np.testing.assert_allclose(result.params, -rate * total * g, rtol=0, atol=1e-14)
