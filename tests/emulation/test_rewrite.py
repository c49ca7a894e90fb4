"""The form in which functions are compiled: same values, no choice left to the compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asgd.emulation.rewrite import one_rounding

X = np.random.default_rng(0).normal(size=100).astype(np.float32)
S = np.float32(0.3)


def equations(fn, *args):
    """Returns all equations of the rewritten function, those of inner jaxprs too."""
    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn
            for value in eqn.params.values():
                for inner in value if isinstance(value, tuple) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        yield from walk(inner)
    return list(walk(jax.make_jaxpr(one_rounding(fn))(*args).jaxpr))


def count(name, fn, *args):
    return sum(eqn.primitive.name == name for eqn in equations(fn, *args))


def array_divisions(fn, *args):
    """Divisions that are not of a scalar by a scalar."""
    return sum(eqn.primitive.name == "div" and eqn.outvars[0].aval.ndim > 0
               for eqn in equations(fn, *args))


def compiled(fn):
    """Only in a program are divisors unknown, and so divisions rewritten."""
    return jax.jit(one_rounding(fn))


@pytest.mark.parametrize("divide", [
    lambda x, s: x / s,
    lambda x, s: x / jnp.full_like(x, s),
    lambda x, s: x / jnp.broadcast_to(s, x.shape),
    lambda x, s: x.reshape(10, 10) / s,
    lambda x, s: x / jnp.sqrt(s * s + 1),
])
def test_division_by_a_scalar_is_multiplication_by_its_reciprocal(divide):
    assert array_divisions(divide, X, S) == 0
    got, want = compiled(divide)(X, S), divide(X, S)
    # The reciprocal's rounding and the product's, against the quotient's: within one ulp.
    np.testing.assert_array_max_ulp(np.asarray(got), np.asarray(want), maxulp=1)


def test_the_value_is_exactly_that_of_the_reciprocal():
    got = compiled(lambda x, s: x / s)(X, S)
    np.testing.assert_array_equal(got, X * (np.float32(1) / S))


@pytest.mark.parametrize("s", [0.0, np.inf, np.nan, -2.0])
def test_special_divisors(s):
    x = np.array([1.0, -2.5, 8.0], np.float32)
    with np.errstate(all="ignore"):
        want = x / np.float32(s)
    np.testing.assert_array_equal(compiled(lambda x, s: x / s)(x, np.float32(s)), want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes_are_kept(dtype, x64):
    x, s = jnp.asarray(X, dtype), jnp.asarray(3.0, dtype)
    got = compiled(lambda x, s: x / s)(x, s)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float64), np.asarray(x / s, np.float64),
                               rtol=2 * float(jnp.finfo(dtype).eps), atol=0)


def test_what_is_left_alone():
    scalars = lambda s, t: s / t
    assert count("div", scalars, S, S) == 1 and count("mul", scalars, S, S) == 0
    arrays = lambda x, y: x / y
    assert count("div", arrays, X, X) == 1
    constants = lambda x: x / 3.0
    assert count("div", constants, X) == 1
    integers = lambda x, s: jax.lax.div(x, jnp.broadcast_to(s, x.shape))
    whole = np.arange(-9, 9, dtype=np.int32)
    assert count("div", integers, whole, np.int32(4)) == 1
    np.testing.assert_array_equal(
        compiled(integers)(whole, np.int32(4)), np.trunc(whole / 4).astype(np.int32))
    for fn, args in [(scalars, (S, np.float32(7))), (arrays, (X, X + 1)), (constants, (X,))]:
        np.testing.assert_array_equal(compiled(fn)(*args), jax.jit(fn)(*args))


def test_equal_terms_are_computed_once():
    def fn(x, s):
        return jnp.sqrt(x * x + s) + x / s, jnp.sqrt(x * x + s) - (x + 1) / s

    assert count("sqrt", fn, X, S) == 1
    assert array_divisions(fn, X, S) == 0
    assert count("div", fn, X, S) == 1  # One reciprocal for both quotients.
    for got, want in zip(compiled(fn)(X, S), fn(X, S), strict=True):
        # Terms of size up to 10, each with a rounding or two.
        np.testing.assert_allclose(got, want, rtol=0, atol=4e-6)


def test_unequal_terms_are_kept_apart():
    def fn(x, y):
        return (jnp.sum(x.reshape(10, 10), 0), jnp.sum(x.reshape(10, 10), 1), x + y, y - x, x - y,
                x.astype(jnp.int32), x.astype(jnp.float16), x + 1, x + 2)

    for got, want in zip(compiled(fn)(X, 2 * X), fn(X, 2 * X), strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype


def test_random_bits_of_different_keys_stay_different():
    def fn(key):
        a, b = jax.random.split(key)
        return jax.random.normal(a, (5,)), jax.random.normal(b, (5,)), jax.random.normal(a, (5,))

    got, want = compiled(fn)(jax.random.key(0)), fn(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert np.all(got[0] != got[1])


def test_enters_jit():
    inner = jax.jit(lambda x, s: x / s)
    fn = lambda x, s: jax.jit(lambda x, s: inner(x, s) + 1)(x, s)
    assert array_divisions(fn, X, S) == 0
    np.testing.assert_allclose(compiled(fn)(X, S), fn(X, S), rtol=0, atol=2e-6)


@pytest.mark.parametrize("chosen", [False, True])
def test_enters_cond(chosen):
    def fn(chosen, x, s):
        return jax.lax.cond(chosen, lambda x: x / s, lambda x: (x - 1) / (s + 1), x)

    assert array_divisions(fn, chosen, X, S) == 0
    np.testing.assert_array_max_ulp(
        np.asarray(compiled(fn)(chosen, X, S)), np.asarray(fn(chosen, X, S)), maxulp=1)
    # Within a program the choice stays one of the program.
    assert count("cond", fn, chosen, X, S) == 1


@pytest.mark.parametrize("index", [0, 1, 2])
def test_enters_switch(index):
    branches = [lambda x, s: x / s, lambda x, s: x * s, lambda x, s: x / (s + 2)]
    fn = lambda i, x, s: jax.lax.switch(i, branches, x, s)
    assert array_divisions(fn, index, X, S) == 0
    np.testing.assert_array_max_ulp(
        np.asarray(compiled(fn)(index, X, S)), np.asarray(fn(index, X, S)), maxulp=1)


def test_enters_loops():
    def fn(turns, x, s):
        return jax.lax.fori_loop(0, turns, lambda i, x: (x + i) / s, x)

    assert array_divisions(fn, 3, X, S) == 0
    # Three divisions by 0.3 and sums, of values up to 300.
    np.testing.assert_allclose(compiled(fn)(3, X, S), fn(3, X, S), rtol=1e-5, atol=1e-4)


def test_products_are_rounded_before_they_are_added():
    """With a zero unknown to the compiler, a * b + c * d is fma(c, d, round(a * b)), always."""
    rng = np.random.default_rng(0)
    a, b, c, d = (rng.normal(size=1000).astype(np.float32) for _ in range(4))
    fn = jax.jit(lambda zero, *args: one_rounding(lambda a, b, c, d: a * b + c * d, zero)(*args))
    # In float64 the product and the sum of float32 numbers round once less than float32 does.
    first, second = (a * b).astype(np.float64), c.astype(np.float64) * d
    want = (first + second).astype(np.float32)
    separate = a * b + c * d
    got = np.asarray(fn(np.float32(0), a, b, c, d))
    assert np.array_equal(got, want) or np.array_equal(got, separate)
    for size in (1, 2, 3, 7, 100):
        parts = [fn(np.float32(0), *(x[i:i + size] for x in (a, b, c, d)))
                 for i in range(0, 1000 - 1000 % size, size)]
        np.testing.assert_array_equal(np.concatenate(parts), got[:1000 - 1000 % size])


def test_scans_and_custom_derivatives_keep_their_meaning():
    @jax.custom_jvp
    def double(x):
        return 2 * x

    double.defjvp(lambda primals, tangents: (double(*primals), 7 * tangents[0]))

    def fn(x, s):
        looped = jax.lax.fori_loop(0, 3, lambda i, x: x / s, x)
        scanned, sums = jax.lax.scan(lambda c, y: (c + y, c), s, x)
        return jnp.sum(looped + double(x)) + scanned + jnp.sum(sums)

    np.testing.assert_allclose(compiled(fn)(X, S), fn(X, S), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(compiled(fn))(X, S), jax.grad(fn)(X, S), rtol=1e-6)
    np.testing.assert_allclose(
        one_rounding(jax.grad(lambda x: jnp.sum(double(x))))(X), np.full(100, 7.0))


def test_trees_in_and_out():
    fn = lambda tree, s: {"a": tree["x"] / s, "b": (tree["y"], None, s), "c": {}}
    args = {"x": X, "y": [np.int32(3)]}, S
    got, want = compiled(fn)(*args), fn(*args)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    np.testing.assert_array_equal(got["b"][2], S)
