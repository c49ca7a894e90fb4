"""Delay compensation against paper E's formulas in NumPy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd

WORKERS = [0, 1, 0, 2, 2, 1, 0, 0, 1]
# A handful of float32 roundings of terms of size up to about 10.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def sequence(seed=0, size=5):
    rng = np.random.default_rng(seed)
    shape = (len(WORKERS), size)
    return rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape)


def run(tx, gradients, params, stale, updates=None, **options):
    """Returns what `tx` makes of a sequence of gradients."""
    state = tx.init(jnp.zeros(gradients.shape[1], jnp.float32))
    out = []
    for event, (g, w, b) in enumerate(zip(gradients, params, stale, strict=True)):
        extra = {"update": True if updates is None else updates[event], **options}
        u, state = tx.update(jnp.asarray(g, jnp.float32), state, jnp.asarray(w, jnp.float32),
                             stale_params=jnp.asarray(b, jnp.float32),
                             worker=jnp.int32(WORKERS[event]), **extra)
        out.append(u)
    return np.asarray(out, np.float64), state


def adaptive(gradients, params, stale, strength, decay, eps, keys):
    """The authors' updater, literally; `keys` says which mean square an event uses."""
    mean_square = {key: np.zeros(gradients.shape[1]) for key in keys}
    out = []
    for g, w, shadow, key in zip(gradients, params, stale, keys, strict=True):
        mean_square[key] *= decay
        mean_square[key] += (1 - decay) * g * g
        out.append(g + strength / np.sqrt(mean_square[key] + eps) * g * g * (w - shadow))
    return np.asarray(out), mean_square


def test_constant_on_a_sequence():
    g, w, b = sequence()
    got, state = run(asgd.compensate_delay(0.3), g, w, b)
    np.testing.assert_allclose(got, g + 0.3 * g * g * (w - b), **TOLERANCE)
    assert state.mean_square is None


def test_numbers_of_the_paper():
    """E.6: w_bak = 1, w = 0.8, g = 0.5, rate 0.1, strength 2."""
    got = _once(asgd.compensate_delay(2.0), 0.5, 0.8, 1.0)
    np.testing.assert_allclose(got, 0.4, rtol=1e-6)
    np.testing.assert_allclose(0.8 - 0.1 * got, 0.76, rtol=1e-6)
    got = _once(asgd.compensate_delay(2.0, 0.95), 0.5, 0.8, 1.0)
    np.testing.assert_allclose(got, 0.5 - 2 / np.sqrt(0.0125 + 1e-7) * 0.25 * 0.2, rtol=1e-5)
    np.testing.assert_allclose(got, -0.3944, atol=5e-5)
    np.testing.assert_allclose(0.8 - 0.1 * got, 0.83944, atol=5e-6)


def _once(tx, g, w, b, **extra):
    g, w, b = (jnp.float32(x) for x in (g, w, b))
    return float(tx.update(g, tx.init(w), w, stale_params=b, **extra)[0])


def test_the_first_step_overcompensates():
    """Without bias correction v = (1 - m) g^2, so the term is strength |g| / sqrt(1 - m)."""
    got = _once(asgd.compensate_delay(1.0, 0.95, eps=0), 2.0, 1.0, 0.0) - 2.0
    np.testing.assert_allclose(got / 2.0, 4.47, atol=5e-3)
    np.testing.assert_allclose(got, 2.0 / np.sqrt(0.05), rtol=1e-5)


def test_no_memory_is_option_one():
    """Eq. 9: with m = 0 the term is strength |g| (w - w_bak)."""
    g, w, b = sequence(1)
    got, _ = run(asgd.compensate_delay(0.7, 0.0, eps=0), g, w, b)
    np.testing.assert_allclose(got, g + 0.7 * np.abs(g) * (w - b), **TOLERANCE)


def test_eps_is_inside_the_root():
    got = _once(asgd.compensate_delay(1.0, 0.0, eps=9.0), 4.0, 1.0, 0.0)
    np.testing.assert_allclose(got, 4 + 16 / 5, rtol=1e-6)  # 16 / sqrt(16 + 9), not 16 / (4 + 9)
    assert inspect.signature(asgd.compensate_delay).parameters["eps"].default == 1e-7
    # A vanishing gradient: finite thanks to eps.
    assert _once(asgd.compensate_delay(2.0, 0.95), 0.0, 1.0, 0.0) == 0


@pytest.mark.parametrize("per_worker, num_workers", [(None, 3), (True, 3)])
def test_mean_square_per_worker(per_worker, num_workers):
    g, w, b = sequence(2)
    tx = asgd.compensate_delay(0.5, 0.9, 1e-7, per_worker, num_workers)
    got, state = run(tx, g, w, b)
    want, mean_square = adaptive(g, w, b, 0.5, 0.9, 1e-7, WORKERS)
    np.testing.assert_allclose(got, want, **TOLERANCE)
    np.testing.assert_allclose(
        state.mean_square, [mean_square[worker] for worker in range(3)], **TOLERANCE)


@pytest.mark.parametrize("per_worker, num_workers", [(None, None), (False, None), (False, 3)])
def test_one_mean_square_for_all(per_worker, num_workers):
    g, w, b = sequence(2)
    tx = asgd.compensate_delay(0.5, 0.9, 1e-7, per_worker, num_workers)
    got, state = run(tx, g, w, b)
    want, mean_square = adaptive(g, w, b, 0.5, 0.9, 1e-7, ["all"] * len(WORKERS))
    np.testing.assert_allclose(got, want, **TOLERANCE)
    np.testing.assert_allclose(state.mean_square, mean_square["all"], **TOLERANCE)
    # The two forms differ from a worker's first gradient after another's on.
    each, _ = adaptive(g, w, b, 0.5, 0.9, 1e-7, WORKERS)
    assert np.all(np.abs(got - each)[1] > 1e-3)


def test_mean_square_takes_the_stale_gradient_before_compensation():
    g, w, b = sequence(3)
    _, near = run(asgd.compensate_delay(0.5, 0.9), g, w, w)
    _, far = run(asgd.compensate_delay(50.0, 0.9), g, w, b)
    np.testing.assert_array_equal(near.mean_square, far.mean_square)


@pytest.mark.parametrize("decay", [None, 0.95])
def test_nothing_to_compensate(decay):
    """E.6: a fresh gradient passes bit by bit for any strength, and any gradient for 0."""
    g, w, b = (x.astype(np.float32) for x in sequence(4))
    np.testing.assert_array_equal(run(asgd.compensate_delay(3.0, decay), g, w, w)[0], g)
    np.testing.assert_array_equal(run(asgd.compensate_delay(0.0, decay), g, w, b)[0], g)


def test_true_hessian_undoes_any_delay():
    """With g^2 equal to the curvature (E.6), compensation gives the fresh gradient."""
    curvature = 4.0
    w, b = 0.3, 0.5  # f = 2 x^2: at b the gradient is 2, and 2^2 is the curvature.
    got = _once(asgd.compensate_delay(1.0), curvature * b, w, b)
    np.testing.assert_allclose(got, curvature * w, rtol=1e-6)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_schedule_counts_server_updates(decay):
    g, w, b = sequence(5)
    updates = [False, False, True, False, True, True, False, False, True]
    clock = np.concatenate([[0], np.cumsum(updates)])[:-1]
    schedule = lambda count: 0.1 * 10.0 ** (count >= 2)  # x10, as at a drop of the rate
    got, state = run(asgd.compensate_delay(schedule, decay), g, w, b, updates)
    strengths = np.where(clock >= 2, 1.0, 0.1)[:, None]
    if decay is None:
        want = g + strengths * g * g * (w - b)
    else:
        plain, _ = adaptive(g, w, b, 1.0, decay, 1e-7, ["all"] * len(g))
        want = g + strengths * (plain - g)
    np.testing.assert_allclose(got, want, **TOLERANCE)
    assert int(state.count) == sum(updates)


def test_trees_and_the_leading_axis_of_workers():
    params = {"kernel": jnp.zeros((2, 3)), "scale": jnp.zeros(())}
    state = asgd.compensate_delay(1.0, 0.5, num_workers=4).init(params)
    assert jax.tree.map(jnp.shape, state.mean_square) == {"kernel": (4, 2, 3), "scale": (4,)}
    assert all(not leaf.any() for leaf in jax.tree.leaves(state))


def test_weight_decay_belongs_behind():
    """E.5: behind, the decay is outside of the square; in front it is squared."""
    w, b, g, wd = 0.8, 1.0, 0.5, 0.1
    behind = optax.chain(asgd.compensate_delay(2.0), optax.add_decayed_weights(wd))
    np.testing.assert_allclose(
        _once(behind, g, w, b), g + 2 * g * g * (w - b) + wd * w, rtol=1e-6)
    front = optax.chain(optax.add_decayed_weights(wd), asgd.compensate_delay(2.0))
    both = g + wd * w
    np.testing.assert_allclose(_once(front, g, w, b), both + 2 * both**2 * (w - b), rtol=1e-6)


@pytest.mark.parametrize("kwargs, words", [
    ({"decay": 1.0}, "decay must be None or in \\[0, 1\\), got 1"),
    ({"decay": -0.1}, "decay must be"),
    ({"decay": float("nan")}, "decay must be"),
    ({"eps": -1e-7}, "eps must be at least 0"),
    ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
    ({"decay": 0.9, "per_worker": True}, "per_worker=True needs num_workers"),
])
def test_errors_at_construction(kwargs, words):
    with pytest.raises(ValueError, match=f"compensate_delay: {words}"):
        asgd.compensate_delay(1.0, **kwargs)


def test_errors_at_update():
    tx, one = asgd.compensate_delay(1.0, 0.9, num_workers=2), jnp.ones(1)
    with pytest.raises(ValueError, match="needs the current params"):
        tx.update(one, tx.init(one), stale_params=one, worker=0)
    with pytest.raises(ValueError, match="extra argument worker"):
        tx.update(one, tx.init(one), one, stale_params=one)
    with pytest.raises(TypeError, match="stale_params"):
        tx.update(one, tx.init(one), one, worker=0)
