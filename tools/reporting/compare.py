"""Two runs side by side: settings, IoU per class and the images that differ most."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from core import steps
from core.errors import InputError
from tools.reporting import summarise
from tools.reporting.collect import Family, Pipeline, collect
from tools.reporting.gallery import jpeg_uri, measure
from tools.reporting.pictures import albums

import numpy as np

NAMES = ("A", "B")


def compare(pair: list[Path], args: Namespace, warnings: list[str]) -> dict[str, Any]:
    """What compare.html shows of two run folders; `args` are the report's options.

    Raises InputError for a folder that does not hold one run.
    """
    families = [_family(path, warnings) for path in pair]
    runs = [family.rows[0].seeds[0] for family in families]
    content = {
        "names": [str(run.path) for run in runs],
        "settings": settings(runs),
        "classes": classes(families),
    }
    return content | {"pictures": []} | images(families, args, warnings)


def _family(path: Path, warnings: list[str]) -> Family:
    found = collect([path], warnings)
    if len(found) != 1 or len(found[0].rows) != 1 or len(found[0].rows[0].seeds) != 1:
        count = sum(len(row.seeds) for family in found for row in family.rows)
        raise InputError(f"{path}: holds {count} runs; --compare takes two folders of one run each")
    return found[0]


def settings(runs: list[Pipeline]) -> summarise.Cells:
    """The settings of the steps of both that differ."""
    lines = []
    for name in [n for n in runs[0].records if n in runs[1].records]:
        pair = [run.records[name]["settings"] for run in runs]
        for option in {**pair[0], **pair[1]}:
            values = [each.get(option) for each in pair]
            if values[0] != values[1]:
                lines.append([f"{name}: {option}", *map(str, values)])
    return ["", *NAMES], lines


def classes(families: list[Family]) -> list[tuple[str, summarise.Cells]]:
    """For each evaluation of both, its title and IoU per class, largest difference first."""
    found = []
    rows = [family.rows[0] for family in families]
    titles = {s.figures: s.title for s in steps.STEPS if s.makes_cams}  # whatever the losses
    for name, title in (summarise.evaluations(rows[0]) | titles).items():
        if not (a := rows[0].scores(name)) or not (b := rows[1].scores(name)):
            continue
        lines = [("mIoU", a[0]["miou"], b[0]["miou"])]
        of_classes = [
            (each, a[0]["iou"][each], b[0]["iou"][each])
            for each in a[0]["iou"]
            if a[0]["iou"][each] is not None and b[0]["iou"].get(each) is not None
        ]
        lines += sorted(of_classes, key=lambda line: -abs(line[2] - line[1]))
        text = [[each, f"{x:.1f}", f"{y:.1f}", f"{y - x:+.1f}"] for each, x, y in lines]
        found.append((title, (["class", *NAMES, "B - A"], text)))
    return found


def images(families: list[Family], args: Namespace, warnings: list[str]) -> dict[str, Any]:
    """The images whose mIoU differs most at the last step of both that has a ground truth."""
    both = [albums(family, args, warnings) for family in families]
    for step in reversed([each for each in steps.STEPS if each.title]):
        found = [
            (album, column)
            for each in both
            for album in each
            for column in album.columns
            if column.step == step
        ]
        if len(found) != 2 or found[0][0].split != found[1][0].split:
            continue
        ids = found[0][0].data.ids(found[0][0].split)
        ious = [measure(album, column, ids, warnings) for album, column in found]
        differences = {i: ious[1][i][0] - ious[0][i][0] for i in ious[0] if i in ious[1]}
        if not differences:
            continue
        order = sorted(differences, key=lambda i: differences[i])
        most = 2 * args.images
        parts = {
            "better in B": [i for i in order[::-1][:most] if differences[i] > 0],
            "better in A": [i for i in order[:most] if differences[i] < 0],
        }
        for album, column in found:
            album.columns = [column]
        values = np.array(list(differences.values()))
        return {
            "step": step.title,
            "count": len(values),
            "better": int((values > 0).sum()),
            "worse": int((values < 0).sum()),
            "change": f"{values.mean():+.2f}",
            "pictures": [
                (heading, entries([album for album, _ in found], some, differences, args, warnings))
                for heading, some in parts.items()
            ],
        }
    return {}


def entries(
    pair: list[Any], ids: list[str], differences: dict[str, float], args: Namespace,
    warnings: list[str],
) -> list[dict[str, Any]]:  # fmt: skip
    """Images with what both runs made of them."""
    made = []
    strips = [dict(album.strips(ids, warnings, "compare")) for album in pair]
    for image_id in [i for i in ids if all(i in each for each in strips)]:
        cells = {name: strips[0][image_id].get(name) for name in ("image", "ground truth")}
        cells |= {
            n: s[image_id].get(a.titles[-1]) for n, s, a in zip(NAMES, strips, pair, strict=True)
        }
        shown = [
            (t, jpeg_uri(c.picture, args.side), c.iou) for t, c in cells.items() if c is not None
        ]
        made.append({"id": image_id, "difference": differences[image_id], "cells": shown})
    return made
