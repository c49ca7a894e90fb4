"""Models: sizes by arithmetic, pooling, shortcuts and batch statistics against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asgd.workloads import models, resnet


def _count(name, shape, **kwargs):
    model = models.create(name, num_classes=10, **kwargs)
    variables = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, *shape)), train=False), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_mlp_size():
    assert _count("mlp", (28, 28, 1)) == (784 * 256 + 256) + (256 * 256 + 256) + (256 * 10 + 10)
    assert _count("mlp", (8, 8, 1), hidden=()) == 64 * 10 + 10


def test_small_cnn_size():
    convolutions = (25 * 3 * 32 + 32) + (25 * 32 * 32 + 32) + (25 * 32 * 64 + 64)
    expected = convolutions + 4 * 4 * 64 * 10 + 10
    assert expected == 2_432 + 25_632 + 51_264 + 10_250 == 89_578
    assert _count("cnn", (32, 32, 3)) == expected


def test_resnet20_size():
    expected = 9 * 3 * 16 + 2 * 16
    inputs = 16
    for channels in (16, 32, 64):
        for _ in range(3):
            expected += 9 * inputs * channels + 9 * channels * channels + 2 * 2 * channels
            inputs = channels
    expected += 64 * 10 + 10
    assert expected == 269_722
    assert _count("resnet20", (32, 32, 3)) == expected


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 11, 3)])
def test_logits_shape(name, shape):
    model = models.create(name, num_classes=7)
    images = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    logits = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    assert logits.shape == (5, 7)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("height, width", [(8, 8), (7, 9)])
def test_max_pool_drops_the_odd_row_and_column(height, width):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    expected = np.empty([2, height // 2, width // 2, 3], np.float32)
    for i in range(height // 2):
        for j in range(width // 2):
            expected[:, i, j] = x[:, 2 * i:2 * i + 2, 2 * j:2 * j + 2].max(axis=(1, 2))
    np.testing.assert_array_equal(models._max_pool(jnp.asarray(x)), expected)


def _convolve(x, kernel):
    """3x3 convolution with one pixel of zeros around, in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("bijcyx,yxco->bijo", windows, kernel.astype(np.float64))


@pytest.fixture(scope="module")
def resnet20():
    model = models.create("resnet20", num_classes=10)
    rng = np.random.default_rng(0)
    x = rng.normal(0.3, 2.0, size=(6, 8, 8, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    # Positive, as variances are.
    variables = jax.tree.map(lambda s: rng.uniform(0.1, 1.0, s.shape).astype(s.dtype), shapes)
    return model, variables, x


def test_training_puts_out_this_batch_own_statistics(resnet20):
    model, variables, x = resnet20

    def apply(variables):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    assert jax.eval_shape(apply, variables) == jax.eval_shape(lambda: variables["batch_stats"])
    # The first layers are enough, and compile sooner.
    first = jax.jit(lambda v: {name: apply(v)[name] for name in ("norm", "stage0_block0")})
    found = first(variables)
    y = _convolve(x, np.asarray(variables["params"]["conv"]["kernel"]))
    np.testing.assert_allclose(found["norm"]["mean"], y.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["norm"]["var"], y.var(axis=(0, 1, 2)), rtol=1e-4)

    # Nothing of what went in is kept, so no running average happens here.
    other = {**variables, "batch_stats": jax.tree.map(lambda s: s + 5, variables["batch_stats"])}
    again = first(other)
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_evaluation_uses_the_statistics_given(resnet20):
    model, variables, x = resnet20
    apply = jax.jit(lambda v: model.apply(v, x, train=False))
    halved = {**variables, "batch_stats": jax.tree.map(lambda s: s / 2, variables["batch_stats"])}
    assert not np.allclose(apply(variables), apply(halved))


@pytest.mark.parametrize("channels, stride", [(8, 1), (16, 2)])
def test_shortcut_keeps_even_pixels_and_pads_channels(channels, stride):
    block = resnet._BasicBlock(channels, stride)
    x = np.random.default_rng(1).normal(size=(2, 6, 6, 8)).astype(np.float32)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))
    variables = {"params": jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes["params"]),
                 "batch_stats": jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes["batch_stats"])}
    expected = np.zeros([2, 6 // stride, 6 // stride, channels], np.float32)
    first = (channels - 8) // 2
    expected[..., first:first + 8] = np.maximum(x[:, ::stride, ::stride], 0)
    found = jax.jit(lambda v: block.apply(v, x, False))(variables)
    np.testing.assert_array_equal(found, expected)


def test_strided_convolution_is_centred_on_the_shortcut_pixels():
    x = np.random.default_rng(2).normal(size=(1, 6, 6, 2)).astype(np.float32)
    convolution = resnet._conv(4, 3, 2, "conv")
    variables = convolution.init(jax.random.key(0), x)
    expected = _convolve(x, np.asarray(variables["params"]["kernel"]))[:, ::2, ::2]
    np.testing.assert_allclose(convolution.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_resnet_convolutions_start_he_normal(resnet20):
    model, _, x = resnet20
    kernel = jax.jit(lambda: model.init(jax.random.key(0), x, train=False)["params"][
        "stage2_block2"]["conv1"]["kernel"])()
    assert kernel.shape == (3, 3, 64, 64)
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 64)), rtol=0.02)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="one of cnn, mlp, resnet20, resnet50, transformer, not 'vit'"):
        models.create("vit", num_classes=10)
    with pytest.raises(ValueError, match="'mlp' has no option 'width'; it may be hidden"):
        models.create("mlp", num_classes=10, width=3)
    with pytest.raises(ValueError, match="'cnn' has no option 'hidden'; it may be none"):
        models.create("cnn", num_classes=10, hidden=(3,))
    with pytest.raises(ValueError, match="num_classes must be 2 or more, not 1"):
        models.create("cnn", num_classes=1)
    with pytest.raises(ValueError, match="image must be at least 8x8 for SmallCNN, not 7x8"):
        _count("cnn", (7, 8, 1))
    with pytest.raises(ValueError, match="hidden must be widths of 1 or more"):
        _count("mlp", (8, 8, 1), hidden=(4, 0))


def test_lists_from_configs_become_tuples():
    assert hash(models.create("mlp", 10, hidden=[4])) == hash(models.MLP(10, hidden=(4,)))
