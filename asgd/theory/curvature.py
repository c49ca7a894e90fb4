"""Curvature of a real model: the extreme eigenvalues of a loss's Hessian."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.sparse import linalg

from asgd.cluster.checks import integer, number
from asgd.theory import losses


class Eigenvalues(NamedTuple):
    """What `extreme_eigenvalues` returns.

    Attributes:
        largest: float64 [k], the algebraically largest first.
        smallest: float64 [k], the algebraically smallest first.
        largest_vectors: k trees like the parameters, of float64 NumPy arrays, each of length 1
            as a whole, in the order of `largest`; None if they were not asked for.
        smallest_vectors: The same of `smallest`.
    """

    largest: np.ndarray
    smallest: np.ndarray
    largest_vectors: list[Any] | None
    smallest_vectors: list[Any] | None


def extreme_eigenvalues(loss_fn: Callable, params: Any, batch: Any, k: int = 1, *,
                        has_aux: bool = False, seed: int = 0, tolerance: float = 1e-4,
                        max_iterations: int = 1000, eigenvectors: bool = False) -> Eigenvalues:
    """Computes the largest and the smallest eigenvalues of the Hessian of a loss.

    Lanczos' method (ARPACK) on Hessian-vector products, each of which costs a few gradients; the
    Hessian is only formed where it is no larger than Lanczos' own basis.

    Args:
        loss_fn: `loss_fn(params, batch)` or `loss_fn(params, batch, key)`, a mean over the batch.
        params: Parameters, any tree of floating arrays; products are computed in their types.
        batch: A batch, or a list of batches for a data set that is too large for one: then the
            loss is the mean over all samples, which the first axis of a batch counts, and the
            products are added up in float64. A tuple is one batch.
        k: Eigenvalues at each end of the spectrum.
        has_aux: Whether the loss returns `(loss, statistics)`; the statistics are not used.
        seed: Of the first vector, and of the keys of the loss: one a batch, always the same.
        tolerance: Allowed error, relative to the eigenvalue of largest size. A small one takes
            many products where eigenvalues crowd, as they do near zero, and float32 parameters
            support no less than some 1e-6.
        max_iterations: Restarts after which Lanczos' method gives up.
        eigenvectors: Whether to return the eigenvectors too.

    Returns:
        The eigenvalues, and the eigenvectors or None.

    Raises:
        ValueError: On a bad argument, naming it.
        FloatingPointError: If a Hessian-vector product is not finite.
        RuntimeError: If Lanczos' method does not converge.

    Example:
        >>> import jax.numpy as jnp
        >>> from asgd.theory import curvature
        >>> def loss(params, batch):
        ...     return params["x"]**2 - 2 * params["y"]**2 + batch.mean() * params["x"]
        >>> curvature.extreme_eigenvalues(loss, {"x": 1.0, "y": 0.0}, jnp.ones(3))[:2]
        (array([2.]), array([-4.]))
    """
    size = losses.check_params(params)
    integer("k", k, 1, size)
    integer("max_iterations", max_iterations, 1)
    integer("seed", seed, 0)
    if not number("tolerance", tolerance, above=0.0) < 1:
        raise ValueError(f"tolerance must be between 0 and 1, not {tolerance:g}")
    product = _hessian_product(losses.scalar_loss(loss_fn, has_aux), params, batch, seed)
    if size <= max(20, 4 * k + 1):
        matrix = np.stack([product(row) for row in np.eye(size)])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    else:
        values, vectors = _lanczos(product, size, k, seed, tolerance, max_iterations)
    top, bottom = np.argsort(values)[::-1][:k], np.argsort(values)[:k]
    trees = [[losses.unflatten(vectors[:, i], params) for i in end] if eigenvectors else None
             for end in (top, bottom)]
    return Eigenvalues(values[top], values[bottom], *trees)


def _hessian_product(loss, params, batch, seed):
    """Returns a function that multiplies float64 vectors by the Hessian of the mean loss."""
    batches = batch if isinstance(batch, list) else [batch]
    if not batches:
        raise ValueError("batch must not be an empty list")
    # A batch that is alone needs no axis of samples.
    sizes = [losses.num_samples("batch", b) for b in batches] if len(batches) > 1 else [1]
    key = jax.random.key(seed)

    @jax.jit
    def of_batch(params, vector, batch, key):
        vector = jax.tree.map(lambda v, p: v.astype(p.dtype), vector, params)
        return jax.jvp(lambda p: jax.grad(loss)(p, batch, key), (params,), (vector,))[1]

    def product(vector):
        tree = losses.unflatten(vector, params)
        return sum(size / sum(sizes) * losses.flatten(
            of_batch(params, tree, b, jax.random.fold_in(key, i)), "Hessian-vector product")
            for i, (b, size) in enumerate(zip(batches, sizes)))

    return product


def _lanczos(product, size, k, seed, tolerance, max_iterations):
    start = np.random.default_rng(seed).standard_normal(size)
    if not product(start).any():  # The Hessian is zero, which ARPACK refuses.
        return np.zeros(2 * k), np.eye(size, 2 * k)

    def solve(shift, num, which, tolerance):
        operator = linalg.LinearOperator(
            (size, size), matvec=lambda v: product(v) + shift * v.ravel(), dtype=np.float64)
        return linalg.eigsh(operator, num, which=which, v0=start, tol=tolerance,
                            maxiter=max_iterations)

    try:
        # ARPACK's tolerance is relative to each eigenvalue, which never ends for one that is
        # zero but for rounding; shifted by twice the largest size, all are of about that size.
        shift = 2 * abs(solve(0.0, 1, "LM", 0.1)[0][0])
        values, vectors = solve(shift, 2 * k, "BE", tolerance / 3)
    except linalg.ArpackNoConvergence as error:
        raise RuntimeError(
            f"{len(error.eigenvalues)} of {2 * k} eigenvalues converged to a tolerance of "
            f"{tolerance:g} in {max_iterations} iterations: raise tolerance or max_iterations"
        ) from None
    return values - shift, vectors
