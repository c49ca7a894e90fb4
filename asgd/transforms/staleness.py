"""Learning rates that depend on the staleness of each gradient."""

import math
import re
from typing import Callable, Union

import jax
import jax.numpy as jnp
import optax

Rule = Callable[[jax.Array], jax.Array]


def constant(staleness):
    r"""The rule :math:`s(\tau) = 1`: plain asynchronous SGD."""
    return jnp.ones_like(staleness)


def inverse(staleness):
    r"""The rule :math:`s(\tau) = 1 / \max(\tau, 1)`: paper A, Eq. 3.

    A fresh gradient (:math:`\tau = 0`) keeps the full rate, as does :math:`\tau = 1`.
    """
    return 1 / jnp.maximum(staleness, 1)


def polynomial(a: float) -> Rule:
    r"""The rule :math:`s(\tau) = (1 + \tau)^{-a}` (Xie et al. 2019, FedAsync).

    Args:
      a: exponent, at least 0.
    """
    _check_not_negative("polynomial", a=a)
    return lambda staleness: (1 + staleness) ** -a


def exponential(b: float) -> Rule:
    r"""The rule :math:`s(\tau) = e^{-b \tau}` (Chan and Lane 2014).

    Args:
      b: rate of decay per update, at least 0.
    """
    _check_not_negative("exponential", b=b)
    return lambda staleness: jnp.exp(-b * staleness)


def hinge(a: float, b: float) -> Rule:
    r"""The rule :math:`s(\tau) = 1` if :math:`\tau \le b`, else :math:`1 / (a (\tau - b) + 1)`.

    From Xie et al. 2019 (FedAsync).

    Args:
      a: steepness, at least 0.
      b: the largest staleness that is not scaled down, at least 0.
    """
    _check_not_negative("hinge", a=a, b=b)
    # The maximum keeps the branch that is not taken away from a zero divisor.
    return lambda staleness: 1 / (a * jnp.maximum(staleness - b, 0) + 1)


def delay_adaptive(num_workers: int) -> Rule:
    r"""The rule :math:`s(\tau) = M / \max(M, \tau)` (Mishchenko et al. 2022).

    Args:
      num_workers: M; gradients up to this staleness keep the full rate.
    """
    if num_workers < 1:
        raise ValueError(f"delay_adaptive: num_workers must be at least 1, got {num_workers}")
    return lambda staleness: num_workers / jnp.maximum(num_workers, staleness)


RULES = {"constant": constant, "inverse": inverse, "polynomial": polynomial,
         "exponential": exponential, "hinge": hinge, "delay_adaptive": delay_adaptive}


def rule_from_text(text: str) -> Rule:
    """Reads a rule as it is written in a config.

    Args:
      text: ``"inverse"``, ``"constant"``, or a rule with numbers, as ``"hinge(10, 4)"``.

    Returns:
      The function of the staleness.

    Raises:
      ValueError: for an unknown rule or wrong numbers.

    Example:
      >>> float(rule_from_text("polynomial(0.5)")(3.0))
      0.5
    """
    found = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    name = found.group(1) if found else text
    if name not in RULES:
        raise ValueError(f"staleness rule {text!r} is unknown; the rules are {', '.join(RULES)}")
    try:
        numbers = [_number(text, part) for part in (found.group(2) or "").split(",") if part.strip()]
        if any(map(math.isinf, numbers)):
            raise ValueError(f"staleness rule {text!r}: numbers must be finite")
        rule = RULES[name]
        if name in ("constant", "inverse"):
            if numbers:
                raise TypeError
            return rule
        return rule(*numbers)
    except TypeError:
        expected = {"hinge": "two numbers"}.get(name, "one number")
        if name in ("constant", "inverse"):
            expected = "no number"
        raise ValueError(f"staleness rule {text!r}: {name} takes {expected}") from None


def _number(text, part):
    try:
        return float(part)
    except ValueError:
        raise ValueError(f"staleness rule {text!r}: {part.strip()!r} is not a number") from None


def _check_not_negative(rule, **numbers):
    for name, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{rule}: {name} must be at least 0, got {value}")


def scale_by_staleness(rule: Union[str, Rule] = inverse) -> optax.GradientTransformationExtraArgs:
    r"""Scales each gradient by a function of its staleness.

    The update is :math:`u = s(\tau)\, g`. Put before averaging and momentum it is paper A's
    modulated learning rate :math:`\alpha(\tau) = \alpha_0\, s(\tau)`, one for every gradient.

    Args:
      rule: the function s, from :mod:`asgd.transforms.staleness`, any function of a float
        array, or a rule's text as in a config, such as ``"polynomial(0.5)"``.

    Returns:
      A transformation whose update takes ``staleness``, an int32 scalar in server updates.

    Raises:
      ValueError: when the rule is unknown.

    References:
      Zhang et al., Staleness-aware Async-SGD for distributed deep learning (paper A), Eq. 2, 3.

    Example:
      >>> import jax.numpy as jnp
      >>> import asgd
      >>> tx = asgd.scale_by_staleness("inverse")
      >>> updates, _ = tx.update({"w": jnp.array([2.0, 4.0])}, tx.init({}), staleness=4)
      >>> print(updates["w"])
      [0.5 1. ]
    """
    if isinstance(rule, str):
        rule = rule_from_text(rule)
    if not callable(rule):
        raise ValueError(f"scale_by_staleness: rule must be a function or a text, got {rule!r}")

    def init_fn(params):
        del params
        return optax.EmptyState()

    def update_fn(updates, state, params=None, *, staleness, **extra_args):
        del params, extra_args
        factor = rule(jnp.asarray(staleness, dtype=float))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
