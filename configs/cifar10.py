"""Paper A's CIFAR-10 experiment: the small CNN, 30 learners with batches of 4, n-softsync.

    python main.py --config=configs/cifar10.py --workdir=runs/cifar10

Zhang et al., Staleness-aware Async-SGD (IJCAI 2016), section 4: batch 128 and rate 0.001 with
one learner, momentum 0.9, 140 epochs, rate divided by 10 after 120 and 130. With 30 learners the
batch is 4 and everything else unchanged. Meant for an accelerator.

    --config.cluster.softsync_n=15 --config.algorithm=asgd    the rate not modulated
"""

from configs import default


def get_config():
    config = default.get_config()
    config.dataset.name = "cifar10"
    config.model.name = "cnn"
    config.batch_size = 4
    config.num_epochs = 140.0
    config.learning_rate = 0.001
    config.momentum = 0.9
    config.schedule = "step"
    config.schedule_epochs = (120.0, 130.0)
    config.cluster.protocol = "softsync"
    config.cluster.softsync_n = 30
    config.cluster.num_workers = 30
    config.log_every = 5000
    config.checkpoint.every_gradients = 100_000
    return config
