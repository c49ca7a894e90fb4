"""8 agents in two cliques, joined by an edge that is 5 rounds late, train an MLP on digits.

    python main.py --config=configs/digits_gossip.py --workdir=runs/digits-gossip

    --config.algorithm=pc_asgd --config.gossip.delay=20 --config.gossip.split=label
"""

from configs import default


def get_config():
    config = default.get_config()
    config.algorithm = "pc_asgd_pv"
    config.num_epochs = 40.0
    config.learning_rate = 0.1
    return config
