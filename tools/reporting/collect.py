"""What lies in run folders: steps (run.json, log.jsonl) and evaluations, read and checked."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import files
from core.errors import InputError
from tools import steps
from tools.reporting.published import VARIANTS
from tools.steps import Step


@dataclass
class Pipeline:
    """One run of the pipeline, whole or in part: a directory with the steps' directories in it.

    Attributes:
        records: directory -> its run.json. logs: directory -> the rows of its log.jsonl.
        scores: evaluation -> its JSON. failed: why it stopped.
    """

    path: Path
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: str | None = None

    @property
    def name(self) -> str:
        """`seed1` of `small/resnet50/seed1/all`; without a seed the last folder."""
        parts = self.path.resolve().parts
        return next((p for p in reversed(parts) if re.fullmatch(r"seed\d+", p)), parts[-1])

    @property
    def classifier(self) -> dict[str, Any]:
        """The classifier's record, whose settings say which row of the paper this is."""
        known = (r for r in self.records.values() if "p_cls" in mapping(r.get("settings")))
        return next(known, {})

    @property
    def data(self) -> str:
        """The data root its steps were given; "" where none says."""
        roots = (mapping(record.get("arguments")).get("data") for record in self.records.values())
        return next((str(shown(Path(str(root)))) for root in roots if root), "")

    def miou(self, evaluation: str) -> float | None:
        """The mIoU of an evaluation, None where there is none."""
        return number(self.scores.get(evaluation, {}).get("miou"))

    def setting(self, step: Step, name: str, default: str) -> str:
        """A setting of a step's evaluation, else of the step itself."""
        evaluation = mapping(mapping(self.scores.get(step.figures)).get("run"))
        for record in (evaluation, self.records.get(step.name, {})):
            if value := mapping(record.get("settings")).get(name):
                return str(value)
        return default


@dataclass
class Row:
    """Runs that differ in the seed alone; `variant` and `backbone` are "" where nothing says."""

    path: str
    seeds: list[Pipeline]
    variant: str
    backbone: str

    def having(self, step: Step) -> Pipeline | None:
        """The first seed with the step's directory."""
        return next((p for p in self.seeds if step.name in p.records), None)

    def values(self, evaluation: str) -> list[float]:
        """Its mIoU of every seed that has one."""
        return [value for p in self.seeds if (value := p.miou(evaluation)) is not None]


@dataclass
class Family:
    """Rows that belong side by side: siblings with different losses, as plain and Puzzle-CAM."""

    name: str
    rows: list[Row]


def number(value: Any) -> float | None:
    """A finite number as it is, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else None  # an int may be too long for a float


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object as it is, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def shown(path: Path) -> Path:
    """A path as a person names it: from the working directory, if it lies there."""
    inside = path.resolve().is_relative_to(Path.cwd())
    return Path(os.path.relpath(path)) if inside else path


def collect(roots: list[Path], warnings: list[str]) -> list[Family]:
    """Read the run folders; what is damaged gets a line in `warnings` and is left out.

    Raises:
        InputError: a root is no directory.
    """
    rows: dict[str, list[Pipeline]] = {}
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root}: no such directory; give folders of runs")
        found = _pipelines(shown(root), warnings)
        if not found:
            warnings.append(f"{root}: no runs in it")
        for pipeline in found:
            same = rows.setdefault(re.sub(r"\bseed\d+\b", "seed*", str(pipeline.path)), [])
            if all(pipeline.path.resolve() != other.path.resolve() for other in same):
                same.append(pipeline)
    siblings_in: dict[Path, list[Row]] = {}
    for path, seeds in rows.items():
        siblings_in.setdefault(Path(path).parent, []).append(_row(path, seeds))
    result = []
    for parent, siblings in siblings_in.items():
        variants = [row.variant for row in siblings]
        if len(set(variants)) < len(variants):  # two of a kind: strangers in one folder
            result += [Family(row.path, [row]) for row in siblings]
            continue
        siblings.sort(key=lambda row: [*VARIANTS, ""].index(row.variant))
        name = siblings[0].path if len(siblings) == 1 else str(parent)
        result.append(Family(name.replace("/seed*", ""), siblings))
    return result


def _by_numbers(name: str) -> list[str | int]:
    """A key that sorts seed2 before seed10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _row(path: str, seeds: list[Pipeline]) -> Row:
    """A row is known by its classifier's settings; one that failed before, by its folders."""
    settings = next((p.classifier["settings"] for p in seeds if p.classifier), None)
    if settings is not None:
        switches = bool(settings["p_cls"]), bool(settings.get("re"))
        variant = next(key for key, each in VARIANTS.items() if each.switches == switches)
        return Row(path, seeds, variant, str(settings.get("backbone", "")))
    backbone, *rest = Path(path).parts[-3:]
    variant = rest[-1] if rest and rest[-1] in VARIANTS else ""
    return Row(path, seeds, variant, backbone if rest[:1] == ["seed*"] else "")


def _pipelines(root: Path, warnings: list[str]) -> list[Pipeline]:
    """Every run below a folder; data sets and what lies inside a run are passed over."""
    if (root / "run.json").is_file():  # a step alone
        return [_read(root.parent, [root.name], warnings)]
    found = []
    for folder, names, _ in os.walk(root):
        path = Path(folder)
        if "JPEGImages" in names:
            names.clear()
            continue
        names[:] = sorted((n for n in names if n[0] != "."), key=_by_numbers)
        pipeline = _read(path, names, warnings)
        if pipeline.records:
            names.clear()
        if pipeline.records or pipeline.scores or pipeline.failed is not None:
            found.append(pipeline)
    return found


def _read(path: Path, names: list[str], warnings: list[str]) -> Pipeline:
    pipeline = Pipeline(path)
    order = [step.name for step in steps.STEPS]  # those of no known step come last
    known = sorted(names, key=lambda n: order.index(n) if n in order else len(order))
    for folder in (path / name for name in known):
        if (folder / "run.json").is_file() and (record := _json(folder / "run.json", warnings)):
            pipeline.records[folder.name] = record
            if (folder / "log.jsonl").is_file():
                pipeline.logs[folder.name] = read_log(folder / "log.jsonl", warnings)
    for file in sorted(path.glob("*.json")):
        record = _json(file, warnings)
        if number(record.get("miou")) is not None:
            pipeline.scores[file.stem] = record
        elif "miou" in record:
            warnings.append(f"{file}: its mIoU is not a number; left out")
    pipeline.failed = _reason(path / "failed.txt")
    return pipeline


def _reason(path: Path) -> str | None:
    """First line of the failed.txt that the tables leave; None where there is none."""
    if not path.is_file():
        return None
    text = path.read_bytes()[:300].decode("utf-8", "replace").strip()
    return text.splitlines()[0] if text else "no reason given"


def read_log(path: Path, warnings: list[str]) -> list[dict[str, float]]:
    """The rows of a log.jsonl, their finite numbers; damaged lines are counted in a warning."""
    rows, damaged = [], 0
    try:
        lines = files.read_text(path, "make it again").splitlines()
    except InputError as error:
        warnings.append(str(error))
        return []
    for line in lines:
        try:
            row = mapping(json.loads(line))
        except (ValueError, RecursionError):
            row = {}
        values = {key: value for key, each in row.items() if (value := number(each)) is not None}
        if "step" in values:
            rows.append(values)
        else:
            damaged += bool(line.strip())
    if damaged:
        warnings.append(f"{path}: {damaged} damaged lines left out")
    return rows


def _json(path: Path, warnings: list[str]) -> dict[str, Any]:
    try:
        return files.read_json(path, "make it again")
    except (InputError, OSError) as error:
        warnings.append(str(error))
        return {}
