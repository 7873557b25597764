"""Good files of every kind, and seeded damage to them."""

from __future__ import annotations

import io
import json
from pathlib import Path

from core.data import images
from core.data.datasets import DataRoot, read_annotation
from core.data.scores import Scores
from fuzz.reading import (
    RECORD,
    Tiny,
    read_cam,
    read_labels,
    read_list,
    read_model,
    read_own_record,
    read_record,
)

import numpy as np
import torch
from PIL import Image

PACKED = "tiff_lzw", "tiff_deflate", "jpeg", "packbits"
JUNK = (
    None,
    True,
    -1,
    0,
    3.5,
    1e308,
    10**30,
    "",
    "a\nb",
    "\x00",
    "x" * 5000,
    [],
    [[1]],
    {},
    {"a": 1},
)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four random damages: flipped bits, a cut, inserted bytes, a copied or removed part."""
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        a, b = sorted(rng.integers(0, len(data), 2).tolist())
        kind = rng.integers(6)
        if kind == 0:
            edited = bytearray(data)
            for place in rng.integers(0, len(data), rng.integers(1, 9)).tolist():
                edited[place] ^= 1 << int(rng.integers(8))
            data = bytes(edited)
        elif kind == 1:
            data = data[:b]
        elif kind == 2:
            data = data[:a] + rng.bytes(int(rng.integers(1, 40))) + data[a:]
        elif kind == 3:
            data = data[:b] + data[a : a + 200] + data[b:]
        elif kind == 4:
            data = data[:a] + data[min(b, a + 64) :]
        else:  # numbers that lengths and counts overflow at
            word = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\1\0"])
            data = data[:a] + word + data[a + 4 :]
    return data


def with_junk(value: object, rng: np.random.Generator) -> object:
    """A copy of nested dicts and lists with one value somewhere replaced or left out."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: with_junk(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.5:
        place = int(rng.integers(len(value)))
        return [with_junk(v, rng) if i == place else v for i, v in enumerate(value)]
    return JUNK[rng.integers(len(JUNK))]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpegs(_: Path) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 3)).astype(np.uint8)
    photo = Image.fromarray(pixels)
    exif = photo.getexif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    return [
        encoded(photo, "JPEG"),
        encoded(photo, "JPEG", progressive=True),
        encoded(photo, "JPEG", exif=exif, dpi=(72, 72)),
        encoded(photo.convert("L"), "JPEG"),
        encoded(photo.convert("CMYK"), "JPEG"),
    ]


def pngs(_: Path) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 4)).astype(np.uint8)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    photo = Image.fromarray(pixels)
    kinds = [photo, photo.convert("RGB"), photo.convert("P"), photo.convert("1"), deep]
    return [encoded(image, "PNG") for image in kinds]


def webps(_: Path) -> list[bytes]:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 4), np.uint8))
    return [encoded(image, "WEBP") for image in (photo, photo.convert("RGB"))]


def bmps(_: Path) -> list[bytes]:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8))
    return [encoded(photo.convert(mode), "BMP") for mode in ("RGB", "P", "L", "1")]


def tiffs(_: Path) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 4), np.uint8)
    photo, deep = Image.fromarray(pixels), Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    kinds = [photo, photo.convert("RGB"), photo.convert("CMYK"), photo.convert("P"), deep]
    packed = [encoded(photo.convert("RGB"), "TIFF", compression=how) for how in PACKED]
    return [*(encoded(image, "TIFF") for image in kinds), *packed]


def masks(folder: Path) -> list[bytes]:
    label = np.random.default_rng(0).integers(0, 4, (48, 64)).astype(np.uint8)
    label[:5] = 255
    images.write_label(folder / "good.png", label)
    return [(folder / "good.png").read_bytes(), encoded(Image.fromarray(label), "PNG")]


def annotations(_: Path) -> list[bytes]:
    one = "<object><name>dog</name><difficult>0</difficult></object>"
    head = '<?xml version="1.0" encoding="utf-8"?>'
    bodies = [one, one + one.replace("dog", "Hündchen"), ""]
    return [f"{head}<annotation>{body}</annotation>".encode() for body in bodies]


def lists(_: Path) -> list[bytes]:
    return [b"2007_000032\n2007_000039\r\nwith space\n", "größe\nид\n".encode(), b"\xef\xbb\xbfa\n"]


def labels(_: Path) -> list[bytes]:
    return [b"train0 disc\ntrain1 square bar\n", b"train0\tdisc\ntrain1\tbar\tdisc\n"]


def classes(_: Path) -> list[bytes]:
    return [b"disc\nsquare\nbar\n", "Größe\nс пробелом\n".encode()]


def cams(folder: Path) -> list[bytes]:
    cam = np.random.default_rng(0).random((2, 12, 16)).astype(np.float16)
    Scores([1, 3], cam, (48, 64)).save(folder / "good.npz")
    np.savez_compressed(folder / "packed.npz", classes=np.uint8([1, 3]), cam=cam, size=[48, 64])
    return [(folder / name).read_bytes() for name in ("good.npz", "packed.npz")]


def tiny_model() -> dict:
    torch.manual_seed(0)
    network = Tiny(6)
    weights = dict(network.state_dict())
    return {"network": "Tiny", "arguments": {"width": 6}, "classes": ["a", "b"], "weights": weights}


def torch_bytes(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def checkpoints(_: Path) -> list[bytes]:
    model = tiny_model()
    return [torch_bytes(model), torch_bytes(model, _use_new_zipfile_serialization=False)]


def other_checkpoints(_: Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    sparse = tiny_model()
    sparse["weights"]["layer.weight"] = torch.zeros(2, 6).to_sparse()
    return [torch_bytes(sparse), *(torch_bytes(with_junk(tiny_model(), rng)) for _ in range(150))]


def records(_: Path) -> list[bytes]:
    return [json.dumps(RECORD).encode()]


def other_records(_: Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [json.dumps(with_junk(RECORD, rng)).encode() for _ in range(150)]


# kind -> file in the data root, good files, reader, number of mutated inputs
REPEATS = {
    "image JPEG": ("JPEGImages/train0.jpg", jpegs, images.read_image, 350),
    "image PNG": ("JPEGImages/p.png", pngs, images.read_image, 250),
    "image WebP": ("JPEGImages/p.webp", webps, images.read_image, 150),
    "image BMP": ("JPEGImages/p.bmp", bmps, images.read_image, 150),
    "image TIFF": ("JPEGImages/p.tif", tiffs, images.read_image, 250),
    "image header": ("JPEGImages/train0.jpg", jpegs, images.image_size, 100),
    "mask PNG": ("SegmentationClass/m.png", masks, lambda p: images.read_label(p, 4), 350),
    "XML": ("Annotations/a.xml", annotations, read_annotation, 250),
    "split list": ("ImageSets/Segmentation/s.txt", lists, read_list, 200),
    "labels.txt": ("labels.txt", labels, read_labels, 200),
    "classes.txt": ("classes.txt", classes, lambda p: DataRoot(p.parent), 150),
    "CAM": ("cams/c.npz", cams, read_cam, 350),
    "checkpoint": ("m.pt", checkpoints, read_model, 300),
    "foreign checkpoint": ("m.pt", other_checkpoints, read_model, 151),
    "run.json": ("cams/run.json", records, read_record, 150),
    "run.json, edited": ("cams/run.json", other_records, read_record, 150),
    "run.json at a start": ("cams/run.json", other_records, read_own_record, 60),
}
