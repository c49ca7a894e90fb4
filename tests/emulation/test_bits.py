"""One trace gives one result, bit for bit, however it is executed."""

import functools
import hashlib
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
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


def loss_of(model):
    return lambda p, batch: _cross_entropy(model.apply({"params": p}, batch["x"]), batch["y"])


def dropout_loss(params, batch, key):
    logits = MLP(0.3).apply({"params": params}, batch["x"], rngs={"dropout": key})
    return _cross_entropy(logits, batch["y"])


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
MODELS = {"mlp": (MLP(), loss_of(MLP())), "dropout": (MLP(), dropout_loss),
          "cnn": (CNN(), loss_of(CNN())), "norm": (NormNet(), norm_loss)}
SCHEDULE = optax.warmup_cosine_decay_schedule(0.01, 0.1, 4, 20)
AVERAGED = asgd.average_until_update


def aware(rate=0.1):
    return asgd.staleness_aware_sgd(rate, 0.9, weight_decay=1e-2)


def compensated(num_workers, rate=0.05):
    return asgd.dc_asgd_a(rate, momentum=0.9, num_workers=num_workers)


# Every model, trace and transformation is in one case or more.
# name: (model, trace, server's transformation, workers' transformation)
CASES = {
    "aware": ("mlp", "softsync", aware(), None),
    "aware_cnn": ("cnn", "dropped", aware(SCHEDULE), None),
    "aware_norm": ("norm", "dropped_asynchronous", aware(), None),
    "dc_a": ("mlp", "asynchronous", compensated(9), None),
    "dc_a_norm": ("norm", "softsync", compensated(7, SCHEDULE), None),
    "adam": ("mlp", "dropped", AVERAGED(optax.adam(SCHEDULE)), None),
    "rmsprop": ("cnn", "asynchronous", AVERAGED(optax.rmsprop(0.01)), None),
    "lion": ("dropout", "softsync", AVERAGED(optax.lion(SCHEDULE)), optax.trace(0.9)),
    "clip": ("cnn", "hardsync", aware(),
             optax.chain(optax.clip_by_global_norm(0.5), optax.trace(0.9))),
}


@functools.cache
def problem(case):
    model_name, trace_name, tx, worker_tx = CASES[case]
    model, loss = MODELS[model_name]
    trace = TRACES[trace_name]()
    rng = np.random.default_rng(0)
    batches = {"x": rng.normal(size=(len(trace), BATCH, 6, 6, 2)).astype(np.float32),
               "y": rng.integers(CLASSES, size=(len(trace), BATCH)).astype(np.int32)}
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    shapes = jax.eval_shape(model.init, rngs, batches["x"][0])
    variables = jax.tree.map(lambda x: rng.normal(scale=0.4, size=x.shape).astype(x.dtype), shapes)
    options = {"worker_tx": worker_tx, "seed": 7}
    if model_name == "norm":
        options["model_state"] = variables["batch_stats"]
    return (loss, tx, variables["params"], trace, batches), options


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
def reference_result(case):
    return run(case, "jit", 1, None, "sharded")


def reference(case):
    return digest(reference_result(case))


# Between them they have every backend, number of devices, waves per call and layout.
WAYS = {
    "aware_cnn": [("shard_map", 2, 3, "sharded"), ("pmap", 4, 1, "sharded")],
    "aware_norm": [("shard_map", 8, None, "sharded")],
    "aware": [("shard_map", 1, 1, "sharded"), ("pmap", 8, 3, "sharded"),
              ("shard_map", 4, None, "replicated"), ("pmap", 2, None, "replicated")],
}


@pytest.mark.parametrize("case, config", [(c, way) for c in WAYS for way in WAYS[c]])
def test_every_way_to_run(case, config):
    assert digest(run(case, *config)) == reference(case)


@pytest.mark.parametrize("config", [("shard_map", 2, 3, "sharded")], ids=str)
@pytest.mark.parametrize("case", [name for name in CASES if name not in WAYS])
def test_every_optimizer(case, config):
    assert digest(run(case, *config)) == reference(case)


@pytest.mark.parametrize("case", CASES)
def test_something_was_computed(case):
    """Equal digests of what never moved, or is not a number, would prove nothing."""
    (_, _, params, trace, _), options = problem(case)
    result = reference_result(case)
    assert len(result.losses) == len(trace) and np.isfinite(result.losses).all()
    for before, after in zip(jax.tree.leaves((params, options.get("model_state"))),
                             jax.tree.leaves((result.params, result.model_state)), strict=True):
        assert before.shape == after.shape and before.dtype == after.dtype
        assert np.isfinite(after).all() and np.any(before != after)
    assert trace.staleness.max() >= (0 if CASES[case][1] == "hardsync" else 2)
    assert CASES[case][1].startswith("dropped") != trace.applied.all()


def test_the_trace_saved_and_loaded(tmp_path):
    (loss, tx, params, trace, batches), options = problem("aware")
    trace.save(tmp_path / "trace.npz")
    loaded = asgd.Trace.load(tmp_path / "trace.npz")
    result = asgd.emulate(loss, tx, params, loaded, batches, **options, backend="jit")
    assert digest(result) == reference("aware")


def test_batches_from_a_callable():
    (loss, tx, params, trace, batches), options = problem("aware")
    asked = []

    def rows(events):
        asked.append(events)
        return jax.tree.map(lambda x: x[events], batches)

    result = asgd.emulate(
        loss, tx, params, trace, rows, **options, backend="jit", waves_per_call=3)
    assert digest(result) == reference("aware")
    assert len(asked) > 3 and max(e[-1] for e in asked) == len(trace) - 1


def test_in_pieces():
    """Stopped at cuts, a run gives the same bits."""
    args, options = problem("lion")
    trace = args[3]
    emulator = asgd.emulation.Emulator(
        *args, **options, num_devices=4, cuts=[7, 20], waves_per_call=3)
    state, losses = emulator.init(), []
    for start, stop in [(0, 7), (7, 20), (20, len(trace))]:
        state, piece = emulator.run(state, start, stop)
        losses.append(piece)
    result = asgd.emulation.EmulationResult(
        emulator.params(state), np.concatenate(losses), emulator.model_state(state))
    assert digest(result) == reference("lion")


SCRIPT = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("bits", sys.argv[1])
bits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bits)
devices = bits.jax.device_count()
result = bits.run("aware_norm", "shard_map", devices, None, "sharded")
print(json.dumps([devices, bits.digest(result)]))
"""


def test_another_process(num_devices=4):
    """It compiles for itself."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(num_devices),
                   "JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", SCRIPT, __file__], env=environment, check=True,
                         capture_output=True, text=True).stdout
    assert json.loads(out) == [num_devices, reference("aware_norm")]
