"""What a parameter server does with one gradient."""

from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asgd.emulation.fixed_state import fixed_state


class Held(NamedTuple):
    """What the server holds, apart from snapshots; trees are in the layout's form.

    Attributes:
      params: its parameters.
      opt_state: state of its transformation.
      model_state: its running statistics, or None.
    """

    params: Any
    opt_state: Any
    model_state: Any


class ServerUpdate:
    r"""Applies a gradient: :math:`\theta \leftarrow \theta + \mathrm{tx}(g; \theta, \theta^{(r)}, \tau)`.

    The running statistics move by those of the gradient's batch,
    :math:`s \leftarrow d s + (1 - d) b`.

    Args:
      tx: the server's transformation, called on each gradient with the extra arguments
        ``staleness``, ``stale_params``, ``worker``, ``delay`` and ``update``.
      params: shapes of the parameters.
      decay: d.
      all_update: whether every gradient makes an update, which shortens the program.
    """

    def __init__(self, tx: Any, params: Any, decay: float, all_update: bool):
        self._tx = tx
        self._decay = decay
        self._all_update = all_update
        self._fixed = fixed_state(tx, params) if all_update else None

    def init(self, params: Any, model_state: Any) -> Held:
        """Returns what is held before the first gradient."""
        return Held(params, jax.tree.map(_strong, self._tx.init(params)), model_state)

    def __call__(self, held: Held, gradient: Any, statistics: Any, stale_params: Any,
                 event: Any) -> Held:
        """Returns what is held afterwards.

        Args:
          held: what is held before.
          gradient: what arrived.
          statistics: of its batch, or None.
          stale_params: the snapshot that it was computed on.
          event: has ``staleness``, ``worker``, ``delay`` and ``update``, scalars.
        """
        update = np.bool_(True) if self._all_update else event.update
        known = self._where_fixed(jnp.full_like, held.opt_state, held.opt_state)
        updates, opt_state = self._tx.update(
            gradient, known, held.params, staleness=event.staleness, stale_params=stale_params,
            worker=event.worker, delay=event.delay, update=update)
        params = optax.apply_updates(held.params, updates)
        if not self._all_update:
            params = jax.tree.map(lambda new, old: jnp.where(update, new, old),
                                  params, held.params)
        opt_state = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype),
                                 opt_state, held.opt_state)
        opt_state = self._where_fixed(lambda old, _: old, held.opt_state, opt_state)
        model_state = jax.tree.map(lambda s, b: self._decay * s + (1 - self._decay) * b,
                                   held.model_state, statistics)
        return Held(params, opt_state, model_state)

    def _where_fixed(self, fn, fixed_leaves, other_leaves):
        if self._fixed is None:
            return other_leaves
        return jax.tree.map(lambda fixed, a, b: b if fixed is None else fn(a, fixed),
                            self._fixed, fixed_leaves, other_leaves, is_leaf=lambda x: x is None)


def _strong(leaf: Optional[jax.Array]):
    """Drops a weak type, which would change what a loop carries."""
    return lax.convert_element_type(leaf, leaf.dtype)
