"""8 unequal workers train a small MLP on scikit-learn's digits, staleness-aware.

    python main.py --config=configs/digits.py --workdir=runs/digits

A few seconds on 2 CPU cores; test accuracy about 0.97.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_epochs = 20.0
    config.learning_rate = 0.5
    config.cluster.slowdown = (1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 2.0, 4.0)
    return config
