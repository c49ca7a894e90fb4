"""Residual networks for small and for large images.

In training mode the `batch_stats` that come out are this batch's own mean and variance, not a
running average: the batch belongs to one gradient event, and whoever applies the events in order
averages their statistics in that order.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet20(nn.Module):
    """ResNet-20 for small images: 269,722 parameters for 10 classes of 32x32x3.

    He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2: a 3x3
    convolution, three stages of three basic blocks with 16, 32 and 64 channels, halving the image
    where a stage starts, parameter-free shortcuts (option A), global average pooling.

    Attributes:
        num_classes: Number of logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Computes the logits."""
        x = nn.relu(_batch_norm(train, "norm")(_conv(16, 3, 1, "conv")(x)))
        for stage, channels in enumerate((16, 32, 64)):
            for block in range(3):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _BasicBlock(channels, stride, name=f"stage{stage}_block{block}")(x, train)
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


class _BasicBlock(nn.Module):
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        y = _conv(self.channels, 3, self.stride, "conv0")(x)
        y = nn.relu(_batch_norm(train, "norm0")(y))
        y = _conv(self.channels, 3, 1, "conv1")(y)
        y = _batch_norm(train, "norm1")(y)
        shortcut = x[:, :: self.stride, :: self.stride]
        added = self.channels - x.shape[-1]
        shortcut = jnp.pad(shortcut, ((0, 0),) * 3 + ((added // 2, added - added // 2),))
        return nn.relu(y + shortcut)


class ResNet50(nn.Module):
    """ResNet-50 for large images: 25,557,032 parameters for 1,000 classes of 224x224x3.

    He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.1: a 7x7
    convolution and 3x3 max pooling, each halving the image, four stages of 3, 4, 6 and 3 bottleneck
    blocks with 64, 128, 256 and 512 channels inside and 4 times as many outside, projections as
    shortcuts where the shape changes (option B), global average pooling. Later stages halve the
    image in the first 1x1 convolution, as the paper does ("v1"; "v1.5" does so in the 3x3).

    Attributes:
        num_classes: Number of logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Computes the logits."""
        x = nn.relu(_batch_norm(train, "norm")(_conv(64, 7, 2, "conv")(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, (channels, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _Bottleneck(channels, stride, name=f"stage{stage}_block{block}")(x, train)
        return nn.Dense(self.num_classes, name="head")(x.mean(axis=(1, 2)))


class _Bottleneck(nn.Module):
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        y = nn.relu(_batch_norm(train, "norm0")(_conv(self.channels, 1, self.stride, "conv0")(x)))
        y = nn.relu(_batch_norm(train, "norm1")(_conv(self.channels, 3, 1, "conv1")(y)))
        y = _batch_norm(train, "norm2")(_conv(4 * self.channels, 1, 1, "conv2")(y))
        if x.shape != y.shape:
            x = _batch_norm(train, "norm3")(_conv(4 * self.channels, 1, self.stride, "conv3")(x))
        return nn.relu(y + x)


def _conv(channels, size, stride, name):
    # "SAME" would centre strided windows on odd pixels, while the shortcut keeps the even ones.
    return nn.Conv(channels, (size, size), strides=stride, padding=size // 2, use_bias=False,
                   kernel_init=_he_normal, name=name)


def _batch_norm(train, name):
    # Momentum 0 keeps nothing of the old statistics, so the batch's own come out.
    return nn.BatchNorm(use_running_average=not train, momentum=0.0, name=name)
