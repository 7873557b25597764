"""VOC in the forms that others keep: masks as a zip or a folder, in colours; parquet files."""

import io
import lzma
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data import images
from core.data.datasets import VOC_CLASSES, DataRoot, check_name
from core.errors import InputError, first_line
from core.files import atomic_path, write_text
from core.progress import Bar
from tools import prepare_voc

import numpy as np
from PIL import Image

# What zipfile raises for damaged, encrypted or oddly packed files.
UNPACKING = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, OSError, EOFError)
MAX_BYTES = 64 << 20  # of one picture in an archive or a parquet file
N_LABELS = len(VOC_CLASSES) + 1
COLOURS = {tuple(images.VOC_COLOURS[i].tolist()): i for i in (*range(N_LABELS), images.IGNORE)}


def open_bytes(data: bytes, name: str) -> Image.Image:
    """A JPEG or PNG that is in memory, decoded. Raises InputError naming it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
            if image.width * image.height > images.MAX_PIXELS:
                raise InputError(f"{name}: more than {images.MAX_PIXELS} pixels")
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        raise InputError(f"{name}: not a readable JPEG or PNG; replace it") from None
    return image


def as_label(data: bytes, name: str) -> np.ndarray:
    """The label map, uint8 (H, W), in a PNG: of indices, grey, or in VOC's colours.

    Raises InputError for another picture, and for labels or colours that VOC has not.
    """
    image = open_bytes(data, name)
    if image.format != "PNG":
        raise InputError(f"{name}: a JPEG's colours are no labels; give the PNGs")
    if image.mode in ("L", "I", "I;16", "1"):
        label = np.asarray(image).astype(np.int64)
    elif image.mode in ("P", "RGB", "RGBA"):
        colours, where = np.unique(
            np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0, return_inverse=True
        )
        meant = [COLOURS.get(tuple(colour)) for colour in colours.tolist()]
        if None not in meant:  # also of a palette that was saved again, at other indices
            label = np.array(meant)[where].reshape(image.height, image.width)
        elif image.mode == "P":
            label = np.asarray(image).astype(np.int64)
        else:
            wrong = tuple(colours[meant.index(None)].tolist())
            raise InputError(f"{name}: colour {wrong} is none of VOC's; give maps of indices")
    else:
        raise InputError(f"{name}: of mode {image.mode}; give grey or palette PNGs")
    wrong = label[(label < 0) | ((label >= N_LABELS) & (label != images.IGNORE))]
    if wrong.size:
        raise InputError(f"{name}: label {wrong[0]} is outside VOC's {N_LABELS} (255 = ignore)")
    return label.astype(np.uint8)


def _pngs(path: Path) -> Iterator[tuple[str, Any]]:
    """(name, a function that reads it) of each PNG of a folder or zip, however deep."""
    if path.is_dir():
        for file in sorted(path.rglob("*.png")):
            yield str(file), file.read_bytes
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                hidden = info.filename.startswith("__MACOSX") or "/._" in info.filename
                if info.filename.endswith(".png") and not hidden and info.file_size < MAX_BYTES:
                    yield f"{path}/{info.filename}", lambda info=info: _unzip(archive, info)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give SegmentationClassAug") from None
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path}: no zip, or damaged ({error}); get it again") from None


def _unzip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A file of a zip. Raises InputError for one that is damaged, encrypted, oddly packed."""
    try:
        return archive.read(info)
    except UNPACKING as error:
        why = "encrypted" if info.flag_bits & 1 else first_line(error)
        what = f"{archive.filename}/{info.filename}: cannot be unpacked ({why})"
        raise InputError(f"{what}; pack it or get it again") from None


def read_masks(path: Path, data: DataRoot) -> list[str]:
    """Write the masks at `path` of the data set's images to SegmentationClassAug.

    Those that are there stay. Returns what was left out, in words.
    """
    written, others, bad = 0, 0, []
    (data.root / prepare_voc.AUG).mkdir(exist_ok=True)
    for name, read in Bar(_pngs(path), desc="masks", unit="mask"):
        image_id = Path(name).stem
        target = data.mask_path(image_id, prepare_voc.AUG)
        if data.missing_images([image_id]):
            others += 1
        elif not target.exists():
            try:
                label, size = as_label(read(), name), images.image_size(data.image_path(image_id))
                if label.shape != size:
                    raise InputError(f"{name}: mask {label.shape}, image {size} (height, width)")
                images.write_label(target, label)
                written += 1
            except InputError as error:
                bad.append(str(error))
    print(f"{data.root / prepare_voc.AUG}: {written} masks from {path}")
    words = [f"{path}: {others} masks of images that are not here"] if others else []
    if bad:
        words.append(f"{path}: {len(bad)} masks cannot be used, the first: {bad[0]}")
    elif not written and not any((data.root / prepare_voc.AUG).iterdir()):
        words.append(f"{path}: no PNG of any image of {data.root}")
    return words


def read_parquet(path: Path, root: Path) -> None:
    """Write the devkit of parquet files of `id`, `image` and `mask`, as Hugging Face keeps them.

    The class labels are the published ones: the files have none. What is there stays.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError("--parquet: reading it needs pyarrow: pip install pyarrow") from None
    paths = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not paths:
        raise InputError(f"{path}: holds no .parquet files")
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    with Bar(desc="parquet", unit="image") as bar:
        for file in paths:
            try:
                table = ParquetFile(file)
                names = table.schema_arrow.names
                if not {"id", "image", "mask"} <= set(names):
                    found = ", ".join(names)[:200]
                    raise InputError(f"{file}: has the columns {found}; wanted: id, image, mask")
                for batch in table.iter_batches(64, columns=["id", "image", "mask"]):
                    for row in batch.to_pylist():
                        _write_row(row, file, root)
                        bar.update()
            except FileNotFoundError:
                raise InputError(f"{file}: no such file") from None
            except ArrowException as error:
                what = first_line(error)
                raise InputError(f"{file}: damaged or no parquet ({what})") from None
    if not (root / "Annotations").is_dir() and not (root / "labels.txt").exists():
        write_text(root / "labels.txt", (prepare_voc.LISTS / "image_labels.txt").read_text())
        print(f"{root / 'labels.txt'}: the published classes")


def _write_row(row: dict[str, Any], file: Path, root: Path) -> None:
    """Write the picture and the mask of a row."""
    name = Path(str(row["id"])).name
    image_id = check_name(name.removesuffix(".jpg").removesuffix(".png"), file, "id")
    parts = {}
    for part in ("image", "mask"):
        value = row[part]["bytes"] if isinstance(row[part], dict) else row[part]
        if value is not None and not isinstance(value, bytes):
            raise InputError(f"{file}: {part} of {image_id!r} is no picture's bytes")
        parts[part] = value
    if parts["image"] is None:
        raise InputError(f"{file}: {image_id!r} has no picture; its bytes must be in the file")
    picture = open_bytes(parts["image"], f"{file}: {image_id}")
    target = root / "JPEGImages" / f"{image_id}.{'jpg' if picture.format == 'JPEG' else 'png'}"
    if not target.exists():
        with atomic_path(target) as temporary:
            temporary.write_bytes(parts["image"])
    mask = root / "SegmentationClass" / f"{image_id}.png"
    if parts["mask"] is not None and not mask.exists():
        images.write_label(mask, as_label(parts["mask"], f"{file}: mask of {image_id}"))
