"""An independent parameter server: NumPy, float64, one event at a time, from the papers' text.

Parameters are one flat vector. A method is called as `method(gradient, staleness, displacement,
worker, clock)` on every gradient and returns what goes into the average of the next update.
"""

import heapq

import numpy as np


def softmax_regression(theta, inputs, labels):
    """Returns the mean cross-entropy and its gradient; `theta` is the kernel, then the bias."""
    num_features = inputs.shape[1]
    weights = theta.reshape(num_features + 1, -1)
    logits = inputs @ weights[:-1] + weights[-1]
    logits = logits - logits.max(axis=1, keepdims=True)
    log_normalizer = np.log(np.exp(logits).sum(axis=1))
    rows = np.arange(len(labels))
    loss = np.mean(log_normalizer - logits[rows, labels])
    error = np.exp(logits - log_normalizer[:, None])
    error[rows, labels] -= 1
    error = error / len(labels)
    return loss, np.concatenate([inputs.T @ error, error.sum(axis=0)[None]]).ravel()


def plain(gradient, staleness, displacement, worker, clock):
    """Asynchronous SGD."""
    return gradient


def staleness_aware(gradient, staleness, displacement, worker, clock):
    """Paper A, Eq. 3."""
    return gradient / staleness if staleness > 0 else gradient


def compensated(strength):
    """DC-ASGD-c (paper E, Eq. 10); `strength` is a function of the server's clock."""

    def method(gradient, staleness, displacement, worker, clock):
        return gradient + strength(clock) * gradient * gradient * displacement

    return method


def compensated_option_one(strength):
    """Option I of paper E, Eq. 9."""

    def method(gradient, staleness, displacement, worker, clock):
        return gradient + strength(clock) * np.abs(gradient) * displacement

    return method


def compensated_adaptively(strength, decay, eps, per_worker):
    """DC-ASGD-a: the mean square takes the stale gradient and is updated before it is used."""
    mean_squares = {}

    def method(gradient, staleness, displacement, worker, clock):
        key = worker if per_worker else "all"
        mean_square = decay * mean_squares.get(key, 0.0) + (1 - decay) * gradient**2
        mean_squares[key] = mean_square
        rate = strength(clock) / np.sqrt(mean_square + eps)
        return gradient + rate * gradient * gradient * displacement

    return method


class Server:
    """Averages what the method makes of c gradients, then v <- m v + mean, theta <- theta - a v.

    The rate is a function of the clock, which counts updates.
    """

    def __init__(self, theta, method, rate, momentum=0.0):
        self.theta = np.array(theta, np.float64)
        self.velocity = np.zeros_like(self.theta)
        self.clock = 0
        self.buffer = []
        self._method, self._rate, self._momentum = method, rate, momentum

    def pull(self):
        """Returns the weights and their timestamp."""
        return self.theta.copy(), self.clock

    def push(self, worker, gradient, weights, timestamp, update):
        """Takes a gradient computed at `weights`, and updates after it if `update`."""
        staleness = self.clock - timestamp
        assert staleness >= 0
        displacement = self.theta - weights
        self.buffer.append(
            self._method(gradient, staleness, displacement, worker, self.clock))
        if update:
            mean = sum(self.buffer) / len(self.buffer)
            self.velocity = self._momentum * self.velocity + mean
            self.theta = self.theta - self._rate(self.clock) * self.velocity
            self.clock += 1
            self.buffer = []


def run_softsync(server, gradient, arrivals, gradients_per_update, pull="after"):
    """n-softsync with an event queue of its own; returns the loss of every event.

    Args:
        server: A `Server`.
        gradient: gradient(theta, event) returns (loss, gradient).
        arrivals: For each worker the times at which its gradients arrive.
        gradients_per_update: c = floor(workers / n).
        pull: Whether the worker that triggers an update pulls "after" or "before" it.
    """
    held = [server.pull() for _ in arrivals]
    queue = [(times[0], worker, 0) for worker, times in enumerate(arrivals) if len(times)]
    heapq.heapify(queue)
    losses = []
    while queue:
        _, worker, sequence = heapq.heappop(queue)
        weights, timestamp = held[worker]
        loss, direction = gradient(weights, len(losses))
        losses.append(loss)
        before = server.pull()
        full = len(server.buffer) + 1 == gradients_per_update
        server.push(worker, direction, weights, timestamp, full)
        held[worker] = server.pull() if pull == "after" else before
        if sequence + 1 < len(arrivals[worker]):
            heapq.heappush(queue, (arrivals[worker][sequence + 1], worker, sequence + 1))
    return np.array(losses)


def replay(server, gradient, worker, read_version, applied, updates):
    """Does what the columns of a trace say; returns the loss of every event."""
    snapshots = [server.pull()[0]]
    losses = []
    for event in range(len(worker)):
        weights = snapshots[read_version[event]]
        loss, direction = gradient(weights, event)
        losses.append(loss)
        if applied[event]:
            server.push(worker[event], direction, weights, read_version[event], updates[event])
        if updates[event]:
            snapshots.append(server.pull()[0])
    return np.array(losses)
