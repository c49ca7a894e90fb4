"""The compiled program of one call: a loop over waves."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax import lax

from asgd.emulation import ring
from asgd.emulation.feed import Feed
from asgd.emulation.finite import finite_leaves, finite_rows
from asgd.emulation.gradient import event_gradient, in_own_loop
from asgd.emulation.rewrite import one_rounding
from asgd.emulation.spmd import AXIS


def wave_program(loss: Callable[..., Any], topology: Any, feed: Feed, num_devices: int,
                 num_parts: int, batched: bool = False, on_nonfinite: str = "stop"):
    """Returns the program of one call: a loop over waves on one device's share.

    Without ``batched`` a wave has one event a device.
    """
    apply_one = topology.apply_finite if on_nonfinite == "skip" else topology.apply

    def observe(state):
        if on_nonfinite == "watch":
            return finite_leaves(topology.trained(state), num_parts)
        return topology.observe(state)

    compute = event_gradient(lambda params, row, key: loss(params, feed.shaped(row), key),
                             topology.on_worker)

    def program(state, data, rows, constants, plan):
        key, zero = constants
        count, *waves = plan
        apply_to = one_rounding(apply_one, zero)
        device = lax.axis_index(AXIS) if num_devices > 1 else 0
        read_rows = feed.reader(data, rows)
        num_waves, width = waves[1].number.shape
        per_device = width // num_devices

        def needs(state, number, events):
            """Returns a function from j to what this device's event j of a wave is made of."""
            views = topology.views(state, events)

            def need(j):
                event = ring.read(events, device * per_device + j)
                return views(j), read_rows(number * per_device + j, event.number), event, key

            return need

        def wave(number, carry):
            state, sent, losses, observed = carry
            size, events = ring.read(waves, number)
            need = needs(state, number, events)
            if batched:
                sent = jax.vmap(lambda j: compute(j, *need(j)))(jnp.arange(per_device))
            else:
                # Read before the loop, or XLA would fuse where it reads from with what it computes.
                sent = in_own_loop((device < size).astype(int), compute, need(0), sent)
            arrived, shown = (topology.collect(sent[2], sent[1]), events), sent[0]
            if on_nonfinite == "skip":
                finite = finite_rows(sent)
                arrived, shown = (*arrived, topology.gather(finite)), jnp.where(finite, shown, jnp.nan)

            def apply(i, state):
                return apply_to(state, *ring.read(arrived, i))

            state = apply(0, state) if width == 1 else lax.fori_loop(0, size, apply, state)
            return (state, sent, ring.write(losses, number, shown),
                    ring.write(observed, number, observe(state)))

        shapes = jax.eval_shape(
            lambda: compute(0, *needs(state, 0, ring.read(waves[1], 0))(0)))
        sent = jax.tree.map(lambda s: jnp.zeros((per_device,) + s.shape, s.dtype), shapes)
        losses = jnp.zeros((num_waves,) + sent[0].shape, sent[0].dtype)
        observed = ring.repeat(jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(observe, state)), num_waves)
        state, _, losses, observed = lax.fori_loop(
            0, count, wave, (state, sent, losses, observed))
        if num_devices > 1:  # So that every process can look at all of them.
            losses = lax.all_gather(losses, AXIS, axis=1, tiled=True)
        return state, (losses, observed)

    return program
