"""Leaves of any shape are rounded alike however they are split over devices.

Compilers fuse products and sums in ways that depend on the length and the last axis of an array.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster import protocols, timing

SHAPES = [(3,), (8,), (17,), (257,), (1, 1), (33, 3), (2, 3, 4), ()]
EVENTS = 24


@pytest.mark.parametrize("protocol, tx", [
    (protocols.asynchronous(),
     asgd.staleness_aware_sgd(0.05, 0.9, weight_decay=0.01, nesterov=True)),
    (protocols.softsync(2),
     asgd.average_until_update(optax.rmsprop(0.01, momentum=0.9, centered=True))),
], ids=["staleness_aware", "rmsprop"])
def test_leaf_shapes(protocol, tx):
    rng = np.random.default_rng(0)
    params = [np.asarray(rng.normal(size=s), np.float32) for s in SHAPES]
    targets = [rng.normal(size=(EVENTS, *s)).astype(np.float32) for s in SHAPES]
    trace = asgd.simulate(protocol, timing.gamma(1.0, 0.7), 5, EVENTS, 1)

    def loss(params, batch):
        return sum(jnp.sum(jnp.cos(p * b) + 0.5 * (p - b) ** 2) for p, b in zip(params, batch))

    one, other = (asgd.emulate(loss, tx, params, trace, targets, num_devices=n).params
                    for n in (1, 8))
    for shape, a, b in zip(SHAPES, one, other):
        np.testing.assert_array_equal(a, b, err_msg=str(shape))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one))
