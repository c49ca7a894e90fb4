"""One matrix that every transformation and every alias goes through."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd

# name: (function, keyword arguments, the number that inject_hyperparams is to make a state)
UNDER_TEST = {
    "scale_by_staleness": (asgd.scale_by_staleness, {"rule": "polynomial(0.5)"}, None),
    "compensate_delay_c": (asgd.compensate_delay, {"strength": 0.5}, "strength"),
    "compensate_delay_a": (asgd.compensate_delay, {"strength": 0.5, "decay": 0.9}, "strength"),
    "compensate_delay_per_worker": (
        asgd.compensate_delay, {"strength": 0.5, "decay": 0.9, "num_workers": 3}, "strength"),
    "average_until_update": (
        lambda rate: asgd.average_until_update(optax.sgd(rate, 0.9)), {"rate": 0.1}, "rate"),
    "average_adam": (
        lambda rate: asgd.average_until_update(optax.adam(rate)), {"rate": 0.1}, "rate"),
    "staleness_aware_sgd": (
        asgd.staleness_aware_sgd,
        {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-2}, "learning_rate"),
    "dc_asgd_c": (asgd.dc_asgd_c, {"learning_rate": 0.1, "momentum": 0.9}, "learning_rate"),
    "dc_asgd_a": (
        asgd.dc_asgd_a, {"learning_rate": 0.1, "num_workers": 3, "nesterov": True,
                         "momentum": 0.5}, "learning_rate"),
    "consensus": (lambda rate: asgd.consensus(optax.sgd(rate, 0.9)), {"rate": 0.1}, "rate"),
    "delayed_nesterov": (
        asgd.delayed_nesterov, {"learning_rate": 0.1, "every": 2, "spread": 0.2}, "learning_rate"),
    "predict_clip": (
        lambda rate: asgd.predict_clip(optax.sgd(rate, 0.9), 0.3), {"rate": 0.1}, "rate"),
    "predict_clip_chosen": (
        lambda rate: asgd.predict_clip(optax.sgd(rate), "descent"),
        {"rate": 0.1}, "rate"),
}
NAMES = sorted(UNDER_TEST)
STATIC = ("rule", "decay", "eps", "num_workers", "momentum", "weight_decay", "nesterov",
          "per_worker", "every")
EVENTS = 5


def make(name):
    function, kwargs, _ = UNDER_TEST[name]
    return function(**kwargs)


def tree(seed, dtype):
    """A nested tree with a matrix, a vector, a scalar and an empty branch."""
    rng = np.random.default_rng(seed)
    leaf = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return {"layer": {"kernel": leaf(3, 2), "bias": leaf(2)}, "rest": [leaf(), {}], "none": None}


@functools.cache
def events(dtype):
    """Gradients and extra arguments of five events, stacked; every second one is an update."""
    stacked = lambda base: jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[tree(base + e, dtype) for e in range(EVENTS)])
    return stacked(10), {
        "staleness": jnp.asarray([0, 1, 2, 5, 3], jnp.int32),
        "stale_params": stacked(20),
        "worker": jnp.asarray([0, 1, 2, 1, 0], jnp.int32),
        "delay": jnp.asarray([0.5, 1, 2, 4, 8], jnp.float32),
        "update": jnp.asarray([False, True, False, True, True]),
        "past_params": rows(7, stacked, 30),
        "past_grads": rows(7, stacked, 100),
        "neighbor_rows": jnp.asarray([[0, 1, 2]] * EVENTS, jnp.int32),
        "own_rows": jnp.asarray([[3, 4, 5, 6]] * EVENTS, jnp.int32),
        "delays": jnp.asarray([[0, 2, 3], [0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 3, 3]], jnp.int32),
        "mixing": jnp.asarray([[0.5, 0.25, 0.25]] * EVENTS, jnp.float32),
        "clipped": jnp.asarray([[0.75, 0, 0.25]] * EVENTS, jnp.float32),
    }


TREES = {"stale_params": None, "past_params": 7, "past_grads": 7}


def rows(count, stacked, base):
    """Trees with a leading axis of rows, after that of the events."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1),
                        *[stacked(base + 10 * k) for k in range(count)])


def trees_like(params):
    """The extra arguments that are trees, made of other parameters."""
    return {name: params if count is None else jax.tree.map(
        lambda x: jnp.stack([x] * count), params) for name, count in TREES.items()}


def row(stacked, event):
    return jax.tree.map(lambda x: x[event], stacked)


@functools.cache
def one_by_one(dtype):
    grads, extra = events(dtype)
    return [(row(grads, event), row(extra, event)) for event in range(EVENTS)]


def eager(function):
    return function


def run(tx, dtype, wrap=jax.jit):
    """Applies five events and returns all updates, the parameters and the state."""
    step = wrap(lambda g, s, p, extra: tx.update(g, s, p, **extra))
    params = tree(0, dtype)
    state, out = tx.init(params), []
    for grads, extra in one_by_one(dtype):
        updates, state = step(grads, state, params, extra)
        params = optax.apply_updates(params, updates)
        out.append(updates)
    return out, params, state


@functools.cache
def plain(name, wrap=jax.jit, dtype="float32"):
    """What several tests compare with."""
    return run(make(name), dtype, wrap)


def spec(state):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), state)


def assert_close(got, want, dtype="float32", ulps=8):
    """Equal but for a few roundings, each of at most eps of the largest term, which is below 4."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jnp.asarray(g).dtype == jnp.asarray(w).dtype
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.asarray(g, np.float64), np.asarray(w, np.float64), rtol=ulps * eps,
            atol=ulps * eps)


@pytest.mark.parametrize("name", NAMES)
def test_is_an_optax_transformation_with_extra_arguments(name):
    assert isinstance(make(name), optax.GradientTransformationExtraArgs)


@pytest.mark.parametrize("name", NAMES)
def test_jit_computes_what_python_computes(name):
    assert_close(plain(name), plain(name, eager))


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_moves_the_parameters(name):
    """So that none of the other tests compares zeros with zeros."""
    out, params, _ = plain(name)
    for leaf in jax.tree.leaves((out[-1], optax.tree.sub(params, tree(0, "float32")))):
        assert np.all(np.asarray(leaf) != 0)


@pytest.mark.parametrize("name", NAMES)
def test_no_recompilation(name):
    tx, traced = make(name), []

    def count(function):
        def traced_function(*args):
            traced.append(None)
            return function(*args)
        return jax.jit(traced_function)

    run(tx, "float32", count)
    assert len(traced) == 1


@pytest.mark.parametrize("name", NAMES)
def test_chains(name):
    want, _, _ = plain(name, eager)
    chained = optax.chain(optax.scale(-1.0), optax.scale(-1.0), make(name), optax.identity())
    got, _, _ = run(chained, "float32", eager)
    assert_close(got, want)


# One that decides for all tensors at once sees others when some are masked.
@pytest.mark.parametrize("name", [n for n in NAMES if n != "predict_clip_chosen"])
def test_masked(name):
    mask = {"layer": {"kernel": True, "bias": False}, "rest": [True, {}], "none": None}
    masked = optax.masked(make(name), mask, mask_compatible_extra_args=True)
    got, _, _ = run(masked, "float32", eager)
    want, _, _ = plain(name, eager)
    grads, _ = events("float32")
    for event in range(EVENTS):
        bias = row(grads, event)["layer"]["bias"]
        assert_close(got[event], {**want[event], "layer": {**want[event]["layer"], "bias": bias}})


@pytest.mark.parametrize("name", [n for n in NAMES if UNDER_TEST[n][2]])
def test_inject_hyperparams(name):
    function, kwargs, number = UNDER_TEST[name]
    static = [k for k in inspect.signature(function).parameters if k in STATIC]
    injected = optax.inject_hyperparams(function, static_args=static)(**kwargs)
    got, _, state = run(injected, "float32")
    want, _, _ = plain(name)
    assert_close(got, want)
    assert float(state.hyperparams[number]) == np.float32(kwargs[number])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_are_kept(name, dtype, x64):
    out, params, _ = run(make(name), dtype)
    for leaf in jax.tree.leaves((out, params)):
        assert leaf.dtype == dtype
    # The value too: bfloat16 has 8 bits, and five events of some ten roundings each.
    want, last, _ = plain(name, dtype="float64")
    assert all(leaf.dtype == "float64" for leaf in jax.tree.leaves((want, last)))
    roundings = 50
    for got_leaf, want_leaf in zip(jax.tree.leaves(out), jax.tree.leaves(want), strict=True):
        largest = max(1.0, float(np.max(np.abs(want_leaf))))
        error = np.abs(np.asarray(got_leaf, np.float64) - np.asarray(want_leaf))
        assert np.all(error <= roundings * float(jnp.finfo(dtype).eps) * largest)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_dtypes_are_kept(name, x64):
    dtypes = {"a": "bfloat16", "b": "float32", "c": "float64"}
    params = {k: jnp.ones(2, d) for k, d in dtypes.items()}
    tx = make(name)
    state = tx.init(params)
    _, extra = events("float32")
    for event in range(EVENTS):
        updates, state = jax.eval_shape(
            tx.update, params, state, params, **{**row(extra, event), **trees_like(params)})
        assert {k: u.dtype.name for k, u in updates.items()} == dtypes


@pytest.mark.parametrize("empty", [{}, (), {"a": {}, "b": []}])
@pytest.mark.parametrize("name", NAMES)
def test_empty_trees(name, empty):
    tx = make(name)
    _, extra = events("float32")
    extra = {**row(extra, 1), **trees_like(empty)}
    updates, _ = tx.update(empty, tx.init(empty), empty, **extra)
    assert updates == empty


@pytest.mark.parametrize("name", NAMES)
def test_state_is_stable_and_goes_through_scan(name):
    tx, params = make(name), tree(0, "float32")
    grads, extra = events("float32")
    eager_updates, eager_params, eager_state = plain(name, eager)
    assert spec(tx.init(params)) == spec(eager_state)

    def step(carry, xs):
        params, state = carry
        gradient, extra = xs
        updates, state = tx.update(gradient, state, params, **extra)
        return (optax.apply_updates(params, updates), state), updates

    (params, state), updates = jax.lax.scan(step, (params, tx.init(params)), (grads, extra))
    assert_close([row(updates, e) for e in range(EVENTS)], eager_updates)
    assert_close(params, eager_params)
    assert spec(state) == spec(eager_state)


@pytest.mark.parametrize("name", NAMES)
def test_state_goes_through_flatten_and_device_get(name):
    tx = make(name)
    _, _, state = plain(name)
    leaves, structure = jax.tree.flatten(jax.device_get(state))
    assert spec(jax.tree.unflatten(structure, leaves)) == spec(state)
    assert optax.tree.map_params(tx, lambda v: v, state) is not None


@pytest.mark.parametrize("name", NAMES)
def test_unknown_arguments_are_ignored(name):
    tx, params = make(name), tree(0, "float32")
    grads, extra = events("float32")
    want, _ = tx.update(row(grads, 1), tx.init(params), params, **row(extra, 1))
    got, _ = tx.update(row(grads, 1), tx.init(params), params, unexpected=1, value=jnp.ones(3),
                       **row(extra, 1))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", NAMES)
def test_init_does_not_depend_on_values(name):
    tx = make(name)
    one, other = tx.init(tree(0, "float32")), tx.init(tree(1, "float32"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    shapes = jax.eval_shape(tx.init, tree(0, "float32"))
    assert jax.tree.map(lambda s: (s.shape, s.dtype), shapes) == spec(one)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone(name):
    """Two calls with the same state give the same updates: nothing is kept outside the state."""
    tx, params = make(name), tree(0, "float32")
    grads, extra = events("float32")
    first = tx.update(row(grads, 1), tx.init(params), params, **row(extra, 1))
    run(tx, "float32")
    second = tx.update(row(grads, 1), tx.init(params), params, **row(extra, 1))
    jax.tree.map(np.testing.assert_array_equal, first, second)
