"""Somebody's pictures: finding them below folders, naming them, telling which one a label means."""

import hashlib
import os
import re
import shutil
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from core import files
from core.data import images
from core.errors import InputError

REFUSED = (".heic", ".heif", ".avif", ".gif", ".jfif", ".jp2", ".psd", ".svg", ".dng")
ENDINGS = (*images.ENDINGS, *REFUSED)
LABELS = (".json", ".xml", ".csv", ".tsv", ".txt")
KEPT = {form: (".jpg", ".jpeg", ".png") for form in ("JPEG", "MPO", "PNG")}  # others become PNGs


class Picture(NamedTuple):
    """A file, and its path below the folder that was given, with slashes."""

    path: Path
    name: str

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return self.name[: -len(self.path.suffix)]


class Probe(NamedTuple):
    """What a look at a picture gave; size: (H, W) upright; turned: EXIF says to turn it."""

    size: tuple[int, int]
    turned: bool
    convert: bool
    pages: int = 1


def _refuse(error: OSError) -> None:
    raise error


def walk(source: Path, seen: set[Path]) -> Iterator[Path]:
    """The files below a folder, links followed; none in hidden folders or in those `seen`.

    Raises OSError for a folder that cannot be read: left out, its class would be missing.
    """
    for folder, inside, names in os.walk(source, onerror=_refuse, followlinks=True):
        here = Path(folder)
        if (real := here.resolve()) in seen:  # a link may lead in circles
            inside.clear()
            continue
        seen.add(real)
        inside[:] = [name for name in inside if not name.startswith((".", "__MACOSX"))]
        yield from (here / name for name in names if not name.startswith("."))


def find(sources: Iterable[Path], but: Sequence[Path]) -> list[Picture]:
    """The pictures below `sources`, sorted by name; none in hidden folders or `but`."""
    found, seen = [], {path.resolve() for path in but}
    for source in sources:
        if source.is_file():
            found.append(Picture(source, source.name))
            continue
        if not source.is_dir():
            raise InputError(f"{source}: no such folder or picture")
        for path in walk(source, seen):
            if path.suffix.lower() in ENDINGS:
                name = os.fsencode(path.relative_to(source)).decode("utf-8", "backslashreplace")
                found.append(Picture(path, name))
    return sorted(found, key=lambda picture: (picture.name, picture.path))


def others(sources: Iterable[Path], but: Sequence[Path]) -> list[str]:
    """The files in the folders of `sources` that no ending tells to be pictures or labels."""
    seen = {path.resolve() for path in but}
    known = (*ENDINGS, *LABELS)
    inside = (path for source in sources if source.is_dir() for path in walk(source, seen))
    strange = sorted(path for path in inside if path.suffix.lower() not in known)
    return [os.fsencode(path).decode("utf-8", "backslashreplace") for path in strange]


def ids_of(pictures: Iterable[Picture]) -> dict[Picture, str]:
    """An id for each: its name below the folder, without what a list or file name cannot hold."""
    ids: dict[Picture, str] = {}
    taken = set()
    for picture in pictures:
        stem = unicodedata.normalize("NFC", picture.stem)
        safe = re.sub(r"[^\w.+=@()-]+", "_", stem).lstrip(".") or "picture"
        if len(safe.encode()) > 150:
            digest = hashlib.sha256(os.fsencode(picture.name)).hexdigest()[:8]
            safe = safe.encode()[-120:].decode("utf-8", "ignore").lstrip(".") + "_" + digest
        number, image_id = 1, safe
        while image_id.casefold() in taken:  # some file systems take A and a for one
            number += 1
            image_id = f"{safe}_{number}"
        taken.add(image_id.casefold())
        ids[picture] = image_id
    return ids


class Index:
    """Finds a picture by what a label file calls it: with folders or an ending, or without.

    Where both have folders, one path must end in the other: of `a/1.jpg`, `b/1.jpg` is no name.
    """

    def __init__(self, pictures: Iterable[Picture]):
        # As it is written first, then in any case; whole names before their ends.
        self.maps: list[tuple] = []
        for spelled in (_same, _any_case):
            whole, tails = defaultdict(set), defaultdict(set)
            for picture in pictures:
                for text in (picture.name, picture.stem):
                    whole[spelled(text)].add(picture)
                    parts = spelled(text).split("/")
                    for i in range(1, len(parts)):
                        tails["/".join(parts[i:])].add(picture)
            self.maps.append((spelled, whole, tails))

    def candidates(self, name: str) -> set[Picture]:
        """The pictures that `name` may mean."""
        name = re.sub(r"^(\./|[A-Za-z]:)?/*", "", name.replace("\\", "/"))
        stem = re.sub(r"\.\w{2,4}$", "", name) if name.lower().endswith(ENDINGS) else name
        for spelled, whole, tails in self.maps:
            for text in (spelled(name), spelled(stem)):
                parts = text.split("/")
                for i in range(len(parts)):
                    if found := whole.get("/".join(parts[i:])):
                        return found
                if found := tails.get(text):
                    return found
        return set()

    def knows(self, name: str) -> bool:
        """Whether `name` means a picture."""
        return bool(name) and bool(self.candidates(name))

    def find(self, names: Iterable[str], source: Path) -> Picture | None:
        """The picture of the first name that means one; InputError where it means several."""
        for name in filter(None, names):
            found = sorted(self.candidates(name))
            if len(found) > 1:
                which = f"{name!r} may be {found[0].name} or {found[1].name}"
                remedy = "write the folders and the ending as well"
                if found[0].name == found[1].name:
                    which = f"{name!r} may be {found[0].path} or {found[1].path}"
                    remedy = "give the folder above both in place of them"
                raise InputError(f"{source}: {which}; {remedy}")
            if found:
                return found[0]
        return None


def _same(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _any_case(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def probe(picture: Picture) -> Probe:
    """Decode a picture; InputError for one that is damaged or of a form that is not taken."""
    path = picture.path
    if (ending := path.suffix.lower()) in REFUSED:
        other = f"{ending} is not read; save a copy as {images.FORMS}"
        raise InputError(f"{path}: {images.TO_CONVERT if ending in REFUSED[:3] else other}")
    with images.open_checked(path) as image:
        pages = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
        turned = images.orientation(image) > 1
        kept = KEPT.get(image.format, ())
    height, width = images.read_image(path).shape[1:]
    return Probe((height, width), turned, path.suffix.lower() not in kept, pages)


def write(picture: Picture, what: Probe, upright: bool, stem: Path) -> None:
    """Copy or convert a picture to `stem` and an ending; upright: turn it as its EXIF says."""
    if what.convert or (upright and what.turned):
        png = stem.with_name(stem.name + ".png")
        images.write_png(png, images.as_array(images.read_image(picture.path)))
        return
    path = stem.with_name(stem.name + picture.path.suffix.lower())
    with files.naming(path):
        shutil.copyfile(picture.path, path)
