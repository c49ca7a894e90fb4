"""Takes what a user passes (a loss, batches) and gives it one form, or says what is wrong."""

import inspect
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asgd.cluster.trace import Trace
from asgd.emulation import elementwise
from asgd.emulation.finite import MODES
from asgd.emulation.keys import keys_as_data


class NonFiniteLossError(FloatingPointError):
    """A loss was infinite or not a number; `event`, `worker` and `staleness` say whose."""

    def __init__(self, event: int, loss: float, worker: int, staleness: int):
        self.event, self.worker, self.staleness = event, worker, staleness
        super().__init__(
            f"loss is {loss} at event {event} (worker {worker}, staleness {staleness})")


def check_losses(losses: np.ndarray, start: int, trace: Trace) -> None:
    """Raises :class:`NonFiniteLossError` for the first bad loss of the events from ``start``.

    The loss of a dropped gradient may be anything.
    """
    applied = trace.applied[start:start + len(losses)]
    bad = np.flatnonzero(applied & ~np.isfinite(losses))
    if bad.size:
        event = int(start + bad[0])
        raise NonFiniteLossError(event, float(losses[bad[0]]), int(trace.worker[event]),
                                 int(trace.version[event] - trace.read_version[event]))


def check_arguments(tx, worker_tx, model_state_decay, snapshot_dtype=None, on_nonfinite="stop",
                    **counts) -> None:
    """Raises ValueError for an argument of :func:`asgd.emulate` of the wrong kind or size."""
    for name, value in (("tx", tx), ("worker_tx", worker_tx)):
        if not (hasattr(value, "init") and hasattr(value, "update")
                or name == "worker_tx" and value is None):
            raise ValueError(f"{name} must be an Optax transformation, got {value!r}")
    for name, value in counts.items():
        if value is None and name == "waves_per_call":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    if snapshot_dtype is not None and not jnp.issubdtype(snapshot_dtype, jnp.floating):
        raise ValueError(f"snapshot_dtype must be a floating type or None, got {snapshot_dtype!r}")
    if on_nonfinite not in MODES:
        raise ValueError(f"on_nonfinite must be 'stop' or 'skip', got {on_nonfinite!r}")
    if not 0 <= model_state_decay < 1:
        raise ValueError(f"model_state_decay must be in [0, 1), got {model_state_decay}")


def prepared(tx: Any, worker_tx: Any, params: Any, layout: str, all_update: bool) -> tuple[Any, Any]:
    """Returns the server's and the workers' transformations as programs use them.

    Args:
      tx: the server's.
      worker_tx: the workers', or None.
      params: the parameters.
      layout: "sharded" or "replicated".
      all_update: whether every gradient makes an update.

    Raises:
      ValueError: when ``tx`` mixes what the layout splits, or moves parameters between updates.
    """
    tx, worker_tx = keys_as_data(tx, params), keys_as_data(worker_tx or optax.identity(), params)
    if layout == "sharded":
        elementwise.check_elementwise(tx, params)
    if not all_update:
        elementwise.check_waits_for_update(tx, params)
    return tx, worker_tx


def check_params(params: Any, num_parts: int) -> None:
    """Raises ValueError for a leaf that cannot be split into parts, naming it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if num_parts > 1 and not leaf.size:
            raise ValueError(f"params: {jax.tree_util.keystr(path) or 'the array'} has no elements to "
                             "split over devices: leave it out, or use layout='replicated'")


def uniform_loss(loss_fn: Callable[..., Any], has_statistics: bool) -> Callable[..., Any]:
    """Returns ``loss(params, batch, key) -> (scalar, statistics or None)``.

    ``loss_fn`` may take a key or not; with statistics it returns the pair itself.
    """
    try:
        positional = [p for p in inspect.signature(loss_fn).parameters.values()
                      if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):
        positional = [None, None]
    # A third argument with a default is a setting of the user's, unless it is called a key.
    takes_key = len(positional) >= 3 and (
        positional[2].default is inspect.Parameter.empty or positional[2].name in ("key", "rng"))

    def loss(params, batch, key):
        out = loss_fn(params, batch, key) if takes_key else loss_fn(params, batch)
        return out if has_statistics else (out, None)

    return loss


def check_loss(loss: Callable[..., Any], params: Any, model_state: Any, batch: Any) -> None:
    """Raises ValueError unless the loss is a scalar and its statistics look like the state."""
    out = jax.eval_shape(loss, params, batch, jax.random.key(0))
    if not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError("loss_fn must return (loss, statistics) when model_state is given")
    value, statistics = out
    if not hasattr(value, "shape") or value.shape != ():
        got = getattr(value, "shape", type(value).__name__)
        raise ValueError(f"loss_fn must return a scalar, got {got}"
                         + ("; pass model_state to return statistics too"
                            if isinstance(value, tuple) else ""))
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"loss_fn must return a real floating scalar, got {value.dtype}")
    def describe(tree):
        return jax.tree.map(lambda x: f"{x.dtype} {x.shape}", tree)

    if describe(statistics) != describe(model_state):
        raise ValueError(f"loss_fn's statistics are {describe(statistics)}, but model_state is "
                         f"{describe(model_state)}")
