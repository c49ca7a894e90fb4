"""A small decoder-only transformer as a plain Flax Linen module."""

import flax.linen as nn
import jax


class Transformer(nn.Module):
    """Predicts the next token at every position, with causal attention and pre-normalisation.

    Attributes:
        num_classes: Size of the vocabulary.
        width: Of the embeddings; the hidden layers are four times as wide.
        layers: Blocks of attention and two dense layers.
        heads: Of the attention; divides `width`.

    Raises:
        ValueError: When applied with a width that the heads do not divide.

    Example:
        >>> import jax.numpy as jnp
        >>> model = Transformer(num_classes=128, width=32, layers=1)
        >>> tokens = jnp.zeros([2, 16], jnp.int32)
        >>> run = lambda key: model.init_with_output(key, tokens, train=False)
        >>> logits, params = jax.eval_shape(run, jax.random.key(0))
        >>> logits.shape
        (2, 16, 128)
    """

    num_classes: int
    width: int = 128
    layers: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Computes float32 logits [b, L, num_classes] of int tokens [b, L]."""
        del train
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads={self.heads}, not {self.width}")
        x = nn.Embed(self.num_classes, self.width)(tokens)
        x += self.param("position", nn.initializers.normal(0.02), (tokens.shape[1], self.width))
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            y = nn.LayerNorm()(x)
            x += nn.MultiHeadDotProductAttention(self.heads)(y, mask=mask)
            y = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
            x += nn.Dense(self.width)(nn.gelu(y))
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x))
