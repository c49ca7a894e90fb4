"""Gradient noise of a real model: how mini-batch gradients spread around their mean."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from asgd.cluster.checks import integer
from asgd.theory import losses


class GradientNoise(NamedTuple):
    """What `gradient_noise` returns.

    Attributes:
        mean: Mean gradient, a tree like the parameters of float64 NumPy arrays.
        trace: Trace of the covariance of one mini-batch gradient, unbiased.
        along: float64 [n], variance of one mini-batch gradient along each direction, unbiased.
            Its square root is the `gradient_noise` of `asgd.theory.sdde.coefficients`.
        squared_norm: Unbiased estimate of the true gradient's squared length; may be negative.
        noise_scale: The simple noise scale in samples; inf where `squared_norm` is not positive.
        batch_size: Samples in a mini-batch.
        num_batches: Mini-batches seen.
    """

    mean: Any
    trace: float
    along: np.ndarray
    squared_norm: float
    noise_scale: float
    batch_size: int
    num_batches: int


def gradient_noise(loss_fn: Callable, params: Any, batches: Iterable[Any], *,
                   directions: Iterable[Any] = (), has_aux: bool = False,
                   seed: int = 0) -> GradientNoise:
    r"""Measures how mini-batch gradients at fixed parameters spread around their mean.

    With the gradients :math:`g_1 \dots g_m` of mini-batches of b samples, their mean
    :math:`\bar g`, and :math:`\Sigma_b` the covariance of one of them (:math:`\Sigma_1` that of
    one sample's),

    .. math::
      \operatorname{tr}\Sigma_b = \frac{1}{m-1} \sum_i |g_i - \bar g|^2, \qquad
      |G|^2 = |\bar g|^2 - \frac{\operatorname{tr}\Sigma_b}{m}, \qquad
      B = \frac{\operatorname{tr}\Sigma_1}{|G|^2} = \frac{b \operatorname{tr}\Sigma_b}{|G|^2}

    Mini-batches should be independent draws. One gradient at a time is held, in float64.

    Args:
        loss_fn: `loss_fn(params, batch)` or `loss_fn(params, batch, key)`, a mean over the batch.
        params: Parameters, any tree of floating arrays.
        batches: A list or an iterator of two or more mini-batches of one size, which is the
            length of their arrays' first axis.
        directions: Trees like `params`, of any length but 0, such as eigenvectors.
        has_aux: Whether the loss returns `(loss, statistics)`; the statistics are not used.
        seed: Of the keys of the loss, a different one for each mini-batch.

    Returns:
        The mean gradient, its noise and the simple noise scale.

    Raises:
        ValueError: On a bad argument, naming it.
        FloatingPointError: If a gradient is not finite.

    Source:
        McCandlish et al., An empirical model of large-batch training, arXiv 1812.06162, appendix
        A: its estimators, with a large batch that is the union of the m small ones.

    Example:
        >>> import numpy as np
        >>> from asgd import theory
        >>> def loss(params, batch):
        ...     return ((params - batch) ** 2).mean() / 2
        >>> noise = theory.gradient_noise(loss, 3.0, [np.array([-1.0]), np.array([1.0])])
        >>> print(noise.mean, noise.trace, noise.squared_norm, noise.noise_scale)
        3.0 2.0 8.0 0.25
    """
    if isinstance(batches, (dict, tuple)) or hasattr(batches, "shape"):
        raise ValueError("batches must be a list or an iterator of mini-batches, "
                         f"not a {type(batches).__name__}")
    losses.check_params(params)
    integer("seed", seed, 0)
    directions = [_unit(direction, params) for direction in directions]
    gradient, key = jax.jit(jax.grad(losses.scalar_loss(loss_fn, has_aux))), jax.random.key(seed)
    batch_size, count, mean, squares, projections = 0, 0, 0.0, 0.0, []
    for count, batch in enumerate(batches, 1):
        num_samples = losses.num_samples("batches", batch)
        batch_size = batch_size or num_samples
        if num_samples != batch_size:
            raise ValueError(f"batches must be of one size: the first has {batch_size} samples, "
                             f"that at row {count - 1} has {num_samples}")
        g = losses.flatten(gradient(params, batch, jax.random.fold_in(key, count - 1)), "gradient")
        projections.append([g @ direction for direction in directions])
        deviation = g - mean
        mean = mean + deviation / count
        squares += deviation @ (g - mean)
    if count < 2:
        raise ValueError(f"batches must be two or more, not {count}")
    trace = float(squares / (count - 1))
    squared_norm = float(mean @ mean - trace / count)
    scale = batch_size * trace / squared_norm if squared_norm > 0 else math.inf
    return GradientNoise(
        losses.unflatten(mean, params), trace, np.var(projections, axis=0, ddof=1), squared_norm, scale,
        batch_size, count)


def _unit(direction, params):
    if jax.tree.map(np.shape, direction) != jax.tree.map(np.shape, params):
        raise ValueError("directions must be trees like params")
    flat = losses.flatten(direction, "direction")
    if not flat.any():
        raise ValueError("directions must not be of length 0")
    return flat / np.linalg.norm(flat)
