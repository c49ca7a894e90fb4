"""Rewritten convolutions have the plain ones' values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from asgd.emulation.convolutions import canonical_convolutions

pytestmark = pytest.mark.usefixtures("x64")

LAYOUTS = {
    1: [("NWC", "WIO", "NWC"), ("NCW", "OIW", "NCW")],
    2: [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("HWNC", "OHWI", "CNHW")],
    3: [("NDHWC", "DHWIO", "NDHWC"), ("NCDHW", "OIDHW", "NCDHW")],
}
SIZES, TAPS = (9, 8, 6), (3, 3, 2)
CASES = {
    "plain": {},
    "stride 2": dict(strides=2),
    "stride 3": dict(strides=3),
    "strides": dict(strides=(2, 3, 1)),
    "valid": dict(padding="VALID"),
    "valid stride 2": dict(padding="VALID", strides=2),
    "valid stride 3": dict(padding="VALID", strides=3),
    "explicit": dict(padding=[(0, 2), (3, 1), (1, 0)]),
    "explicit stride 2": dict(padding=[(4, 0), (0, 1), (2, 2)], strides=2),
    "cropping": dict(padding=[(-1, 0), (1, -2), (0, 0)]),
    "dilated": dict(dilation=2),
    "dilated stride 2": dict(dilation=(2, 3, 1), strides=2),
    "dilated stride 3": dict(dilation=2, strides=3, padding="VALID"),
    "even": dict(taps=(2, 4, 2)),
    "even stride 2": dict(taps=(4, 2, 2), strides=2),
    "pointwise": dict(taps=(1, 1, 1)),
    "pointwise stride 2": dict(taps=(1, 1, 1), strides=2),
    "larger than the image": dict(taps=(13, 11, 9)),
    "larger, stride 3": dict(taps=(13, 11, 9), strides=3),
}


def layout(array, spec, canonical):
    return np.transpose(array, [canonical.index(letter) for letter in spec])


def problem(ndim, numbers, strides=1, padding="SAME", dilation=1, taps=TAPS, groups=1):
    """Returns a loss of a kernel and images in a layout, and both."""
    rng = np.random.default_rng(0)
    space = "DHW"[3 - ndim:]
    each = lambda value: (value,) * ndim if np.isscalar(value) else tuple(value[:ndim])
    images = rng.normal(size=(2, *SIZES[:ndim], 4))
    kernel = rng.normal(size=(*taps[:ndim], 4 // groups, 6))
    padding = padding if isinstance(padding, str) else padding[:ndim]

    def loss(kernel, images):
        out = lax.conv_general_dilated(
            images, kernel, each(strides), padding, rhs_dilation=each(dilation),
            dimension_numbers=numbers, feature_group_count=groups)
        # Every element of the output has a weight of its own.
        return jnp.sum(jnp.sin(out) * jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    return (loss, jnp.asarray(layout(kernel, numbers[1], space + "IO")),
            jnp.asarray(layout(images, numbers[0], "N" + space + "C")))


def assert_same_gradients(loss, *args):
    both = tuple(range(len(args)))
    want, got = jax.jit(lambda *args: [jax.value_and_grad(f, both)(*args) for f in (
        loss, canonical_convolutions(loss))])(*args)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-12 * max(1, np.abs(w).max()))


def primitives(jaxpr):
    """Yields all equations, those of inner jaxprs too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def convolutions_of_the_gradient(loss, *args):
    jaxpr = jax.make_jaxpr(jax.grad(canonical_convolutions(loss), (0, 1)))(*args)
    return [e for e in primitives(jaxpr.jaxpr) if e.primitive is lax.conv_general_dilated_p]


@pytest.mark.parametrize("case", CASES)
def test_two_dimensions(case):
    assert_same_gradients(*problem(2, LAYOUTS[2][0], **CASES[case]))


# Every axis has a padding, or a stride and a dilation, of its own.
@pytest.mark.parametrize("case", ["explicit stride 2", "dilated stride 2"])
@pytest.mark.parametrize("ndim, numbers", [
    (1, LAYOUTS[1][0]), (1, LAYOUTS[1][1]), (2, LAYOUTS[2][1]), (2, LAYOUTS[2][2]),
    (3, LAYOUTS[3][0]), (3, LAYOUTS[3][1])])
def test_layouts_and_dimensions(ndim, numbers, case):
    assert_same_gradients(*problem(ndim, numbers, **CASES[case]))


@pytest.mark.parametrize("numbers", LAYOUTS[2])
def test_backward_pass_is_in_the_canonical_layout(numbers):
    """What the rewriting is for: batch first, channels last, in every convolution."""
    found = convolutions_of_the_gradient(*problem(2, numbers, strides=2))
    assert len(found) == 3  # Forward, and the gradients of the images and of the kernel.
    for eqn in found:
        spec = eqn.params["dimension_numbers"]
        assert (spec.lhs_spec, spec.rhs_spec, spec.out_spec) == (
            (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def test_within_jit_and_models():
    model = nn.Sequential([nn.Conv(5, (3, 3)), nn.relu, nn.Conv(3, (2, 2), strides=2), jnp.ravel])
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 6, 3)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    params = jax.tree.map(lambda p: np.random.default_rng(1).normal(size=p.shape), shapes)

    @jax.jit
    def loss(params, images):
        return jnp.sum(jnp.sin(jax.jit(model.apply)(params, images)))

    assert_same_gradients(loss, params, images)
    for eqn in convolutions_of_the_gradient(loss, params, images):
        assert eqn.params["dimension_numbers"].lhs_spec == (0, 3, 1, 2)


def test_auxiliary_outputs_and_other_arguments():
    loss, kernel, images = problem(2, LAYOUTS[2][0])

    def with_aux(kernel, images, key):
        return loss(kernel, images) * jax.random.normal(key), {"images": images}

    args = kernel, images, jax.random.key(0)
    want, got = (jax.jit(jax.value_and_grad(f, has_aux=True))(*args)
                 for f in (with_aux, canonical_convolutions(with_aux)))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-10), got, want)


def passes_through(loss, *args):
    """Whether the gradient is the same program as without the rewriting."""
    text = lambda f: str(jax.make_jaxpr(jax.grad(f, (0, 1)))(*args))
    return text(canonical_convolutions(loss)) == text(loss)


def test_grouped_convolutions_pass_through():
    loss, kernel, images = problem(2, LAYOUTS[2][0], groups=2)
    assert passes_through(loss, kernel, images)
    assert_same_gradients(loss, kernel, images)


def test_transposed_convolutions_pass_through():
    _, kernel, images = problem(2, LAYOUTS[2][0])

    def loss(kernel, images):
        return jnp.sum(jnp.sin(lax.conv_transpose(images, kernel, (2, 2), "SAME")))

    assert passes_through(loss, kernel, images)
    assert_same_gradients(loss, kernel, images)


def test_what_has_no_convolution_passes_through():
    def loss(a, b):
        return jnp.sum(jnp.tanh(a @ b))

    assert passes_through(loss, jnp.ones((2, 3)), jnp.ones((3, 4)))


def test_grouped_beside_plain():
    loss, kernel, images = problem(2, LAYOUTS[2][0])
    grouped, group_kernel, _ = problem(2, LAYOUTS[2][0], groups=2)
    assert_same_gradients(lambda a, b, x: loss(a, x) + grouped(b, x), kernel, group_kernel, images)


@pytest.mark.parametrize("channels, filled", [(1, 1), (2, 2), (3, 4), (5, 8), (6, 6), (7, 8)])
def test_odd_channels_are_filled_up_to_a_multiple_of_four(channels, filled):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x = jnp.ones((2, 4, 4, channels), jnp.float32)
    kernel = jnp.ones((3, 3, channels, 2), jnp.float32)
    text = str(jax.make_jaxpr(canonical_convolutions(convolve))(x, kernel))
    assert f"f32[2,4,4,{filled}]" in text
    assert text.count("pad[") == (channels != filled) * 2
