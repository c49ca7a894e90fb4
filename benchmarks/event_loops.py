"""What one would write instead: an event loop in plain JAX and one in plain PyTorch.

Both keep the versions that are still to be read in a dictionary, and follow the same trace.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

import asgd
from benchmarks.workloads import Workload

RATE, MOMENTUM, STRENGTH, DECAY, EPS = 0.002, 0.9, 2.0, 0.95, 1e-7


def jax_loop(work: Workload, trace: asgd.Trace, algorithm: str):
    """Returns a function that prepares a loop with one jitted call for each gradient."""

    @functools.partial(jax.jit, donate_argnums=2)
    def step(params, stale, state, batch):
        value, grads = jax.value_and_grad(work.loss, has_aux=work.model_state is not None)(
            stale, batch)
        if algorithm == "asgd":
            return value, jax.tree.map(lambda w, g: w - RATE * g, params, grads), state
        mean_square = jax.tree.map(lambda v, g: DECAY * v + (1 - DECAY) * g * g,
                                   state["mean_square"], grads)
        velocity = jax.tree.map(
            lambda m, g, v, w, b: MOMENTUM * m + g + STRENGTH / jnp.sqrt(v + EPS) * g * g * (w - b),
            state["velocity"], grads, mean_square, params, stale)
        params = jax.tree.map(lambda w, m: w - RATE * m, params, velocity)
        return value, params, {"mean_square": mean_square, "velocity": velocity}

    batches = [jax.tree.map(lambda x: jnp.asarray(x[e]), work.batches) for e in range(len(trace))]
    last_read = _last_reads(trace)

    def prepare():
        params = work.params
        zeros = functools.partial(jax.tree.map, jnp.zeros_like)
        mean_squares = [zeros(params) for _ in range(trace.num_workers)]
        velocity = zeros(params)

        def run():
            nonlocal params, velocity
            versions, losses = {0: params}, []
            for event, (worker, read) in enumerate(zip(trace.worker, trace.read_version)):
                state = {"mean_square": mean_squares[worker], "velocity": velocity}
                value, params, state = step(params, versions[read], state, batches[event])
                mean_squares[worker], velocity = state["mean_square"], state["velocity"]
                losses.append(value)
                versions[event + 1] = params
                for version in last_read[event]:
                    del versions[version]
            jax.block_until_ready((params, losses))
            return params

        return run

    return prepare


def torch_loop(work: Workload, trace: asgd.Trace, algorithm: str):
    """The same in PyTorch; its ``run`` returns the parameters as the tree that came in."""
    import torch

    forward = {"mlp": _torch_mlp, "cnn": _torch_cnn, "resnet20": _torch_resnet20}[work.name]
    layout = {path: (3, 2, 0, 1) if np.ndim(x) == 4 else (1, 0) if np.ndim(x) == 2 else (0,)
              for path, x in traverse_util.flatten_dict(work.params, sep="/").items()}
    names = list(layout)
    images = torch.from_numpy(work.batches[0])
    if images.ndim == 5 and work.name != "mlp":
        images = images.movedim(-1, 2)
        images = torch.stack([i.contiguous(memory_format=torch.channels_last) for i in images])
    labels = torch.from_numpy(work.batches[1]).long()
    last_read = _last_reads(trace)

    def prepare():
        flat = traverse_util.flatten_dict(work.params, sep="/")
        params = [torch.tensor(np.asarray(flat[n]).transpose(layout[n]).copy()) for n in names]
        velocity = [torch.zeros_like(p) for p in params]
        mean_squares = [[torch.zeros_like(p) for p in params] for _ in range(trace.num_workers)]

        def run():
            nonlocal params
            versions = {0: [p.requires_grad_() for p in params]}
            for event, (worker, read) in enumerate(zip(trace.worker, trace.read_version)):
                stale = versions[read]
                logits = forward(dict(zip(names, stale)), images[event])
                loss = torch.nn.functional.cross_entropy(logits, labels[event])
                grads = torch.autograd.grad(loss, stale)
                with torch.no_grad():
                    if algorithm == "asgd":
                        params = [w.add(g, alpha=-RATE) for w, g in zip(params, grads)]
                    else:
                        new = []
                        for w, g, v, m, b in zip(params, grads, mean_squares[worker], velocity,
                                                 stale):
                            square = g * g
                            v.mul_(DECAY).add_(square, alpha=1 - DECAY)
                            m.mul_(MOMENTUM).add_(g).add_(
                                square.mul_(w - b).div_((v + EPS).sqrt_()), alpha=STRENGTH)
                            new.append(w.add(m, alpha=-RATE))
                        params = new
                versions[event + 1] = [p.requires_grad_() for p in params]
                for version in last_read[event]:
                    del versions[version]
            back = {n: np.transpose(p.detach().numpy(), np.argsort(layout[n]))
                    for n, p in zip(names, params)}
            return traverse_util.unflatten_dict(back, sep="/")

        return run

    return prepare


def largest_difference(a: Any, b: Any) -> float:
    """Returns the largest absolute difference between two trees."""
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max())
               for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def transformation(algorithm: str, num_workers: int) -> optax.GradientTransformation:
    """Returns the emulation's transformation with the loops' settings."""
    if algorithm == "asgd":
        return asgd.average_until_update(optax.sgd(RATE))
    return asgd.dc_asgd_a(RATE, STRENGTH, DECAY, EPS, MOMENTUM, num_workers=num_workers)


def _last_reads(trace):
    """Returns for each event the versions that nobody reads afterwards."""
    last = np.arange(-1, len(trace))
    np.maximum.at(last, trace.read_version, np.arange(len(trace)))
    done = [[] for _ in range(len(trace))]
    for version, event in enumerate(np.maximum(last, 0)):
        if version < len(trace):
            done[max(event, version - 1)].append(version)
    return done


def _torch_mlp(p, x):
    import torch.nn.functional as F
    x = x.flatten(1)
    for layer in ("Dense_0", "Dense_1"):
        x = F.relu(F.linear(x, p[f"{layer}/kernel"], p[f"{layer}/bias"]))
    return F.linear(x, p["Dense_2/kernel"], p["Dense_2/bias"])


def _torch_cnn(p, x):
    import torch.nn.functional as F
    for layer in ("Conv_0", "Conv_1", "Conv_2"):
        x = F.conv2d(x, p[f"{layer}/kernel"], p[f"{layer}/bias"], padding=2)
        x = F.relu(F.max_pool2d(x, 2))
    return F.linear(x.movedim(1, -1).flatten(1), p["Dense_0/kernel"], p["Dense_0/bias"])


def _torch_resnet20(p, x):
    import torch.nn.functional as F

    def conv(x, name, norm, stride=1):
        x = F.conv2d(x, p[f"{name}/kernel"], stride=stride, padding=1)
        return F.batch_norm(x, None, None, p[f"{norm}/scale"], p[f"{norm}/bias"], training=True)

    x = F.relu(conv(x, "conv", "norm"))
    for stage in range(3):
        for block in range(3):
            name, stride = f"stage{stage}_block{block}", 2 if stage and not block else 1
            y = F.relu(conv(x, f"{name}/conv0", f"{name}/norm0", stride))
            y = conv(y, f"{name}/conv1", f"{name}/norm1")
            added = y.shape[1] - x.shape[1]
            x = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, added // 2, added - added // 2))
            x = F.relu(y + x)
    return F.linear(x.mean((2, 3)), p["head/kernel"], p["head/bias"])
