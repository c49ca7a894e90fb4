"""Checks a transformation before it is trusted: elementwise on shards, still between updates."""

import math
from typing import Any, Optional

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
    tan tanh xor full expand_dims device_put pvary
    """.split())
_ROW_READS = frozenset(["dynamic_slice", "gather", "slice"])
_ROW_WRITES = frozenset(["dynamic_update_slice", "scatter"])
_ROW_REDUCTIONS = frozenset(["reduce_sum", "reduce_max", "reduce_min", "reduce_prod"])
# What is the same on all devices, is split over them, or is split with axes of rows before: two
# and more, one more than there are such axes.
_WHOLE, _SPLIT, _ROWS = range(3)
_SERVER_EXTRAS = dict(staleness=np.int32(0), worker=np.int32(0), delay=np.float32(0),
                      update=np.bool_(True))
SUMS = "sum_elements"  # The name of a jitted function that may sum over what is split.


def check_elementwise(tx: Any, params: Any, rows: Optional[dict[str, int]] = None,
                      extras: Optional[dict[str, Any]] = None) -> None:
    """Raises unless ``tx`` treats every parameter by itself.

    The update is traced, and every operation on what is split with the parameters must be
    elementwise, or pick a row of a state that has one for each worker, or reduce over such rows.
    Traced again on shards of several sizes it must be the same program: no number, mask or noise
    may follow the shape.

    Args:
      tx: the transformation.
      params: tree of arrays or shapes.
      rows: extra arguments that are trees like ``params`` with so many rows before; by default
        those of the server.
      extras: other extra arguments, arrays or functions; by default those of the server.

    Raises:
      ValueError: naming the first operation that mixes elements or follows the shape.
    """

    if rows is None:
        rows, extras = {"stale_params": 0}, _SERVER_EXTRAS
    arrays = {name: x for name, x in extras.items() if not callable(x)}
    functions = {name: x for name, x in extras.items() if callable(x)}

    def trace(shapes):
        def update(grads, state, params, trees, arrays):
            return tx.update(grads, state, params, **trees, **arrays, **functions)

        state = jax.eval_shape(tx.init, shapes)
        trees = {name: jax.tree.map(lambda p: jax.ShapeDtypeStruct(
            (count,) * bool(count) + p.shape, p.dtype), shapes) for name, count in rows.items()}
        return state, jax.make_jaxpr(update)(shapes, state, shapes, trees, arrays).jaxpr

    def resized(resize):
        return jax.tree.map(lambda p: jax.ShapeDtypeStruct(resize(p.shape), p.dtype), params)

    def part(num_devices):
        return lambda s: s and (1,) * (len(s) - 1) + (-(-math.prod(s) // num_devices),)

    state, jaxpr = trace(resized(lambda s: s))
    # State is split where its shape follows the parameters'; a first axis that does not is rows.
    longer, _ = trace(resized(lambda s: tuple(n + 1 for n in s)))
    split = [_SPLIT if p.ndim else _WHOLE for p in jax.tree.leaves(params)]
    split_state = [
        _WHOLE if a.shape == b.shape else _ROWS if a.shape[0] == b.shape[0] else _SPLIT
        for a, b in zip(*map(jax.tree.leaves, (state, longer)))]
    marks = split + split_state + split
    for name in sorted(rows):  # As JAX orders a dictionary.
        marks += [m + bool(rows[name] and m) for m in split]
    marks += [_WHOLE] * len(jax.tree.leaves(arrays))
    culprit, _ = _first_mixing(jaxpr, marks)
    if culprit:
        raise ValueError(
            f"layout='sharded' needs an elementwise tx, but it uses {culprit!r} across the "
            "elements of a leaf" + (", or in a way that cannot be seen" if culprit == "scan" else "")
            + ": pass that part as worker_tx, or layout='replicated'")
    program = _signature(jaxpr)
    for num_devices in (1, 2, 8, 64):
        if _signature(trace(resized(part(num_devices)))[1]) != program:
            raise ValueError(
                "layout='sharded' needs an elementwise tx, but what it does "
                "depends on the shape of a leaf: pass that part as worker_tx, or "
                "layout='replicated'")


def _signature(jaxpr):
    """Returns the operations and numbers of a jaxpr, without shapes."""
    out = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "broadcast_in_dim":
            continue  # Left out where a shard has one element.
        numbers = tuple(str(v.val) for v in eqn.invars if isinstance(v, core.Literal))
        numbers += tuple(eqn.params["shape"]) if eqn.primitive.name == "iota" else ()
        inner = [_signature(getattr(j, "jaxpr", j)) for j, _ in _bodies(eqn)]
        out.append((eqn.primitive.name, numbers, tuple(inner)))
    return tuple(out)


def _first_mixing(jaxpr, marks):
    """Walks a jaxpr; returns the first mixing primitive or None, and the outputs' marks."""
    marks = dict(zip(jaxpr.invars, marks))

    def mark(var):
        return _WHOLE if isinstance(var, core.Literal) else marks.get(var, _WHOLE)

    for eqn in jaxpr.eqns:
        name, ins = eqn.primitive.name, [mark(v) for v in eqn.invars]
        out = max(ins, default=_WHOLE)
        outs = [out] * len(eqn.outvars)
        if name.startswith(("random_", "threefry", "rng_", "shuffle")) and any(
                v.aval.ndim for v in eqn.outvars):
            return name, outs
        if out != _WHOLE and name == "jit" and eqn.params["name"] == SUMS:
            outs = [_WHOLE] * len(eqn.outvars)
        elif out != _WHOLE and name == "while":
            culprit, outs = _first_mixing_in_loop(eqn.params, ins)
            if culprit:
                return culprit, outs
        elif out != _WHOLE:
            bodies = _bodies(eqn)
            if bodies:
                outs = [_WHOLE] * len(eqn.outvars)
                for body, skip in bodies:
                    culprit, body_outs = _first_mixing(getattr(body, "jaxpr", body), ins[skip:])
                    if culprit:
                        return culprit, outs
                    outs = list(map(max, outs, body_outs))
            else:
                result = _result(eqn, ins, out)
                if result is None:
                    return name, outs
                outs = [result] * len(eqn.outvars)
        marks.update(zip(eqn.outvars, outs))
    return None, [mark(v) for v in jaxpr.outvars]


def _first_mixing_in_loop(params, ins):
    """As ``_first_mixing``; what is carried is split as soon as one turn makes it so."""
    split = params["cond_nconsts"]
    start = split + params["body_nconsts"]
    carried, before = ins[start:], None
    while carried != before:
        before = carried
        culprit, after = _first_mixing(params["body_jaxpr"].jaxpr, ins[split:start] + carried)
        if culprit:
            return culprit, carried
        carried = list(map(max, carried, after))
    culprit, (goes_on,) = _first_mixing(params["cond_jaxpr"].jaxpr, ins[:split] + carried)
    return culprit or ("while" if goes_on != _WHOLE else None), carried


def _result(eqn, ins, out):
    """Returns the mark of what an operation on split arrays gives, or None if it mixes."""
    name, params = eqn.primitive.name, eqn.params
    shorter = eqn.outvars[0].aval.ndim - eqn.invars[0].aval.ndim
    row_axes = ins[0] - _SPLIT
    if name in _ROW_READS:
        return ins[0] + shorter if row_axes > 0 and _keeps_last_axis(eqn) else None
    if name in _ROW_WRITES:
        return out if row_axes > 0 and _keeps_last_axis(eqn) else None
    if name in _ROW_REDUCTIONS:
        return ins[0] + shorter if max(params["axes"], default=0) < row_axes else None
    if name == "broadcast_in_dim":
        new = set(range(eqn.outvars[0].aval.ndim)) - set(params["broadcast_dimensions"])
        # New axes among the rows, or before everything.
        return out + shorter if all(axis < row_axes + shorter for axis in new) else out
    if name == "squeeze":
        return out + shorter if max(params["dimensions"], default=0) < row_axes else out
    return out if name in _ELEMENTWISE else None


def _bodies(eqn):
    name, params = eqn.primitive.name, eqn.params
    if name == "cond":
        return [(branch, 1) for branch in params["branches"]]
    if name == "while":
        return [(params["cond_jaxpr"], 0), (params["body_jaxpr"], 0)]
    if name in ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint",
                "custom_jvp_call", "custom_vjp_call"):
        body = params.get("jaxpr", params.get("call_jaxpr"))
        return [] if body is None else [(body, 0)]
    return []


def _keeps_last_axis(eqn):
    whole = eqn.invars[0].aval.shape
    name = eqn.primitive.name
    if name == "slice":
        return eqn.outvars[0].aval.shape[-1] == whole[-1]
    if name == "dynamic_update_slice":
        return eqn.invars[1].aval.shape[-1] == whole[-1]
    if name == "scatter":
        return tuple(eqn.params["dimension_numbers"].scatter_dims_to_operand_dims) == (0,)
    if name == "gather":
        return (tuple(eqn.params["dimension_numbers"].start_index_map) == (0,)
                and eqn.params["slice_sizes"][-1] == whole[-1])
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
