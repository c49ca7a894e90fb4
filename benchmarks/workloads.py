"""The four models that are timed, with made-up data of the right shape."""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asgd.workloads import models

# Gradients of one timing, a second or so on two cores.
GRADIENTS = {"mlp": 1024, "cnn": 32, "resnet20": 8, "transformer": 8}


class Workload(NamedTuple):
    """A model to train.

    Attributes:
      name: one of ``GRADIENTS``.
      loss: ``loss(params, batch)``; with batch norm ``(loss, statistics)``.
      params: initial parameters.
      model_state: running statistics, or None.
      batches: NumPy arrays with a leading axis [T], one row for each gradient.
    """

    name: str
    loss: Callable[..., Any]
    params: Any
    model_state: Any
    batches: Any

    @property
    def num_gradients(self) -> int:
        return len(jax.tree.leaves(self.batches)[0])


def make(name: str, num_gradients: int, hidden: tuple[int, ...] = (256, 256)) -> Workload:
    """Makes a workload.

    Args:
      name: one of ``GRADIENTS``.
      num_gradients: T, rows of the batches.
      hidden: widths of the MLP.
    """
    # 8 sequences of 64 characters, or 32 images.
    batch_size = 8 if name == "transformer" else 32
    rng = np.random.default_rng(0)
    if name == "transformer":
        model = models.create("transformer", 128, width=256, layers=6)  # 4.8 million parameters.
        tokens = rng.integers(0, 128, (num_gradients, batch_size, 65)).astype(np.int32)
        batches = (tokens[..., :-1], tokens[..., 1:])
    else:
        model = models.create(name, 10, **({"hidden": hidden} if name == "mlp" else {}))
        shape = (28, 28, 1) if name == "mlp" else (32, 32, 3)
        batches = (rng.normal(size=(num_gradients, batch_size) + shape).astype(np.float32),
                   rng.integers(0, 10, (num_gradients, batch_size)).astype(np.int32))
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), jnp.asarray(batches[0][0]))
    model_state = variables.get("batch_stats")

    def loss(params, batch):
        logits, new = model.apply({"params": params}, batch[0], train=True,
                                  mutable=["batch_stats"])
        value = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
        return value if model_state is None else (value, new["batch_stats"])

    return Workload(name, loss, variables["params"], model_state, batches)
