"""Damaged and hostile files: every one is handled or refused in one line that names it.

Seeded and bounded: `REPEATS` mutated inputs a kind (2,900 in all) and the bombs of `BOMBS`. No
other exception, no hang, no memory blow-up, and no file runs code.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import resource
import signal
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_cams, write_data_root
from faults.stages import row
from PIL import Image
from torch import nn

from core import backbones, checkpoint, images, runlog
from core.cam import CamFile
from core.datasets import DataRoot, read_annotation
from core.errors import InputError
from core.networks import Classifier

LIMIT_SECONDS = 10  # for one input, on a busy machine
LIMIT_BYTES = 1 << 30  # by which the peak memory of this process may grow
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


class Hang(BaseException):
    """Not an Exception: no reader may swallow it."""


@contextmanager
def bounded() -> Iterator[None]:
    """A time limit and a memory limit around reading one input."""

    def ring(*_: object) -> None:
        raise Hang(f"over {LIMIT_SECONDS} s")

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    assert grown < LIMIT_BYTES, f"memory grew by {grown >> 20} MiB"


def refusal(read: Callable[[Path], object], path: Path) -> str | None:
    """The message with which `read` refuses the file; None where it takes it."""
    try:
        with bounded():
            read(path)
    except InputError as error:
        message = str(error)
        assert len(message.splitlines()) == 1 and len(message) < 3000, message[:300]
        assert path.name in message or str(path.parent) in message, message[:300]
        return message
    return None


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


class Tiny(nn.Module):
    """A network small enough to be saved a thousand times."""

    def __init__(self, width: int):
        super().__init__()
        self.arguments = {"width": width}
        self.layer = nn.Linear(width, 2)


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
    CamFile([1, 3], cam, (48, 64)).save(folder / "good.npz")
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


RECORD = {
    "stage": "make_cam",
    "settings": {"split": "train", "scales": [0.5, 1.0]},
    "inputs": {"data": "0123456789abcdef", "checkpoint": "fedcba9876543210"},
    "seconds": 12.5,
    "finished": True,
    "results": {"images": 8},
}
OPTIONS = argparse.Namespace(
    split="train", scales=[0.5, 1.0], out=None, overwrite=False, stale="refuse"
)


def read_list(path: Path) -> None:
    DataRoot(path.parents[2]).ids(path.stem)


def read_labels(path: Path) -> None:
    DataRoot(path.parent).image_labels(["train0", "train1"])


def read_cam(path: Path) -> None:
    CamFile.load(path, 3, (48, 64))


def read_model(path: Path) -> None:
    checkpoint.load_model(path, Tiny, ["a", "b"])


def read_record(path: Path) -> None:
    runlog.outputs_digest(path.parent, "*.npz", "make_cam")


def read_own_record(path: Path) -> None:
    """The record of an earlier run in the same directory, as a stage's start reads it."""
    with runlog.Run("make_cam", path.parent, OPTIONS, torch.device("cpu"), RECORD["inputs"]):
        pass


# kind -> file in the data root, good files, reader, number of mutated inputs
REPEATS = {
    "image JPEG": ("JPEGImages/train0.jpg", jpegs, images.read_image, 350),
    "image PNG": ("JPEGImages/p.png", pngs, images.read_image, 250),
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


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A data root with every kind of file, its directory of CAMs, and an address space limit."""
    write_data_root(tmp_path / "data")
    (tmp_path / "data/Annotations").mkdir()
    write_cams(tmp_path / "data", tmp_path / "data/cams")
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 3 * LIMIT_BYTES, before[1]))
    yield tmp_path / "data"
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", REPEATS)
def test_mutated(root, kind):
    where, make, read, repeats = REPEATS[kind]
    path = root / where
    good = make(root)
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    ready_made = make in (other_checkpoints, other_records)
    refused, wrong = 0, []
    for number in range(repeats):
        data = good[number % len(good)]
        path.write_bytes(data if ready_made else damaged(data, rng))
        try:
            refused += refusal(read, path) is not None
        except (Exception, Hang) as error:
            wrong.append(f"input {number}: {type(error).__name__}: {str(error)[:200]}")
    outcome = f"{refused} refused in one line, {repeats - refused} read"
    row(f"damaged {kind}", "seeded mutations", repeats, outcome)
    assert not wrong, f"{len(wrong)} of {repeats}: " + "; ".join(wrong[:5])
    assert refused >= repeats // 10, f"only {refused} of {repeats} refused: a mutation that is none"


def test_enough_inputs():
    assert sum(entry[3] for entry in REPEATS.values()) >= 2000


def png_header(width: int, height: int, text: int = 0) -> bytes:
    """A palette PNG of that size with little in it, and `text` zeros in a compressed comment."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(6)),
        (b"zTXt", b"k\0\0" + zlib.compress(bytes(text), 1)),
        (b"IDAT", zlib.compress(bytes(10**6))),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def jpeg_header(data: bytes, width: int, height: int) -> bytes:
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def npz(path: Path, cam: bytes) -> None:
    """A CAM file whose `cam.npy` is these bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in (("classes", np.uint8([1])), ("size", np.int64([48, 64]))):
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())
        archive.writestr("cam.npy", cam)


def cam_header(shape: str, dtype: str = "<f2") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"


def lying_zip(path: Path, data: bytes) -> None:
    """A zip whose directory understates the size of its largest member."""
    npz(path, npy(cam_header("(1, 12, 16)"), data))
    archive = bytearray(path.read_bytes())
    place = archive.rindex(b"PK\x01\x02")  # the last member's entry
    struct.pack_into("<I", archive, place + 24, 100)
    path.write_bytes(bytes(archive))


class Exploit:
    """Unpickling it makes a file named `pwned`."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def pickled_npz(path: Path) -> None:
    np.savez(path, classes=np.uint8([1]), cam=np.array([Exploit()]), size=np.int64([48, 64]))


def packed_checkpoint(path: Path) -> None:
    """A checkpoint whose storage is 1 GB of zeros packed into some MB."""
    source = zipfile.ZipFile(io.BytesIO(torch_bytes({"w": torch.zeros(4)})))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in source.namelist():
            if name.endswith("/data/0"):
                with archive.open(name, "w", force_zip64=True) as member:
                    for _ in range(1000):
                        member.write(bytes(10**6))
            else:
                archive.writestr(name, source.read(name))


def huge_network(path: Path) -> None:
    arguments = {"backbone": "resnet18", "n_classes": 10**9}
    value = {"network": "Classifier", "arguments": arguments, "classes": ["a"], "weights": {}}
    torch.save(value, path)


def laughs(path: Path) -> None:
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    path.write_text(f'<!DOCTYPE x [<!ENTITY a0 "ha">{entities}]><annotation>&a11;</annotation>')


def twice_at_the_end(path: Path) -> None:
    path.write_text("\n".join([*map(str, range(200_000)), "199999"]))


def text(value: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(value, encoding="utf-8")


def raw(value: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(value())


def classifier(path: Path) -> None:
    checkpoint.load_model(path, Classifier, ["a"])


def backbone(path: Path) -> None:
    backbones.build("resnet18", path)


# name -> (file, what writes it, what reads it, part of the message)
CAM = "cams/c.npz"
BOMBS = {
    "PNG of 60000x60000": ("JPEGImages/b.png", raw(lambda: png_header(60000, 60000)),
                           images.read_image, "more than 80000000"),
    "mask of 60000x60000": ("SegmentationClass/b.png", raw(lambda: png_header(60000, 60000)),
                            lambda p: images.read_label(p, 4), "more than 80000000"),
    "PNG over PIL's warning": ("JPEGImages/b.png", raw(lambda: png_header(10000, 10000)),
                               images.read_image, "more than 80000000"),
    "PNG text of 200 MB": ("JPEGImages/b.png", raw(lambda: png_header(64, 64, 200 << 20)),
                           images.read_image, "damaged|not a readable"),
    "JPEG of 60000x60000": ("JPEGImages/b.jpg",
                            raw(lambda: jpeg_header(jpegs(Path())[0], 60000, 60000)),
                            images.read_image, "more than 80000000"),
    "JPEG of 8000x8000, cut": ("JPEGImages/b.jpg",
                               raw(lambda: jpeg_header(jpegs(Path())[0], 8000, 8000)[:900]),
                               images.read_image, "damaged"),
    "npz packed 1 GB": (CAM, lambda p: npz(p, bytes(1 << 30)), read_cam, "claims over"),
    "npz that understates": (CAM, lambda p: lying_zip(p, bytes(1 << 28)), read_cam, "damaged"),
    "npy of 1 TB": (CAM, lambda p: npz(p, npy(cam_header("(1, 1000000, 500000)"))), read_cam,
                    "damaged"),
    "npy of 2 GB": (CAM, lambda p: npz(p, npy(cam_header("(1, 32768, 32768)"))), read_cam,
                    "damaged"),
    "npy header that is code": (CAM, lambda p: npz(p, npy("__import__('os').mkdir('pwned')")),
                                read_cam, "damaged"),
    "npy header unfinished": (CAM, lambda p: npz(p, npy("{'descr': ('<f2', ")), read_cam,
                              "damaged"),
    "npy header nested": (CAM, lambda p: npz(p, npy("(" * 9000)), read_cam, "damaged"),
    "pickle in npz": (CAM, pickled_npz, read_cam, "damaged"),
    "bare pickle as npz": (CAM, raw(lambda: pickle.dumps(Exploit())), read_cam, "damaged"),
    "pickle in checkpoint": ("m.pt", lambda p: torch.save({"weights": Exploit()}, p), read_model,
                             "not a checkpoint"),
    "bare pickle as checkpoint": ("m.pt", raw(lambda: pickle.dumps(Exploit())), read_model,
                                  "not a checkpoint"),
    "pickle as --weights": ("w.pt", lambda p: torch.save({"conv1": Exploit()}, p), backbone,
                            "not a checkpoint"),
    "list as --weights": ("w.pt", lambda p: torch.save({"arguments": [], "weights": 3}, p),
                          backbone, "not a model.pt"),
    "checkpoint of 1 GB": ("m.pt", packed_checkpoint, read_model, "not a checkpoint"),
    "network of a billion classes": ("m.pt", huge_network, classifier, "another network"),
    "entity expansion": ("Annotations/b.xml", laughs, read_annotation, "DTD"),
    "external entity": ("Annotations/b.xml",
                        text('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'),
                        read_annotation, "DTD"),
    "deep XML": ("Annotations/b.xml", text("<a>" * 10**6), read_annotation, "damaged XML"),
    "XML of 5 MB": ("Annotations/b.xml", text(" " * (5 << 20)), read_annotation, "over 4 MiB"),
    "id climbs out": ("ImageSets/Segmentation/b.txt", text("../../etc/passwd\n"), read_list, "id"),
    "absolute id": ("ImageSets/Segmentation/b.txt", text("/etc/passwd\n"), read_list, "id"),
    "id of 10 MB": ("ImageSets/Segmentation/b.txt", text("x" * 10**7), read_list, "id"),
    "long list with one id twice": ("ImageSets/Segmentation/b.txt", twice_at_the_end, read_list,
                                    "'199999' is listed twice"),
    "class climbs out": ("classes.txt", text("dog\n../../cat\n"), lambda p: DataRoot(p.parent),
                         "class"),
    "class of 10 MB": ("labels.txt", text("train0 " + "x" * 10**7), read_labels, "unknown class"),
    "deep JSON": ("cams/run.json", text("[" * 10**6), read_record, "not JSON"),
    "number of 10,000 digits": ("cams/run.json", text('{"seconds": ' + "9" * 10**4 + "}"),
                                read_record, "not JSON"),
    "control characters": ("cams/run.json", text('{"stage": "a\\nerror: b"}'), read_record,
                           "made by"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bomb(root, monkeypatch, recwarn, name):
    where, write, read, message = BOMBS[name]
    write(root / where)
    monkeypatch.chdir(root)  # where a payload would leave its mark
    began = time.monotonic()
    said = refusal(read, root / where)
    assert said is not None and any(part in said for part in message.split("|")), said
    assert not list(root.rglob("pwned")) and time.monotonic() - began < LIMIT_SECONDS
    shown = [str(w.message) for w in recwarn if not issubclass(w.category, DeprecationWarning)]
    assert not shown


def test_unusual_names_work(tmp_path):
    """Spaces and letters of other scripts are no attack."""
    root = write_data_root(tmp_path / "data", classes=("Größe", "с пробелом"))
    names = ["ein Bild", "größe", "картинка.1"]
    for number, name in enumerate(names):
        (root / f"JPEGImages/train{number}.jpg").rename(root / f"JPEGImages/{name}.jpg")
    (root / "ImageSets/Segmentation/odd.txt").write_text("\n".join(names), encoding="utf-8")
    rows = "".join(f"{name}\tGröße\tс пробелом\n" for name in names)
    (root / "labels.txt").write_text(rows, encoding="utf-8")
    data = DataRoot(root)
    assert data.ids("odd") == names
    assert data.image_labels(names) == {name: [1, 2] for name in names}
    assert all(images.read_image(data.image_path(name)).shape == (3, 48, 64) for name in names)
