"""Eigenvalues against dense Hessians, gradient noise against closed forms."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asgd.theory import extreme_eigenvalues, gradient_noise
from asgd.workloads import datasets, make_task, models


def _matrix(eigenvalues, seed=0):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))[0]
    return (q * eigenvalues) @ q.T


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _quadratic(params, matrix):
    flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)])
    return flat @ matrix @ flat / 2


@pytest.mark.parametrize("eigenvalues", [
    np.linspace(-3, 5, 60),
    np.concatenate([np.zeros(50), np.arange(1, 11)]),
    np.concatenate([np.zeros(50), -np.arange(1, 11)]),
    np.repeat([-1.0, 0.5, 2.0], 20),
    1e-6 * np.linspace(-1, 2, 60),
    np.zeros(60),
], ids=["spread", "positive", "negative", "repeated", "tiny", "zero"])
def test_quadratic_has_the_spectrum_it_was_built_with(x64, eigenvalues):
    matrix, ordered = _matrix(eigenvalues), np.sort(eigenvalues)
    params = {"a": np.ones((5, 4)), "b": [np.ones(39), np.ones(())]}
    result = extreme_eigenvalues(_quadratic, params, matrix, 3, tolerance=1e-9, eigenvectors=True)
    size = np.abs(eigenvalues).max()
    np.testing.assert_allclose(result.largest, ordered[::-1][:3], atol=1e-8 * size)
    np.testing.assert_allclose(result.smallest, ordered[:3], atol=1e-8 * size)
    vectors = result.largest_vectors + result.smallest_vectors
    assert jax.tree.map(np.shape, vectors) == [jax.tree.map(np.shape, params)] * 6
    basis = np.stack([_flat(v) for v in vectors])
    values = np.concatenate([result.largest, result.smallest])
    np.testing.assert_allclose(basis @ matrix, values[:, None] * basis, atol=1e-7 * size)
    np.testing.assert_allclose(basis @ basis.T, np.eye(6), atol=1e-6)


@pytest.mark.parametrize("size, k", [(1, 1), (5, 5), (22, 5)])
def test_few_parameters(x64, size, k):
    eigenvalues = np.sort(np.random.default_rng(1).standard_normal(size))
    result = extreme_eigenvalues(_quadratic, np.ones(size), _matrix(eigenvalues), k, tolerance=1e-9)
    np.testing.assert_allclose(result.smallest, eigenvalues[:k], atol=1e-7)
    np.testing.assert_allclose(result.largest, eigenvalues[::-1][:k], atol=1e-7)
    assert result.largest_vectors is None and result.smallest_vectors is None


def test_float32_products_find_a_zero_that_rounding_hides():
    matrix = _matrix(np.concatenate([np.zeros(50), np.linspace(0.1, 10, 100)])).astype(np.float32)
    result = extreme_eigenvalues(_quadratic, np.ones(150, np.float32), matrix, tolerance=1e-5,
                                 max_iterations=50)
    assert result.largest[0] == pytest.approx(10, rel=1e-4)
    assert result.smallest[0] == pytest.approx(0, abs=1e-4)


def _logistic(params, batch):
    x, y = batch
    return jnp.logaddexp(0.0, -y * (x @ params["w"] + params["b"])).mean()


def _logistic_data(samples=200, features=30):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((samples, features)) * np.geomspace(3, 0.3, features)
    y = np.where(rng.random(samples) < 0.5, -1.0, 1.0)
    return (x, y), {"w": 0.2 * rng.standard_normal(features), "b": np.array(0.3)}


def _logistic_hessian(params, batch):
    x, _ = batch
    p = 1 / (1 + np.exp(-(x @ params["w"] + params["b"])))
    design = np.concatenate([np.ones((len(x), 1)), x], axis=1)  # b comes first in tree order.
    return (design * (p * (1 - p))[:, None]).T @ design / len(x)


def test_logistic_regression_against_its_dense_hessian(x64):
    batch, params = _logistic_data()
    expected = np.linalg.eigvalsh(_logistic_hessian(params, batch))
    result = extreme_eigenvalues(_logistic, params, batch, 2, tolerance=1e-8)
    np.testing.assert_allclose(result.largest, expected[::-1][:2], rtol=1e-6)
    np.testing.assert_allclose(result.smallest, expected[:2], rtol=1e-4)


@pytest.mark.parametrize("ends", [[50, 100, 150, 200], [30, 190, 200]])
def test_a_list_of_batches_is_one_data_set(x64, ends):
    """Whatever its batches are, unequal ones too, and whatever their order."""
    (x, y), params = _logistic_data()
    batches = [(x[a:b], y[a:b]) for a, b in zip([0] + ends, ends)][::-1]
    whole = np.linalg.eigvalsh(_logistic_hessian(params, (x, y)))
    result = extreme_eigenvalues(_logistic, params, batches, tolerance=1e-8)
    np.testing.assert_allclose([result.smallest[0], result.largest[0]], whole[[0, -1]], rtol=1e-5)


def test_mlp_against_its_dense_hessian(x64):
    rng = np.random.default_rng(3)
    params = {"in": rng.standard_normal((12, 16)) / 3, "out": rng.standard_normal((16, 4)) / 4,
              "bias": np.zeros(4)}
    x, y = rng.standard_normal((80, 12)), rng.integers(4, size=80)

    def loss(params, batch):
        x, y = batch
        logits = jnp.tanh(x @ params["in"]) @ params["out"] + params["bias"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()

    flat, unravel = jax.flatten_util.ravel_pytree(params)
    dense = np.linalg.eigvalsh(jax.jit(jax.hessian(lambda v: loss(unravel(v), (x, y))))(flat))
    assert len(dense) == 260 and dense[0] < 0
    result = extreme_eigenvalues(loss, params, (x, y), 4, tolerance=1e-8)
    np.testing.assert_allclose(result.largest, dense[::-1][:4], rtol=1e-6)
    np.testing.assert_allclose(result.smallest, dense[:4], rtol=1e-6)


def test_losses_with_keys_and_statistics():
    params, batch = np.ones(3, np.float32), np.ones((4, 3), np.float32)

    def with_key(params, batch, key):
        return jax.random.normal(key) * (params @ params)

    def with_statistics(params, batch):
        return (params @ params) * batch.mean(), {"mean": batch.mean()}

    def with_setting(params, batch, factor=2.0):
        return factor * (params @ params)

    drawn = [float(jax.random.normal(jax.random.fold_in(jax.random.key(5), i))) for i in range(2)]
    one = extreme_eigenvalues(with_key, params, batch, seed=5)
    assert one.largest == pytest.approx([2 * drawn[0]], rel=1e-5)
    two = extreme_eigenvalues(with_key, params, [batch, batch], seed=5)
    assert two.largest == pytest.approx([sum(drawn)], rel=1e-5)
    assert extreme_eigenvalues(with_statistics, params, batch, has_aux=True).largest == [2.0]
    assert extreme_eigenvalues(with_setting, params, batch).largest == [4.0]
    noise = gradient_noise(with_key, params, [batch, batch], seed=5)
    np.testing.assert_allclose(noise.mean, sum(drawn) * params, rtol=1e-5)
    assert gradient_noise(with_statistics, params, [batch] * 3, has_aux=True).trace == 0.0


def _squares(params, batch):
    x, y = batch
    return ((x @ params["w"] - y) ** 2).mean() / 2


def _regression(samples=60, features=3):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((samples, features))
    w = rng.standard_normal(features)
    y = x @ w + 0.5 * rng.standard_normal(samples)
    params = {"w": w + 0.3}
    return x, y, params, x * (x @ params["w"] - y)[:, None]


@pytest.mark.parametrize("size", [1, 5])
def test_noise_of_linear_regression_is_that_of_its_samples(x64, size):
    x, y, params, of_samples = _regression()
    groups = of_samples.reshape(-1, size, 3).mean(axis=1)
    covariance, m = np.cov(groups.T), len(groups)
    batches = [(x[i:i + size], y[i:i + size]) for i in range(0, 60, size)]
    unit = np.array([1.0, 1.0, -2.0]) / math.sqrt(6)
    directions = [{"w": np.array([3.0, 0.0, 0.0])}, {"w": 0.2 * unit}]
    noise = gradient_noise(_squares, params, iter(batches), directions=directions)
    assert (noise.batch_size, noise.num_batches) == (size, m)
    np.testing.assert_allclose(noise.mean["w"], of_samples.mean(axis=0), rtol=1e-12)
    assert noise.trace == pytest.approx(np.trace(covariance), rel=1e-12)
    along = [covariance[0, 0], unit @ covariance @ unit]
    np.testing.assert_allclose(noise.along, along, rtol=1e-12)
    # McCandlish et al., appendix A, with batches of b and of m b samples.
    small, big = (groups**2).sum(axis=1).mean(), (groups.mean(axis=0) ** 2).sum()
    b, everything = size, m * size
    assert noise.squared_norm == pytest.approx((everything * big - b * small) / (everything - b))
    scatter = (small - big) / (1 / b - 1 / everything)
    assert noise.noise_scale == pytest.approx(scatter / noise.squared_norm)
    shuffled = gradient_noise(_squares, params, batches[::-1])
    assert shuffled.trace == pytest.approx(noise.trace, rel=1e-12)
    assert shuffled.noise_scale == pytest.approx(noise.noise_scale, rel=1e-12)


def test_estimates_are_unbiased(x64):
    """The mean over all pairs of samples is exactly what they estimate."""
    x, y, params, of_samples = _regression(samples=4)
    pairs = [gradient_noise(_squares, params, [(x[[i]], y[[i]]), (x[[j]], y[[j]])])
             for i, j in itertools.product(range(4), repeat=2)]
    truth = of_samples.mean(axis=0)
    assert np.mean([pair.trace for pair in pairs]) == pytest.approx(of_samples.var(axis=0).sum())
    assert np.mean([pair.squared_norm for pair in pairs]) == pytest.approx(truth @ truth)


def test_simple_noise_scale_of_a_constructed_example(x64):
    """Samples at distance 2 around the mean on each of 50 axes, parameters at distance 3 of it."""
    samples = 2.0 * np.concatenate([np.eye(50), -np.eye(50)])
    params = np.full(50, 3.0 / math.sqrt(50))

    def loss(params, batch):
        return ((params - batch) ** 2).sum(axis=1).mean() / 2

    noise = gradient_noise(loss, params, [samples[[i]] for i in range(100)])
    trace = 4.0 * 100 / 99
    assert noise.trace == pytest.approx(trace)
    assert noise.noise_scale == pytest.approx(trace / (9.0 - trace / 100))
    twins = gradient_noise(loss, params, [samples[[i, i]] for i in range(100)])
    assert twins.noise_scale == pytest.approx(2 * noise.noise_scale)
    assert gradient_noise(loss, np.zeros(50), [samples[:1], -samples[:1]]).noise_scale == math.inf


def test_task_end_to_end():
    task = make_task(datasets.load("digits"), models.create("mlp", 10, hidden=(8,)))
    params, _ = task.init(seed=0)
    train = {name: rows[:600] for name, rows in task.dataset.train.items()}
    batches = [{name: rows[i:i + 200] for name, rows in train.items()} for i in (0, 200, 400)]
    whole = extreme_eigenvalues(task.loss_fn, params, train, 2, eigenvectors=True)
    parts = extreme_eigenvalues(task.loss_fn, params, batches, 2)
    np.testing.assert_allclose(parts.largest, whole.largest, rtol=1e-3)
    np.testing.assert_allclose(parts.smallest, whole.smallest, rtol=1e-3)
    assert whole.largest[0] > whole.largest[1] > 0 > whole.smallest[1] > whole.smallest[0]
    noise = gradient_noise(task.loss_fn, params, batches, directions=whole.largest_vectors)
    assert 0 < noise.along.sum() < noise.trace
    gradient = jax.jit(jax.grad(task.loss_fn))(params, train)
    for mean, expected in zip(jax.tree.leaves(noise.mean), jax.tree.leaves(gradient)):
        assert mean.dtype == np.float64
        np.testing.assert_allclose(mean, expected, atol=1e-6)


def test_no_convergence_is_one_clear_error(x64):
    matrix = _matrix(np.concatenate([np.linspace(0, 1e-9, 200), [1.0]]))
    with pytest.raises(RuntimeError, match="of 2 eigenvalues converged to a tolerance of 1e-15 in "
                                           "1 iterations: raise tolerance or max_iterations"):
        extreme_eigenvalues(_quadratic, np.ones(201), matrix, tolerance=1e-15, max_iterations=1)


def _mean(params, batch):
    return params @ params * batch.mean()


@pytest.mark.parametrize("function, bad, message", [
    (extreme_eigenvalues, dict(k=0), "k must be an integer from 1 to 3, not 0"),
    (extreme_eigenvalues, dict(k=4), "k must be an integer from 1 to 3, not 4"),
    (extreme_eigenvalues, dict(tolerance=0.0), "tolerance must be a finite number > 0"),
    (extreme_eigenvalues, dict(tolerance=1), "tolerance must be between 0 and 1"),
    (extreme_eigenvalues, dict(seed=-1), "seed must be an integer >= 0"),
    (extreme_eigenvalues, dict(max_iterations=0.5), "max_iterations must be an integer"),
    (extreme_eigenvalues, dict(batch=[]), "batch must not be an empty list"),
    (extreme_eigenvalues, dict(batch=[1.0, 2.0]), "batch: the arrays of a batch must share"),
    (extreme_eigenvalues, dict(params={"n": np.ones(3), "k": np.ones(3, int)}),
     r"params: \['k'\] must be floating, not int"),
    (extreme_eigenvalues, dict(params={}), "params must have elements"),
    (extreme_eigenvalues, dict(has_aux=True), "has_aux is True"),
    (extreme_eigenvalues, dict(loss_fn=lambda p, b: (p.sum(), None)), "has_aux is False"),
    (extreme_eigenvalues, dict(loss_fn=lambda p, b: p), "must return a floating scalar"),
    (gradient_noise, dict(batches=np.ones((3, 4))), "batches must be a list or an iterator"),
    (gradient_noise, dict(seed=0.5), "seed must be an integer >= 0"),
    (gradient_noise, dict(batches=[np.ones(4)]), "batches must be two or more, not 1"),
    (gradient_noise, dict(batches=[np.ones(4), np.ones(3)]), "that at row 1 has 3"),
    (gradient_noise, dict(batches=[{"x": np.ones(4), "y": np.ones(3)}] * 2), "share a first axis"),
    (gradient_noise, dict(directions=[np.zeros(3)]), "directions must not be of length 0"),
    (gradient_noise, dict(directions=[np.ones(4)]), "directions must be trees like params"),
    (gradient_noise, dict(loss_fn=lambda p, b: p), "must return a floating scalar"),
])
def test_errors_name_the_argument(function, bad, message):
    arguments = dict(loss_fn=_mean, params=np.ones(3))
    arguments["batch" if function is extreme_eigenvalues else "batches"] = [np.ones(4), np.ones(4)]
    with pytest.raises(ValueError, match=message):
        function(**{**arguments, **bad})


def test_what_is_not_finite_is_an_error():
    with pytest.raises(FloatingPointError, match="Hessian-vector product is not finite"):
        extreme_eigenvalues(_mean, np.ones(3), np.array([np.nan]))
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        gradient_noise(_mean, np.ones(3), [np.ones(1), np.array([np.inf])])


def test_results_repeat():
    batch = np.ones(2, np.float32)

    def loss(params, batch):
        return jnp.cos(params * jnp.arange(40)).sum() * batch.mean()

    first, again = (extreme_eigenvalues(loss, np.ones(40, np.float32), batch, seed=3)
                    for _ in range(2))
    assert first.largest == again.largest and first.smallest == again.smallest
