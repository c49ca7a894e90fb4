"""Checks a transformation before it is trusted: elementwise on shards, still between updates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

_ELEMENTWISE = frozenset("""
    abs acos acosh add add_any and asin asinh atan atan2 atanh broadcast_in_dim cbrt ceil clamp
    clz convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1
    floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter
    not optimization_barrier or pow real reduce_precision rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square squeeze stop_gradient sub
    tan tanh xor full iota expand_dims device_put pvary
    """.split())
_ROWS = frozenset(["dynamic_slice", "dynamic_update_slice", "gather", "scatter", "slice",
                   "dynamic_index_in_dim"])
_EXTRA_SHAPES = dict(staleness=np.int32(0), worker=np.int32(0), delay=np.float32(0),
                     update=np.bool_(True))


def check_elementwise(tx: Any, params: Any) -> None:
    """Raises unless ``tx`` treats every parameter by itself.

    The update is traced and every operation on values that have the parameters' shape must be
    elementwise, or pick a row of a leading axis; so half a leaf can be updated without the
    other half.

    Args:
      tx: the server's transformation.
      params: tree of arrays or shapes.

    Raises:
      ValueError: naming the first operation that mixes elements.
    """

    def update(grads, state, params, stale_params, extra):
        return tx.update(grads, state, params, stale_params=stale_params, **extra)

    def longer(p):
        return jax.ShapeDtypeStruct(p.shape[:-1] + tuple(n + 1 for n in p.shape[-1:]), p.dtype)

    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    state = jax.eval_shape(tx.init, shapes)
    # State is split with the parameters where its shape follows theirs.
    other = jax.eval_shape(tx.init, jax.tree.map(longer, shapes))
    split = [p.ndim > 0 for p in jax.tree.leaves(shapes)]
    split_state = [a.shape != b.shape for a, b in zip(*map(jax.tree.leaves, (state, other)))]
    closed = jax.make_jaxpr(update)(shapes, state, shapes, shapes, _EXTRA_SHAPES)
    mixed = split + split_state + split + split + [False] * len(_EXTRA_SHAPES)
    culprit, _ = _first_mixing(closed.jaxpr, mixed)
    if culprit:
        raise ValueError(
            f"layout='sharded' needs an elementwise tx, but it uses {culprit!r} across the "
            "elements of a leaf: pass that part as worker_tx, or layout='replicated'")


def _first_mixing(jaxpr, tainted):
    """Walks a jaxpr; returns the first mixing primitive or None, and which outputs are tainted."""
    marks = dict(zip(jaxpr.invars, tainted))

    def marked(var):
        return not isinstance(var, core.Literal) and marks.get(var, False)

    for eqn in jaxpr.eqns:
        ins = [marked(v) for v in eqn.invars]
        outs = [any(ins)] * len(eqn.outvars)
        if any(ins):
            name = eqn.primitive.name
            bodies = [(getattr(j, "jaxpr", j), skip) for j, skip in _bodies(eqn)]
            if bodies:
                outs = [False] * len(eqn.outvars)
                for body, skip in bodies:
                    culprit, body_outs = _first_mixing(body, ins[skip:])
                    if culprit:
                        return culprit, outs
                    outs = [a or b for a, b in zip(outs, body_outs)]
            elif not (name in _ELEMENTWISE or (name in _ROWS and _keeps_last_axis(eqn))):
                return name, outs
        marks.update(zip(eqn.outvars, outs))
    return None, [marked(v) for v in jaxpr.outvars]


def _bodies(eqn):
    name, params = eqn.primitive.name, eqn.params
    if name == "cond":
        return [(branch, 1) for branch in params["branches"]]
    if name in ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint",
                "custom_jvp_call", "custom_vjp_call"):
        body = params.get("jaxpr", params.get("call_jaxpr"))
        return [] if body is None else [(body, 0)]
    return []


def _keeps_last_axis(eqn):
    whole = eqn.invars[0].aval.shape
    if len(whole) < 2:
        return False
    name = eqn.primitive.name
    if name == "slice":
        return eqn.outvars[0].aval.shape[-1] == whole[-1]
    if name == "dynamic_update_slice":
        return eqn.invars[1].aval.shape[-1] == whole[-1]
    if name == "scatter":
        numbers = eqn.params["dimension_numbers"]
        return tuple(numbers.scatter_dims_to_operand_dims) == (0,)
    if name == "gather":
        numbers = eqn.params["dimension_numbers"]
        return tuple(numbers.start_index_map) == (0,) and eqn.params["slice_sizes"][-1] == whole[-1]
    return eqn.params["slice_sizes"][-1] == whole[-1]


def check_waits_for_update(tx: Any, params: Any) -> None:
    """Raises when ``tx`` moves the parameters although ``update`` is false.

    Three gradients are tried, so that a schedule that starts at zero does not hide it.

    Raises:
      ValueError: saying how to wrap the transformation.
    """
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(3):
        updates, state = tx.update(
            grads, state, params, staleness=jnp.int32(1), stale_params=params,
            worker=jnp.int32(0), delay=jnp.float32(1), update=jnp.bool_(False))
        if any(bool(jnp.any(u != 0)) for u in jax.tree.leaves(updates)):
            raise ValueError(
                "tx moves the parameters at a gradient after which the trace makes no update: "
                "wrap what runs once per update, asgd.average_until_update(tx), or "
                "optax.chain(per_gradient, asgd.average_until_update(per_update))")
