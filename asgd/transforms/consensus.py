"""Mixing with neighbours, the plain baseline of decentralised training (D-SGD)."""

import jax
import optax

from asgd.transforms.rows import weighted_sum


def consensus(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Mixes an agent's parameters with what it received, and adds the step of ``inner``.

    .. math::
      x^i_{t+1} = \sum_j w_{ij}\, x^j_{t - \tau_{ij}} + u^i_t

    where :math:`u^i_t` is what ``inner`` makes of the agent's gradient at :math:`x^i_t`, such as
    :math:`-\eta\, g_i(x^i_t)`; a momentum in ``inner`` enters after mixing.

    Args:
      inner: the agent's own optimizer, such as ``optax.sgd(0.1, 0.9)``.

    Returns:
      A transformation whose update takes ``past_params``, ``neighbor_rows`` and ``mixing``, as
      :func:`asgd.predict_clip` does.

    References:
      Lian et al., Can decentralized algorithms outperform centralized algorithms? (NeurIPS 2017),
      Algorithm 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import asgd
      >>> tx = asgd.consensus(optax.sgd(0.1))
      >>> params = jnp.array([1.0])
      >>> updates, _ = tx.update(jnp.array([2.0]), tx.init(params), params,
      ...                        past_params=jnp.array([[1.0], [3.0]]),
      ...                        neighbor_rows=jnp.array([0, 1]),
      ...                        mixing=jnp.array([0.5, 0.5]))
      >>> print((params + updates).round(4))
      [1.8]
    """
    inner = optax.with_extra_args_support(inner)

    def update_fn(updates, state, params=None, *, past_params, neighbor_rows, mixing,
                  **extra_args):
        if params is None:
            raise ValueError("consensus: update needs the current params")
        steps, state = inner.update(updates, state, params, **extra_args)
        mixed = weighted_sum(mixing, past_params, neighbor_rows)
        return jax.tree.map(lambda m, u, x: m + u - x, mixed, steps, params), state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)
