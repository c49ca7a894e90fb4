"""Image classifiers as plain Flax Linen modules, and models by name.

All classifiers take float32 images [b, H, W, C] and return float32 logits [b, num_classes]. `train` only
matters to batch normalisation.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax

from asgd.workloads.resnet import ResNet20, ResNet50
from asgd.workloads.transformer import Transformer


class MLP(nn.Module):
    """Fully connected layers with ReLU between them, on flattened images.

    Attributes:
        num_classes: Number of logits.
        hidden: Widths of the hidden layers.

    Raises:
        ValueError: When applied with a width below 1.

    Example:
        >>> import jax.numpy as jnp
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


_MODELS = {"cnn": SmallCNN, "mlp": MLP, "resnet20": ResNet20, "resnet50": ResNet50,
           "transformer": Transformer}
NAMES = tuple(_MODELS)


def create(name: str, num_classes: int, **kwargs) -> nn.Module:
    """Builds a model by name.

    Args:
        name: `"mlp"`, `"cnn"`, `"resnet20"`, `"resnet50"`, or of text `"transformer"`.
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
