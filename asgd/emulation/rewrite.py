"""Writes traced functions in one form before XLA sees them, so that it rounds them one way.

XLA turns some divisions into multiplications, depending on what else uses the divisor when it
looks, which is not the same in a program for one device and in one for several. Here nothing
is left to decide: equal terms are computed once, and a division by a scalar is a multiplication
by its reciprocal.
"""

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

_CALLS = ("jit", "pjit", "closed_call", "core_call")


def inner_jaxpr(eqn: Any) -> Any:
    """Returns the closed jaxpr that an equation calls, or None."""
    if eqn.primitive.name in _CALLS:
        return eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return None


def evaluate(closed: Any, args: Any, make_rule: Callable[[], Callable[..., Any]]) -> Any:
    """Evaluates a closed jaxpr, asking a rule about each equation.

    Jitted calls and conditionals are entered; loops and custom derivatives are taken whole.

    Args:
      closed: the jaxpr.
      args: its arguments, a flat list.
      make_rule: called for every jaxpr entered; returns ``rule(eqn, inputs, bind)``, which
        returns the equation's outputs. ``bind()`` computes them as they are written.

    Returns:
      The outputs, a flat list.
    """
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars + jaxpr.invars, list(closed.consts) + list(args)))
    rule = make_rule()
    for eqn in jaxpr.eqns:
        inputs = [v.val if isinstance(v, core.Literal) else env[v] for v in eqn.invars]

        def bind(eqn=eqn, inputs=inputs):
            if (inner := inner_jaxpr(eqn)) is not None:
                return evaluate(inner, inputs, make_rule)
            if eqn.primitive.name == "cond":
                branches = [functools.partial(lambda b, *ops: evaluate(b, ops, make_rule), branch)
                            for branch in eqn.params["branches"]]
                return lax.switch(inputs[0], branches, *inputs[1:])
            params = eqn.primitive.get_bind_params(eqn.params)
            # A pair before jax 0.10.
            subfuns, params = params if isinstance(params, tuple) else ((), params)
            with eqn.ctx.manager:
                out = eqn.primitive.bind(*subfuns, *inputs, **params)
            return out if eqn.primitive.multiple_results else [out]

        env.update(zip(eqn.outvars, rule(eqn, inputs, bind)))
    return [v.val if isinstance(v, core.Literal) else env[v] for v in jaxpr.outvars]


def rewritten(fn: Callable[..., Any], make_rule: Callable[[], Callable[..., Any]]):
    """Returns ``fn`` evaluated under a rule; see :func:`evaluate`."""

    @functools.wraps(fn)
    def wrapped(*args):
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = evaluate(closed, jax.tree.leaves(args), make_rule)
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return wrapped


def one_rounding(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``fn`` with equal terms merged and divisions by scalars made multiplications.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jax.make_jaxpr(one_rounding(lambda x, s: x / s))(jnp.ones(2), 3.0).eqns[-1].primitive
      mul
    """
    return rewritten(fn, _OneRounding)


class _OneRounding:
    """The rule of :func:`one_rounding`, with a memory of one jaxpr."""

    def __init__(self):
        self._known = {}
        self._scalar_of = {}

    def __call__(self, eqn, inputs, bind):
        name = eqn.primitive.name
        if name == "div" and (fixed := self._divide(*inputs)) is not None:
            return [fixed]
        try:
            key = (eqn.primitive, tuple(map(_identity, inputs)),
                   tuple(sorted(eqn.params.items())))
            hash(key)
        except TypeError:
            return bind()
        if eqn.effects:
            return bind()
        if key not in self._known:
            # The inputs are kept so that their ids stay theirs.
            self._known[key] = (inputs, bind())
        outputs = self._known[key][1]
        if name == "broadcast_in_dim" and jnp.ndim(inputs[0]) == 0:
            self._scalar_of[id(outputs[0])] = inputs[0]
        return outputs

    def _divide(self, numerator, divisor):
        divisor = self._scalar_of.get(id(divisor), divisor)
        if jnp.ndim(numerator) == 0 or jnp.ndim(divisor) != 0:
            return None
        if not (isinstance(divisor, jax.core.Tracer)
                and jnp.issubdtype(divisor.dtype, jnp.floating)):
            return None
        key = ("reciprocal", id(divisor))
        if key not in self._known:
            self._known[key] = (divisor, lax.div(jnp.ones_like(divisor), divisor))
        return lax.mul(numerator, lax.broadcast(self._known[key][1], numerator.shape))


def _identity(value):
    return id(value) if isinstance(value, jax.Array) else (type(value), value)
