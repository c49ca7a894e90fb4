"""Averaging of updates as plain loops in NumPy, written from PAPERS.md D alone."""

import numpy as np


def cyclic(gradient, start, num_workers, num_steps, period, rate):
    """Algorithm 2; returns the server's copy, the workers' parameters and their discrepancies.

    ``gradient`` is a function of (worker, step, parameters) to a vector.
    """
    server = start
    local = [start] * num_workers
    counted_from = [start] * num_workers
    under_way, discrepancy = None, []
    for step in range(num_steps + 1):
        if step and step % period == 0:
            if under_way is not None:
                server = server + np.mean(under_way, axis=0)
            updates = [local[w] - counted_from[w] for w in range(num_workers)]
            for w in range(num_workers):
                local[w] = counted_from[w] = server + updates[w]
            under_way = updates
            discrepancy.append(max(np.linalg.norm(a - b) for a in local for b in local))
        if step < num_steps:
            for w in range(num_workers):
                local[w] = local[w] - rate(step) * gradient(w, step, local[w])
    if under_way is not None:
        server = server + np.mean(under_way, axis=0)
    return server, np.array(local), np.array(discrepancy)


def overlapped(gradient, start, num_workers, num_steps, period, delay, rate):
    """Every period the mean is sent; when it is there, own gains since are added to it."""
    local = [start] * num_workers
    sent, mean, due = None, start, None
    for step in range(num_steps + 1):
        if step == due:
            local = [mean + (local[w] - sent[w]) for w in range(num_workers)]
        if step and step % period == 0:
            sent, mean, due = list(local), np.mean(local, axis=0), step + delay
            if delay == 0:
                local = [mean] * num_workers
        if step < num_steps:
            local = [x - rate * gradient(w, step, x) for w, x in enumerate(local)]
    return mean, np.array(local)


def elastic(gradient, start, num_workers, num_steps, period, rate, alpha):
    center, local = start, [start] * num_workers
    for step in range(1, num_steps + 1):
        local = [x - rate * gradient(w, step - 1, x) for w, x in enumerate(local)]
        if step % period == 0:
            pulls = [alpha * (x - center) for x in local]
            local = [x - pull for x, pull in zip(local, pulls)]
            center = center + np.sum(pulls, axis=0)
    return center, np.array(local)
