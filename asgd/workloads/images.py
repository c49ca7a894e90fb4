"""Squares of one size, cut from pictures of any size where they are read."""

import dataclasses
import io
import math

import numpy as np

# Of the channels of the training images, in units of 0 to 1; customary.
IMAGENET_MEAN = (0.485, 0.456, 0.406)

_ATTEMPTS = 10
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_PART_OF_SHORTER_SIDE = 224 / 256


@dataclasses.dataclass(frozen=True)
class Crops:
    """Cuts squares from encoded pictures (JPEG, PNG, ...), and scales them to one size, bilinearly.

    A training picture is cut at random with `augment` (`random_box`) and mirrored with probability
    1/2, the augmentation of Szegedy et al., "Going Deeper with Convolutions" (CVPR 2015), section 6.
    Without it, and of test pictures, the middle is taken (`centre_box`).

    Attributes:
        size: Pixels of a side.
        augment: Whether training pictures are cut at random.

    Raises:
        ValueError: If `size` is not positive.

    Example:
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("L", (50, 40), 200).save(file, "PNG")
        >>> Crops(size=16, augment=False)(file.getvalue()).shape
        (16, 16, 3)
    """

    size: int
    augment: bool

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size must be 1 or more, not {self.size}")

    @property
    def num_draws(self) -> int:
        """Random numbers that a training picture takes."""
        return 4 * _ATTEMPTS + 1 if self.augment else 0

    def __call__(self, encoded: bytes, draws: np.ndarray | None = None) -> np.ndarray:
        """Cuts a picture.

        Args:
            encoded: The picture's file.
            draws: `num_draws` numbers from 0 to 1; None cuts the middle.

        Returns:
            uint8 [size, size, 3].

        Raises:
            OSError: If it is no picture.
        """
        from PIL import Image

        with Image.open(io.BytesIO(encoded)) as picture:
            picture = picture.convert("RGB")
        random = draws is not None and len(draws) > 0
        box = random_box(*picture.size, draws[1:]) if random else centre_box(*picture.size)
        out = np.asarray(picture.resize((self.size, self.size), Image.Resampling.BILINEAR, box))
        return out[:, ::-1] if random and draws[0] < 0.5 else out


def centre_box(width: int, height: int) -> tuple[float, float, float, float]:
    """Returns the middle square (left, top, right, bottom), its sides 224/256 of the shorter side.

    Scaled to 224 pixels it is the middle of the picture whose shorter side is scaled to 256.

    Example:
        >>> centre_box(512, 256)
        (144.0, 16.0, 368.0, 240.0)
    """
    side = min(width, height) * _PART_OF_SHORTER_SIDE
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """Returns a box of 8 to 100 % of the area, its aspect ratio from 3/4 to 4/3.

    Area and logarithm of the aspect are uniform, and so is the place. Of ten such boxes it is the
    first that fits; if none does, the largest in the middle whose aspect is allowed.

    Args:
        width: Of the picture, in pixels.
        height: Likewise.
        draws: float64 [40], from 0 to 1.

    Returns:
        (left, top, right, bottom), in pixels.

    Example:
        >>> random_box(100, 80, np.full(40, 0.5))
        (17, 7, 83, 73)
    """
    low, high = map(math.log, _ASPECT)
    for area, aspect, x, y in np.reshape(draws, (_ATTEMPTS, 4)).tolist():
        area = width * height * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
        aspect = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * _ASPECT[1])))
    h = min(height, max(1, round(width / _ASPECT[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
