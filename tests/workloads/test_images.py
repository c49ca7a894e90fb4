"""Crops against geometry: ramps whose scaled values are known, and the boxes' distribution."""

import io

import numpy as np
from PIL import Image
import pytest

from asgd.workloads.images import Crops, centre_box, random_box


def _png(pixels, mode=None):
    out = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(out, "TIFF" if mode == "CMYK" else "PNG")
    return out.getvalue()


def _ramp(width, height):
    """Red is x and green is y."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, 0 * x], -1).astype(np.uint8)


def _scaled(box, size):
    left, top, right, bottom = box
    middles = (np.arange(size) + 0.5) / size
    return left + middles * (right - left) - 0.5, top + middles * (bottom - top) - 0.5


@pytest.mark.parametrize("width, height", [(256, 256), (250, 200), (90, 250)])
@pytest.mark.parametrize("draws", [None, np.zeros(0)])
def test_the_middle_is_cut(width, height, draws):
    out = Crops(size=56, augment=False)(_png(_ramp(width, height)), draws)
    side = min(width, height) * 0.875
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    np.testing.assert_allclose(centre_box(width, height), box)
    x, y = _scaled(box, 56)
    np.testing.assert_allclose(out[..., 0], np.broadcast_to(x, (56, 56)), atol=0.51)
    np.testing.assert_allclose(out[..., 1], np.broadcast_to(y[:, None], (56, 56)), atol=0.51)


def test_unscaled_pixels_are_kept():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)
    out = Crops(size=56, augment=False)(_png(pixels))
    np.testing.assert_array_equal(out, pixels[4:60, 12:68])


def test_pixels_are_averaged_where_there_are_fewer():
    board = 255 * (np.indices((128, 128)).sum(0) % 2).astype(np.uint8)
    out = Crops(size=28, augment=False)(_png(board))
    np.testing.assert_allclose(out, 127.5, atol=2)


def test_random_boxes_are_cut_and_mirrored():
    crops = Crops(size=20, augment=True)
    rng = np.random.default_rng(1)
    encoded = _png(_ramp(240, 180))
    for _ in range(20):
        draws = rng.random(crops.num_draws)
        x, y = _scaled(random_box(240, 180, draws[1:]), 20)
        for mirrored in (True, False):
            draws[0] = 0.499 if mirrored else 0.5
            out = crops(encoded, draws).astype(float)
            # Beside the picture there is nothing to average with.
            inner = np.s_[2:-2, 2:-2]
            found = out[:, ::-1] if mirrored else out
            np.testing.assert_allclose(found[..., 0][inner], np.broadcast_to(x, (20, 20))[inner], atol=1)
            np.testing.assert_allclose(
                found[..., 1][inner], np.broadcast_to(y[:, None], (20, 20))[inner], atol=1)


@pytest.mark.parametrize("width, height", [(500, 375), (300, 300), (200, 333)])
def test_boxes_have_the_area_aspect_and_place_of_the_paper(width, height):
    rng = np.random.default_rng(2)
    boxes = np.array([random_box(width, height, rng.random(40)) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    w, h = right - left, bottom - top
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    area, aspect = w * h / (width * height), w / h
    assert 0.075 < area.min() < 0.1 and area.max() > 0.75
    assert 0.74 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.35
    # Small boxes always fit, so they are spread as they are drawn: uniform area and log aspect.
    small = area < 0.4
    assert abs(area[small].mean() - 0.24) < 0.01
    assert abs(np.log(aspect[small]).mean()) < 0.02
    for start, room in ((left, width - w), (top, height - h)):
        place = start[small] / room[small]
        assert abs(place.mean() - 0.5) < 0.02 and abs(place.std() - 12**-0.5) < 0.02


@pytest.mark.parametrize("width, height, box", [
    (1000, 12, (492, 0, 508, 12)), (12, 1000, (0, 492, 12, 508)), (1, 1, (0, 0, 1, 1))])
def test_extreme_pictures_give_their_middle(width, height, box):
    assert random_box(width, height, np.full(40, 0.9)) == box


def test_a_box_at_the_end_stays_inside():
    draws = np.full(40, np.nextafter(1, 0))
    draws[:2] = 0.1, 0.5
    left, top, right, bottom = random_box(97, 61, draws)
    assert (right, bottom) == (97, 61) and left > 0 and top > 0


@pytest.mark.parametrize("mode", ["L", "LA", "CMYK", "RGBA"])
def test_every_kind_of_picture_has_three_channels(mode):
    grey = np.repeat(np.full([20, 30, 1], 77, np.uint8), 3, 2)
    out = Crops(size=8, augment=False)(_png(grey, mode))
    np.testing.assert_array_equal(out, np.full([8, 8, 3], 77, np.uint8))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="size must be 1 or more, not 0"):
        Crops(0, False)
    with pytest.raises(OSError, match="cannot identify image"):
        Crops(8, False)(b"no picture")
