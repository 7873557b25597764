"""Photographs of every form a loader takes: their pixels, which way up, and what is refused."""

from __future__ import annotations

from pathlib import Path

import make_pseudo_labels
from core.data import images
from core.data.datasets import DataRoot
from core.errors import InputError

import cv2
import numpy as np
import pytest
from conftest import run_stage, write_cams
from PIL import Image, ImageOps


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 8, x * 6, y * 3 + x * 3], 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("rgb.jpg", lambda p: p),
        ("grey.jpg", lambda p: p.convert("L")),
        ("cmyk.jpg", lambda p: p.convert("CMYK")),
        ("rgb.png", lambda p: p),
        ("rgba.png", lambda p: p.convert("RGBA")),
        ("palette.png", lambda p: p.convert("P")),
        ("rgb.webp", lambda p: p),
        ("rgba.webp", lambda p: p.convert("RGBA")),
        ("rgb.bmp", lambda p: p),
        ("palette.bmp", lambda p: p.convert("P")),
        ("rgb.tif", lambda p: p),
        ("cmyk.tiff", lambda p: p.convert("CMYK")),
        ("grey.tif", lambda p: p.convert("L")),
        ("grey16.tif", lambda p: Image.fromarray(np.array(p)[:, :, 0].astype(np.uint16) << 8)),
        ("grey16.png", lambda p: Image.fromarray(np.array(p)[:, :, 0].astype(np.uint16) << 8)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, name, make):
    original = make(Image.fromarray(picture()))
    original.save(tmp_path / name)
    got = images.as_array(images.read_image(tmp_path / name))
    assert got.shape == (20, 30, 3) and got.dtype == np.uint8 and got.flags.writeable
    wanted = picture()
    if "grey" in name:
        grey = wanted[:, :, 0] if "16" in name else np.array(Image.fromarray(wanted).convert("L"))
        wanted = np.repeat(grey[:, :, None], 3, 2)
    assert abs(got.astype(int) - wanted).mean() < (20 if "palette" in name else 12)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
def test_images_are_turned_as_exif_says(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{ending}"
    Image.fromarray(picture()).save(path, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert upright.shape[:2] == ((30, 20) if orientation > 4 else (20, 30))
    image = images.as_array(images.read_image(path))
    assert images.image_size(path) == image.shape[:2] == upright.shape[:2]
    # Two decoders of JPEG round differently.
    assert np.abs(image.astype(int) - upright).max() <= (2 if ending == ".jpg" else 0)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    ("name", "channels"), [("a.png", 1), ("a.png", 3), ("a.png", 4), ("a.tif", 1), ("a.tif", 3)]
)
def test_levels_of_16_bit_files(tmp_path, name, channels, bits, capsys, monkeypatch):
    """What a camera of 12 bits puts into 16 keeps its 8 upper bits; said once."""
    monkeypatch.setattr(images, "_noted", set())
    levels = np.linspace(0, 2**bits - 1, 48 * 64).round().astype(np.uint16).reshape(48, 64)
    pixels = np.stack([levels, levels // 2, levels // 4, levels][:channels], 2)
    cv2.imwrite(str(tmp_path / name), pixels)
    for _ in range(2):
        got = images.read_image(tmp_path / name)
    wanted = pixels[..., 2::-1].transpose(2, 0, 1) >> (bits - 8)  # OpenCV has blue first
    np.testing.assert_array_equal(got, np.broadcast_to(wanted, got.shape))
    assert capsys.readouterr().err.count(f"{bits} bits used") == (bits < 16)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16"])
def test_tiffs_of_other_colours_are_turned_as_well(tmp_path, mode, orientation):
    grey16 = Image.fromarray(picture()[..., 0].astype(np.uint16) << 8)
    photo = grey16 if mode == "I;16" else Image.fromarray(picture()).convert(mode)
    photo.save(tmp_path / "upright.tif")
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.tif", exif=exif)
    upright = images.as_array(images.read_image(tmp_path / "upright.tif"))
    steps = {2: [np.fliplr], 3: [np.flipud, np.fliplr], 4: [np.flipud], 5: [_transposed],
             6: [_transposed, np.fliplr], 7: [_transposed, np.flipud, np.fliplr],
             8: [_transposed, np.flipud]}  # fmt: skip
    for step in steps.get(orientation, []):
        upright = step(upright)
    np.testing.assert_array_equal(images.as_array(images.read_image(tmp_path / "a.tif")), upright)
    assert images.image_size(tmp_path / "a.tif") == upright.shape[:2]


def _transposed(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(1, 0, 2)


@pytest.mark.parametrize("byte_order", "<>")
def test_16_bit_tiff(tmp_path, byte_order):
    levels = np.linspace(0, 65535, 48 * 64).round().astype(f"{byte_order}u2").reshape(48, 64)
    Image.frombytes("I;16" if byte_order == "<" else "I;16B", (64, 48), levels.tobytes()).save(
        tmp_path / "a.tif"
    )
    got = images.read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(got[2], levels.astype(np.uint16) >> 8)


def test_what_a_file_holds_counts_not_its_name(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.jpg", format="WEBP", lossless=True)
    got = images.as_array(images.read_image(tmp_path / "a.jpg"))
    np.testing.assert_array_equal(got, picture())


def test_of_several_pages_the_first_is_read_and_that_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(images, "_noted", set())
    pages = [Image.fromarray(picture() // n) for n in (1, 2, 3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for _ in range(2):
        got = images.as_array(images.read_image(tmp_path / "a.tif"))
        np.testing.assert_array_equal(got, picture())
    assert capsys.readouterr().err.splitlines() == [
        f"note: {tmp_path / 'a.tif'}: of 3 pages or frames the first is read"
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jpg", b"\0\0\0\x18ftypheic\0\0", "HEIC or AVIF; convert a copy first.*heif-convert"),
        ("a.png", b"GIF89a\1\0\1\0\0\0\0;", "not a readable JPEG, PNG, WebP, BMP or TIFF; replace"),
        ("a.tif", np.float32, "32 bits a pixel; save it with 8 or 16"),
        ("a.tif", np.int32, "32 bits a pixel; save it with 8 or 16"),
    ],
)
def test_refused(tmp_path, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        Image.fromarray(picture()[..., 0].astype(content)).save(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}: {message}"):
        images.read_image(tmp_path / name)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tif"])
def test_half_a_file_is_refused(tmp_path, ending):
    """Also where asking for its orientation has already tried to read it, as PIL does with PNGs."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=f"a.{ending}: (truncated or damaged|not a readable)"):
        images.read_image(path)


def test_a_stage_reads_every_form(data_root: Path, tmp_path: Path):
    """The same pixels in other files give the same pseudo-labels."""
    write_cams(data_root, tmp_path / "cam")
    folder = data_root / "JPEGImages"
    for image_id in DataRoot(data_root).ids("train"):  # the same pixels, from now on
        pixels = images.as_array(images.read_image(folder / f"{image_id}.jpg"))
        (folder / f"{image_id}.jpg").unlink()
        Image.fromarray(pixels).save(folder / f"{image_id}.png")
    made = {}
    for ending in (".png", ".webp", ".bmp", ".tif"):
        for path in sorted(folder.glob("train*.*")):
            with Image.open(path) as image:
                image.load()
            path.unlink()
            image.save(path.with_suffix(ending), **({"lossless": True} if "w" in ending else {}))
        out = tmp_path / ending[1:]
        run_stage(make_pseudo_labels.main, "--data", data_root, "--split", "train", "--device",
                  "cpu", "--scores", tmp_path / "cam", "--out", out, "--crf-iterations", 1,
                  "--jobs", 1)  # fmt: skip
        made[ending] = [path.read_bytes() for path in sorted(out.glob("*.png"))]
    assert made[".png"] == made[".webp"] == made[".bmp"] == made[".tif"] != []
