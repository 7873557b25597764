"""What lies in run folders: steps (run.json, log.jsonl) and evaluations, read and checked."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import files, steps
from core.errors import InputError

AGAIN = "make it again"
VARIANTS = {  # in the order of L_p-cls + 2 L_re: the losses as in Table 1, the CAMs' title
    "cls": ("L_cls", "plain CAM"),
    "p_cls": ("L_cls + L_p-cls", "CAM, L_cls + L_p-cls"),
    "re": ("L_cls + L_re", "CAM, L_cls + L_re"),
    "all": ("L_cls + L_p-cls + L_re", "Puzzle-CAM"),
    "small": ("all three, L_re for small crops", "Puzzle-CAM, small crops"),
}
L_RE = {("keep", "raw"): "all", ("drop", "relative"): "small"}  # re_seams, re_scale of the run
Record = dict[str, Any]  # a JSON object whose parts that the report reads are of their kind


@dataclass
class Pipeline:
    """One run of the pipeline, whole or in part: a directory with the steps' directories in it."""

    path: Path
    records: dict[str, Record]  # directory -> its run.json, and as "log" the rows of log.jsonl
    scores: dict[str, Record]  # evaluation -> its JSON
    failed: str | None  # why it stopped
    classifier: Record | None = None  # its JSON of evaluate.py --classifier

    @property
    def name(self) -> str:
        """`seed1` of `small/resnet50/seed1/all`; without a seed the last folder."""
        parts = self.path.resolve().parts
        return next((p for p in reversed(parts) if re.fullmatch(r"seed\d+", p)), parts[-1])

    @property
    def data(self) -> str:
        """The data root its steps were given; "" where none says."""
        roots = (record["arguments"].get("data") for record in self.records.values())
        return next((str(shown(Path(str(root)))) for root in roots if root), "")


@dataclass
class Row:
    """Runs that differ in the seed alone; `variant` and `backbone` are "" where nothing says."""

    path: str
    seeds: list[Pipeline]
    variant: str
    backbone: str

    @property
    def title(self) -> str:
        """What it is called beside its siblings: its losses' name, else its folder's."""
        known = VARIANTS.get(self.variant)
        return known[1] if known else self.seeds[0].path.resolve().name

    @property
    def failed(self) -> int:
        """How many seeds failed."""
        return sum(p.failed is not None for p in self.seeds)

    @property
    def records(self) -> dict[str, list[Record]]:
        """Directory -> the run.json of every seed that has it."""
        names = dict.fromkeys(name for p in self.seeds for name in p.records)
        return {n: [p.records[n] for p in self.seeds if n in p.records] for n in names}

    def scores(self, evaluation: str) -> list[Record]:
        """An evaluation's JSON of every seed that has one."""
        return [p.scores[evaluation] for p in self.seeds if evaluation in p.scores]

    def values(self, evaluation: str) -> list[float]:
        """The mIoUs of an evaluation, in percent."""
        return [each["miou"] for each in self.scores(evaluation)]


@dataclass
class Family:
    """Rows that belong side by side: siblings with different losses, as plain and Puzzle-CAM."""

    name: str
    rows: list[Row]


def number(value: Any) -> float | None:
    """A finite number as it is, None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else None  # no int of many digits


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object as it is, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def shown(path: Path) -> Path:
    """A path as a person names it: from the working directory, if it lies there."""
    inside = path.resolve().is_relative_to(Path.cwd())
    return Path(os.path.relpath(path)) if inside else path


@contextlib.contextmanager
def noting(warnings: list[str], what: str = "") -> Iterator[None]:
    """Turn a bad or unreadable file into a warning; the rest of the block is left out."""
    try:
        yield
    except (InputError, OSError) as error:
        warnings.append(f"{what}{error}")


def collect(roots: list[Path], warnings: list[str]) -> list[Family]:
    """Read the run folders; what is damaged gets a line in `warnings` and is left out.

    Raises InputError where a root is no directory.
    """
    rows: dict[str, dict[Path, Pipeline]] = {}
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root}: no such directory; give folders of runs")
        found = list(_pipelines(shown(root), warnings))
        if not found:
            warnings.append(f"{root}: no runs in it")
        for pipeline in found:
            same = rows.setdefault(re.sub(r"\bseed\d+\b", "seed*", str(pipeline.path)), {})
            same.setdefault(pipeline.path.resolve(), pipeline)
    siblings_in: dict[Path, list[Row]] = {}
    for path, seeds in rows.items():
        siblings_in.setdefault(Path(path).parent, []).append(_row(path, [*seeds.values()]))
    result = []
    for parent, siblings in siblings_in.items():
        if len({row.variant for row in siblings}) < len(siblings):  # strangers in one folder
            result += [Family(row.path, [row]) for row in siblings]
            continue
        siblings.sort(key=lambda row: [*VARIANTS, ""].index(row.variant))
        name = siblings[0].path if len(siblings) == 1 else str(parent)
        result.append(Family(name.replace("/seed*", ""), siblings))
    return result


def _row(path: str, seeds: list[Pipeline]) -> Row:
    """A row is known by its classifier's settings; one that failed before, by its folders."""
    for record in (record for p in seeds for record in p.records.values()):
        if "p_cls" in (settings := record["settings"]):
            variant = [*VARIANTS][bool(settings["p_cls"]) + 2 * bool(settings.get("re"))]
            if variant == "all":
                kind = str(settings.get("re_seams", "keep")), str(settings.get("re_scale", "raw"))
                variant = L_RE.get(kind, "")
            return Row(path, seeds, variant, str(settings.get("backbone", "")))
    backbone, *rest = Path(path).parts[-3:]
    variant = rest[-1] if rest and rest[-1] in VARIANTS else ""
    return Row(path, seeds, variant, backbone if rest[:1] == ["seed*"] else "")


def _pipelines(root: Path, warnings: list[str]) -> Iterator[Pipeline]:
    """Every run below a folder; data sets and what lies inside a run are passed over."""
    if (root / "run.json").is_file():  # a step alone
        yield _read(root.parent, [root.name], warnings)
        return
    for folder, names, _ in os.walk(root):
        if "JPEGImages" in names:
            names.clear()
            continue
        visible = [name for name in names if name[0] != "."]  # seed2 comes before seed10
        names[:] = sorted(visible, key=lambda n: re.sub(r"\d+", lambda d: d[0].zfill(9), n))
        pipeline = _read(Path(folder), names, warnings)
        if pipeline.records:
            names.clear()
        if pipeline.records or pipeline.scores or pipeline.failed is not None:
            yield pipeline


def _read(path: Path, names: list[str], warnings: list[str]) -> Pipeline:
    made = Pipeline(path, {}, {}, None)
    order = [step.name for step in steps.STEPS]  # those of no known step come last
    for name in sorted(names, key=lambda n: order.index(n) if n in order else len(order)):
        file, log = path / name / "run.json", path / name / "log.jsonl"
        with noting(warnings):
            if file.is_file() and (read := files.read_json(file, AGAIN)):
                made.records[name] = _record(read)
                if log.is_file():
                    made.records[name]["log"] = read_log(log, warnings)
    for file in sorted(path.glob("*.json")):
        with noting(warnings):
            read = files.read_json(file, AGAIN)
            if number(read.get("miou")) is not None:
                made.scores[file.stem] = _scores(read)
            elif number(read.get("mean_average_precision")) is not None:
                made.classifier = read | {"run": _record(mapping(read.get("run")))}
            elif "miou" in read:
                warnings.append(f"{file}: its mIoU is not a number; left out")
    if (path / "failed.txt").is_file():  # tools/tables.py leaves it
        with noting(warnings):
            text = (path / "failed.txt").read_bytes()[:300].decode("utf-8", "replace").strip()
            made.failed = text.splitlines()[0] if text else "no reason given"
    return made


def _record(read: dict[str, Any]) -> Record:
    """A run.json: its objects, numbers, command line and machine; other values as they are."""
    made = {n: mapping(read.get(n)) for n in ("settings", "arguments", "results", "resolved")}
    argv = read.get("argv") if isinstance(read.get("argv"), list) else []
    seconds, processes = number(read.get("seconds")) or 0.0, number(read.get("processes")) or 1
    device = str(read.get("device_name") or read.get("device") or "?")
    machine = f"{processes:.0f} x {device}" if processes > 1 else device
    return read | made | {"argv": argv, "seconds": seconds, "machine": machine, "log": []}


def _scores(read: dict[str, Any]) -> Record:
    """An evaluation: figures, run, and the sweep as points (threshold, mIoU)."""
    sweep = read.get("sweep") if isinstance(read.get("sweep"), list) else []
    points = [tuple(number(mapping(s).get(key)) for key in ("threshold", "miou")) for s in sweep]
    return read | {
        "miou": number(read["miou"]),
        "threshold": number(read.get("threshold")),
        "iou": {name: number(each) for name, each in mapping(read.get("iou")).items()},
        "run": _record(mapping(read.get("run"))),
        "sweep": [point for point in points if None not in point],
    }


def read_log(path: Path, warnings: list[str]) -> list[dict[str, float]]:
    """The rows of a log.jsonl, their finite numbers; damaged lines are counted in a warning.

    Raises InputError where the file is no text.
    """
    rows = []
    lines = [line for line in files.read_text(path, AGAIN).splitlines() if line.strip()]
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            numbers = {key: number(value) for key, value in mapping(json.loads(line)).items()}
            rows.append({key: value for key, value in numbers.items() if value is not None})
    rows = [row for row in rows if "step" in row]
    if len(rows) < len(lines):
        warnings.append(f"{path}: {len(lines) - len(rows)} damaged lines left out")
    return rows
