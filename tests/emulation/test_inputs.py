"""What does not fit is refused, with an error that names it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax import lax

import asgd
from asgd.emulation import Emulator, make_emulator

WORKERS, READS = [0, 1, 0, 1], [0, 0, 1, 2]
TRACE = asgd.Trace(WORKERS, READS)
PAIRS = asgd.Trace(WORKERS, [0, 0, 0, 0], updates=[False, True, False, True])
DROPPED = asgd.Trace(WORKERS, [0, 0, 0, 1], applied=[True, False, True, True])
PARAMS = {"kernel": np.ones((3, 5), np.float32), "bias": np.ones(5, np.float32),
          "scale": np.float32(1)}
BATCHES = {"x": np.ones((4, 3), np.float32), "y": np.ones(4, np.float32)}


def loss_fn(params, batch):
    return jnp.sum((batch["x"] @ params["kernel"] + params["bias"]) * params["scale"]) * batch["y"]


def emulate(loss_fn=loss_fn, tx=optax.sgd(1e-3), params=PARAMS, trace=TRACE, batches=BATCHES,
            **options):
    return asgd.emulate(loss_fn, tx, params, trace, batches, **options)


def accepted(tx, trace=TRACE, **options):
    """What is refused is refused here, before anything runs."""
    make_emulator(loss_fn, tx, PARAMS, trace, BATCHES, **options)


def refused(*words, **kwargs):
    with pytest.raises(ValueError) as error:
        emulate(**kwargs)
    for word in words:
        assert word in str(error.value)


def test_more_devices_than_there_are():
    refused("num_devices=9", "8", "JAX_NUM_CPU_DEVICES=9", num_devices=9)
    refused("num_devices=9", backend="pmap", num_devices=9)
    refused("num_devices must be at least 1, got 0", num_devices=0)


def test_unknown_names():
    refused("backend", "'xmap'", "jit", "shard_map", "pmap", "debug", backend="xmap")
    refused("layout", "'split'", "sharded", "replicated", layout="split")


@pytest.mark.parametrize("backend", ["jit", "debug"])
def test_backends_of_one_device(backend):
    refused(f"backend='{backend}'", "num_devices=2", backend=backend, num_devices=2)


@pytest.mark.parametrize("waves", [0, -1])
def test_waves_per_call(waves):
    refused("waves_per_call must be at least 1", str(waves), waves_per_call=waves)


@pytest.mark.parametrize("backend", ["jit", "debug"])
def test_leading_axis_of_batches(backend):
    refused("batches", "'y'", "4", "(3,)", backend=backend,
            batches={"x": BATCHES["x"], "y": np.ones(3, np.float32)})
    refused("batches", "'y'", "()", backend=backend, batches={"x": BATCHES["x"], "y": 1.0})
    refused("batches", "(5, 3)", backend=backend, batches=np.ones((5, 3)))
    refused("batches", "returned", "'y'", backend=backend,
            batches=lambda events: {"x": np.ones((len(events), 3)), "y": np.ones(7)})


@pytest.mark.parametrize("backend", ["jit", "debug"])
def test_losses(backend):
    refused("loss_fn must return a scalar", "(3, 5)", backend=backend,
            loss_fn=lambda p, b: p["kernel"])
    refused("loss_fn must return a scalar", "model_state", backend=backend,
            loss_fn=lambda p, b: (loss_fn(p, b), {}))
    refused("loss_fn", "int32", backend=backend, loss_fn=lambda p, b: jnp.int32(1))


@pytest.mark.parametrize("backend", ["jit", "debug"])
def test_statistics(backend):
    state = {"mean": np.zeros(5, np.float32)}

    def with_statistics(statistics):
        return lambda p, b: (loss_fn(p, b), statistics(b))

    options = dict(backend=backend, model_state=state)
    refused("statistics", "(3,)", "model_state", "(5,)", **options,
            loss_fn=with_statistics(lambda b: {"mean": b["x"]}))
    refused("statistics", "var", "model_state", **options,
            loss_fn=with_statistics(lambda b: {"var": jnp.zeros(5)}))
    refused("(loss, statistics)", "model_state", **options)
    emulate(loss_fn=with_statistics(lambda b: {"mean": jnp.zeros(5)}), **options)


def loop(body, until=lambda carry: carry[0] >= 3):
    """Three times the body on (turn, zeros, leaf) for every leaf that is no scalar."""
    def leaf(x):
        carry = (0, jnp.zeros_like(x), x)
        return lax.while_loop(lambda c: jnp.logical_not(until(c)), body, carry)[2] if x.ndim else x

    return optax.stateless(lambda u, p: jax.tree.map(leaf, u))


MIXING = {
    "flip in a loop": (lambda: loop(lambda c: (c[0] + 1, c[1], c[2][..., ::-1])), "rev"),
    # What is flipped comes from the leaf only in the second turn.
    "flip later": (lambda: loop(lambda c: (c[0] + 1, c[2], c[1][..., ::-1])), "rev"),
    "loop until": (lambda: loop(lambda c: (c[0] + 1, c[1], c[2] / 2),
                                lambda c: (c[0] > 3) | (jnp.sum(c[2]) < 1)), "reduce_sum"),
    "clip_by_global_norm": (lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(1e-3)), "reduce_sum"),
    "lars": (lambda: optax.lars(1e-3), "reduce_sum"),
    "lamb": (lambda: optax.lamb(1e-3), "reduce_sum"),
    "adafactor": (lambda: optax.adafactor(1e-3), None),
    "muon": (lambda: optax.contrib.muon(1e-3), None),
    "centralize": (lambda: optax.chain(optax.centralize(), optax.sgd(1e-3)), "reduce_sum"),
    "noise": (lambda: optax.chain(
        optax.add_noise(1e-3, 0.5, jax.random.key(0)), optax.sgd(1e-3)), None),
    "position": (lambda: optax.stateless(lambda u, p: jax.tree.map(
        lambda x: x * jnp.arange(x.shape[-1]) if x.ndim else x, u)), None),
    "sort": (lambda: optax.stateless(lambda u, p: jax.tree.map(
        lambda x: jnp.sort(x) if x.ndim else x, u)), "sort"),
    "flip": (lambda: optax.stateless(lambda u, p: jax.tree.map(
        lambda x: x[..., ::-1] if x.ndim else x, u)), "rev"),
    "cumulate": (lambda: optax.stateless(lambda u, p: jax.tree.map(
        lambda x: jnp.cumsum(x, -1) if x.ndim else x, u)), "cumsum"),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_refused_where_leaves_are_split(name):
    build, primitive = MIXING[name]
    refused("layout='sharded'", "elementwise", "worker_tx", "layout='replicated'",
            *([f"'{primitive}'"] if primitive else []), tx=build(), num_devices=2)
    accepted(build(), num_devices=2, layout="replicated")


@pytest.mark.parametrize("name", ["clip_by_global_norm", "muon"])
def test_mixing_is_the_same_where_leaves_are_whole(name):
    build, _ = MIXING[name]
    result = emulate(tx=build(), num_devices=2, layout="replicated")
    alone = emulate(tx=build(), backend="jit", layout="replicated")
    jax.tree.map(np.testing.assert_array_equal, result.params, alone.params)


def test_mixing_is_accepted_of_workers():
    result = emulate(worker_tx=optax.clip_by_global_norm(0.5), num_devices=2)
    # Each of the four updates has norm 1e-3 * 0.5: the gradient's own is larger.
    moved = jax.tree.map(lambda a, b: np.sum((a - b) ** 2), result.params, PARAMS)
    assert 0 < np.sqrt(sum(jax.tree.leaves(moved))) < 4 * 0.5e-3 * 1.001


def not_bias(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


ELEMENTWISE = {
    "loop": lambda: loop(lambda c: (c[0] + 1, c[1] + c[2], c[2] / 2 - c[1])),
    "sgd": lambda: optax.sgd(1e-3),
    "momentum": lambda: optax.sgd(optax.cosine_decay_schedule(1e-3, 4), 0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-3),
    "adamw": lambda: optax.adamw(1e-3, mask=not_bias),
    "nadam": lambda: optax.nadam(1e-3),
    "amsgrad": lambda: optax.amsgrad(1e-3),
    "lion": lambda: optax.lion(1e-3),
    "rmsprop": lambda: optax.rmsprop(1e-3, momentum=0.9, centered=True),
    "adagrad": lambda: optax.adagrad(1e-3),
    "adadelta": lambda: optax.adadelta(1e-3),
    "clip": lambda: optax.chain(optax.clip(0.1), optax.sgd(1e-3)),
    "decay": lambda: optax.chain(optax.add_decayed_weights(0.1, mask=not_bias), optax.sgd(1e-3)),
    "inject": lambda: optax.inject_hyperparams(optax.adam)(1e-3),
    "partition": lambda: optax.partition(
        {"a": optax.sgd(1e-3), "b": optax.adam(1e-3)}, {"kernel": "a", "bias": "b", "scale": "a"}),
    "ema": lambda: optax.chain(optax.sgd(1e-3), optax.ema(0.9)),
    "aware": lambda: asgd.staleness_aware_sgd(1e-3, 0.9, weight_decay=0.1),
    "dc_c": lambda: asgd.dc_asgd_c(1e-3),
    "dc_a": lambda: asgd.dc_asgd_a(1e-3),
    "dc_a_each": lambda: asgd.dc_asgd_a(1e-3, num_workers=2),
    "average": lambda: asgd.average_until_update(optax.adam(1e-3)),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_is_accepted(name):
    accepted(ELEMENTWISE[name](), num_devices=2)


def test_elementwise_is_the_same_on_shards():
    """Those that no other test compares, side by side."""
    names = ["loop", "adamw", "nadam", "amsgrad", "rmsprop", "adagrad", "adadelta", "inject", "ema"]
    tx = optax.partition({name: ELEMENTWISE[name]() for name in names}, {name: name for name in names})

    def loss(params, batch):
        return sum(loss_fn(params[name], batch) for name in names)

    params = {name: PARAMS for name in names}
    sharded, whole = (emulate(loss, tx, params, **options).params
                      for options in (dict(num_devices=2), dict(backend="jit")))
    jax.tree.map(np.testing.assert_array_equal, sharded, whole)
    for name in names:
        for leaf in PARAMS:
            assert np.all(whole[name][leaf] != PARAMS[leaf]), (name, leaf)


MOVING = {
    "sgd": lambda: optax.sgd(1e-3),
    "adam": lambda: optax.adam(1e-3),
    "decay": lambda: optax.add_decayed_weights(1e-3),
    "aware": lambda: optax.chain(asgd.scale_by_staleness(), optax.sgd(1e-3)),
    "warm-up": lambda: optax.sgd(optax.linear_schedule(0.0, 1e-3, 10)),
    "late": lambda: optax.sgd(optax.join_schedules(
        [optax.constant_schedule(0.0), optax.constant_schedule(1e-3)], [2])),
}


@pytest.mark.parametrize("backend", ["jit", "debug"])
@pytest.mark.parametrize("name", MOVING)
def test_moving_without_an_update_is_refused(name, backend):
    tx = MOVING[name]()
    refused("update", "asgd.average_until_update", tx=tx, trace=PAIRS, backend=backend)
    accepted(asgd.average_until_update(tx), PAIRS, backend=backend)
    # Where every gradient makes an update there is nothing to refuse.
    accepted(tx, backend=backend)


@pytest.mark.parametrize("backend", ["jit", "debug"])
def test_dropped_gradients_never_reach_the_transformation(backend):
    """So a plain optimizer is right where every gradient that is applied makes an update."""
    result = emulate(tx=optax.sgd(1e-3), trace=DROPPED, backend=backend)
    kept = asgd.Trace([0, 0, 1], [0, 0, 1])
    fewer = emulate(tx=optax.sgd(1e-3), trace=kept, backend=backend,
                    batches=jax.tree.map(lambda x: x[[0, 2, 3]], BATCHES))
    jax.tree.map(np.testing.assert_array_equal, result.params, fewer.params)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("options", [
    dict(backend="jit"), dict(num_devices=4), dict(num_devices=2, waves_per_call=1),
    dict(backend="debug")], ids=str)
def test_losses_that_are_not_finite(options, bad):
    trace = asgd.Trace([0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 2, 2])
    factor = np.array([1, 1, 1, 1, bad, bad], np.float32)
    with pytest.raises(asgd.NonFiniteLossError) as error:
        emulate(trace=trace, batches={"x": np.ones((6, 3), np.float32), "y": factor}, **options)
    got = error.value
    # Event 4 arrives at version 4 and has read version 2.
    assert (got.event, got.worker, got.staleness) == (4, 1, 2)
    for word in ("event 4", "worker 1", "staleness 2", str(bad)):
        assert word in str(got)
    assert isinstance(got, FloatingPointError)


def test_starting_and_stopping_within_a_wave():
    trace = asgd.Trace([0, 1, 2, 3], [0, 0, 0, 0])
    emulator = Emulator(loss_fn, optax.sgd(1e-3), PARAMS, trace, BATCHES, num_devices=4, cuts=[2])
    state, losses = emulator.run(emulator.init(), 0, 2)
    assert losses.shape == (2,)
    with pytest.raises(ValueError, match="start=2 and stop=3 must be cuts"):
        emulator.run(state, 2, 3)


@pytest.mark.parametrize("backend", ["jit", "shard_map", "pmap", "debug"])
def test_no_events(backend):
    empty = asgd.Trace([], [])
    result = emulate(trace=empty, batches=jax.tree.map(lambda x: x[:0], BATCHES), backend=backend)
    jax.tree.map(np.testing.assert_array_equal, result.params, PARAMS)
    assert result.losses.shape == (0,)
