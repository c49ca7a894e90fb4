"""What a loss, its parameters and its batches must be for curvature and noise to be measured."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np


def scalar_loss(loss_fn, has_aux):
    """Returns `loss(params, batch, key) -> scalar`, which checks what the user's returns."""
    try:
        positional = [p for p in inspect.signature(loss_fn).parameters.values()
                      if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):
        positional = []
    # A third argument with a default is a setting of the user's, unless it is called a key.
    takes_key = len(positional) >= 3 and (
        positional[2].default is inspect.Parameter.empty or positional[2].name in ("key", "rng"))

    def loss(params, batch, key):
        out = loss_fn(params, batch, key) if takes_key else loss_fn(params, batch)
        if has_aux != isinstance(out, tuple):
            raise ValueError("loss_fn must return (loss, statistics) if has_aux, else the loss; "
                             f"has_aux is {has_aux} and it returned a {type(out).__name__}")
        value = jnp.asarray(out[0] if has_aux else out)
        if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"loss_fn must return a floating scalar, not {value.dtype} "
                             f"of shape {value.shape}")
        return value

    return loss


def check_params(params):
    """Returns the number of parameters."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"params: {jax.tree_util.keystr(path) or 'the array'} must be "
                             f"floating, not {jnp.result_type(leaf)}")
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    if not size:
        raise ValueError("params must have elements")
    return size


def num_samples(name, batch):
    """Returns the length of the first axis of a batch's arrays."""
    axes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(axes) != 1 or not all(axes) or axes == {(0,)}:
        raise ValueError(f"{name}: the arrays of a batch must share a first axis, its samples")
    return axes.pop()[0]


def flatten(tree, name):
    """Returns a tree as one float64 vector; FloatingPointError if it is not finite."""
    flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
    if not np.isfinite(flat).all():
        raise FloatingPointError(f"the {name} is not finite at these params")
    return flat


def unflatten(flat, like):
    """Returns a vector as a tree like another."""
    leaves, structure = jax.tree.flatten(like)
    parts = np.split(flat.ravel(), np.cumsum([np.size(leaf) for leaf in leaves])[:-1])
    return structure.unflatten(part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves))
