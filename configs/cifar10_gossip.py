"""PC-ASGD's practical variant on CIFAR-10: ResNet-20, 8 agents, two cliques, a late bridge.

    python main.py --config=configs/cifar10_gossip.py --workdir=runs/cifar10-gossip

Rate 0.01, momentum 0.95 and some four epochs of plain consensus are the defaults of code attributed
to the authors of PC-ASGD (Wang, Jiang, Liu, Sarkar, Jiang, Lee, arXiv 2208.13154). Graph, delay,
batch size and length are choices made here. Meant for an accelerator.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.algorithm = "pc_asgd_pv"
    config.dataset.name = "cifar10"
    config.model.name = "resnet20"
    config.batch_size = 32
    config.num_epochs = 100.0
    config.learning_rate = 0.01
    config.momentum = 0.95
    config.gossip.delay = 10
    config.gossip.warmup_epochs = 4.0
    config.log_every = 5000
    config.checkpoint.every_gradients = 100_000
    return config
