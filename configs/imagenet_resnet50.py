"""Paper E's ImageNet experiment: ResNet-50, 16 workers with batches of 32, delay compensation.

    python main.py --config=configs/imagenet_resnet50.py --workdir=runs/imagenet

Zheng et al., Asynchronous SGD with delay compensation, first version (arXiv 1609.08326v1): 120
epochs, batch 32, rate 0.1 divided by 10 every 30 epochs, 16 workers, no momentum; compensation of
strength 5 times |g|, times 10 where the rate drops. That is DC-ASGD-a with decay 0, which keeps no
mean square; a tiny eps leaves |g| as it is. Weight decay 1e-4 and the crops are as in He et al.
(CVPR 2016) and Szegedy et al. (CVPR 2015): choices made here, as the paper does not tell its own.

Expected, in the paper: top-1 errors of 25.2 % (this), 25.7 % (--config.algorithm=asgd) and 25.3 %
(--config.algorithm=ssgd), of one crop. Not run here in full: it computes 4.8 million gradients,
25 GFLOP an image. Needs 150 GB of prepared data on disk and an accelerator.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.algorithm = "dc_asgd_a"
    config.compensation.strength = 5.0
    config.compensation.factor = 10.0
    config.compensation.decay = 0.0
    config.compensation.eps = 1e-30
    config.compensation.per_worker = False
    config.dataset.name = "imagenet"
    config.dataset.augment = True
    config.model.name = "resnet50"
    config.batch_size = 32
    config.num_epochs = 120.0
    config.learning_rate = 0.1
    config.schedule = "step"
    config.schedule_epochs = (30.0, 60.0, 90.0)
    config.weight_decay = 1e-4
    config.cluster.num_workers = 16
    config.log_every = 1000
    config.checkpoint.every_gradients = 40_000
    return config
