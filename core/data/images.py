"""Photographs in, label maps in and out. Every error names the file."""

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

from core.errors import InputError
from core.files import atomic_path
from core.recipe import DATA

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

IGNORE = DATA.ignore  # label value of pixels that take no part in losses and scores
cv2.setNumThreads(1)  # as many processes read pictures as there are cores
MAX_PIXELS = 80_000_000  # a header that claims more is refused before anything is decoded
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # in small letters or large
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # PIL's names; what a file holds counts
FORMS = "JPEG, PNG, WebP, BMP or TIFF"
TO_CONVERT = "HEIC or AVIF; convert a copy first, as with `heif-convert x.heic x.jpg` of libheif"
ORIENTATION = 0x112  # EXIF's
# Orientation -> axes of (3, H, W) that are flipped, of 5 to 8 after H and W are exchanged.
FLIPS = {1: (), 2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}
BITS = 258  # TIFF's tag of the bits of each channel
DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras put into 16-bit files
# Part of its size at which a JPEG is decoded -> OpenCV's name of it.
REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
END_OF_JPEG = b"\xff\xd9"
_noted: set[str] = set()


def voc_palette() -> list[int]:
    """The PASCAL VOC colour map as 768 numbers (r, g, b of index 0, then of 1, ...)."""
    index, channel, bit = np.ogrid[:256, :3, :8]
    is_on = (index >> (3 * bit + channel)) & 1
    return (is_on << (7 - bit)).sum(2).ravel().tolist()


VOC_COLOURS = np.array(voc_palette(), np.uint8).reshape(-1, 3)


def open_checked(path: Path) -> Image.Image:
    """Open an image file without decoding it.

    Raises InputError for a missing file, one of none of the FORMATS, one over `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():  # the limit below is stricter than the one PIL warns at
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path}: more than {MAX_PIXELS} pixels; resize the image") from None
    except (OSError, SyntaxError, ValueError, TypeError, OverflowError) as error:
        if system := getattr(error, "strerror", None):  # PIL's errors have none
            raise InputError(f"{path}: {system}; make it readable") from None
        with open(path, "rb") as file:
            is_heic = file.read(12)[4:8] == b"ftyp"
        what = TO_CONVERT if is_heic else f"not a readable {FORMS}; replace the file"
        raise InputError(f"{path}: {what}") from None
    if image.format == "TIFF":
        image.filename = ""  # by name PIL maps it into memory; 13.0 then turns grey ones wrongly
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        image.close()
        raise InputError(f"{path}: {size} pixels, more than {MAX_PIXELS}; resize the image")
    return image


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1, upright, where nothing right is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = image.getexif().get(ORIENTATION, 1)
        except Exception:  # what damaged EXIF data raise depends on PIL and struct
            return 1
    return found if found in FLIPS else 1


def is_deep(image: Image.Image, path: Path) -> bool:
    """Whether a PNG or TIFF has 16 bits a channel; of those in colours PIL's mode does not tell."""
    if image.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24:] == b"\x10"  # in IHDR, which comes first
    return image.format == "TIFF" and 16 in getattr(image, "tag_v2", {}).get(BITS, ())


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright image, from the header alone."""
    with open_checked(path) as image:
        turned = orientation(image) > 4
        if turned and image.format == "TIFF":  # some versions of PIL have turned the size already
            image.load()
            turned = orientation(image) > 4
        return (image.width, image.height) if turned else (image.height, image.width)


def read_image(path: Path) -> Tensor:
    """Read a photograph as uint8 RGB (3, H, W).

    Grey, CMYK, palette and 16-bit images are converted, and turned upright as EXIF says (no image
    of VOC is); of several pages or frames the first is taken. Raises InputError as `open_checked`
    does, and for a truncated file or one of 32 bits a pixel.
    """
    return read_reduced(path, MAX_PIXELS)[0]


def read_reduced(path: Path, side: int) -> tuple[Tensor, tuple[int, int]]:
    """`read_image` of what will be reduced to a longer side of `side`, and the image's (H, W).

    An ordinary JPEG of at least twice that is decoded at the half, quarter or eighth of its size
    that is at least `side` and divides both its sides, in a fraction of the time (`_decode_jpeg`).
    """
    parts = 1
    with open_checked(path) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's of damage
        try:
            if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
                raise InputError(f"{path}: 32 bits a pixel; save it with 8 or 16")
            pages = getattr(image, "n_frames", 1) if image.format in ("TIFF", "WEBP") else 1
            if pages > 1:
                _note("pages", f"{path}: of {pages} pages or frames the first is read")
            decoded = None
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                # A part that does not divide a side would shift the image against its label map.
                fits = (n for n in REDUCED if n * side <= max(image.size))
                parts = next((n for n in fits if not any(s % n for s in image.size)), 1)
                decoded = _decode_jpeg(path, parts)
            elif image.mode.startswith("I"):  # 16-bit grey, which PIL would clip
                decoded = np.repeat(_eight_bits(np.asarray(image), path)[..., None], 3, 2)
            if decoded is None:
                parts, decoded = 1, np.array(image.convert("RGB"))
                decoded = _used_bits(decoded, path) if is_deep(image, path) else decoded
            pixels = torch.from_numpy(decoded).permute(2, 0, 1)
            # Not before: PIL reads a whole PNG to tell, and would give what it has of a damaged
            # one; of a TIFF it turns the pixels itself, and forgets that it was so.
            turn = orientation(image)
        except InputError:
            raise
        except Exception:  # what PIL raises for damaged files depends on the form
            raise InputError(f"{path}: truncated or damaged; replace the file") from None
    pixels = pixels.transpose(1, 2) if turn > 4 else pixels
    pixels = pixels.flip(FLIPS[turn]) if FLIPS[turn] else pixels  # a copy
    return pixels, (parts * pixels.shape[1], parts * pixels.shape[2])


def _decode_jpeg(path: Path, parts: int) -> np.ndarray | None:
    """RGB (H / parts, W / parts, 3); None where PIL has to tell what is wrong.

    OpenCV's decoder gives PIL's pixels, of VOC's size in 0.7 of the time; a quarter of the size of
    12 megapixels takes 0.2 of PIL's. It also gives what it has of a file that is cut short, so that
    the end is looked at.
    """
    data = np.fromfile(path, np.uint8)
    if data[-2:].tobytes() != END_OF_JPEG:
        return None
    pixels = cv2.imdecode(data, REDUCED[parts] | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels)


def _note(kind: str, text: str) -> None:
    """Say something once, in one of the processes that load."""
    worker = torch.utils.data.get_worker_info()
    if kind not in _noted and (worker is None or worker.id == 0):
        _noted.add(kind)
        print(f"note: {text}", file=sys.stderr)


def _used_bits(upper: np.ndarray, path: Path) -> np.ndarray:
    """`_eight_bits` of a 16-bit file in colours, of whose values PIL gave the upper bytes.

    These stay where OpenCV decodes others, as of a TIFF that only one of the two turns upright.
    """
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim < 3 or pixels.dtype != np.uint16:
        return upper
    levels = np.asarray(pixels[..., 2::-1], np.uint16)
    return _eight_bits(levels, path) if np.array_equal(levels >> 8, upper) else upper


def _eight_bits(levels: np.ndarray, path: Path) -> np.ndarray:
    """The upper 8 of the bits that are used; fewer than 16 are said once."""
    used = int(levels.max(initial=0)).bit_length()
    depth = next((bits for bits in DEPTHS if used <= bits), 16)
    if depth < 16:
        _note(f"{depth} bits", f"{path}: 16-bit file with {depth} bits used, read as {depth}")
    return (levels >> (depth - 8)).clip(0, 255).astype(np.uint8)


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


def read_label(
    path: Path, n_labels: int, size: tuple[int, int] | None = None, of: str = "image"
) -> np.ndarray:
    """Read a label map as uint8 (H, W): 0 background, 1..n_labels - 1 classes, 255 ignore.

    Raises InputError for a file that is missing, damaged, not an 8-bit index PNG, not of the `size`
    (H, W) of its image, or of what is `of` that size, where that is given, holds a label outside
    the classes or has the colours of VOC's labels at other indices.
    """
    with open_checked(path) as image:
        if image.format != "PNG" or image.mode not in ("P", "L", "1"):
            raise InputError(f"{path}: not an 8-bit palette or grey PNG but {image.mode}")
        try:
            label = np.array(image, dtype=np.uint8)
            palette = image.getpalette() if image.mode == "P" else None
        except (OSError, SyntaxError, ValueError, EOFError, MemoryError):
            raise InputError(f"{path}: truncated or damaged; replace the file") from None
    if size is not None and label.shape != tuple(size):
        found = f"{label.shape[1]}x{label.shape[0]} pixels, {of} of {size[1]}x{size[0]}"
        turned = "; is the mask not turned as the image's EXIF says?"
        hint = turned if label.shape == tuple(size)[::-1] else ""
        raise InputError(f"{path}: label map of {found}; they must agree{hint}")
    if palette is not None:
        _check_colours(path, label, np.array(palette, np.uint8).reshape(-1, 3))
    known = np.zeros(256, bool)
    known[:n_labels] = known[IGNORE] = True
    if not known[label].all():
        wrong = int(label[~known[label]][0])
        what = f"label {wrong} is outside 0 to {n_labels - 1} (255 = ignore)"
        raise InputError(f"{path}: {what}; are these masks of other classes?")
    return label


def _check_colours(path: Path, label: np.ndarray, palette: np.ndarray) -> None:
    """Refuse a map that has been saved again by its colours: VOC's, at other indices."""
    if np.array_equal(palette, VOC_COLOURS[: len(palette)]):
        return
    known = {tuple(VOC_COLOURS[i].tolist()): i for i in (*range(21), IGNORE)}
    used = [i for i in np.unique(label).tolist() if i < len(palette)]
    meant = {i: known.get(tuple(palette[i].tolist())) for i in used}
    moved = [i for i in used if meant[i] != i]
    if moved and None not in meant.values():
        colour, right = tuple(palette[moved[0]].tolist()), meant[moved[0]]
        found = f"index {moved[0]} has the colour {colour}, which is VOC's of label {right}"
        raise InputError(
            f"{path}: {found}: save the labels themselves, as grey or with VOC's palette"
        )


def check_classes(paths: Iterable[Path], background: bool = True) -> None:
    """Refuse label maps that hold 255 and no class at all: those where 255 is the object.

    Where there is no `background`, also any that hold 0.
    """
    ignored, has_class = None, False
    for path in paths:
        label = read_label(path, IGNORE)
        if not background and not label.all():
            found = "holds label 0, the background, yet classes.txt says `background: none`"
            raise InputError(
                f"{path}: {found}; count the classes from 1, unlabelled pixels are 255"
            )
        has_class = has_class or bool(((label > 0) & (label < IGNORE)).any())
        if has_class and background:
            return
        ignored = ignored or (path if (label == IGNORE).any() else None)
    if ignored is not None and not has_class:
        found = "holds 255, which is 'ignore', and no label map beside it holds a class"
        raise InputError(f"{ignored}: {found}; where 255 is the object, write its class, as 1")


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
