"""Paper E's CIFAR-10 experiment: ResNet-20, 4 or 8 workers with batches of 128, DC-ASGD-a.

    python main.py --config=configs/cifar10_resnet20.py --workdir=runs/resnet20

Zheng et al., Asynchronous SGD with delay compensation: rate 0.5, divided by 10 after epochs 80
and 120 of 160, no momentum. Meant for an accelerator. DC-ASGD-c as in the first version of the
paper multiplies its strength by 10 where the rate drops:

    --config.algorithm=dc_asgd_c --config.compensation.factor=10
"""

from configs import default


def get_config():
    config = default.get_config()
    config.algorithm = "dc_asgd_a"
    config.dataset.name = "cifar10"
    config.dataset.augment = True
    config.model.name = "resnet20"
    config.batch_size = 128
    config.num_epochs = 160.0
    config.learning_rate = 0.5
    config.schedule = "step"
    config.schedule_epochs = (80.0, 120.0)
    config.weight_decay = 1e-4
    config.cluster.num_workers = 4
    config.log_every = 390
    config.checkpoint.every_gradients = 3900
    return config
