"""The small problem that the tests of averaging share."""

import jax.numpy as jnp
import numpy as np
import optax

import asgd

N, T, ROWS, WIDTH = 4, 14, 3, 5
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(T, N, ROWS, WIDTH)), RNG.normal(size=(T, N, ROWS))
START = RNG.normal(size=WIDTH)
RATE = 0.1


def loss_fn(w, batch):
    return jnp.mean((jnp.tanh(batch[0] @ w) - batch[1]) ** 2) / 2


def gradient(worker, step, w):
    out = np.tanh(X[step, worker] @ w)
    return X[step, worker].T @ ((out - Y[step, worker]) * (1 - out ** 2)) / ROWS


def emulate(period, tx=None, batches=(X, Y), **options):
    return asgd.emulate_averaging(loss_fn, tx or optax.sgd(RATE), START, batches, period=period,
                                  **options)
