"""Figures of runs as tables of text: results, stages, IoU per class; metrics.json; remarks."""

import os
import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from core import steps
from core.run.messages import duration
from core.steps import Step
from tools.reporting.collect import Family, Pipeline, Record, Row, mapping, number

Cells = tuple[list[str], list[list[str]]]  # headings, rows
METRICS = {"pseudo": "rw_crf", "val": "segmentation_val"}  # names metrics.json always had


def label(row: Row, step: Step) -> str:
    """What a step's result is called: CAMs by their classifier, later steps by their own title."""
    is_cam = step == next((s for s in steps.STEPS if s.makes_cams), None)
    return row.title if row.variant and is_cam else step.title


def mean(values: list[float]) -> str:
    """Mean, and standard deviation over the seeds where there are several; "" of none."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}" if values else ""


def unique(values: Iterable[Any], separator: str = ", ") -> str:
    """The values as text, each once, without None."""
    return separator.join(dict.fromkeys(str(v) for v in values if v is not None))


def evaluations(row: Row) -> dict[str, str]:
    """Evaluation -> label of all a row has, in the steps' order; others by their own names."""
    scored = {name for p in row.seeds for name in p.scores}
    known = [s for s in steps.STEPS if s.title and s.figures in scored]
    labels = {s.figures: label(row, s) for s in known}
    labels |= {s.figures: f"{s.title}, {s.split}" for s in known if s.split != "train"}
    return labels | {name: name for name in sorted(scored - labels.keys())}


def cells(lines: list[dict[str, str]]) -> Cells:
    """A table of lines, heading -> text; columns with nothing in them are left out."""
    heads = list(lines[0]) if lines else []
    kept = [head for head in heads if head == heads[0] or any(line[head] for line in lines)]
    return kept, [[line[head] for head in kept] for line in lines]


def results(family: Family) -> Cells:
    """A line for every evaluation; the change is against the step before, of CAMs the first row's.

    It is left out between figures of different images.
    """
    lines, first = [], {}
    for row in family.rows:
        before = None
        for name, text in evaluations(row).items():
            found, values = row.scores(name), row.values(name)
            base = before or first.get(name, (0.0, None))
            split = unique(each["run"]["settings"].get("split") for each in found)
            images = unique(each.get("images") for each in found)
            before = statistics.mean(values), (split, images)
            first.setdefault(name, before)
            chosen = (each["threshold"] for each in found)
            other = {key: [n for each in found if (n := number(mapping(each.get(key)).get("miou")))
                           is not None] for key in ("at_default", "at_auto")}  # fmt: skip
            edges = [n for each in found if (n := number(each.get("boundary_miou"))) is not None]
            line = {
                "": text,
                "mIoU": mean(values),
                "change": f"{before[0] - base[0]:+.2f}" if base[1] == before[1] else "",
                "threshold": unique(sorted(f"{t:.2f}" for t in chosen if t is not None)),
                "at the default": mean(other["at_default"]),
                "at auto": mean(other["at_auto"]),
                "boundary IoU": mean(edges),
                "masks used for": unique(each.get("masks_used_for") for each in found),
                "map": unique(each.get("map") for each in found),
                "split": split,
                "images": images,
                "seeds": str(len(values)) if len(row.seeds) > 1 else "",
            }
            lines.append(line)
    return cells(lines)


def stages(family: Family) -> Cells:
    """What every step took; seconds are a mean over the seeds."""
    lines, total = [], 0.0
    for row in family.rows:
        whose = f" ({row.title})" if row.variant not in ("", "all") else ""
        for name, records in row.records.items():
            seconds = [record["seconds"] for record in records]
            total += sum(seconds)
            finished = sum(record.get("finished") is True for record in records)
            line = {
                "stage": name + whose,
                "script": unique(record.get("stage") for record in records),
                "time": duration(statistics.mean(seconds)),
                "machine": unique((record["machine"] for record in records), " / "),
                "memory": peak(records, "gpu", "cpu"),
                "state": f"{finished} of {len(records)} finished",
            }
            lines.append(line | ({"state": ""} if finished == len(records) else {}))
    if lines:
        lines.append(dict.fromkeys(lines[0], "") | {"stage": "together", "time": duration(total)})
    return cells(lines)


def peak(records: list[Record], *kinds: str) -> str:
    """The largest memory a process took, of the first kind ("gpu", "cpu") of which any is told."""
    for kind in kinds:
        sizes = [number(record["results"].get(f"peak_{kind}_bytes")) or 0 for record in records]
        if any(sizes):
            return f"{max(sizes) / 2**30:.1f} GiB"
    return ""


def metrics(families: list[Family]) -> dict[str, Any]:
    """mIoU by name and seconds by directory; of several families by their names."""
    result = {}
    for family in families:
        figures, seconds, taken = {}, {}, set[str]()
        for row in family.rows:
            suffix = {"": "", "all": "", "cls": "_plain"}.get(row.variant, f"_{row.variant}")
            if suffix in taken:  # as of two sets of options that are no row of the paper's
                suffix = f"_{row.title}"
            taken.add(suffix)
            for name in evaluations(row):
                figures[METRICS.get(name, name) + suffix] = statistics.mean(row.values(name))
            for name, records in row.records.items():
                seconds[name + suffix] = statistics.mean(r["seconds"] for r in records)
        result[family.name] = figures | {"seconds": seconds}
    return result if len(result) != 1 else next(iter(result.values()))


def problems(row: Row) -> list[str]:
    """A line for each failed seed, what stages warned of, what differs beside the seed."""
    lines = [f"{p.name} failed: {p.failed}" for p in row.seeds if p.failed is not None]
    for p in row.seeds:
        for name, record in p.records.items():
            warned = record["results"].get("warnings")
            where = f"{p.name}/{name}" if len(row.seeds) > 1 else name
            lines += [f"{where}: {w}" for w in warned] if isinstance(warned, list) else []
    changed = [
        f"{name}.{option}"
        for name, records in row.records.items()
        for option in sorted({key for r in records for key in r["settings"]} - {"seed"})
        if any(r["settings"].get(option) != records[0]["settings"].get(option) for r in records)
    ]
    if changed:
        lines.append(f"the seeds differ in more than the seed: {', '.join(changed)}")
    return lines


def notes(family: Family) -> list[str]:
    """Data, failures and what is missing, a line each."""
    seeds = [p for row in family.rows for p in row.seeds]
    counts = {len(each["iou"].keys() - {"background"}) for p in seeds for each in p.scores.values()}
    data = [*(p.data or None for p in seeds), *(f"{n} classes" for n in sorted(counts) if n > 0)]
    lines = [f"Data: {unique(data)}"] if unique(data) else []
    if not any(p.scores for p in seeds):
        lines.append("Nothing is scored; evaluate.py --json RUNS/<step>.json does it given masks")
    for row in family.rows:
        lines += [f"{row.title}: {each}" for p in row.seeds if (each := classifier(p))]
    return lines + [f"{row.title}: {line}" for row in family.rows for line in problems(row)]


def classifier(pipeline: Pipeline) -> str:
    """How well the classifier knows images it was not trained on; "" where that was not asked."""
    found = pipeline.classifier
    looks = [
        row for row in pipeline.records.get("classification", {}).get("log", []) if "ap" in row
    ]
    if found is not None:
        known = {n: ap for n, each in mapping(found.get("average_precision")).items()
                 if (ap := number(each)) is not None}  # fmt: skip
        mean, split = found["mean_average_precision"], found["run"]["settings"].get("split", "?")
        where = f"{found.get('images')} images of {split}"
    elif looks:
        known = {key[3:]: ap for key, ap in looks[-1].items() if key.startswith("ap/")}
        mean, where = looks[-1]["ap"], f"held-out images at step {looks[-1]['step']:.0f}"
    else:
        return ""
    lowest = ", ".join(f"{n} {known[n]:.0f}" for n in sorted(known, key=lambda n: known[n])[:3])
    return f"mean average precision {mean:.1f} on {where} (lowest: {lowest})"


def commands(pipeline: Pipeline) -> list[str]:
    """The command lines of steps and evaluations, in the order they were started."""
    ran = sorted(pipeline.records.values(), key=lambda record: str(record.get("started", "")))
    ran += [scores["run"] for scores in pipeline.scores.values()]
    lines = [shlex.join(["python", *map(str, each["argv"])]) for each in ran if each["argv"]]
    return list(dict.fromkeys(lines))


def explorer(pipeline: Pipeline, out: Path) -> tuple[str, str]:
    """Pages to choose a background score by eye: their address from `out`, else "", and command.

    Both are empty for a run without scores.
    """
    if not any(s.holds == "scores" and s.name in pipeline.records for s in steps.STEPS):
        return "", ""
    pages = pipeline.path / "explore"
    there = (pages / "index.html").is_file()
    address = os.path.relpath(pages / "index.html", out) if there else ""
    command = ["python", "tools/explore.py", str(pipeline.path), "--out", str(pages)]
    return quote(address), shlex.join(command)


def class_figures(family: Family, figure: str = "iou") -> Cells:
    """IoU, `precision` or `recall` per class of every evaluation, a mean over the seeds."""
    columns: dict[str, dict[str, str]] = {}
    for row in family.rows:
        for name, text in evaluations(row).items():
            column = {}
            tables = [mapping(scores.get(figure)) for scores in row.scores(name)]
            for each in dict.fromkeys(c for table in tables for c in table):
                values = [v for table in tables if (v := number(table.get(each))) is not None]
                column[each] = f"{statistics.mean(values):.1f}" if values else ""
            if column:
                columns[text if text not in columns else f"{text} ({row.title})"] = column
    classes = dict.fromkeys(c for column in columns.values() for c in column)
    lines = [[each, *(column.get(each, "") for column in columns.values())] for each in classes]
    return ["class", *columns], lines


def confusions(family: Family, most: int = 5) -> list[tuple[str, str]]:
    """Of each evaluation, the classes whose pixels are most often taken for another class."""
    found = []
    for row in family.rows:
        for name, text in evaluations(row).items():
            shares: dict[tuple[str, str], list[float]] = {}
            for scores in row.scores(name):
                names, rows = [*scores["iou"]], scores.get("confusion")
                if "background" not in names:
                    names = ["background", *names]
                for i, of in enumerate(_counts(rows, len(names))):
                    for j, count in enumerate(of[: len(names)]):
                        if i != j and min(i, j) > 0 and count:
                            share = shares.setdefault((names[i], names[j]), [])
                            share.append(100 * count / sum(of))
            worst = sorted(shares, key=lambda pair: -statistics.mean(shares[pair]))[:most]
            parts = [f"{a} as {b} {statistics.mean(shares[a, b]):.0f}%" for a, b in worst]
            if parts:
                found.append(
                    (f"{text}{f' ({row.title})' * (len(family.rows) > 1)}", ", ".join(parts))
                )
    return found


def _counts(rows: Any, n: int) -> list[list[float]]:
    """A confusion matrix of n labels as it is; nothing for what is none."""
    if not isinstance(rows, list) or len(rows) != n:
        return []
    whole = [isinstance(r, list) and len(r) == n + 1 and None not in map(number, r) for r in rows]
    return rows if all(whole) else []
