"""Rules of the staleness: the papers' formulas by hand, texts and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asgd
from asgd.transforms import rule_from_text

TAUS = [0, 1, 2, 3, 4, 5, 9, 100]
# Two roundings of float32 for a quotient, and some for a power or an exponential.
ULP = float(np.finfo(np.float32).eps)


def scale(rule, staleness, gradient=1.0):
    tx = asgd.scale_by_staleness(rule)
    gradient = jnp.asarray(gradient, jnp.float32)
    return tx.update(gradient, tx.init(gradient), staleness=jnp.int32(staleness))[0]


def aware(tau):
    """Paper A, Eq. 3, as it is written: two branches."""
    return 1 / tau if tau > 0 else 1.0


def hinge(tau, a, b):
    return 1.0 if tau <= b else 1 / (a * (tau - b) + 1)


RULES = {
    "inverse": (asgd.inverse, aware),
    "constant": (asgd.constant, lambda tau: 1.0),
    "polynomial(0.5)": (asgd.polynomial(0.5), lambda tau: (1 + tau) ** -0.5),
    "polynomial(1)": (asgd.polynomial(1), lambda tau: 1 / (1 + tau)),
    "polynomial(0)": (asgd.polynomial(0), lambda tau: 1.0),
    "exponential(0.3)": (asgd.exponential(0.3), lambda tau: np.exp(-0.3 * tau)),
    "hinge(10, 4)": (asgd.hinge(10, 4), lambda tau: hinge(tau, 10, 4)),
    "hinge(0.5, 0)": (asgd.hinge(0.5, 0), lambda tau: hinge(tau, 0.5, 0)),
    "hinge(1, 0)": (asgd.hinge(1, 0), lambda tau: 1 / (1 + tau)),
    "delay_adaptive(8)": (asgd.delay_adaptive(8), lambda tau: 8 / max(8, tau)),
}


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("text", RULES)
def test_values(text, tau):
    rule, formula = RULES[text]
    want = 3.0 * formula(tau)
    np.testing.assert_allclose(scale(rule, tau, 3.0), want, rtol=20 * ULP, atol=1e-12)
    np.testing.assert_array_equal(scale(text, tau, 3.0), scale(rule, tau, 3.0))


def test_the_papers_rule_by_hand():
    got = [float(scale("inverse", tau, 12.0)) for tau in (0, 1, 2, 3, 4, 6, 12)]
    np.testing.assert_allclose(got, [12, 12, 6, 4, 3, 2, 1], rtol=2 * ULP)


def test_inverse_is_the_default_and_differs_from_the_common_mistake():
    tx = asgd.scale_by_staleness()
    got = tx.update(jnp.float32(1), tx.init(None), staleness=1)[0]
    assert float(got) == 1.0  # 1 / (1 + tau) would be a half.


@pytest.mark.parametrize("rule", ["inverse", "hinge(10, 0)", "delay_adaptive(1)"])
def test_fresh_gradients_pass_unchanged_and_finite(rule):
    gradient = jnp.asarray([1e-30, -3.7, 0.0, 1e30], jnp.float32)
    np.testing.assert_array_equal(scale(rule, 0, gradient), gradient)
    # The branch not taken divides by zero in a careless implementation.
    slope = jax.grad(lambda tau: jnp.sum(asgd.scale_by_staleness(rule).update(
        jnp.ones(1), optax.EmptyState(), staleness=tau)[0]))(0.0)
    assert np.isfinite(slope)


def test_hinge_at_its_bend():
    got = [float(scale("hinge(10, 4)", tau)) for tau in (3, 4, 5, 6)]
    np.testing.assert_allclose(got, [1, 1, 1 / 11, 1 / 21], rtol=2 * ULP)


def test_delay_adaptive_numbers():
    """O-12: rate 0.1 and M = 8."""
    got = [0.1 * float(scale("delay_adaptive(8)", tau)) for tau in (1, 8, 9, 16, 80)]
    np.testing.assert_allclose(got, [0.1, 0.1, 0.8 / 9, 0.05, 0.01], rtol=4 * ULP)
    assert round(got[2], 4) == 0.0889


def test_any_function_is_a_rule():
    seen = []

    def rule(staleness):
        seen.append(staleness.dtype)
        return jnp.where(staleness > 2, 0.0, 1.0)

    assert float(scale(rule, 3)) == 0 and float(scale(rule, 2)) == 1
    assert all(jnp.issubdtype(dtype, jnp.floating) for dtype in seen)


def test_float_staleness_and_python_numbers():
    tx = asgd.scale_by_staleness("inverse")
    for staleness in (4, 4.0, np.int64(4), jnp.float32(4)):
        assert float(tx.update(jnp.float32(2), tx.init(None), staleness=staleness)[0]) == 0.5


def test_staleness_is_required():
    tx = asgd.scale_by_staleness()
    with pytest.raises(TypeError, match="staleness"):
        tx.update(jnp.ones(1), tx.init(None))


def test_texts_with_spaces():
    assert float(rule_from_text("  hinge ( 10 ,4 ) ")(jnp.float32(5))) == np.float32(1 / 11)
    assert float(rule_from_text("polynomial(1e0)")(jnp.float32(1))) == 0.5
    assert float(rule_from_text("inverse()")(jnp.float32(5))) == np.float32(0.2)


@pytest.mark.parametrize("text, words", [
    ("invers", "invers.*unknown.*inverse"),
    ("", "unknown"),
    ("polynomial(0.5", "unknown.*polynomial"),
    ("__import__('os')", "unknown"),
    ("polynomial", "polynomial takes one number"),
    ("polynomial(1, 2)", "polynomial takes one number"),
    ("hinge(1)", "hinge takes two numbers"),
    ("hinge(1, 2, 3)", "hinge takes two numbers"),
    ("inverse(2)", "inverse takes no number"),
    ("constant(1)", "constant takes no number"),
    ("delay_adaptive", "delay_adaptive takes one number"),
    ("polynomial(-1)", "polynomial: a must be at least 0, got -1"),
    ("polynomial(nan)", "polynomial: a must be at least 0, got nan"),
    ("exponential(-0.1)", "exponential: b must be at least 0"),
    ("hinge(-1, 2)", "hinge: a must be at least 0"),
    ("hinge(1, -2)", "hinge: b must be at least 0"),
    ("delay_adaptive(0)", "delay_adaptive: num_workers must be at least 1, got 0"),
])
def test_texts_that_are_wrong(text, words):
    with pytest.raises(ValueError, match=words):
        asgd.scale_by_staleness(text)


def test_a_text_that_is_not_a_number_names_the_rule():
    with pytest.raises(ValueError, match="polynomial"):
        rule_from_text("polynomial(half)")


@pytest.mark.parametrize("rule", [None, 0.5, ["inverse"]])
def test_rule_of_a_wrong_type(rule):
    with pytest.raises(ValueError, match="rule must be a function or a text"):
        asgd.scale_by_staleness(rule)
