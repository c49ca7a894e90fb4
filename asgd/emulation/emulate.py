"""The function for notebooks: a trace, a loss and an optimizer in, parameters out."""

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asgd.cluster.trace import Trace
from asgd.emulation import inputs, ring
from asgd.emulation.debug import DebugEmulator
from asgd.emulation.driver import Driver
from asgd.emulation.feed import Feed
from asgd.emulation.server import ParameterServer
from asgd.emulation.spmd import Spmd
from asgd.emulation.waves import plan_waves


class EmulationResult(NamedTuple):
    """What :func:`asgd.emulate` returns.

    Attributes:
      params: the final server parameters, the tree that came in.
      losses: [T], loss of each gradient event at its own snapshot.
      model_state: final running statistics, or None.
    """

    params: Any
    losses: np.ndarray
    model_state: Any


class Emulator(Driver):
    """Executes a trace piece by piece; :func:`asgd.emulate` runs it in one go.

    Arguments are those of :func:`asgd.emulate`, and:

    Args:
      cuts: event numbers at which :meth:`run` will start or stop.
    """

    def __init__(self, loss_fn: Callable[..., Any], tx: optax.GradientTransformation, params: Any,
                 trace: Trace, batches: Any, *, num_devices: int = 1, backend: str = "shard_map",
                 worker_tx: Optional[optax.GradientTransformation] = None,
                 layout: str = "sharded", waves_per_call: Optional[int] = None, seed: int = 0,
                 model_state: Any = None, model_state_decay: float = 0.9,
                 snapshot_dtype: Any = None, events_per_device: int = 1,
                 cuts: Sequence[int] = (), on_nonfinite: str = "stop"):
        inputs.check_arguments(tx, worker_tx, model_state_decay, snapshot_dtype, on_nonfinite,
                               num_devices=num_devices, waves_per_call=waves_per_call,
                               events_per_device=events_per_device)
        if not isinstance(trace, Trace):
            raise ValueError(f"trace must be an asgd.Trace, got {type(trace).__name__}")
        spmd = Spmd(num_devices, backend)
        place = ring.layout(layout, num_devices)
        params = jax.tree.map(jnp.asarray, params)
        inputs.check_params(params, place.num_parts)
        model_state = jax.tree.map(jnp.asarray, model_state)
        feed = Feed(batches, len(trace), spmd, trace.batch)
        loss = inputs.uniform_loss(loss_fn, model_state is not None)
        if len(trace):
            inputs.check_loss(loss, params, model_state, feed.row)
        tx, worker_tx = inputs.prepared(tx, worker_tx, params, layout,
                                        bool(trace.updates[trace.applied].all()))
        worker_state = worker_tx.init(params)
        plan = plan_waves(trace, num_devices * events_per_device, cuts,
                          distinct_workers=bool(jax.tree.leaves(worker_state)))
        server = self._make_server(tx, worker_tx, place, trace, plan, jax.eval_shape(lambda: params),
                                 model_state_decay, snapshot_dtype)
        super().__init__(server, loss, plan, feed, spmd, place, (params, worker_state), model_state,
                         waves_per_call=waves_per_call, seed=seed,
                         events_per_device=events_per_device, on_nonfinite=on_nonfinite)

    def _make_server(self, *args):
        return ParameterServer(*args)

    def params(self, state: Any) -> Any:
        """Returns the server's parameters as the tree that came in."""
        return ring.to_whole(self._spmd.get(state.params), self._whole[0])

    def model_state(self, state: Any) -> Any:
        """Returns the server's running statistics as the tree that came in."""
        return jax.device_get(state.model_state)


def make_emulator(loss_fn, tx, params, trace, batches, *, backend="shard_map", **options):
    """Returns the :class:`Emulator`, or with ``backend="debug"`` the plain Python reference."""
    if backend != "debug":
        return Emulator(loss_fn, tx, params, trace, batches, backend=backend, **options)
    if options.get("num_devices", 1) != 1:
        raise ValueError(
            f"backend='debug' runs on one device, but num_devices={options['num_devices']}")
    if options.pop("on_nonfinite", "stop") != "stop":
        raise ValueError("on_nonfinite must be 'stop' with backend='debug'")
    for name in ("num_devices", "layout", "waves_per_call", "events_per_device"):
        options.pop(name, None)
    return DebugEmulator(loss_fn, tx, params, trace, batches, **options)


def emulate(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    params: Any,
    trace: Trace,
    batches: Any,
    *,
    num_devices: int = 1,
    backend: str = "shard_map",
    worker_tx: Optional[optax.GradientTransformation] = None,
    layout: str = "sharded",
    waves_per_call: Optional[int] = None,
    seed: int = 0,
    model_state: Any = None,
    model_state_decay: float = 0.9,
    snapshot_dtype: Any = None,
    events_per_device: int = 1,
    on_nonfinite: str = "stop",
) -> EmulationResult:
    r"""Executes a trace of asynchronous SGD exactly and deterministically.

    For every event e of the trace, in order, with :math:`\theta^{(v)}` the parameters at
    version v and r its ``read_version``,

    .. math::
      g_e = \nabla f(\theta^{(r)};\, b_e), \qquad
      \theta \leftarrow \theta + \mathrm{tx}(g_e;\ \theta, \theta^{(r)}, \tau_e, \dots)

    and the version counts up where the trace says so. The result has the same bits for every
    number of devices, backend (``debug`` apart, which rounds as it goes) and waves per call.

    Args:
      loss_fn: ``loss_fn(params, batch)`` or ``loss_fn(params, batch, key)`` returning a scalar;
        event e gets ``jax.random.fold_in(jax.random.key(seed), trace.batch[e])``.
      tx: the server's Optax transformation. On each applied gradient it is given ``staleness``
        (int32 scalar, updates), ``stale_params`` (the snapshot), ``worker`` (int32 scalar),
        ``delay`` (float32 scalar, virtual seconds) and ``update`` (bool scalar).
      params: initial parameters, any tree of arrays.
      trace: what happened, T events; dropped ones change nothing.
      batches: a tree of arrays with a leading axis [T], or a callable from an array of numbers
        [n] to such rows; event e uses row ``trace.batch[e]``, which is e but in recorded
        traces, so numbers are consecutive but there. With :class:`asgd.IndexedBatches` a data
        set that fits lies on the devices.

    Other args:
      num_devices: devices that compute gradients side by side, as the trace allows.
      backend: ``"shard_map"``, ``"pmap"``, ``"jit"`` (one device), or ``"debug"``, a plain
        Python loop to step through.
      worker_tx: an Optax transformation that every worker applies to its own whole gradients
        before it sends them, with a state of its own; gets ``params`` (its snapshot).
      layout: ``"sharded"``, where a device holds its part of every leaf and ``tx`` must be
        elementwise, or ``"replicated"``.
      waves_per_call: waves in one compiled call; chosen by batch size if None.
      seed: of the keys.
      model_state: running statistics (batch norm), or None. When given, ``loss_fn`` returns
        ``(loss, statistics)`` with the statistics b of its own batch, and the server keeps
        :math:`s \leftarrow d s + (1 - d) b` with each applied gradient in event order.
      model_state_decay: d.
      snapshot_dtype: floating type that snapshots are kept and sent in, such as
        ``jnp.bfloat16``; gradients are then computed on rounded parameters, and
        ``stale_params`` are rounded too. None keeps them exact.
      events_per_device: gradients that a device computes in one batched call (``vmap``), which
        fills an accelerator. More than 1 gives up the same bits for every number of devices.
      on_nonfinite: ``"stop"`` raises for a loss that is not finite; ``"skip"`` drops a gradient that
        is not finite, or whose loss is not, as if the server had got nothing: parameters and states
        stay, the version counts, and its loss is given as not a number.

    Returns:
      An :class:`EmulationResult` with ``params``, ``losses`` and ``model_state``.

    Raises:
      ValueError: for arguments that do not fit, naming them.
      NonFiniteLossError: naming the event, worker and staleness of the first loss that is not
        finite.

    Example:
      >>> import asgd, jax.numpy as jnp, optax
      >>> trace = asgd.Trace(worker=[0, 1, 0], read_version=[0, 0, 1])
      >>> result = asgd.emulate(lambda p, b: 0.5 * b * p**2, optax.sgd(0.5), jnp.array(1.0),
      ...                       trace, jnp.ones(3))
      >>> print(result.params, result.losses)  # 1 -> 0.5 -> 0 -> -0.25
      -0.25 [0.5   0.5   0.125]
    """
    emulator = make_emulator(
        loss_fn, tx, params, trace, batches, num_devices=num_devices, backend=backend,
        worker_tx=worker_tx, layout=layout, waves_per_call=waves_per_call, seed=seed,
        model_state=model_state, model_state_decay=model_state_decay,
        snapshot_dtype=snapshot_dtype, events_per_device=events_per_device,
        on_nonfinite=on_nonfinite)
    state, losses = emulator.run(emulator.init())
    return EmulationResult(emulator.params(state), losses, emulator.model_state(state))
