"""Losses and evaluation against plain NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asgd.workloads import datasets, models
from asgd.workloads.augmentation import pad_crop_flip
from asgd.workloads.sampling import EventSampler
from asgd.workloads.task import make_task

ROWS = 60  # Alike, so that what is not jitted is compiled once.


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def mlp(digits):
    return make_task(digits, models.create("mlp", 10, hidden=(16,)))


@pytest.fixture(scope="module")
def params(mlp):
    return mlp.init(seed=0)[0]


class _Normalised(nn.Module):
    """The smallest model with batch normalisation."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.0)(x.reshape(len(x), -1))
        return nn.Dense(10)(x)


def _rows(split, count):
    return {name: array[:count] for name, array in split.items()}


def _numpy_losses(params, dataset, batch):
    """Cross-entropies and hits of the one-hidden-layer MLP, in float64."""
    train = dataset.train["image"] / 255.0
    x = (batch["image"] / 255.0 - train.mean(axis=0)).reshape(len(batch["label"]), -1)
    first, second = ({k: np.asarray(v, np.float64) for k, v in params[name].items()}
                     for name in ("Dense_0", "Dense_1"))
    logits = np.maximum(x @ first["kernel"] + first["bias"], 0) @ second["kernel"] + second["bias"]
    log_normaliser = np.log(np.exp(logits).sum(axis=1))
    losses = log_normaliser - logits[np.arange(len(x)), batch["label"]]
    return losses, logits.argmax(axis=1) == batch["label"]


def test_loss_is_the_mean_cross_entropy_of_normalised_images(digits, mlp, params):
    batch = _rows(digits.train, ROWS)
    expected = _numpy_losses(params, digits, batch)[0].mean()
    loss = mlp.loss_fn(params, batch, jax.random.key(0))
    assert loss.shape == ()
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_loss_of_zero_logits_is_the_log_of_the_classes(digits, mlp, params):
    batch = _rows(digits.train, ROWS)
    assert abs(mlp.loss_fn(params, batch) - np.log(10)) < 0.5
    params = {**params, "Dense_1": jax.tree.map(jnp.zeros_like, params["Dense_1"])}
    np.testing.assert_allclose(mlp.loss_fn(params, batch), np.log(10), rtol=1e-6)


@pytest.mark.parametrize("batch_size", [100, 360, 500, 1])
def test_evaluate_covers_the_test_set_once(digits, mlp, params, batch_size):
    losses, hits = _numpy_losses(params, digits, digits.test)
    found = mlp.evaluate(params, batch_size=batch_size)
    assert set(found) == {"eval_loss", "eval_accuracy"}
    assert all(type(value) is float for value in found.values())
    np.testing.assert_allclose(found["eval_loss"], losses.mean(), rtol=1e-5)
    assert found["eval_accuracy"] == hits.mean()


def test_masked_rows_do_not_count(digits, mlp, params):
    batch = _rows(digits.test, 8)
    mask = np.arange(8) < 5
    losses, _ = _numpy_losses(params, digits, batch)
    loss = mlp.eval_fn(params, None, batch, mask)["loss"]
    np.testing.assert_allclose(loss, losses[:5].sum(), rtol=1e-5)
    # A padding row may hold anything, even what makes its loss infinite or NaN.
    broken = {**batch, "image": batch["image"].astype(np.float32)}
    broken["image"][5:, 4, 4] = np.inf
    assert not np.isfinite(mlp.loss_fn(params, broken))
    assert mlp.eval_fn(params, None, broken, mask)["loss"] == loss

    guesses = [c for c in range(10) if _numpy_losses(
        params, digits, {**batch, "label": np.full(8, c)})[1][7]]
    hit = {**batch, "label": np.full(8, guesses[0], np.int32)}
    assert mlp.eval_fn(params, None, hit, np.arange(8) == 7)["correct"] == 1
    assert mlp.eval_fn(params, None, hit, np.zeros(8, bool))["correct"] == 0


def test_init_is_a_function_of_the_seed(mlp, params):
    assert not mlp.has_model_state
    (again, model_state), (other, _) = mlp.init(seed=0), mlp.init(seed=1)
    assert model_state is None
    first = params
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first["Dense_0"]["kernel"] != other["Dense_0"]["kernel"]).any()
    assert type(first) is dict


@pytest.mark.parametrize("model", [_Normalised(), models.ResNet20(10)], ids=["small", "resnet20"])
def test_batch_normalised_model_returns_its_batch_statistics(digits, model):
    task = make_task(digits, model)
    assert task.has_model_state
    params, model_state = jax.eval_shape(task.init, 0)
    assert type(model_state) is dict
    step = jax.value_and_grad(task.loss_fn, has_aux=True)
    (loss, statistics), gradients = jax.eval_shape(step, params, _rows(digits.train, 8))
    assert statistics == model_state
    assert gradients == params
    assert loss.shape == ()


def test_batch_statistics_are_those_of_the_normalised_images(digits):
    task = make_task(digits, _Normalised())
    params, model_state = task.init(seed=0)
    batch = _rows(digits.train, ROWS)
    images = (batch["image"] / 255.0 - digits.mean).reshape(ROWS, -1)
    found = task.loss_fn(params, batch)[1]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], images.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found["var"], images.var(axis=0), atol=1e-6)


def test_evaluation_uses_the_running_statistics(digits):
    task = make_task(digits, _Normalised())
    params, model_state = task.init(seed=0)
    state = jax.tree.map(lambda s: s + 0.5, model_state)["BatchNorm_0"]
    images = (digits.test["image"] / 255.0 - digits.mean).reshape(360, -1)
    images = (images - state["mean"]) / np.sqrt(state["var"] + 1e-5)
    logits = images @ np.asarray(params["Dense_0"]["kernel"])
    found = task.evaluate(params, {"BatchNorm_0": state})
    assert found["eval_accuracy"] == (logits.argmax(axis=1) == digits.test["label"]).mean()


def test_augmentation_is_keyed_by_the_event(digits, mlp, params):
    augmented = make_task(digits, mlp.model, augment=True)
    batch = _rows(digits.train, ROWS)
    losses = []
    for event in (0, 1):
        key = jax.random.fold_in(jax.random.key(7), event)
        moved = {**batch, "image": pad_crop_flip(key, jnp.asarray(batch["image"]))}
        losses.append(augmented.loss_fn(params, batch, key))
        np.testing.assert_array_equal(losses[-1], mlp.loss_fn(params, moved))
    assert losses[0] != losses[1]
    # Evaluation sees the images as they are.
    assert augmented.evaluate(params) == mlp.evaluate(params)


def test_batches_are_the_rows_that_the_sampler_names(digits, mlp):
    sampler = EventSampler(1437, 8, seed=4)
    events = np.array([5, 0, 179, 180])
    found = mlp.batches(sampler)(events)
    rows = sampler.indices(events)
    assert found["image"].shape == (4, 8, 8, 8, 1)
    assert found["image"].dtype == np.uint8
    assert found["label"].dtype == np.int32
    np.testing.assert_array_equal(found["image"], digits.train["image"][rows])
    np.testing.assert_array_equal(found["label"], digits.train["label"][rows])


class _WithOtherVariables(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        self.variable("cache", "seen", lambda: jnp.zeros(()))
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_bad_arguments_are_refused(digits, mlp, params):
    with pytest.raises(ValueError, match="model must return 10 logits per image.*not .3."):
        make_task(digits, models.create("mlp", 3))
    with pytest.raises(ValueError, match="model must have the variables params.*not cache, params"):
        make_task(digits, _WithOtherVariables())
    with pytest.raises(ValueError, match="sampler.num_examples must be 1437.*not 1797"):
        mlp.batches(EventSampler(1797, 8, seed=0))
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 0"):
        mlp.evaluate(params, batch_size=0)
