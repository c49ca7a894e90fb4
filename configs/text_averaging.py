"""A small transformer on Shakespeare, 4 workers, one of them 4 times slower, delayed averaging.

    python main.py --config=configs/text_averaging.py --workdir=runs/text-averaging

Reads TFDS's tiny_shakespeare, or any text:

    --config.dataset.name=text --config.dataset.path=FILE

About 80 seconds on 2 CPU cores; of the same text as a file, 2.12 nats a character (0.38 are predicted
right) and still falling. Workers are idle 0.02 % of the time.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.algorithm = "delayed_averaging"
    config.dataset.name = "tiny_shakespeare"
    config.model.name = "transformer"
    config.batch_size = 16
    config.num_epochs = 2.0
    config.learning_rate = 0.3
    config.momentum = 0.9
    config.clip_norm = 1.0
    config.warmup_epochs = 0.1
    config.cluster.num_workers = 4
    config.cluster.slowdown = (1.0, 1.0, 1.0, 4.0)
    config.averaging.schedule = "whenever_ready"
    config.averaging.merge_time = 2.0
    return config
