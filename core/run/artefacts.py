"""What the directory of a run holds, as other stages read it: finished, whole and unchanged."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from core import files
from core.data import images
from core.data.datasets import DataRoot, class_difference
from core.errors import InputError
from core.run import distributed
from core.run.environment import git_commit, versions

# What a directory holds, and the ending of its files.
HOLDS = {"model": "model.pt", "scores": ".npz", "labels": ".png"}
# The list of those files: what `sha256sum` writes, with a dash for each until the run has finished.
SUMS = "SHA256SUMS"
NOTED = ("torch", "cuda", "this project")  # versions whose change is worth a line


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of the files that a run makes."""
    text = files.read_text(folder / SUMS, "make the directory again: its run is of an old version")
    sums = {name: digest for digest, _, name in (s.partition("  ") for s in text.splitlines())}
    if any(Path(name).name != name for name in sums):
        raise InputError(f"{folder / SUMS}: lists what is no file of this directory; make it again")
    return sums


def write_sums(folder: Path, sums: dict[str, str]) -> None:
    files.write_text(folder / SUMS, "".join(f"{d}  {name}\n" for name, d in sums.items()))


def _checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    names = list(names)
    return dict(zip(names, files.checksums(folder / name for name in names), strict=True))


def seal(folder: Path, names: Iterable[str]) -> str:
    """Write the check sums of what a directory holds; returns its digest, for the run.json."""
    sums = _checksums(folder, names)
    write_sums(folder, sums)
    return files.digest_text(sums.values())


def read(
    folder: Path, holds: str, classes: Sequence[str] | None, ids: Sequence[str] = ()
) -> dict[str, Any]:
    """The run.json of a finished directory that a stage reads, whichever stage made it.

    Args:
        holds: what the reader needs: "model", "scores" or "labels".
        classes: the class names of the data set; None takes any.
        ids: the images whose files the reader needs.

    Raises:
        InputError: it holds something else or not all of the images, is not finished, has other
            classes, or its files have changed since.
    """
    record = files.read_json(folder / "run.json", f"give a directory of {holds}")
    if record.get("holds") != holds:
        made = f"{record.get('holds') or 'something else'} (made by {record.get('stage')})"
        raise InputError(f"{folder}: holds {made}; give a directory of {holds}")
    if record.get("finished") is not True:
        raise InputError(f"{folder}: not finished; start {record.get('stage')} again")
    theirs = record.get("classes")
    if not isinstance(theirs, list) or not all(isinstance(name, str) for name in theirs):
        raise InputError(f"{folder / 'run.json'}: no `classes`, a list of names; add it")
    if classes is not None and theirs != list(classes):
        raise InputError(f"{folder}: {class_difference(theirs, classes)}")
    sums = read_sums(folder)
    for image_id in ids:
        if f"{image_id}{HOLDS[holds]}" not in sums:
            raise InputError(
                f"{folder}: made of other images: {image_id!r} is not among them; make it of this "
                "--split"
            )
    remedy = f"restore it or start {record.get('stage')} again with --overwrite"
    if record.get("digest") != files.digest_text(sums.values()):
        raise InputError(f"{folder / SUMS}: changed since its run finished; {remedy}")
    missing = next((name for name in sums if not (folder / name).is_file()), None)
    if missing is not None:
        raise InputError(f"{folder / missing}: deleted since its run finished; {remedy}")
    for name, digest in _checksums(folder, sums).items():
        if digest != sums[name]:
            raise InputError(f"{folder / name}: changed since its run finished; {remedy}")
    note_versions(folder, "made", record)
    repeat_warnings(folder, record)
    return record


def read_labels(
    folder: Path, ids: Sequence[str], data: DataRoot, confident: bool | None = None
) -> str:
    """Digest of a directory of label maps: a stage's, or anyone's PNGs without a run.json.

    Args:
        confident: whether the labels should be those of make_affinity_labels, of pixels that the
            CAMs are confident of; others are taken with a note. None: whichever.

    Raises:
        InputError: see `read`; the label map of an id is missing; none holds a class, but 255.
    """
    paths = [folder / f"{i}.png" for i in ids]
    if (folder / "run.json").exists():
        made = read(folder, "labels", data.classes, ids)
        digest = made["digest"]
        stage = made.get("stage", "hand")
        if confident is not None and confident != (stage == "make_affinity_labels"):
            usual = "make_affinity_labels" if confident else "make_pseudo_labels"
            note(f"{folder}: made by {stage}; usual are labels of {usual}")
    else:
        digest = files.digest_files(paths)
    images.check_classes(paths, data.background)
    return digest


def read_model(path: Path, classes: Sequence[str] | None = None) -> str:
    """Digest of a checkpoint; checked like a directory where a run.json lies beside `model.pt`."""
    if path.name == HOLDS["model"] and path.with_name("run.json").exists():
        return read(path.parent, "model", classes)["digest"]
    return files.digest_text([files.checksum(path)])  # as if it were alone in its directory


def note_versions(folder: Path, what: str, record: dict[str, Any]) -> None:
    """Say what has changed on the machine since a directory was made, in one line."""
    before = mapping(record, "versions") | {"this project": record.get("git")}
    now = versions() | {"this project": git_commit()}
    changed = {k: (before.get(k), now[k]) for k in NOTED if before.get(k) != now[k]}
    if changed:
        words = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
        note(f"{folder}: {what} with another version ({words})")


def repeat_warnings(folder: Path, record: dict[str, Any]) -> None:
    """Say what was amiss when a directory was made, to who reads it or makes it."""
    lines = mapping(record, "results").get("warnings")
    for line in lines if isinstance(lines, list) and distributed.is_main() else ():
        print(f"warning: {folder}: {line}", file=sys.stderr)


def note(words: str) -> None:
    if distributed.is_main():
        print(f"note: {words}", file=sys.stderr)


def mapping(record: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a record, empty where it is not what it should be."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}
