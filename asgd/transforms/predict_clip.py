"""Predicting and clipping stale neighbours: PC-ASGD (paper B)."""

from typing import Any, Callable, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asgd.transforms.learning_rate import check_rate, number_like, read_rate
from asgd.transforms.rows import read_row, weighted_sum

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

      * ``past_params``, ``past_grads``: tables, trees like ``params`` with a leading axis of
        rows, of what agents had and what their gradients were there, in whatever order;
      * ``neighbor_rows``: int32 [K], the rows of what was received; the first is the agent's own;
      * ``delays``: int32 [K], how old it is;
      * ``mixing``, ``clipped``: floats [K], :math:`w_{ij}` and :math:`\tilde w_{ij}`;
      * ``own_rows``: int32 [H + 1], the rows of what the agent itself had 0, 1, ..., H rounds
        ago, H at least the longest delay;
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
      ...     jnp.array([2.0]), tx.init(params), params,
      ...     past_params=jnp.array([[1.0], [3.0], [1.2]]),
      ...     past_grads=jnp.array([[2.0], [4.0], [0.0]]),
      ...     neighbor_rows=jnp.array([0, 1]), delays=jnp.array([0, 1]),
      ...     mixing=jnp.array([0.5, 0.5]), clipped=jnp.array([1.0, 0.0]),
      ...     own_rows=jnp.array([0, 2]))
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
    varies = chooses or callable(theta) or isinstance(theta, jax.core.Tracer)
    only = None if varies else float(theta)
    inner = optax.with_extra_args_support(inner)
    if learning_rate is None:
        check_rate(inner)
    elif not callable(learning_rate):
        _check("learning_rate", learning_rate, lambda x: x >= 0, "a number, 0 or more")

    def init_fn(params):
        probe = inner.init(number_like(params)) if learning_rate is None else None
        return PredictClipState(jnp.zeros([], jnp.int32), inner.init(params), probe)

    def update_fn(updates, state, params=None, *, past_params, past_grads, neighbor_rows,
                  delays, mixing, clipped, own_rows, sum_elements=None, **extra_args):
        if params is None:
            raise ValueError("predict_clip: update needs the current params")
        steps, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        if learning_rate is None:
            rate, probe_state = read_rate(inner, state.probe_state, number_like(params), extra_args)
        else:
            probe_state = None
            rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def move(mixed):
            return jax.tree.map(lambda m, u, x: m + u - x, mixed, steps, params)

        neighbor_rows, delays, mixing, own_rows = map(
            jnp.asarray, (neighbor_rows, delays, mixing, own_rows))
        late = delays > 0

        def pre():
            predicted = late & (mixing != 0)
            places = jnp.argsort(~predicted)  # Theirs come first.

            def add(n, total):
                k = places[n]
                sent, there = (read_row(table, neighbor_rows[k])
                               for table in (past_params, past_grads))
                now = predict(sent, there, lambda age: read_row(past_params, own_rows[age]),
                              delays[k], rate, strength, all_steps)
                return jax.tree.map(lambda t, x: t + mixing[k].astype(x.dtype) * x, total, now)

            return move(lax.fori_loop(0, predicted.sum(), add, weighted_sum(
                jnp.where(late, 0, mixing), past_params, neighbor_rows)))

        def combine(pre):
            clip = move(weighted_sum(clipped, past_params, neighbor_rows))
            if chooses:
                weight = _choice(theta, pre, clip, updates, sum_elements, per_tensor)
            else:
                weight = _repeated(theta(state.count) if callable(theta) else theta, params)
            return jax.tree.map(_between, weight, pre, clip)

        if only == 0:
            moves = move(weighted_sum(clipped, past_params, neighbor_rows))
        elif only == 1:
            moves = pre()
        else:
            # Where nobody is late and the weights are the same, so are the candidates.
            alike = jnp.all(~late & (mixing == clipped))
            moves = lax.cond(alike, lambda pre: pre, combine, pre())
        if warmup_rounds:
            plain = move(weighted_sum(mixing, past_params, neighbor_rows))
            moves = jax.tree.map(
                lambda p, m: jnp.where(state.count < warmup_rounds, p, m), plain, moves)
        count = optax.safe_increment(state.count)
        return moves, PredictClipState(count, inner_state, probe_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def predict(params: Any, gradient: Any, own: Callable[[Any], Any], delay: jax.Array,
            learning_rate: Any, strength: float, all_steps: bool = True) -> Any:
    r"""Predicts where a late neighbour is now.

    Args:
      params: :math:`x_{t-\tau}`, the tree that the neighbour sent.
      gradient: its gradient there.
      own: a function from an age in rounds to the agent's own parameters then.
      delay: :math:`\tau`, int scalar, 1 or more.

    Other args:
      learning_rate, strength, all_steps: as for :func:`predict_clip`.

    Returns:
      The tree :math:`x_{t-\tau} - \eta \sum_r g^{dc,r}`.
    """
    then = own(delay)

    def add_displacement(age, total):
        return jax.tree.map(lambda s, now, then: s + (now - then), total, own(age), then)

    if all_steps:  # Own rounds t - tau + r: ages tau - 1 to 1, as r = 0 moves nothing.
        count = delay
        moved = lax.fori_loop(1, delay, add_displacement, jax.tree.map(jnp.zeros_like, params))
    else:
        count = 1
        moved = jax.tree.map(jnp.subtract, own(0), then)

    def leaf(x, g, moved):
        total = jnp.asarray(count, x.dtype) * g + strength * (g * g * moved)
        return x - jnp.asarray(learning_rate, x.dtype) * total

    return jax.tree.map(leaf, params, gradient, moved)


def _repeated(value, tree):
    return jax.tree.map(lambda _: value, tree)


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


def _check(name, value, allowed, what):
    if isinstance(value, jax.core.Tracer):
        return
    if not isinstance(value, (int, float, np.number, np.ndarray, jax.Array)) or (
            np.ndim(value) or not allowed(value)):
        raise ValueError(f"predict_clip: {name} must be {what}, got {value!r}")
