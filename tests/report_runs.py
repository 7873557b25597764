"""Runs made by hand for the report's tests: what stages and evaluations leave, without either."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from core import steps
from core.data.datasets import VOC_CLASSES, DataRoot
from core.data.images import write_label
from tools import report

import numpy as np
from conftest import write_cams
from PIL import Image

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags are balanced; keeps the attributes and the text outside scripts."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def evaluation(miou: float, names=VOC_CLASSES, images=1464, split="train") -> dict:
    iou = {name: miou for name in ["background", *names]}
    sweep = [{"threshold": t / 10, "miou": miou - t} for t in range(1, 6)]
    run = {"settings": {"split": split}, "argv": ["evaluate.py", "--scores", "a b"]}
    return {"miou": miou, "iou": iou, "threshold": 0.3, "map": "cam", "images": images} | {
        "sweep": sweep, "run": run
    }  # fmt: skip


def write_run(folder: Path, stage: str, seconds: float = 60, settings=None, **more) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"stage": stage, "seconds": seconds, "finished": True, "device_name": "GPU <1>"}
    record |= {"argv": [f"{stage}.py", "--out", "o"], "settings": settings or {}}
    (folder / "run.json").write_text(json.dumps(record | more))


def classifier(
    folder: Path, p_cls=True, re=True, backbone="resnet50", seconds=60.0, changes=(), **more
):
    settings = {"p_cls": p_cls, "re": re, "backbone": backbone, "lr": 0.1, "seed": 0}
    settings |= dict(changes)
    write_run(folder / "classification", "train_classification", seconds, settings, **more)


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_tree(root: Path) -> None:
    """Rows of Table 1: two seeds, other data, a failed and damaged one."""
    root = root / "resnet50"
    for seed, miou in ((0, 50.0), (1, 52.0)):
        path = root / f"seed{seed}" / "all"
        results = {"peak_gpu_bytes": 2**31}
        classifier(path, seconds=3600, resolved={"bn_batch": 8}, results=results)
        rows = [{"step": s, "epoch": s / 4, "lr": 0.1, "loss": 9 - s, "alpha": s} for s in range(8)]
        lines = [json.dumps(row) for row in rows]
        (path / "classification" / "log.jsonl").write_text("\n".join(lines) + "\n")
        write_json(path / "cam.json", evaluation(miou))
    other = root / "seed0" / "cls"
    classifier(other, p_cls=False, re=False)
    write_json(other / "cam.json", evaluation(40.0, ["disc", "bar"], 8))
    write_json(other / "hr_cam.json", evaluation(47.0))
    bad = root / "seed0" / "re"
    bad.mkdir()
    (bad / "failed.txt").write_text("<script>alert(1)</script> | out of memory\n")
    (bad / "cam.json").write_text('{"miou": 1')


def write_demo(root: Path, data_root: Path) -> None:
    """A plain classifier's CAMs beside a Puzzle-CAM pipeline with pictures, on the tiny data."""
    data = DataRoot(data_root)
    puzzle = {"cam": 50.0, "rw": 61.5, "pseudo": 63.0, "val": 55.0}
    for row, figures in (("plain", {"cam": 40.0}), ("puzzle", puzzle)):
        classifier(root / row, *[row == "puzzle"] * 2, backbone="resnet18", seconds=100.0)
        for step in (step for step in steps.STEPS if step.figures in figures and step.title):
            folder = root / row / step.name
            if step.holds == "scores":
                write_cams(data_root, folder)
            write_run(folder, step.script, arguments={"data": str(data_root)})
            ids = data.ids(step.split)
            for number, image_id in enumerate(ids if step.holds == "labels" else ()):
                mask = np.array(Image.open(data.mask_path(image_id)))
                mask[:, : 6 * number] = 0  # the later the image, the worse
                write_label(folder / f"{image_id}.png", mask)
            made = evaluation(figures[step.figures], data.classes, len(ids), step.split)
            write_json(root / row / f"{step.figures}.json", made)


def make(*runs: Path, out: Path, more: str = "--images 2 --side 150") -> tuple[Page, str, str]:
    """The page, its source and the Markdown twin."""
    report.main([*map(str, runs), "--out", str(out), "--device", "cpu", *more.split()])
    source = (out / "index.html").read_text()
    return Page(source), source, (out / "report.md").read_text()
