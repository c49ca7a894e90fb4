"""Decentralised training as a plain loop over rounds, agents and neighbours, in NumPy.

Written from PAPERS.md B.2 alone: one agent's parameters are a vector, nothing is vectorised over
agents, and every old parameter and gradient is kept.
"""

import numpy as np


def run(gradient, start, delays_of, mixing, clipped_of, num_rounds, *, rate, momentum=0.0,
        theta=None, strength=1.0, all_steps=True, warmup_rounds=0, criterion=None):
    """Returns the agents' parameters before each round and after the last, [T + 1, N, n].

    Args:
      gradient: function of (agent, round, parameters) to a vector [n].
      start: [N, n].
      delays_of: function of the round to rounds [N, N]; row i is what agent i receives.
      mixing: W, or a function of the round to it.
      clipped_of: function of the round to the clipped W.
      rate: function of the round.
      theta: None for plain mixing, else a function of the round.
      criterion: "paper" or "descent", instead of theta.
    """
    num_agents = len(start)
    x, g = [np.array(start, np.float64)], []
    velocity = np.zeros_like(x[0])
    for t in range(num_rounds):
        g.append(np.stack([gradient(i, t, x[t][i]) for i in range(num_agents)]))
        w = mixing(t) if callable(mixing) else mixing
        after = np.empty_like(x[t])
        for i in range(num_agents):
            velocity[i] = momentum * velocity[i] - rate(t) * g[t][i]
            plain, pre, clip = (np.zeros_like(x[t][i]) for _ in range(3))
            for j in range(num_agents):
                late = int(delays_of(t)[i, j])
                tau = min(late, t)
                received = x[t - tau][j]
                predicted = received
                if tau:
                    sent = g[t - tau][j]
                    rounds = range(tau) if all_steps else [tau]
                    total = sum(sent + strength * sent * sent * (x[t - tau + r][i] - x[t - tau][i])
                                for r in rounds)
                    predicted = received - rate(t) * total
                if w[i, j]:
                    plain += w[i, j] * received
                    pre += w[i, j] * predicted
                if clipped_of(t)[i, j]:
                    clip += clipped_of(t)[i, j] * received
            if theta is None and criterion is None or t < warmup_rounds:
                mixed = plain
            else:
                if criterion is not None:
                    scores = [(z + velocity[i] - x[t][i]) @ g[t][i]
                              / np.linalg.norm(z + velocity[i] - x[t][i]) for z in (pre, clip)]
                    better = scores[0] >= scores[1]
                    share = float(better if criterion == "paper" else scores[0] <= scores[1])
                else:
                    share = theta(t)
                mixed = share * pre + (1 - share) * clip
            after[i] = mixed + velocity[i]
        x.append(after)
    return np.stack(x)
