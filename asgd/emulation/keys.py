"""Lets transformations keep typed random keys, which cannot be cut, sent or saved as such."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def keys_as_data(tx: optax.GradientTransformation, params: Any) -> Any:
    """Returns ``tx`` with the typed keys of its state held as plain arrays between updates.

    Args:
      tx: a transformation, such as ``optax.add_noise``.
      params: tree of arrays or shapes.
    """
    tx = optax.with_extra_args_support(tx)
    impls = []  # Of each leaf of the state; None where it is no key.

    def describe(params):
        state = tx.init(params)
        impls.extend(jax.random.key_impl(x) if _is_key(x) else None for x in jax.tree.leaves(state))

    jax.eval_shape(describe, params)
    if not any(impls):
        return tx

    def to_data(state):
        return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)

    def to_keys(state):
        leaves, treedef = jax.tree.flatten(state)
        return jax.tree.unflatten(treedef, [
            jax.random.wrap_key_data(x, impl=impl) if impl else x
            for x, impl in zip(leaves, impls)])

    def update_fn(updates, state, params=None, **extra_args):
        updates, state = tx.update(updates, to_keys(state), params, **extra_args)
        return updates, to_data(state)

    return optax.GradientTransformationExtraArgs(lambda p: to_data(tx.init(p)), update_fn)


def _is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
