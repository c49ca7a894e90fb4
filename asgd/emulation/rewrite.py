"""Writes traced functions in one form before XLA sees them, so that it rounds them one way.

Two things that compilers decide change bits with the number of devices. XLA turns some divisions
into multiplications, depending on what else uses the divisor when it looks. And LLVM fuses one of
the two products in ``a * b + c * d`` with the sum, rounding the other first; which one it takes
depends on the length of the array. Here nothing is left to decide.
"""

import collections
import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from asgd.emulation.sums import pairwise_sum

# Beyond these, whether a product is fused with a sum depends on more than the two.
_SEPARATE = frozenset(["broadcast_in_dim", "reshape", "squeeze", "slice", "pad", "concatenate",
                       "optimization_barrier"])
_CALLS = ("jit", "pjit", "closed_call", "core_call")


def inner_jaxpr(eqn: Any) -> Any:
    """Returns the closed jaxpr that an equation calls, or None."""
    if eqn.primitive.name in _CALLS:
        return eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return None


def evaluate(closed: Any, args: Any, make_rule: Callable[..., Any], rule: Any = None) -> Any:
    """Evaluates a closed jaxpr, asking a rule about each equation.

    Jitted calls, conditionals and while loops are entered; scans and custom derivatives are taken
    whole.

    Args:
      closed: the jaxpr.
      args: its arguments, a flat list.
      make_rule: called for each body of a conditional or loop; returns
        ``rule(eqn, inputs, bind)``, which returns the equation's outputs. ``bind()`` computes
        them as they are written.
      rule: the rule in force, by default a new one.

    Returns:
      The outputs, a flat list.
    """
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.constvars + jaxpr.invars, list(closed.consts) + list(args)))
    rule = rule or make_rule()
    if hasattr(rule, "enter"):
        rule.enter(jaxpr)
    for eqn in jaxpr.eqns:
        inputs = [v.val if isinstance(v, core.Literal) else env[v] for v in eqn.invars]

        def bind(eqn=eqn, inputs=inputs):
            if (inner := inner_jaxpr(eqn)) is not None:
                return evaluate(inner, inputs, make_rule, rule)
            if eqn.primitive.name == "cond":
                branches = [functools.partial(lambda b, *ops: evaluate(b, ops, make_rule), branch)
                            for branch in eqn.params["branches"]]
                return lax.switch(inputs[0], branches, *inputs[1:])
            if eqn.primitive.name == "while":
                return _while(eqn.params, inputs, make_rule)
            params = eqn.primitive.get_bind_params(eqn.params)
            # A pair before jax 0.10.
            subfuns, params = params if isinstance(params, tuple) else ((), params)
            with eqn.ctx.manager:
                out = eqn.primitive.bind(*subfuns, *inputs, **params)
            return out if eqn.primitive.multiple_results else [out]

        env.update(zip(eqn.outvars, rule(eqn, inputs, bind)))
    return [v.val if isinstance(v, core.Literal) else env[v] for v in jaxpr.outvars]


def _while(params, inputs, make_rule):
    split = params["cond_nconsts"]
    start = split + params["body_nconsts"]
    return lax.while_loop(
        lambda c: evaluate(params["cond_jaxpr"], [*inputs[:split], *c], make_rule)[0],
        lambda c: evaluate(params["body_jaxpr"], [*inputs[split:start], *c], make_rule),
        inputs[start:])


def rewritten(fn: Callable[..., Any], make_rule: Callable[..., Any]):
    """Returns ``fn`` evaluated under a rule; see :func:`evaluate`."""

    @functools.wraps(fn)
    def wrapped(*args):
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = evaluate(closed, jax.tree.leaves(args), make_rule)
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return wrapped


def one_rounding(fn: Callable[..., Any], zero: Any = None) -> Callable[..., Any]:
    """Returns ``fn`` in a form that is rounded the same for arrays of any length.

    Equal terms are computed once, and a division by a scalar, or by what is repeated along an
    axis, is a multiplication by its reciprocal. With ``zero``, of two products that are added or
    subtracted the first one is rounded before, as is a product that is used more than once, that
    is summed over an axis, changes its shape or passes a barrier: zero is added to it, which makes
    it a sum of its own. Sums over axes other than the last are made of additions of slices.

    Args:
      fn: a function of arrays.
      zero: a float scalar that is 0 when the program runs but not known to the compiler.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jax.make_jaxpr(one_rounding(lambda x, s: x / s))(jnp.ones(2), 3.0).eqns[-1].primitive
      mul
    """
    return rewritten(fn, functools.partial(_OneRounding, zero))


class _OneRounding:
    """The rule of :func:`one_rounding`, with a memory of one jaxpr."""

    def __init__(self, zero):
        self._zero = zero
        self._known = {}
        self._broadcasts = {}
        self._products = {}
        self._alive = []  # All that is known by its id.
        self._uses = collections.Counter()

    def enter(self, jaxpr):
        self._uses.update(
            v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, core.Literal))

    def __call__(self, eqn, inputs, bind):
        name = eqn.primitive.name
        if name in ("add", "sub", "add_any") and self._zero is not None:
            rounded = self._round_products(eqn, inputs)
            if rounded is not None:
                return eqn.primitive.bind(*rounded, **eqn.params),
        if self._zero is not None and name == "reduce_sum":
            return [self._sum(eqn, *self._rounded(inputs))]
        if self._zero is not None and name in _SEPARATE and any(map(self._is_product, inputs)):
            out = eqn.primitive.bind(*self._rounded(inputs), **eqn.params)
            return out if eqn.primitive.multiple_results else [out]
        if name == "div" and (fixed := self._divide(*inputs)) is not None:
            outputs = [fixed]
        else:
            outputs = self._once(eqn, inputs, bind)
        self._alive.append((inputs, outputs))
        if name == "broadcast_in_dim" and _is_spread(inputs[0], outputs[0]):
            self._broadcasts[id(outputs[0])] = (inputs[0], eqn)
        if name in ("mul", "integer_pow", "square", "div") or (
                name == "neg" and id(inputs[0]) in self._products):
            self._products.setdefault(id(outputs[0]), len(self._products))
        return outputs

    def _once(self, eqn, inputs, bind):
        try:
            key = (eqn.primitive, tuple(map(_identity, inputs)),
                   tuple(sorted(eqn.params.items())))
            hash(key)
        except TypeError:
            return bind()
        if eqn.effects:
            return bind()
        if key not in self._known:
            self._known[key] = bind()
        return self._known[key]

    def _round_products(self, eqn, inputs):
        dtype = eqn.outvars[0].aval.dtype
        order = [self._products.get(id(x)) for x in inputs]
        if not jnp.issubdtype(dtype, jnp.floating) or order == [None, None]:
            return None
        several = [n is not None and not isinstance(v, core.Literal) and self._uses[v] > 1
                   for n, v in zip(order, eqn.invars)]
        if None not in order:
            several[order.index(min(order))] = True
        if not any(several):
            return None
        return [self._plus_zero(x) if s else x for x, s in zip(inputs, several)]

    def _rounded(self, inputs):
        return [self._plus_zero(x) if self._is_product(x) else x for x in inputs]

    def _is_product(self, x):
        return id(x) in self._products and jnp.ndim(x) > 0

    def _plus_zero(self, product):
        return product + lax.convert_element_type(self._zero, product.dtype)

    def _sum(self, eqn, x):
        axes = eqn.params["axes"]
        if jnp.ndim(x) - 1 in axes or 0 in x.shape:  # Not over rows.
            return eqn.primitive.bind(x, **eqn.params)
        for axis in sorted(axes, reverse=True):
            x = pairwise_sum(x, axis)
        return x

    def _divide(self, numerator, divisor):
        small, spread = self._broadcasts.get(id(divisor), (divisor, None))
        if not (isinstance(small, jax.core.Tracer) and jnp.issubdtype(small.dtype, jnp.floating)
                and _is_spread(small, numerator)):
            return None
        key = ("reciprocal", id(small))
        if key not in self._known:
            self._known[key] = lax.div(jnp.ones_like(small), small)
        reciprocal = self._known[key]
        if spread is None:
            return numerator * reciprocal
        return lax.mul(numerator, spread.primitive.bind(reciprocal, **spread.params))


def _is_spread(small, large):
    # A scalar over a shard of one element is one too: the rank says so, on every device.
    return jnp.ndim(small) < jnp.ndim(large) or jnp.size(small) < jnp.size(large)


def _identity(value):
    return id(value) if isinstance(value, jax.Array) else (type(value), value)
