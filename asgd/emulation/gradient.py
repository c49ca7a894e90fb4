"""The gradient of one event, in the form whose bits do not depend on the program around it."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
from jax import lax

from asgd.emulation.convolutions import canonical_convolutions
from asgd.emulation.rewrite import one_rounding


def event_gradient(loss: Callable[..., Any], on_worker: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function that computes what a worker sends.

    The function takes, for the turn of a loop, ``turn, view, batch, event, key``: what the event is
    computed on (a pair of parameters and what else ``on_worker`` needs), its batch, its description,
    whose ``number`` is the batch's, and the key of the run. It returns the loss, the batch's
    statistics, and what is sent. It is meant for :func:`in_own_loop`.

    Args:
      loss: ``loss(params, batch, key) -> (scalar, statistics)``.
      on_worker: ``on_worker(gradient, view, event)``, what is sent.
    """
    gradient_of = one_rounding(jax.value_and_grad(canonical_convolutions(loss), has_aux=True))

    def compute(turn, view, batch, event, key):
        # The turn's number in the barrier keeps the body from being moved out of its loop.
        view, batch, event, _ = lax.optimization_barrier((view, batch, event, turn))
        event_key = jax.random.fold_in(key, event.number)
        (value, statistics), gradient = gradient_of(view[0], batch, event_key)
        value, statistics, gradient = lax.optimization_barrier((value, statistics, gradient))
        return value, statistics, on_worker(gradient, view, event)

    return compute


def in_own_loop(count: Any, compute: Callable[..., Any], args: Any, before: Any = None) -> Any:
    """Computes in a loop of its own, of no or one turn, known only when it runs.

    So the compiler can neither unroll it nor fuse it with what surrounds it, and bits do not depend
    on the number of devices, waves per call or backend, nor on whether a trace is executed or a
    worker computes for itself.

    Args:
      count: 0 or 1.
      compute: from :func:`event_gradient`, with arguments ``args``.
      before: what is returned for 0, zeros by default.

    Returns:
      What ``compute`` returns, each leaf with a leading axis [1].
    """
    if before is None:
        before = jax.tree.map(lambda s: jnp.zeros((1,) + s.shape, s.dtype),
                              jax.eval_shape(compute, 0, *args))
    return lax.fori_loop(
        0, count, lambda turn, _: jax.tree.map(lambda x: x[None], compute(turn, *args)), before)
