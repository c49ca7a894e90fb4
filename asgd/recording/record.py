"""The function for notebooks: really asynchronous SGD in, its trace and parameters out."""

from typing import Any, Callable, Optional

import optax

from asgd.cluster import protocols
from asgd.recording.log import Log
from asgd.recording.recorder import Recorder, RecordingResult


def record(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    params: Any,
    batches: Any,
    *,
    num_workers: int,
    num_gradients: int,
    protocol: Optional[protocols.Protocol] = None,
    recorder: str = "threads",
    num_devices: int = 1,
    sleep: Any = None,
    worker_tx: Optional[optax.GradientTransformation] = None,
    layout: str = "sharded",
    seed: int = 0,
    model_state: Any = None,
    model_state_decay: float = 0.9,
    ray: Optional[dict[str, Any]] = None,
) -> RecordingResult:
    r"""Trains with really asynchronous workers, and writes down who read what when.

    A parameter server lives in this process. Every worker, on its own and without waiting for
    the others, pulls the newest parameters and the number of a batch, computes the gradient, and
    pushes it; the server applies it on arrival. No two recordings are alike, and
    :func:`asgd.emulate` with the same loss, ``tx``, parameters, batches and seed, on the trace
    that comes back, ends with the same bits as this one.

    Args:
      loss_fn: as for :func:`asgd.emulate`; the key is that of the batch's number.
      tx: the server's transformation, with the same extra arguments; ``delay`` is in real seconds.
      params: initial parameters, any tree of arrays.
      batches: a tree of arrays with a leading axis [T], or a function from batch numbers [n] to
        such rows, which several threads may call at once. Numbers 0, 1, 2, ... are given to
        workers in the order of their pulls; the rows of a tree begin anew after T.

    Other args:
      num_workers: number of workers.
      num_gradients: T; it ends when so many have arrived.
      protocol: ``asynchronous()`` by default, or ``softsync`` or ``k_batch_async``.
      recorder: ``"threads"`` of this process, or ``"ray"``, actors on one or many machines
        (needs the package ray).
      num_devices: threads compute on so many devices in turn.
      sleep: a ``Timing`` or ``Distribution`` of seconds that workers sleep before a push, which
        makes stragglers; None for none.
      worker_tx: an Optax transformation that workers apply to their own gradients.
      layout: ``"sharded"`` for elementwise ``tx``, or ``"replicated"``.
      seed: of the keys and of the sleeps.
      model_state: running statistics (batch norm), or None, as for :func:`asgd.emulate`.
      model_state_decay: of the running statistics.
      ray: options of :class:`asgd.recording.ray_workers.RayWorkers`, such as ``address``.

    Returns:
      A :class:`RecordingResult`.

    Raises:
      ValueError: for arguments that do not fit, naming them.
      NonFiniteLossError: naming the event, worker and staleness.

    Example:
      >>> import asgd, jax.numpy as jnp, optax
      >>> loss = lambda p, b: 0.5 * b * p**2
      >>> real = record(loss, optax.sgd(0.1), jnp.array(1.0), jnp.ones(20),
      ...               num_workers=3, num_gradients=20)
      >>> replay = asgd.emulate(loss, optax.sgd(0.1), jnp.array(1.0), real.trace, jnp.ones(20))
      >>> bool(replay.params == real.params), bool((replay.losses == real.losses).all())
      (True, True)
    """
    log = Log(protocol or protocols.asynchronous(), num_workers, num_gradients)
    run = Recorder(
        loss_fn, tx, params, batches, log, recorder=recorder, num_devices=num_devices, sleep=sleep,
        worker_tx=worker_tx, layout=layout, seed=seed, model_state=model_state,
        model_state_decay=model_state_decay, ray=ray)
    try:
        state, losses = run.run(run.init())
    finally:
        run.close()
    return RecordingResult(run.params(state), losses, run.model_state(state), log.trace())
