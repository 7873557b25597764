"""Photographs in, label maps in and out. Every error names the file."""

import warnings
from pathlib import Path

from core.errors import InputError
from core.files import atomic_path
from core.recipe import DATA

import numpy as np
import torch
from PIL import Image
from torch import Tensor

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # of a torchvision to come: PIL's decoder does it
    decode_jpeg = None

IGNORE = DATA.ignore  # label value of pixels that take no part in losses and scores
MAX_PIXELS = 80_000_000  # a header that claims more is refused before anything is decoded
EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def voc_palette() -> list[int]:
    """The PASCAL VOC colour map as 768 numbers (r, g, b of index 0, then of 1, ...)."""
    index, channel, bit = np.ogrid[:256, :3, :8]
    is_on = (index >> (3 * bit + channel)) & 1
    return (is_on << (7 - bit)).sum(2).ravel().tolist()


def open_checked(path: Path) -> Image.Image:
    """Open an image file without decoding it.

    Raises InputError for a missing file, one that is no JPEG or PNG, one over `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():  # the limit below is stricter than the one PIL warns at
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=("JPEG", "PNG"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path}: more than {MAX_PIXELS} pixels; resize the image") from None
    except (OSError, SyntaxError, ValueError, TypeError, OverflowError) as error:
        if system := getattr(error, "strerror", None):  # PIL's errors have none
            raise InputError(f"{path}: {system}; make it readable") from None
        raise InputError(f"{path}: not a readable JPEG or PNG; replace the file") from None
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        image.close()
        raise InputError(f"{path}: {size} pixels, more than {MAX_PIXELS}; resize the image")
    return image


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header alone."""
    with open_checked(path) as image:
        return image.height, image.width


def read_image(path: Path) -> Tensor:
    """Read a photograph as uint8 RGB (3, H, W).

    Grey, CMYK, palette and 16-bit images are converted; an EXIF rotation is ignored, as the VOC
    tools do. Ordinary JPEGs go through torchvision's decoder, about twice as fast as PIL's. Raises
    InputError as `open_checked` does, and for a truncated file.
    """
    with open_checked(path) as image:
        try:
            if image.format == "JPEG" and image.mode in ("RGB", "L") and decode_jpeg is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of torchvision >= 0.29, at every call
                    data = torch.from_numpy(np.fromfile(path, np.uint8))
                    return decode_jpeg(data, ImageReadMode.RGB)
            if image.mode.startswith("I"):  # 16-bit grey: keep the upper byte; PIL would clip
                grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                image = Image.fromarray(grey)
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except (RuntimeError, OSError, SyntaxError, ValueError, EOFError, MemoryError):
            raise InputError(f"{path}: truncated or damaged; replace the file") from None


def as_array(image: Tensor) -> np.ndarray:
    """uint8 tensor (3, H, W) -> writable, C-contiguous array (H, W, 3)."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def fit_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(H, W) with the longer side reduced to at most `side` pixels."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def fit(picture: np.ndarray, side: int, nearest: bool = False) -> np.ndarray:
    """A picture (H, W, 3) or (H, W) with its longer side reduced to at most `side` pixels."""
    height, width = fit_size(picture.shape[:2], side)
    if (height, width) == picture.shape[:2]:
        return picture
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(picture).resize((width, height), how))


def read_label(path: Path, n_classes: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a label map as uint8 (H, W): 0 background, 1..n_classes - 1 classes, 255 ignore.

    Raises InputError for a file that is missing, damaged, not an 8-bit index PNG, not of the
    image's `size` (H, W) where that is given, or holds a label outside the classes.
    """
    with open_checked(path) as image:
        if image.format != "PNG" or image.mode not in ("P", "L", "1"):
            raise InputError(f"{path}: not an 8-bit palette or grey PNG but {image.mode}")
        try:
            label = np.array(image, dtype=np.uint8)
        except (OSError, SyntaxError, ValueError, EOFError, MemoryError):
            raise InputError(f"{path}: truncated or damaged; replace the file") from None
    if size is not None and label.shape != tuple(size):
        found = f"{label.shape[1]}x{label.shape[0]} pixels, image of {size[1]}x{size[0]}"
        raise InputError(f"{path}: label map of {found}; they must agree")
    known = np.zeros(256, bool)
    known[:n_classes] = known[IGNORE] = True
    if not known[label].all():
        wrong = int(label[~known[label]][0])
        raise InputError(f"{path}: label {wrong} is outside the {n_classes} classes (255 = ignore)")
    return label


def write_label(path: Path, label: np.ndarray) -> None:
    """Write a uint8 (H, W) label map as a PNG with the VOC palette, all of it or nothing."""
    image = Image.fromarray(np.asarray(label, np.uint8), mode="L")
    image.putpalette(voc_palette())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a uint8 (H, W, 3) picture as PNG, all of it or nothing."""
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
