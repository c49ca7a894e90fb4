"""Whole optimizers, built as ``chain(per gradient..., average_until_update(per update...))``."""

from typing import Optional, Union

import optax

from asgd.transforms.average_until_update import average_until_update
from asgd.transforms.compensate_delay import compensate_delay
from asgd.transforms.staleness import Rule, inverse, scale_by_staleness


def staleness_aware_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: Optional[float] = None,
    rule: Union[str, Rule] = inverse,
    *,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD whose learning rate is divided by the staleness, gradient by gradient (paper A).

    With the c gradients of an update, their stalenesses :math:`\tau_l` and momentum m,

    .. math::
      v \leftarrow m v + \frac1c \sum_{l=1}^{c} s(\tau_l)\, g_l, \qquad
      \theta \leftarrow \theta - \alpha_0 v

    where :math:`s(\tau) = 1/\max(\tau, 1)` is the paper's Eq. 3. The paper does not spell out
    how the rate composes with momentum; here it enters before the velocity.

    Args:
      learning_rate: :math:`\alpha_0`, a number or a schedule over server updates.
      momentum: m, or None.
      rule: another function s of the staleness; see :func:`asgd.scale_by_staleness`.
      weight_decay: coefficient of the parameters added to the averaged gradient.
      nesterov: whether the momentum is Nesterov's.

    Returns:
      An optimizer whose update takes ``staleness`` and ``update``.

    References:
      Zhang et al., Staleness-aware Async-SGD for distributed deep learning (paper A), Eq. 2, 3.

    Example:
      >>> import jax.numpy as jnp
      >>> import asgd
      >>> tx = asgd.staleness_aware_sgd(0.5)
      >>> updates, _ = tx.update(
      ...     jnp.array([4.0]), tx.init(jnp.zeros(1)), jnp.zeros(1), staleness=4, update=True)
      >>> print(updates)
      [-0.5]
    """
    return optax.chain(
        scale_by_staleness(rule),
        average_until_update(_sgd(learning_rate, momentum, weight_decay, nesterov)),
    )


def dc_asgd_c(
    learning_rate: optax.ScalarOrSchedule,
    strength: optax.ScalarOrSchedule = 0.04,
    momentum: Optional[float] = None,
    *,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with constant delay compensation, DC-ASGD-c (paper E, Eq. 10).

    .. math::
      w \leftarrow w - \eta\,\big(g + \lambda_0\, g \odot g \odot (w - w_{bak})\big)

    Args:
      learning_rate: :math:`\eta`, a number or a schedule over server updates.
      strength: :math:`\lambda_0`; a number or a schedule over server updates.
      momentum: applied after compensation, or None as in the authors' code.
      weight_decay: added after compensation, outside the square.
      nesterov: whether the momentum is Nesterov's.

    Returns:
      An optimizer whose update takes ``stale_params`` and ``update``.

    References:
      Zheng et al., Asynchronous SGD with delay compensation, ICML 2017 (paper E).

    Example:
      >>> import jax.numpy as jnp
      >>> import asgd
      >>> tx = asgd.dc_asgd_c(0.1, strength=2.0)
      >>> params = jnp.array([0.8])
      >>> updates, _ = tx.update(jnp.array([0.5]), tx.init(params), params,
      ...                        stale_params=jnp.array([1.0]), update=True)
      >>> print(params + updates)
      [0.76]
    """
    return optax.chain(
        compensate_delay(strength),
        average_until_update(_sgd(learning_rate, momentum, weight_decay, nesterov)),
    )


def dc_asgd_a(
    learning_rate: optax.ScalarOrSchedule,
    strength: optax.ScalarOrSchedule = 2.0,
    decay: float = 0.95,
    eps: float = 1e-7,
    momentum: Optional[float] = None,
    *,
    per_worker: Optional[bool] = None,
    num_workers: Optional[int] = None,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with adaptive delay compensation, DC-ASGD-a (paper E).

    As :func:`dc_asgd_c` with :math:`\lambda_t = \lambda_0 / \sqrt{v_t + \epsilon}`; see
    :func:`asgd.compensate_delay`.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule over server updates.
      strength: :math:`\lambda_0`; a number or a schedule over server updates.
      decay: m of the mean square, in [0, 1).
      eps: :math:`\epsilon` under the square root.
      momentum: applied after compensation, or None as in the authors' code.
      per_worker: one mean square for each worker (the authors' code) or one in all (the
        paper's text); by default per worker when ``num_workers`` is given.
      num_workers: number of workers, needed when ``per_worker``.
      weight_decay: added after compensation, outside the square.
      nesterov: whether the momentum is Nesterov's.

    Returns:
      An optimizer whose update takes ``stale_params``, ``worker`` and ``update``.

    References:
      Zheng et al., Asynchronous SGD with delay compensation, ICML 2017 (paper E).

    Example:
      >>> import jax.numpy as jnp
      >>> import asgd
      >>> tx = asgd.dc_asgd_a(0.1)
      >>> params = jnp.array([0.8])
      >>> updates, _ = tx.update(jnp.array([0.5]), tx.init(params), params,
      ...                        stale_params=jnp.array([1.0]), update=True)
      >>> print((params + updates).round(4))
      [0.8394]
    """
    return optax.chain(
        compensate_delay(strength, decay, eps, per_worker, num_workers),
        average_until_update(_sgd(learning_rate, momentum, weight_decay, nesterov)),
    )


def _sgd(learning_rate, momentum, weight_decay, nesterov):
    sgd = optax.sgd(learning_rate, momentum, nesterov)
    return optax.chain(optax.add_decayed_weights(weight_decay), sgd) if weight_decay else sgd
