"""Training by local steps and averaging in one call: a loss and a period in, parameters out."""

from typing import Any, Callable, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asgd.cluster import averaging as cluster_averaging
from asgd.cluster.averaging import RELEASE, TAKE, AveragingSchedule
from asgd.emulation import inputs, ring
from asgd.emulation.averaging import Averaging
from asgd.emulation.driver import Driver
from asgd.emulation.feed import Feed
from asgd.emulation.keys import keys_as_data
from asgd.emulation.spmd import Spmd
from asgd.emulation.sums import CHUNK
from asgd.emulation.waves import Waves, pack


class AveragingResult(NamedTuple):
    """What :func:`asgd.emulate_averaging` returns.

    Attributes:
      params: the last copy that the server sent, the tree that came in.
      worker_params: the workers' parameters at the end, with a leading axis [N].
      losses: [T, N], loss of each worker in each step, at its own parameters before the step; with
        a schedule [events].
      discrepancy: [cycles], the largest distance between two workers right after each merge.
      model_state: the workers' running statistics, leading axis [N], or None.
    """

    params: Any
    worker_params: Any
    losses: np.ndarray
    discrepancy: np.ndarray
    model_state: Any


class AveragingEmulator(Driver):
    """Executes local steps piece by piece; :func:`asgd.emulate_averaging` runs them in one go.

    Arguments are those of :func:`asgd.emulate_averaging`, with ``batches`` by event, and ``cuts``,
    event numbers at which it can stop.
    """

    def __init__(self, loss_fn: Callable[..., Any], tx: optax.GradientTransformation, params: Any,
                 schedule: AveragingSchedule, batches: Any, *,
                 outer_tx: Optional[optax.GradientTransformation] = None,
                 elasticity: Optional[float] = None,
                 num_devices: int = 1, backend: str = "shard_map",
                 worker_tx: Optional[optax.GradientTransformation] = None,
                 layout: str = "sharded", waves_per_call: Optional[int] = None, seed: int = 0,
                 model_state: Any = None, model_state_decay: float = 0.9, cuts: Any = (),
                 on_nonfinite: str = "stop"):
        inputs.check_arguments(tx, worker_tx, model_state_decay, on_nonfinite=on_nonfinite,
                               num_devices=num_devices, waves_per_call=waves_per_call)
        outer_tx = optax.sgd(1.0) if outer_tx is None else outer_tx
        if not (hasattr(outer_tx, "init") and hasattr(outer_tx, "update")):
            raise ValueError(f"outer_tx must be an Optax transformation, got {outer_tx!r}")
        if not isinstance(schedule, AveragingSchedule):
            raise ValueError("schedule must be an AveragingSchedule of asgd.cluster.averaging, got "
                             f"{type(schedule).__name__}")
        if backend == "debug":
            raise ValueError("backend must be shard_map, pmap or jit, got 'debug', which is for "
                             "asgd.emulate")
        if elasticity is not None:
            if not isinstance(elasticity, (int, float, np.number)) or not 0 <= elasticity <= 1:
                raise ValueError(f"elasticity must be from 0 to 1, got {elasticity!r}")
            if (schedule.action == TAKE).any():
                raise ValueError("elasticity needs a schedule in which workers keep their own "
                                 "parameters: takes=False")
        spmd = Spmd(num_devices, backend)
        place = ring.layout(layout, num_devices, CHUNK)
        params = jax.tree.map(jnp.asarray, params)
        inputs.check_params(params, place.num_parts)
        model_state = jax.tree.map(jnp.asarray, model_state)
        feed = Feed(batches, len(schedule), spmd)
        loss = inputs.uniform_loss(loss_fn, model_state is not None)
        if len(schedule):
            inputs.check_loss(loss, params, model_state, feed.row)
        tx, outer_tx, worker_tx = (
            optax.with_extra_args_support(keys_as_data(part, params))
            for part in (tx, outer_tx, worker_tx or optax.identity()))
        self.topology = Averaging(tx, outer_tx, worker_tx, place, schedule,
                                  jax.eval_shape(lambda: params), model_state_decay, elasticity)
        if layout == "sharded":
            self.topology.check_elementwise()
        moved_by = (TAKE,) if elasticity is None else (TAKE, RELEASE)
        waves = Waves(num_devices, pack(schedule.earliest(moved_by), num_devices, cuts))
        super().__init__(
            self.topology, loss, waves, feed, spmd, place, (params, worker_tx.init(params)),
            model_state, waves_per_call=waves_per_call, seed=seed, on_nonfinite=on_nonfinite)

    def params(self, state: Any) -> Any:
        """Returns the last copy that the server sent, NumPy arrays."""
        return ring.to_whole(self._spmd.get(state.params), self._whole[0])

    def worker_params(self, state: Any) -> Any:
        """Returns the workers' parameters, leading axis [N]."""
        count = len(jax.tree.leaves(state.snapshots)[0])
        return ring.to_whole(self._spmd.get(state.snapshots), jax.eval_shape(
            lambda: ring.repeat(self._whole[0], count)))

    def model_state(self, state: Any) -> Any:
        """Returns the workers' running statistics, leading axis [N], or None."""
        return jax.device_get(state.model_state)

    def discrepancy(self, state: Any) -> np.ndarray:
        """Returns what was measured so far."""
        return np.asarray(state.discrepancy)[:int(state.num_measured)]


def emulate_averaging(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    params: Any,
    batches: Any,
    *,
    period: Optional[int] = None,
    outer_tx: Optional[optax.GradientTransformation] = None,
    delay: Optional[int] = None,
    elasticity: Optional[float] = None,
    schedule: Optional[AveragingSchedule] = None,
    num_devices: int = 1,
    backend: str = "shard_map",
    worker_tx: Optional[optax.GradientTransformation] = None,
    layout: str = "sharded",
    waves_per_call: Optional[int] = None,
    seed: int = 0,
    model_state: Any = None,
    model_state_decay: float = 0.9,
) -> AveragingResult:
    r"""Executes training by local steps whose sums a server averages, exactly (paper D).

    Every worker w takes steps of its own, :math:`x_w \leftarrow x_w + \mathrm{tx}(\nabla f(x_w))`.
    After each ``period`` steps, where :math:`b_w` is where its update :math:`\Delta_w = x_w - b_w`
    is counted from,

    .. math::
      x_w,\, b_w \leftarrow x + \Delta_w, \qquad
      x \leftarrow x + \mathrm{outer\_tx}\Big({-\tfrac1N} \sum_w \Delta_w\Big)

    with the server's x of a period before. So others' updates come a period late, while a worker's
    own are neither lost nor counted twice. This is the paper's cyclic algorithm (Algorithm 2), as
    reconstructed from its text.

    Args:
      loss_fn: ``loss_fn(params, batch)`` or ``loss_fn(params, batch, key)`` returning a scalar;
        event e gets ``jax.random.fold_in(jax.random.key(seed), e)``. Worker w's in step t is event
        ``t * N + w``.
      tx: the workers' local optimizer, such as ``optax.sgd(0.1)``; every worker has a state of its
        own.
      params: initial parameters, alike for all.
      batches: a tree of arrays with leading axes [T, N]; with ``schedule`` [events], or a callable
        or :class:`asgd.IndexedBatches` of event numbers.
      period: local steps of a cycle.
      outer_tx: the server's optimizer, whose gradient is minus the mean update; by default
        ``optax.sgd(1.0)``, which adds it.

    Other args:
      delay: steps from sending an update to taking the average, 0 to ``period``, its default.
        0 is local SGD.
      elasticity: :math:`\alpha` of elastic averaging: every period :math:`x_w \leftarrow x_w -
        \alpha (x_w - x)` and :math:`x \leftarrow x + \alpha \sum_w (x_w - x)`, both with the
        parameters of before.
      schedule: who computes and what happens when, from :mod:`asgd.cluster.averaging`, instead of
        ``period`` and ``delay``.
      num_devices, backend, worker_tx, layout, waves_per_call, seed, model_state,
        model_state_decay: as for :func:`asgd.emulate`; every worker has running statistics of
        its own.

    Returns:
      An :class:`AveragingResult`.

    Raises:
      ValueError: for arguments that do not fit, naming them.
      NonFiniteLossError: naming event and worker of the first loss that is not finite; its
        staleness is the worker's drift.

    References:
      "Asynchronous SGD without gradient delay for efficient distributed training" (ICLR 2019
      submission, paper D), section on the cyclic algorithm. Zhang, Choromanska, LeCun, "Deep
      learning with elastic averaging SGD" (NeurIPS 2015).

    Example:
      >>> import asgd, jax.numpy as jnp, numpy as np, optax
      >>> targets = np.tile([0.0, 1.0], (8, 1))  # 8 steps of 2 workers.
      >>> result = asgd.emulate_averaging(lambda p, b: 0.5 * (p - b)**2, optax.sgd(0.5),
      ...                                 jnp.array(0.0), targets, period=2)
      >>> print(result.params, result.worker_params, result.discrepancy.round(3))
      0.49804688 [0.3515625  0.64453125] [0.75  0.188 0.609 0.293]
    """
    if (period is None) == (schedule is None):
        raise ValueError("give period or schedule, one of them")
    if schedule is None:
        if delay is not None and elasticity is not None:
            raise ValueError("delay and elasticity do not fit: elastic averaging has no delay")
        if callable(batches):
            raise ValueError("batches may be a function of events with schedule, not with period")
        shapes = {np.shape(x)[:2] for x in jax.tree.leaves(batches)}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise ValueError("batches: every leaf must have the leading axes [steps, workers], alike, "
                             f"but they have {sorted(shapes)}")
        (num_steps, num_workers), = shapes
        keeps = elasticity is not None
        schedule = cluster_averaging.cyclic(num_workers, num_steps, period,
                                            delay=0 if keeps else delay, takes=not keeps)
        batches = jax.tree.map(lambda x: np.reshape(x, (-1,) + np.shape(x)[2:]), batches)
        shape = num_steps, num_workers
    else:
        if delay is not None:
            raise ValueError("delay is part of the schedule")
        shape = -1
    emulator = AveragingEmulator(
        loss_fn, tx, params, schedule, batches, outer_tx=outer_tx, elasticity=elasticity,
        num_devices=num_devices, backend=backend, worker_tx=worker_tx, layout=layout,
        waves_per_call=waves_per_call, seed=seed, model_state=model_state,
        model_state_decay=model_state_decay)
    state, losses = emulator.run(emulator.init())
    return AveragingResult(emulator.params(state), emulator.worker_params(state),
                           losses.reshape(shape), emulator.discrepancy(state),
                           emulator.model_state(state))
