"""Image classifiers as plain Flax Linen modules, and models by name.

All classifiers take float32 images [b, H, W, C] and return float32 logits [b, num_classes]. `train` only
matters to batch normalisation.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from asgd.workloads.transformer import Transformer

_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class MLP(nn.Module):
    """Fully connected layers with ReLU between them, on flattened images.

    Attributes:
        num_classes: Number of logits.
        hidden: Widths of the hidden layers.

    Raises:
        ValueError: When applied with a width below 1.

    Example:
        >>> model = MLP(num_classes=10, hidden=(32,))
        >>> init = lambda key: model.init(key, jnp.zeros([1, 8, 8, 1]), train=False)
        >>> params = jax.eval_shape(init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        2410
    """

    num_classes: int
    hidden: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Computes the logits."""
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden must be widths of 1 or more, not {tuple(self.hidden)}")
        x = x.reshape(len(x), -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


class SmallCNN(nn.Module):
    """Three 5x5 convolutions of 32, 32 and 64 channels, each with 2x2 pooling, and one dense layer.

    The size of the CIFAR-10 network of Zhang et al., "Staleness-aware Async-SGD for Distributed
    Deep Learning" (IJCAI 2016), section 4: about 90 thousand parameters, 350 kB; here 89,578 for
    10 classes of 32x32x3. The paper only says three convolutions with pooling and one fully
    connected softmax layer: the kernel size, the channels, max pooling everywhere, ReLU, and no
    local response normalisation are choices made here.

    Attributes:
        num_classes: Number of logits.

    Raises:
        ValueError: When an image is smaller than 8x8, which the pooling would reduce to nothing.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Computes the logits."""
        if min(x.shape[1:3]) < 8:
            raise ValueError(
                f"image must be at least 8x8 for SmallCNN, not {x.shape[1]}x{x.shape[2]}")
        for channels in (32, 32, 64):
            x = nn.Conv(channels, (5, 5))(x)
            x = nn.relu(_max_pool(x))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def _max_pool(x):
    # Twice as fast on CPU as reduce_window, whose backward pass scatters.
    batch, height, width, channels = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width]
    return x.reshape(batch, height, 2, width, 2, channels).max(axis=(2, 4))


class ResNet20(nn.Module):
    """ResNet-20 for small images: 269,722 parameters for 10 classes of 32x32x3.

    He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2: a 3x3
    convolution, three stages of three basic blocks with 16, 32 and 64 channels, halving the image
    where a stage starts, parameter-free shortcuts (option A), global average pooling.

    In training mode the `batch_stats` that come out are this batch's own mean and variance, not a
    running average: the batch belongs to one gradient event, and whoever applies the events in
    order averages their statistics in that order.

    Attributes:
        num_classes: Number of logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Computes the logits."""
        x = nn.relu(_batch_norm(train, "norm")(_conv(16, 1, "conv")(x)))
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
        y = _conv(self.channels, self.stride, "conv0")(x)
        y = nn.relu(_batch_norm(train, "norm0")(y))
        y = _conv(self.channels, 1, "conv1")(y)
        y = _batch_norm(train, "norm1")(y)
        shortcut = x[:, :: self.stride, :: self.stride]
        added = self.channels - x.shape[-1]
        shortcut = jnp.pad(shortcut, ((0, 0),) * 3 + ((added // 2, added - added // 2),))
        return nn.relu(y + shortcut)


def _conv(channels, stride, name):
    # "SAME" would centre strided windows on odd pixels, while the shortcut keeps the even ones.
    return nn.Conv(channels, (3, 3), strides=stride, padding=1, use_bias=False,
                   kernel_init=_he_normal, name=name)


def _batch_norm(train, name):
    # Momentum 0 keeps nothing of the old statistics, so the batch's own come out.
    return nn.BatchNorm(use_running_average=not train, momentum=0.0, name=name)


_MODELS = {"cnn": SmallCNN, "mlp": MLP, "resnet20": ResNet20, "transformer": Transformer}
NAMES = tuple(_MODELS)


def create(name: str, num_classes: int, **kwargs) -> nn.Module:
    """Builds a model by name.

    Args:
        name: `"mlp"`, `"cnn"`, `"resnet20"`, or of text `"transformer"`.
        num_classes: Number of classes.
        **kwargs: Further attributes of the model, such as `hidden` of the MLP.

    Returns:
        A Flax Linen module, called as `model.apply(variables, images, train=...)`.

    Raises:
        ValueError: If the name is unknown or the model has no such attribute.

    Example:
        >>> create("mlp", num_classes=10, hidden=(64, 64)).hidden
        (64, 64)
    """
    if name not in _MODELS:
        raise ValueError(f"model name must be one of {', '.join(_MODELS)}, not {name!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be 2 or more, not {num_classes}")
    fields = {field.name for field in dataclasses.fields(_MODELS[name])}
    allowed = sorted(fields - {"num_classes", "parent", "name"})
    for field in kwargs:
        if field not in allowed:
            raise ValueError(
                f"model {name!r} has no option {field!r}; it may be {', '.join(allowed) or 'none'}")
    # Configs may hold lists, but a module is only hashable with tuples.
    kwargs = {field: tuple(value) if isinstance(value, list) else value
              for field, value in kwargs.items()}
    return _MODELS[name](num_classes=num_classes, **kwargs)
