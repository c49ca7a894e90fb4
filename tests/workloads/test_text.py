"""Text: windows of a file or of TFDS, and the task of predicting the next byte."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from asgd.workloads import datasets, models, sampling, text


class Bigram(nn.Module):
    """Logits that depend on the present byte alone."""

    @nn.compact
    def __call__(self, tokens, train):
        return self.param("table", nn.initializers.zeros, (256, 256))[tokens]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(bytes(range(100)) * 2)
    return str(file)


def test_windows_overlap_by_one_and_the_last_tenth_is_for_testing(path):
    data = text.load("text", 7, path=path)
    whole = np.frombuffer(bytes(range(100)) * 2, np.uint8)
    for tokens, part in ((data.train["tokens"], whole[:180]), (data.test["tokens"], whole[180:])):
        assert tokens.shape == ((len(part) - 1) // 7, 8) and tokens.dtype == np.uint8
        np.testing.assert_array_equal(tokens[:, :-1].ravel(), part[:7 * len(tokens)])
        np.testing.assert_array_equal(tokens[:, 1:].ravel(), part[1:7 * len(tokens) + 1])


def test_reads_tfds():
    def generate(*args, **kwargs):
        return ({"text": b"now is the winter of our discontent"} for _ in range(1))

    with tfds.testing.mock_data(num_examples=1, as_data_source_fn=lambda *a, **k: list(generate())):
        data = text.load("tiny_shakespeare", 5)
    assert bytes(data.train["tokens"][1]) == b"s the " and len(data.test["tokens"]) == 6


def test_says_how_to_prepare(tmp_path):
    with pytest.raises(datasets.DatasetNotPrepared, match="tiny_shakespeare is not prepared"):
        text.load("tiny_shakespeare", 5, data_dir=str(tmp_path))


def test_loss_and_evaluation_of_a_bigram_model(path):
    task = text.TextTask(text.load("text", 7, path=path), Bigram())
    params, model_state = task.init(0)
    assert model_state is None
    sampler = sampling.EventSampler(task.num_examples, 3, 0)
    batch = jax.tree.map(lambda x: x[0], task.batches(sampler)(np.arange(1)))
    assert batch["tokens"].shape == (3, 8)
    assert float(task.loss_fn(params, batch)) == pytest.approx(np.log(256), rel=1e-6)
    # Every byte but 99 is followed by the next one; the test split is 80 to 99.
    logits = np.zeros((256, 256), np.float32)
    logits[np.arange(99), np.arange(1, 100)] = 5.0
    logits[85] = 0.0
    logits[85, 3] = 5.0
    metrics = task.evaluate({"table": jnp.asarray(logits)}, batch_size=2)
    right, wrong = -np.log(np.exp(5) / (np.exp(5) + 255)), -np.log(1 / (np.exp(5) + 255))
    assert metrics["eval_accuracy"] == pytest.approx(13 / 14)
    assert metrics["eval_loss"] == pytest.approx((13 * right + wrong) / 14, rel=1e-6)


def test_the_transformer_sees_only_what_comes_before():
    model = models.create("transformer", 256, width=16, layers=2, heads=2)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 9)))
    params = jax.jit(lambda: model.init(jax.random.key(0), tokens, train=False))()
    apply = jax.jit(lambda tokens: model.apply(params, tokens, train=False))
    logits = apply(tokens)
    for changed in range(9):
        other = apply(tokens.at[0, changed].add(1))
        same = np.all(np.asarray(other == logits), axis=(0, 2))
        assert same.tolist() == [position < changed for position in range(9)]


@pytest.mark.parametrize("call, words", [
    (lambda path: text.load("poem", 7), "text must be one of text, tiny_shakespeare"),
    (lambda path: text.load("text", 7, path="no.txt"), "'no.txt' cannot be read: No such file"),
    (lambda path: text.load("text", 30, path=path), "the test split of text has 20 characters"),
])
def test_bad_input_is_refused(call, words, path):
    with pytest.raises(ValueError, match=words):
        call(path)
