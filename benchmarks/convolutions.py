"""Forms of a convolution on CPU: GFLOP/s of each, for the layers of the CNN and of ResNet-20.

`plain` is XLA's own, inside a loop as the emulation needs it; `filled up` has its channels padded
to a multiple of four; `im2col` is one matrix product on patches; `shifted` adds one product for
each tap. `weights, as differentiated` is the gradient by the kernel as XLA differentiates it, inside
a loop; `weights, canonical` is the form that the emulation rewrites it to. `product` is a matrix
product of the size of im2col's, which XLA runs on all cores, unlike a convolution.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asgd.emulation.convolutions import canonical_convolutions

DEVICES = (1,)
BATCH, TURNS = 32, 8
LAYERS = {  # size, channels in and out, taps
    "cnn 1": (32, 3, 32, 5), "cnn 2": (16, 32, 32, 5), "cnn 3": (8, 32, 64, 5),
    "resnet20 stage 1": (32, 16, 16, 3), "resnet20 stage 3": (8, 64, 64, 3)}
_NUMBERS = ("NHWC", "HWIO", "NHWC")


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Measures the rows of the table."""
    for layer, (size, channels, features, taps) in LAYERS.items():
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(TURNS, BATCH, size, size, channels)), jnp.float32)
        kernel = jnp.asarray(rng.normal(size=(taps, taps, channels, features)), jnp.float32)
        flop = 2 * BATCH * size**2 * taps**2 * channels * features
        patches = jnp.ones((TURNS, BATCH * size**2, taps**2 * channels))
        forms = {
            "plain": (_plain, x, kernel), "filled up": (_filled, x, kernel),
            "im2col": (_im2col, x, kernel), "shifted": (_shifted, x, kernel),
            "weights, as differentiated": (_by_kernel(_plain), x, kernel),
            "weights, canonical": (_by_kernel(canonical_convolutions(_plain)), x, kernel),
            "product": (jnp.matmul, patches, kernel.reshape(-1, features))}
        row = {"layer": layer}
        for name, (form, *args) in forms.items():
            row[name] = round(flop * TURNS / _seconds(form, *args, repeats=options.repeats) / 1e9)
        yield row


def _seconds(form, xs, kernel, repeats):
    looped = jax.jit(lambda xs, kernel: lax.fori_loop(
        0, len(xs), lambda i, out: form(xs[i], kernel),
        jnp.zeros_like(jax.eval_shape(form, xs[0], kernel))))
    jax.block_until_ready(looped(xs, kernel))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(looped(xs, kernel))
        seconds.append(time.perf_counter() - began)
    return np.median(seconds)


def _plain(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_NUMBERS)


def _filled(x, kernel):
    more = -x.shape[-1] % 4
    return _plain(jnp.pad(x, ((0, 0),) * 3 + ((0, more),)),
                  jnp.pad(kernel, ((0, 0),) * 2 + ((0, more), (0, 0))))


def _windows(x, taps):
    padded = jnp.pad(x, ((0, 0), (taps // 2,) * 2, (taps // 2,) * 2, (0, 0)))
    return [padded[:, i:i + x.shape[1], j:j + x.shape[2]]
            for i in range(taps) for j in range(taps)]


def _im2col(x, kernel):
    patches = jnp.concatenate(_windows(x, len(kernel)), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _shifted(x, kernel):
    return sum(w @ k for w, k in zip(_windows(x, len(kernel)),
                                     kernel.reshape(-1, *kernel.shape[2:])))


def _by_kernel(form):
    def gradient(x, kernel):
        out, pull = jax.vjp(lambda k: form(x, k), kernel)
        return pull(jnp.asarray(np.random.default_rng(1).normal(size=out.shape), out.dtype))[0]

    return gradient
