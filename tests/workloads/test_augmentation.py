"""Crops and flips against the list of all possible ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asgd.workloads.augmentation import pad_crop_flip

compiled = jax.jit(pad_crop_flip, static_argnums=2)


def _images(batch, height=7, width=9, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, size=(batch, height, width, channels)).astype(np.uint8)


def _all_crops(image, padding):
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top:top + height, left:left + width]
            yield (top, left, False), crop
            yield (top, left, True), crop[:, ::-1]


@pytest.mark.parametrize("padding", [4, 1])
def test_every_output_is_a_crop_or_its_mirror_image(padding):
    images = _images(batch=256)
    outputs = np.asarray(compiled(jax.random.key(0), images, padding))
    assert outputs.dtype == np.uint8
    assert outputs.shape == images.shape
    chosen = []
    for image, output in zip(images, outputs, strict=True):
        crops = list(_all_crops(image, padding))
        assert len(crops) == 2 * (2 * padding + 1) ** 2
        matches = [place for place, crop in crops if (crop == output).all()]
        assert len(matches) == 1
        chosen += matches
    # Rows, columns and orientation are drawn independently, for each image anew.
    for axis in (0, 1):
        assert {place[axis] for place in chosen} == set(range(2 * padding + 1))
    assert len(set(chosen)) > 0.75 * min(len(crops), len(images))
    assert 0.35 < np.mean([place[2] for place in chosen]) < 0.65


def test_the_key_decides():
    images = _images(batch=256)
    first, again, other = (compiled(jax.random.key(k), images, 4) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()


def test_jit_vmap_and_map_change_nothing():
    images = jnp.asarray(_images(batch=12).reshape(3, 4, 7, 9, 3))
    keys = jax.random.split(jax.random.key(5), 3)
    plain = np.stack([pad_crop_flip(k, x) for k, x in zip(keys, images, strict=True)])
    np.testing.assert_array_equal(jax.jit(jax.vmap(pad_crop_flip))(keys, images), plain)
    mapped = jax.jit(lambda k, x: jax.lax.map(lambda row: pad_crop_flip(*row), (k, x)))
    np.testing.assert_array_equal(mapped(keys, images), plain)


def test_no_padding_only_flips():
    images = _images(batch=64)
    outputs = np.asarray(compiled(jax.random.key(2), images, 0))
    same = (outputs == images).all(axis=(1, 2, 3))
    mirrored = (outputs == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert same.any()
    assert mirrored.any()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="images must be .b, H, W, C., not .8, 8, 3."):
        pad_crop_flip(jax.random.key(0), jnp.zeros([8, 8, 3], jnp.uint8))
    with pytest.raises(ValueError, match="padding must be 0 or more, not -1"):
        pad_crop_flip(jax.random.key(0), jnp.zeros([1, 8, 8, 3], jnp.uint8), padding=-1)
