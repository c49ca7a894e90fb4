"""Predicting and clipping stale neighbours: PC-ASGD (paper B)."""

from typing import Any, Callable, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asgd.transforms.consensus import weighted_sum

CRITERIA = ("paper", "descent")


class PredictClipState(NamedTuple):
    """State of :func:`predict_clip`.

    Attributes:
      count: int32 scalar, rounds so far.
      inner_state: state of the agent's own optimizer.
      probe_state: state of the same optimizer for a single number that never moves, from which
        the learning rate is read; None when the rate is given.
    """

    count: jax.Array
    inner_state: Any
    probe_state: Any


def predict_clip(
    inner: optax.GradientTransformation,
    theta: Union[optax.ScalarOrSchedule, str] = 0.5,
    *,
    learning_rate: Optional[optax.ScalarOrSchedule] = None,
    strength: float = 1.0,
    all_steps: bool = True,
    per_tensor: bool = False,
    warmup_rounds: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Predicts where stale neighbours are now, leaves them out, or weighs between both (paper B).

    Agent i mixes the parameters of its neighbours j, which are :math:`\tau_{ij}` rounds old. R are
    the reliable ones (:math:`\tau = 0`, and i itself). With :math:`g_j` the neighbour's gradient at
    the parameters it sent, and u the step of ``inner`` (:math:`-\eta g_i` for SGD),

    .. math::
      g^{dc,r}_j &= g_j + \lambda\, g_j \odot g_j \odot (x^i_{t-\tau+r} - x^i_{t-\tau}) \\
      x_{pre} &= \sum_{j \in R} w_{ij}\, x^j_t + u
        + \sum_{j \notin R} w_{ij} \Big( x^j_{t-\tau} - \eta \sum_{r=0}^{\tau-1} g^{dc,r}_j \Big) \\
      x_{clip} &= \sum_{j \in R} \tilde w_{ij}\, x^j_t + u \\
      x^i_{t+1} &= \theta\, x_{pre} + (1 - \theta)\, x_{clip}

    The agent's own displacement stands for the neighbour's. This is a reconstruction: the paper's
    abstract fixes the two steps and their combination, and code attributed to the authors the use
    of the own displacement. The number of gradients in the sum, :math:`\lambda` and the sign of
    the condition below are not settled by what is public, so they are options here.

    ``theta="paper"`` and ``"descent"`` are the practical variant: with
    :math:`s(z) = \langle z - x^i_t, g_i \rangle / \lVert z - x^i_t \rVert`, theta is 1 where
    :math:`s(x_{pre}) \ge s(x_{clip})` and 0 elsewhere (``"paper"``, the sign in that code, which
    prefers the candidate that descends *less*; the paper's own is not settled), or with
    :math:`\le` (``"descent"``). A prediction that is not finite is never chosen.

    Args:
      inner: the agent's own optimizer; a momentum in it enters after mixing.
      theta: a number from 0 (clip, C-ASGD) to 1 (predict, P-ASGD), a schedule over rounds, or
        ``"paper"`` or ``"descent"``.
      learning_rate: :math:`\eta` of the prediction, a number or a schedule over rounds. By
        default what ``inner`` would make of a gradient of one in this round, which is the
        learning rate of SGD, with or without momentum. Must be given for other optimizers.
      strength: :math:`\lambda`.
      all_steps: whether the prediction sums :math:`\tau` compensated gradients, or takes one,
        with r = :math:`\tau` (of which the attributed code keeps the Taylor term alone).
      per_tensor: whether the practical variant decides for each tensor, or for the agent.
      warmup_rounds: rounds of plain :func:`asgd.consensus` before.

    Returns:
      A transformation whose update takes

      * ``neighbor_params``, ``neighbor_grads``: trees like ``params`` with a leading axis [K],
        what was received; the first row is the agent's own;
      * ``delays``: int32 [K], how old it is;
      * ``mixing``, ``clipped``: floats [K], :math:`w_{ij}` and :math:`\tilde w_{ij}`;
      * ``trajectory``: tree with a leading axis [H + 1], the agent's own parameters 0, 1, ..., H
        rounds ago, H at least the longest delay;
      * ``sum_elements``: for the practical variant, a function from a tree to a tree of the sums
        over each leaf, by default ``jnp.sum``.

    Raises:
      ValueError: when an argument is out of its range.

    References:
      Wang, Jiang, Liu, Sarkar, Jiang, Lee, PC-ASGD (arXiv 2208.13154, paper B), reconstructed as
      said above.

    Example:
      >>> import jax.numpy as jnp
      >>> import asgd
      >>> tx = asgd.predict_clip(optax.sgd(0.1), theta=1.0)
      >>> params = jnp.array([1.0])
      >>> updates, _ = tx.update(
      ...     jnp.array([2.0]), tx.init(params), params, delays=jnp.array([0, 1]),
      ...     neighbor_params=jnp.array([[1.0], [3.0]]), neighbor_grads=jnp.array([[2.0], [4.0]]),
      ...     mixing=jnp.array([0.5, 0.5]), clipped=jnp.array([1.0, 0.0]),
      ...     trajectory=jnp.array([[1.0], [1.2]]))
      >>> print(f"{float(params[0] + updates[0]):.3f}")  # 0.5 + 0.5 * (3 - 0.1 * 4) - 0.1 * 2
      1.600
    """
    chooses = isinstance(theta, str)
    if chooses and theta not in CRITERIA:
        raise ValueError(f"predict_clip: theta must be a number, a schedule or one of "
                         f"{', '.join(CRITERIA)}, got {theta!r}")
    if not (chooses or callable(theta)):
        _check("theta", theta, lambda x: 0 <= x <= 1, "a number from 0 to 1")
    _check("strength", strength, np.isfinite, "a finite number")
    _check("warmup_rounds", warmup_rounds, lambda x: x >= 0 and x == int(x), "a whole number, 0 or more")
    inner = optax.with_extra_args_support(inner)
    if learning_rate is None:
        _check_rate(inner)
    elif not callable(learning_rate):
        _check("learning_rate", learning_rate, lambda x: x >= 0, "a number, 0 or more")

    def init_fn(params):
        probe = inner.init(_probe(params)) if learning_rate is None else None
        return PredictClipState(jnp.zeros([], jnp.int32), inner.init(params), probe)

    def update_fn(updates, state, params=None, *, neighbor_params, neighbor_grads, delays, mixing,
                  clipped, trajectory, sum_elements=None, **extra_args):
        if params is None:
            raise ValueError("predict_clip: update needs the current params")
        steps, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        if learning_rate is None:
            rate, probe_state = _rate(inner, state.probe_state, _probe(params), extra_args)
        else:
            probe_state = None
            rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        predicted = predict(neighbor_params, neighbor_grads, trajectory, delays, rate, strength,
                            all_steps)
        pre = weighted_sum(mixing, predicted)
        clip = weighted_sum(clipped, neighbor_params)
        if chooses:
            moves = [jax.tree.map(lambda z, u, x: z + u - x, mixed, steps, params)
                     for mixed in (pre, clip)]
            weight = _choice(theta, *moves, updates, sum_elements, per_tensor)
        else:
            now = theta(state.count) if callable(theta) else theta
            weight = jax.tree.map(lambda _: now, params)
        mixed = jax.tree.map(_between, weight, pre, clip)
        if warmup_rounds:
            plain = weighted_sum(mixing, neighbor_params)
            mixed = jax.tree.map(
                lambda p, m: jnp.where(state.count < warmup_rounds, p, m), plain, mixed)
        updates = jax.tree.map(lambda m, u, x: m + u - x, mixed, steps, params)
        count = optax.safe_increment(state.count)
        return updates, PredictClipState(count, inner_state, probe_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def predict(neighbor_params: Any, neighbor_grads: Any, trajectory: Any, delays: jax.Array,
            learning_rate: Any, strength: float, all_steps: bool = True) -> Any:
    r"""Predicts where neighbours are now; arguments as for :func:`predict_clip`.

    Returns:
      A tree like ``neighbor_params``: row k is :math:`x^k_{t-\tau} - \eta \sum_r g^{dc,r}_k`, and
      :math:`x^k_t` itself where the delay is 0.
    """
    def leaf(x, g, path):
        delay = _column(delays, x)
        ages = jnp.arange(len(path)).reshape((1, -1) + (1,) * (x.ndim - 1))
        # Own rounds t - tau + r: ages tau - 1 to 1 (r = 0 moves nothing), or only age 0.
        counted = (ages > 0) & (ages < delay[:, None]) if all_steps else ages == 0
        moved = jnp.where(counted, path[None] - path[delays][:, None], 0).sum(1)
        steps = (delay if all_steps else jnp.minimum(delay, 1)).astype(x.dtype)
        total = steps * g + strength * (g * g * moved)
        return jnp.where(delay > 0, x - jnp.asarray(learning_rate, x.dtype) * total, x)

    return jax.tree.map(leaf, neighbor_params, neighbor_grads, trajectory)


def _column(values, like):
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def _choice(criterion, pre, clip, gradient, sum_elements, per_tensor):
    """Returns the practical variant's theta for each leaf."""
    sums: Callable[[Any], Any] = sum_elements or (lambda tree: jax.tree.map(jnp.sum, tree))

    def score(move):
        along = sums(jax.tree.map(jnp.multiply, move, gradient))
        square = sums(jax.tree.map(jnp.square, move))
        if not per_tensor:
            along, square = (jax.tree.map(lambda _, t=t: sum(jax.tree.leaves(t)), t)
                             for t in (along, square))
        # A candidate that does not move at all has no direction, and scores 0; one that is too
        # long to be measured is no better than any other.
        return jax.tree.map(
            lambda a, s: jnp.where(s == 0, 0, a / jnp.where(jnp.isfinite(s), jnp.sqrt(s), jnp.nan)),
            along, square)

    worse = jnp.less if criterion == "paper" else jnp.greater
    return jax.tree.map(lambda p, c: jnp.where(jnp.isnan(p) | worse(p, c), 0, 1).astype(p.dtype),
                        score(pre), score(clip))


def _between(weight, pre, clip):
    weight = jnp.asarray(weight, pre.dtype)
    # Exactly one of them at the ends, whatever the other is.
    between = weight * pre + (1 - weight) * clip
    return jnp.where(weight == 1, pre, jnp.where(weight == 0, clip, between))


def _probe(params):
    return jnp.zeros([], jnp.result_type(*jax.tree.leaves(params) or [jnp.float32]))


def _check(name, value, allowed, what):
    if isinstance(value, jax.core.Tracer):
        return
    if not isinstance(value, (int, float, np.number, np.ndarray, jax.Array)) or (
            np.ndim(value) or not allowed(value)):
        raise ValueError(f"predict_clip: {name} must be {what}, got {value!r}")


def _check_rate(inner):
    """Raises unless ``inner`` is SGD with or without heavy-ball momentum, as far as one can see.

    Of such the step is linear, and what a gradient does in later rounds, over the learning rates
    then, is 1, m, m^2.
    """
    zero, one = jnp.zeros([]), jnp.ones([])
    try:
        rates, kicked, still = [], [], inner.init(zero)
        state = still
        for gradient in (one, zero, zero):
            rates.append(-inner.update(one, still, zero)[0])
            double = inner.update(2 * one, still, zero)[0]
            nothing, still = inner.update(zero, still, zero)
            step, state = inner.update(gradient, state, zero)
            kicked.append(-step)
            if isinstance(step, jax.core.Tracer):
                return
            usable = np.allclose(double, -2 * rates[-1], rtol=1e-5) and nothing == 0
            if not usable or rates[-1] < 0:
                raise ValueError("its steps are not proportional to the gradient")
        if any(rates) or any(kicked):
            if not all(rates):
                raise ValueError("it does not step in every round")
            first, second, third = np.asarray(kicked) / np.asarray(rates)
            if not np.allclose([first, third], [1.0, second ** 2], rtol=1e-4, atol=1e-6):
                raise ValueError("it is no heavy-ball momentum")
    except Exception as error:
        raise ValueError("predict_clip: learning_rate must be given, as it cannot be read off inner: "
                         f"{error}") from error


def _rate(inner, state, zero, extra_args):
    """Returns what ``inner`` makes of a gradient of one now, negated, and its next state."""
    step, _ = inner.update(jnp.ones_like(zero), state, zero, **extra_args)
    _, state = inner.update(zero, state, zero, **extra_args)
    return -step, state
