"""Hostile files: bombs, pickles, headers that lie, names that climb out of their directory."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from core.data import images
from core.data.datasets import DataRoot, read_annotation
from fuzz.mutations import jpegs, torch_bytes
from fuzz.reading import (
    backbone,
    classifier,
    read_cam,
    read_labels,
    read_list,
    read_model,
    read_record,
)

import numpy as np
import torch


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
    "deep XML": ("Annotations/b.xml", text("<a>" * 3 * 10**5), read_annotation, "damaged XML"),
    "XML of 5 MB": ("Annotations/b.xml", text(" " * (5 << 20)), read_annotation, "over 1 MiB"),
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
