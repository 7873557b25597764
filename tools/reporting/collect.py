"""What lies in run folders: stages (run.json, log.jsonl) and evaluations, read and checked."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import files
from core.errors import InputError
from tools.reporting.published import TABLES

TABLE_KEYS = tuple(table.key for table in TABLES)


@dataclass
class Folder:
    """One run of the pipeline: a seed of a table's row, or any folder of stages.

    Attributes:
        stages: directory name -> its run.json. scores: evaluation's name -> its JSON.
        logs: directory name -> the rows of its log.jsonl. failed: why the row stopped.
        test_failed: why the submission for the test split was not made.
    """

    path: Path
    name: str
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failed: str | None = None
    test_failed: str | None = None

    def miou(self, measure: str) -> float | None:
        """The mIoU of an evaluation, None where there is none."""
        return number(self.scores.get(measure, {}).get("miou"))

    def stage_folder(self, name: str, stage: str) -> Path | None:
        """The directory of a stage: the one of that name, else the first made by that stage."""
        if self.stages.get(name, {}).get("stage") == stage:
            return self.path / name
        named = (n for n, record in self.stages.items() if record.get("stage") == stage)
        return next((self.path / n for n in named), None)


@dataclass
class Group:
    """What one run folder given on the command line holds.

    Attributes:
        tables: table -> row -> seeds. others: runs outside the tables.
    """

    root: Path
    tables: dict[str, dict[str, list[Folder]]] = field(default_factory=dict)
    others: list[Folder] = field(default_factory=list)


def number(value: Any) -> float | None:
    """A finite number as it is, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object as it is, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def collect(roots: list[Path], warnings: list[str]) -> list[Group]:
    """Read the run folders; what is damaged gets a line in `warnings` and is left out.

    Raises:
        InputError: a root is no directory.
    """
    groups = []
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root}: no such directory; give folders of runs")
        group = Group(root)
        tables = [root] if root.name in TABLE_KEYS else [root / key for key in TABLE_KEYS]
        for table in filter(Path.is_dir, tables):
            group.tables[table.name] = _rows(table, warnings)
        others = [] if root.name in TABLE_KEYS else [root, *_folders(root)]
        for path in others:
            if path != root and (path.name in TABLE_KEYS or (path / "run.json").is_file()):
                continue  # a stage belongs to its root
            folder = read_folder(path, path.resolve().name, warnings)
            if folder.stages or folder.scores:
                group.others.append(folder)
        if not group.tables and not group.others:
            warnings.append(f"{root}: no runs in it")
        groups.append(group)
    return groups


def _rows(table: Path, warnings: list[str]) -> dict[str, list[Folder]]:
    rows = {}
    for row in _folders(table):
        seeds = [(re.fullmatch(r"seed(\d+)", path.name), path) for path in _folders(row)]
        ordered = sorted((int(match[1]), path) for match, path in seeds if match)
        if ordered:
            rows[row.name] = [read_folder(path, path.name, warnings) for _, path in ordered]
    return rows


def read_folder(path: Path, name: str, warnings: list[str]) -> Folder:
    """Read the stages and evaluations right below `path`; or `path` itself, if it is a stage."""
    folder = Folder(path, name)
    for directory in [path, *_folders(path)]:
        if (directory / "run.json").is_file():
            _read_stage(folder, directory, warnings)
    for file in sorted(path.glob("*.json")):
        record = _read_json(file, warnings) if file.name != "run.json" else {}
        if number(record.get("miou")) is not None:
            folder.scores[file.stem] = record
        elif "miou" in record:
            warnings.append(f"{file}: its mIoU is not a number; left out")
    folder.failed = _reason(path / "failed.txt")
    folder.test_failed = _reason(path / "test" / "failed.txt")
    return folder


def _reason(path: Path) -> str | None:
    """First line of the failed.txt that a table script leaves; None where there is none."""
    if not path.is_file():
        return None
    text = path.read_bytes()[:300].decode("utf-8", "replace").strip()
    return text.splitlines()[0] if text else "no reason given"


def _read_stage(folder: Folder, directory: Path, warnings: list[str]) -> None:
    record = _read_json(directory / "run.json", warnings)
    if not record:
        return
    folder.stages[directory.name] = record
    log = directory / "log.jsonl"
    if log.is_file():
        folder.logs[directory.name] = read_log(log, warnings)


def read_log(path: Path, warnings: list[str]) -> list[dict[str, float]]:
    """The rows of a log.jsonl, their finite numbers; damaged lines are counted in a warning."""
    rows, damaged = [], 0
    try:
        lines = files.read_text(path, "make it anew").splitlines()
    except InputError as error:
        warnings.append(str(error))
        return []
    for line in lines:
        try:
            row = mapping(json.loads(line))
        except (json.JSONDecodeError, RecursionError):
            row = {}
        values = {key: value for key, each in row.items() if (value := number(each)) is not None}
        if "step" in values:
            rows.append(values)
        else:
            damaged += bool(line.strip())
    if damaged:
        warnings.append(f"{path}: {damaged} damaged lines left out")
    return rows


def _read_json(path: Path, warnings: list[str]) -> dict[str, Any]:
    try:
        return files.read_json(path, "make it anew")
    except (InputError, OSError) as error:
        warnings.append(str(error))
        return {}


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
