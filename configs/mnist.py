"""MLP 784-256-256-10 on MNIST, 8 equal workers, staleness-aware.

    python main.py --config=configs/mnist.py --workdir=runs/mnist
"""

from configs import default


def get_config():
    config = default.get_config()
    config.dataset.name = "mnist"
    config.model.hidden = (256, 256)
    config.batch_size = 32
    config.num_epochs = 5.0
    config.learning_rate = 0.1
    config.log_every = 500
    return config
