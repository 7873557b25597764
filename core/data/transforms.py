"""Joint image and mask augmentation on uint8 tensors, and normalisation on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.data.images import IGNORE
from core.recipe import CAM, DATA, OPTIMIZER

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = DATA.mean, DATA.std
_MEAN, _STD = (torch.tensor(rgb) * 255 for rgb in (MEAN, STD))
SCALES = CAM.scales


@dataclass(frozen=True)
class RandomView:
    """Resize the LONGER side to a random integer, bicubic, flip, then crop or pad to a square."""

    sides: tuple[int, int]  # the range of the integer, both ends in it
    crop: int  # side of the square; a smaller image lies at a random offset in it

    def draw_side(self, rng: np.random.Generator) -> int:
        """The longer side of the next view, drawn before anything else is."""
        return int(rng.integers(self.sides[0], self.sides[1] + 1))

    def __call__(
        self, image: Tensor, mask: Tensor | None, rng: np.random.Generator, side: int | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """uint8 (3, H, W) and uint8 (H, W) -> views (3, crop, crop), (crop, crop) and their box.

        The box is int64 (top, left, bottom, right), the part of the view the image fills; outside
        it the view is 0 (`normalize` makes that the mean colour) and the mask 255. `side`: the
        longer side, where it has been drawn.
        """
        height, width = image.shape[1:]
        scale = (side or self.draw_side(rng)) / max(height, width)
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        image = resize(image, size)
        flip = rng.random() < OPTIMIZER.flip
        place = [_window(side, self.crop, rng) for side in size]
        view, box = self._cut(image, place, flip, fill=0)
        if mask is None:
            return view, None, box
        mask = F.interpolate(mask[None, None], size, mode="nearest-exact")[0]
        return view, self._cut(mask, place, flip, fill=IGNORE)[0][0], box

    def _cut(
        self, image: Tensor, place: list[tuple[int, int, int]], flip: bool, fill: int
    ) -> tuple[Tensor, Tensor]:
        (y, top, height), (x, left, width) = place
        window = (image.flip(-1) if flip else image)[:, y : y + height, x : x + width]
        # Pixels in rows of RGB, as the resize leaves them: the copy runs along memory.
        view = image.new_full((self.crop, self.crop, image.shape[0]), fill).permute(2, 0, 1)
        view[:, top : top + height, left : left + width] = window
        return view, torch.tensor([top, left, top + height, left + width])


def _window(side: int, crop: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """(start in the image, start in the view, length) of a random crop or placement."""
    offset = int(rng.integers(0, abs(side - crop) + 1))
    return (offset, 0, crop) if side > crop else (0, offset, side)


def normalize(images: Tensor, boxes: Tensor | None = None) -> Tensor:
    """uint8 RGB (N, 3, H, W) -> float32, ImageNet mean and std; exactly 0 outside the boxes.

    Runs on the device, after a transfer of a quarter of the bytes. The result is channels_last.
    """
    # A blocking copy would wait for all the GPU has still to do.
    mean, std = (rgb.to(images.device, non_blocking=True) for rgb in (_MEAN, _STD))
    # Bytes, not floats, change their layout; and a row of RGB has its own mean and std, for a CPU
    # broadcasts over rows faster than over pixels.
    rows = images.permute(0, 2, 3, 1).contiguous().flatten(2).float()
    mean, std = (rgb.repeat(images.shape[3]) for rgb in (mean, std))
    views = rows.sub_(mean).div_(std).unflatten(2, (-1, 3)).permute(0, 3, 1, 2)
    if boxes is not None:
        top, left, bottom, right = boxes[:, :, None, None, None].unbind(1)
        y = torch.arange(images.shape[2], device=images.device)[:, None]
        x = torch.arange(images.shape[3], device=images.device)
        views.mul_((y >= top) & (y < bottom) & (x >= left) & (x < right))
    return views


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Bicubic, antialiased: uint8 (3, H, W) -> (3, *size), in memory rows of RGB.

    PIL's to rounding: 1 pixel of 400 is off by a level, 1 of millions by two; Pillow 13 goes down
    the columns first where that is less work, and is up to 2 levels off on photographs.
    """
    pixels = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)  # for the fast way
    return F.interpolate(pixels, list(size), mode="bicubic", antialias=True)[0]


def pyramid(image: np.ndarray, scales: Sequence[float] = SCALES) -> list[Tensor]:
    """Bicubic copies of an RGB image, uint8 (H, W, 3): one uint8 (3, h, w) per scale."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    sizes = ([max(1, round(side * scale)) for side in image.shape[:2]] for scale in scales)
    return [resize(pixels, size) for size in sizes]


def stack(views: Sequence[Tensor]) -> Tensor:
    """(3, h, w) each -> (N, 3, h, w), in memory rows of RGB: what `normalize` need not change."""
    return torch.stack([view.permute(1, 2, 0) for view in views]).permute(0, 3, 1, 2)
