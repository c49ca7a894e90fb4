"""Rates on traces against characteristic roots and against the emulation itself."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd import simulate, theory
from asgd.cluster import protocols, timing


def constant(tau, length=6000):
    return simulate(protocols.asynchronous(), timing.constant(1.0), tau + 1, length, 0)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("tau", [0, 1, 4])
def test_fixed_staleness_has_the_roots_rate(tau, momentum):
    limit = theory.critical_step(tau, momentum)
    steps = limit * np.array([0.02, 0.47, 0.97, 1.1])
    expected = [theory.answer(step, tau, momentum).rate for step in steps]
    found = theory.rates_on_trace(constant(tau), steps, momentum)
    # Over 4700 updates the phase of an oscillation, and a double root's factor k, are log(k) / k.
    assert found == pytest.approx(expected, abs=1.5e-3)
    assert theory.critical_step_on_trace(constant(tau), momentum) == pytest.approx(limit, rel=0.01)


def test_gradients_of_an_update_are_averaged_and_dropped_ones_left_out():
    hardsync = simulate(protocols.hardsync(), timing.exponential(1.0), 4, 4000, 0)
    assert theory.rates_on_trace(hardsync, [0.3, 2.5]) == pytest.approx(
        [-math.log(0.7), -math.log(1.5)], abs=1e-9)
    half = asgd.Trace(worker=np.zeros(4000), read_version=np.repeat(np.arange(2000), 2),
                      applied=np.tile([True, False], 2000))
    assert theory.rates_on_trace(half, [0.3]) == pytest.approx([-math.log(0.7)], abs=1e-9)


def test_rules_scale_the_steps():
    found = theory.rates_on_trace(constant(4), [0.4], scale=asgd.inverse)
    assert found == pytest.approx([theory.answer(0.1, 4).rate], abs=1.5e-3)
    assert theory.critical_step_on_trace(constant(4), scale=asgd.inverse) == pytest.approx(
        1.3892, rel=0.01)


@pytest.mark.parametrize("times", [timing.exponential(1.0), timing.lognormal(1.0, cv=1.3)],
                         ids=lambda times: times.name)
def test_emulations_decay_and_grow_at_these_rates(times, x64):
    trace = simulate(protocols.softsync(4), times, 8, 3000, 0)
    for step in (0.1, 2.0):
        rate, = theory.rates_on_trace(trace, [step], 0.2)
        result = asgd.emulate(lambda x, b: 0.5 * jnp.vdot(x, x), asgd.average_until_update(
            optax.sgd(step, 0.2)), jnp.ones(1), trace, jnp.zeros(3000))
        # |x| from the loss, the largest of 50 updates as it oscillates.
        size = np.sqrt(2 * result.losses).reshape(-1, 100).max(axis=1)
        slope = -np.log(size[-1] / size[5]) / (50 * (len(size) - 6))
        assert rate == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_runs_diverge_before_their_mean_does():
    trace = simulate(protocols.asynchronous(), timing.exponential(1.0), 8, 40_000, 0)
    law = theory.staleness_law(protocols.asynchronous(), timing.exponential(1.0), 8)
    on_trace = theory.critical_step_on_trace(trace)
    assert on_trace < 0.1 * theory.critical_step(law)
    # A path that shrinks can have growing moments, not the other way round.
    assert on_trace > theory.mean_square_critical_step(law[:60] / law[:60].sum())


def test_bad_input():
    with pytest.raises(ValueError, match="trace must have 320 updates or more, not 319"):
        theory.rates_on_trace(constant(0, 319), [0.1])
    with pytest.raises(ValueError, match="steps must be a list of finite numbers"):
        theory.rates_on_trace(constant(0, 400), [math.inf])
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        theory.rates_on_trace(constant(0, 400), [0.1], 1.0)
