"""Random crops and flips of image batches, keyed by the gradient event."""

import jax
import jax.numpy as jnp


def pad_crop_flip(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Pads each image with zeros, crops it at random and mirrors it with probability 1/2.

    The usual augmentation of CIFAR-10: He et al., "Deep Residual Learning for Image Recognition"
    (CVPR 2016), section 4.2. It only moves data, so uint8 stays exact, and works under `jit`,
    `vmap` and `lax.map`.

    Args:
        key: JAX PRNG key. Same key and shape, same crops and flips.
        images: [b, H, W, C], of any dtype.
        padding: Zero pixels added on each side before the crop back to H x W; the crop takes one
            of `(2 * padding + 1)**2` positions, all equally likely.

    Returns:
        The images, shape and dtype unchanged.

    Raises:
        ValueError: If `images` is not four-dimensional or `padding` is negative.

    Example:
        >>> images = jnp.full([2, 6, 6, 3], 255, jnp.uint8)
        >>> jax.jit(pad_crop_flip)(jax.random.key(0), images).shape
        (2, 6, 6, 3)
    """
    if images.ndim != 4:
        raise ValueError(f"images must be [b, H, W, C], not {list(images.shape)}")
    if padding < 0:
        raise ValueError(f"padding must be 0 or more, not {padding}")
    batch, height, width, _ = images.shape
    crop_key, flip_key = jax.random.split(key)
    corner = jax.random.randint(crop_key, (batch, 2), 0, 2 * padding + 1)
    flip = jax.random.bernoulli(flip_key, 0.5, (batch,))

    # One gather does both: a mirrored crop reads its columns from right to left.
    column = jnp.arange(width)
    column = jnp.where(flip[:, None], width - 1 - column, column) + corner[:, 1:]
    row = jnp.arange(height) + corner[:, :1]
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    image = jnp.arange(batch)[:, None, None]
    return padded[image, row[:, :, None], column[:, None, :]]
