"""An NNX model goes through `nnx.split` and trains as its arrays in a dict do."""

from flax import nnx
import jax.numpy as jnp
import numpy as np

import asgd


def test_nnx_model():
    graph, params = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(6, 4, 3)).astype(np.float32)
    trace = asgd.Trace(worker=[0, 1, 0, 1, 0, 1], read_version=[0, 0, 1, 2, 3, 4])
    tx = asgd.dc_asgd_c(0.1, momentum=0.9)

    result = asgd.emulate(lambda p, x: jnp.mean(nnx.merge(graph, p)(x) ** 2), tx, params, trace,
                          batches, num_devices=2)
    plain = {"bias": params["bias"][...], "kernel": params["kernel"][...]}
    expected = asgd.emulate(lambda p, x: jnp.mean((x @ p["kernel"] + p["bias"]) ** 2), tx, plain,
                            trace, batches, num_devices=2)
    model = nnx.merge(graph, result.params)
    np.testing.assert_array_equal(model.kernel[...], expected.params["kernel"])
    np.testing.assert_array_equal(model.bias[...], expected.params["bias"])
    assert result.losses[-1] < result.losses[0]
