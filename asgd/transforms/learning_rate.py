"""Reads the learning rate off an optimizer, by what it makes of a gradient of one number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def number_like(params: Any) -> jax.Array:
    """Returns the number, 0, that the optimizer of ``params`` is asked about."""
    return jnp.zeros([], jnp.result_type(*jax.tree.leaves(params) or [jnp.float32]))


def check_rate(inner: optax.GradientTransformation) -> None:
    """Raises ValueError unless ``inner`` seems to be SGD with or without heavy-ball momentum.

    Of such the step is linear, and what a gradient does in later rounds, over the learning rates
    then, is 1, m, m^2.
    """
    zero, one = jnp.zeros([]), jnp.ones([])
    try:
        rates, kicked, still = [], [], inner.init(zero)
        state = still
        for gradient in (one, zero, zero):
            rates.append(-inner.update(one, still, zero)[0])
            double = inner.update(2 * one, still, zero)[0]
            nothing, still = inner.update(zero, still, zero)
            step, state = inner.update(gradient, state, zero)
            kicked.append(-step)
            if isinstance(step, jax.core.Tracer):
                return
            usable = np.allclose(double, -2 * rates[-1], rtol=1e-5) and nothing == 0
            if not usable or rates[-1] < 0:
                raise ValueError("its steps are not proportional to the gradient")
        if any(rates) or any(kicked):
            if not all(rates):
                raise ValueError("it does not step in every round")
            first, second, third = np.asarray(kicked) / np.asarray(rates)
            if not np.allclose([first, third], [1.0, second ** 2], rtol=1e-4, atol=1e-6):
                raise ValueError("it is no heavy-ball momentum")
    except Exception as error:
        raise ValueError("learning_rate must be given, as it cannot be read off inner: "
                         f"{error}") from error


def read_rate(inner: optax.GradientTransformation, state: Any, zero: jax.Array,
              extra_args: dict[str, Any]) -> tuple[jax.Array, Any]:
    """Returns what ``inner`` makes of a gradient of one now, negated, and its next state."""
    step, _ = inner.update(jnp.ones_like(zero), state, zero, **extra_args)
    _, state = inner.update(zero, state, zero, **extra_args)
    return -step, state
