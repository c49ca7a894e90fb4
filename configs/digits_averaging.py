"""8 workers, every fourth of them 4 times slower, train on digits by delayed averaging.

    python main.py --config=configs/digits_averaging.py --workdir=runs/digits-averaging

    --config.algorithm=async_diloco --config.averaging.outer_momentum=0.5

A few seconds on 2 CPU cores; test accuracy 0.981. Workers are idle 0.02 % of the time.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.algorithm = "delayed_averaging"
    config.num_epochs = 40.0
    config.learning_rate = 0.5
    config.cluster.slowdown = (1.0, 1.0, 1.0, 4.0)
    config.averaging.schedule = "whenever_ready"
    config.averaging.merge_time = 2.0
    return config
