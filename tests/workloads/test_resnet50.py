"""ResNet-50: its size by arithmetic, and a bottleneck block against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asgd.workloads import models, resnet


def _shapes(image, num_classes, train=False):
    model = models.create("resnet50", num_classes)
    x = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    out = jax.eval_shape(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), variables, x)
    return variables, out


def test_size():
    expected = 49 * 3 * 64 + 2 * 64
    inputs = 64
    for channels, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        expected += inputs * 4 * channels + 8 * channels  # The projection.
        for _ in range(blocks):
            expected += (inputs + 9 * channels + 4 * channels) * channels + 2 * (2 + 4) * channels
            inputs = 4 * channels
    expected += 2048 * 1000 + 1000
    assert expected == 25_557_032
    variables, (logits, new_state) = _shapes((224, 224, 3), 1000)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected
    assert logits.shape == (2, 1000)
    assert new_state["batch_stats"] == variables["batch_stats"]


def test_small_images_will_do():
    variables, (logits, _) = _shapes((32, 32, 3), 7)
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32


def _convolve(x, kernel, stride=1):
    """In float64, with as many zeros around as keep the size before striding."""
    size = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (size, size), (size, size), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
    return np.einsum("bijcyx,yxco->bijo", windows, kernel)[:, ::stride, ::stride]


@pytest.mark.parametrize("channels, stride", [(2, 1), (2, 2), (4, 2)])
def test_bottleneck(channels, stride):
    block = resnet._Bottleneck(channels, stride)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6, 6, 8)).astype(np.float32)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, True))
    variables = jax.tree.map(lambda s: rng.uniform(-1, 1, s.shape).astype(s.dtype), shapes)
    found, state = jax.jit(
        lambda v: block.apply(v, x, True, mutable=["batch_stats"]))(variables)
    params = jax.tree.map(lambda p: p.astype(np.float64), variables["params"])

    def norm(y, name):
        mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
        # What comes out is of this batch alone, whatever went in.
        np.testing.assert_allclose(state["batch_stats"][name]["mean"], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state["batch_stats"][name]["var"], var, rtol=1e-4, atol=1e-5)
        return (y - mean) / np.sqrt(var + 1e-5) * params[name]["scale"] + params[name]["bias"]

    y = np.maximum(norm(_convolve(x.astype(np.float64), params["conv0"]["kernel"], stride), "norm0"), 0)
    y = np.maximum(norm(_convolve(y, params["conv1"]["kernel"]), "norm1"), 0)
    y = norm(_convolve(y, params["conv2"]["kernel"]), "norm2")
    if stride == 1 and channels == 2:
        assert "conv3" not in params
        shortcut = x
    else:
        shortcut = norm(_convolve(x.astype(np.float64), params["conv3"]["kernel"], stride), "norm3")
    np.testing.assert_allclose(found, np.maximum(y + shortcut, 0), rtol=1e-3, atol=1e-4)
