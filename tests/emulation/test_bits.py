"""One trace gives one result, bit for bit, however it is executed."""

import functools
import hashlib
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.cluster.protocols import asynchronous, hardsync, softsync
from asgd.cluster.timing import exponential, lognormal

BATCH, CLASSES = 4, 3


class MLP(nn.Module):
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.tanh(nn.Dense(13)(x.reshape(len(x), -1)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        # A leaf without dimensions, which no number of devices divides.
        return nn.Dense(CLASSES)(x) * self.param("scale", nn.initializers.ones, ())


class CNN(nn.Module):

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


class NormNet(nn.Module):

    @nn.compact
    def __call__(self, x):
        for stride in (1, 2):
            x = nn.Conv(5, (3, 3), strides=stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.0)(x))
        return nn.Dense(CLASSES)(x.mean((1, 2)))


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def mlp_loss(params, batch):
    return _cross_entropy(MLP().apply({"params": params}, batch["x"]), batch["y"])


def dropout_loss(params, batch, key):
    logits = MLP(0.3).apply({"params": params}, batch["x"], rngs={"dropout": key})
    return _cross_entropy(logits, batch["y"])


def cnn_loss(params, batch):
    return _cross_entropy(CNN().apply({"params": params}, batch["x"]), batch["y"])


def norm_loss(params, batch):
    logits, state = NormNet().apply({"params": params}, batch["x"], mutable=["batch_stats"])
    return _cross_entropy(logits, batch["y"]), state["batch_stats"]


def drop_some(trace, seed=0):
    """Returns the trace with a fifth of its gradients dropped, each worker reading as before."""
    rng = np.random.default_rng(seed)
    applied = rng.random(len(trace)) < 0.8
    updates = trace.updates & applied
    # What was the k-th version is now the version after as many updates as are left of the k.
    left = np.concatenate([[0], np.cumsum(updates[trace.updates])])
    return asgd.Trace(trace.worker, left[trace.read_version], applied=applied, updates=updates,
                      start_time=trace.start_time, finish_time=trace.finish_time,
                      num_workers=trace.num_workers)


TRACES = {
    "hardsync": lambda: asgd.simulate(hardsync(), exponential(1.0), 5, 23, seed=1),
    "softsync": lambda: asgd.simulate(softsync(2), exponential(1.0), 7, 29, seed=2),
    "asynchronous": lambda: asgd.simulate(asynchronous(), lognormal(1.0, 0.5), 9, 30, seed=3),
    "dropped": lambda: drop_some(asgd.simulate(softsync(3), exponential(1.0), 9, 31, seed=4)),
    "dropped_asynchronous": lambda: drop_some(
        asgd.simulate(asynchronous(), exponential(1.0), 6, 28, seed=5)),
}
MODELS = {"mlp": (MLP(), mlp_loss), "dropout": (MLP(), dropout_loss), "cnn": (CNN(), cnn_loss),
          "norm": (NormNet(), norm_loss)}
SCHEDULE = optax.warmup_cosine_decay_schedule(0.01, 0.1, 4, 20)
AVERAGED = asgd.average_until_update

# name: (model, trace, server's transformation, workers' transformation)
CASES = {
    "aware": ("mlp", "softsync",
              lambda: asgd.staleness_aware_sgd(0.1, 0.9, weight_decay=1e-2), None),
    "aware_cnn": ("cnn", "dropped",
                  lambda: asgd.staleness_aware_sgd(SCHEDULE, 0.9, weight_decay=1e-2), None),
    "aware_norm": ("norm", "dropped_asynchronous",
                   lambda: asgd.staleness_aware_sgd(0.1, 0.9, weight_decay=1e-2), None),
    "dc_a_mlp": ("mlp", "asynchronous",
                 lambda: asgd.dc_asgd_a(0.05, momentum=0.9, num_workers=9), None),
    "dc_a_cnn": ("cnn", "asynchronous",
                 lambda: asgd.dc_asgd_a(0.05, momentum=0.9, num_workers=9), None),
    "dc_a_norm": ("norm", "softsync",
                  lambda: asgd.dc_asgd_a(SCHEDULE, momentum=0.9, num_workers=7), None),
    "adam": ("mlp", "dropped", lambda: AVERAGED(optax.adam(SCHEDULE)), None),
    "adam_norm": ("norm", "asynchronous", lambda: AVERAGED(optax.adam(0.01)), None),
    "rmsprop": ("cnn", "softsync", lambda: AVERAGED(optax.rmsprop(0.01)), None),
    "lion": ("dropout", "asynchronous", lambda: AVERAGED(optax.lion(SCHEDULE)),
             lambda: optax.trace(0.9)),
    "clip": ("dropout", "hardsync",
             lambda: asgd.staleness_aware_sgd(0.1), lambda: optax.clip_by_global_norm(0.5)),
    "clip_cnn": ("cnn", "dropped_asynchronous", lambda: optax.adam(0.01),
                 lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.trace(0.9))),
}
# backend, devices, waves per call, layout
REFERENCE = ("jit", 1, None, "sharded")


@functools.cache
def problem(case):
    """Returns what `asgd.emulate` takes in this case."""
    model_name, trace_name, tx, worker_tx = CASES[case]
    model, loss = MODELS[model_name]
    trace = TRACES[trace_name]()
    rng = np.random.default_rng(0)
    batches = {
        "x": rng.normal(size=(len(trace), BATCH, 6, 6, 2)).astype(np.float32),
        "y": rng.integers(CLASSES, size=(len(trace), BATCH)).astype(np.int32),
    }
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = model.init(rngs, batches["x"][0])
    options = {"worker_tx": worker_tx and worker_tx(), "seed": 7}
    if model_name == "norm":
        options["model_state"] = variables["batch_stats"]
    return (loss, tx(), variables["params"], trace, batches), options


def digest(result):
    digest = hashlib.sha256(result.losses.tobytes())
    for leaf in jax.tree.leaves((result.params, result.model_state)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def run(case, backend, num_devices, waves_per_call, layout):
    args, options = problem(case)
    return asgd.emulate(*args, **options, backend=backend, num_devices=num_devices,
                        waves_per_call=waves_per_call, layout=layout)


@functools.cache
def reference(case):
    return digest(run(case, *REFERENCE))
