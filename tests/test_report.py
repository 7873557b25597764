"""tools/report.py: the figures it shows, on runs made by hand; escaping; damaged files."""

from __future__ import annotations

import base64
import io
import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import write_cams
from PIL import Image

from core.data.datasets import VOC_CLASSES, DataRoot
from core.data.images import write_label
from core.errors import InputError
from tools import report
from tools.reporting import charts, gallery, published, summarise
from tools.reporting.collect import Folder, collect, read_log
from tools.reporting.markdown import text

VOID = {"meta", "img", "br", "line", "polyline"}


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
    run = {"settings": {"split": split}, "argv": ["evaluate.py", "--cams", "a b"]}
    return {"miou": miou, "iou": iou, "threshold": 0.3, "images": images, "sweep": sweep} | {
        "run": run
    }


def stage(folder: Path, kind: str, seconds: float, **more) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"stage": kind, "seconds": seconds, "finished": True, "device_name": "GPU <1>"}
    record |= {"argv": [f"{kind}.py", "--out", "o"], "settings": {"lr": 0.1, "seed": 0}}
    (folder / "run.json").write_text(json.dumps(record | more))


@pytest.fixture
def runs(data_root: Path, tmp_path: Path) -> Path:
    """Table 1 with two seeds, a failed and a damaged row, and a demo run with pictures."""
    root = tmp_path / "runs"
    for seed, miou in ((0, 50.0), (1, 52.0)):
        path = root / "table1" / "all" / f"seed{seed}"
        stage(path / "classification", "train_classification", 3600, resolved={"bn_batch": 8},
              results={"peak_gpu_bytes": 2**31})  # fmt: skip
        rows = [{"step": s, "epoch": s / 4, "lr": 0.1, "loss": 9 - s, "alpha": s} for s in range(8)]
        lines = [json.dumps(row) for row in rows]
        (path / "classification" / "log.jsonl").write_text("\n".join(lines) + "\n")
        (path / "cam.json").write_text(json.dumps(evaluation(miou)))
    other = root / "table1" / "cls" / "seed0"
    other.mkdir(parents=True)
    (other / "cam.json").write_text(json.dumps(evaluation(40.0, ["disc", "bar"], 8)))
    (other / "test").mkdir()
    (other / "test" / "failed.txt").write_text("no such split\n")
    bad = root / "table1" / "cls_re" / "seed0"
    bad.mkdir(parents=True)
    (bad / "failed.txt").write_text("<script>alert(1)</script> | out of memory\n")
    (bad / "cam.json").write_text('{"miou": 1')
    demo = root / "demo"
    demo.mkdir()
    write_cams(data_root, demo / "cam")
    stage(demo / "cam", "make_cam", 60, arguments={"data": str(data_root)})
    stage(demo / "pseudo", "make_pseudo_labels", 60, arguments={"data": str(data_root)})
    data = DataRoot(data_root)
    for number, image_id in enumerate(data.ids("train")):
        mask = np.array(Image.open(data.mask_path(image_id)))
        mask[:, : 6 * number] = 0  # the later the image, the worse
        write_label(demo / "pseudo" / f"{image_id}.png", mask)
    (demo / "pseudo.json").write_text(json.dumps(evaluation(70.0, data.classes, 8)))
    return root


@pytest.fixture
def made(runs: Path, tmp_path: Path) -> tuple[Page, str, str]:
    """The page, its source and the Markdown twin."""
    report.main([str(runs), "--out", str(tmp_path / "report"), "--images", "2"])
    source = (tmp_path / "report" / "index.html").read_text()
    return Page(source), source, (tmp_path / "report" / "report.md").read_text()


def test_the_tables_say_what_was_run(made):
    page, _, twin = made
    deviation = statistics.stdev([50.0, 52.0])
    assert f"51.00 ± {deviation:.2f}" in page.text and f"51.00 ± {deviation:.2f}" in twin
    assert "| L_cls + L_p-cls + L_re | CAM | 51.53 | 51.00 ± 1.41 | -0.53 | 2 seeds |" in twin
    assert "GPU &lt;1&gt;, 60 min a seed, 2.0 GiB | 8 |" in twin
    assert "| L_cls | CAM | 47.82 | 40.00 | -7.82 \\* | 1 seed |" in twin  # other data: starred
    assert "| L_cls + L_p-cls | CAM | 47.70 | not run | - | not run |" in twin
    assert "| L_cls + L_re | CAM | 49.21 | failed | - | 1 of 1 seed failed |" in twin
    assert "72.46" in twin and "72.46" in page.text and "SEAM" in page.text
    assert "python evaluate.py --cams 'a b'" in twin and "--cams 'a b'" in page.text


def test_the_page_is_self_contained_and_escaped(made):
    page, source, twin = made
    for tag, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:image/jpeg;base64," if tag == "img" else "#")
    assert "<script>alert" not in source and "<script>alert" not in twin
    assert "seed0 failed: <script>alert(1)</script> | out of memory" in page.text
    assert "seed0, the test submission failed: no such split" in page.text
    assert source.count("<script") == 1 and 'name="viewport"' in source
    assert ("html", "lang", "en") in page.attributes
    assert "damaged or not JSON" in page.text and "cls_re/seed0/cam.json" in twin


def test_the_gallery_is_ordered_by_iou(made):
    page, source, _ = made
    order = [words for words in page.words if re.fullmatch(r"train\d", words)]
    assert order[:2] == ["train0", "train1"] and order[-1] == "train7"
    assert "best 100" in page.text and "worst disc" in page.text
    assert any(name == "data-classes" for _, name, _ in page.attributes)
    uri = re.search(r'src="data:image/jpeg;base64,([^"]+)"', source)[1]
    assert max(Image.open(io.BytesIO(base64.b64decode(uri))).size) <= 150


def test_curves_and_sweeps_are_drawn(made):
    page, source, _ = made
    titles = {value for _, name, value in page.attributes if name == "aria-label"}
    assert {f"classification: {t}" for t in ("losses", "alpha", "learning rate")} <= titles
    assert "mIoU over the background threshold" in titles
    assert "nan" not in re.sub(r"base64,[^\"]+", "", source).lower()


def test_without_runs_everything_is_not_run(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "report")])
    twin = (tmp_path / "report" / "report.md").read_text()
    ours = sum(len(t.measures) * len(t.rows) for t in published.TABLES)
    assert twin.count("| not run | - | not run |") == ours
    assert "no runs in it" in capsys.readouterr().err
    with pytest.raises(InputError, match="no such directory"):
        report.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "report")])


def test_damaged_files_are_named_and_left_out(tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "run.json").write_text("[1]")
    (tmp_path / "a.json").write_text('{"miou": "high"}')
    (tmp_path / "b.json").write_text('{"miou": 5, "iou": [1], "sweep": 3, "run": null}')
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": NaN, "re": 2}\n{"step"\n[3]\n')
    warnings: list[str] = []
    groups = collect([tmp_path], warnings)
    assert {Path(w.split(":")[0]).name for w in warnings} == {"run.json", "a.json"}
    (folder,) = groups[0].others
    assert folder.miou("b") == 5.0 and not charts.sweeps([folder], "t")
    assert summarise.class_ious([folder], "b") == {}
    warnings.clear()
    assert read_log(tmp_path / "log.jsonl", warnings) == [{"step": 1.0, "re": 2.0}]
    assert "2 damaged lines" in warnings[0]


def test_seeds_of_other_settings_are_told():
    folders = [
        Folder(Path(), f"seed{s}", {"cam": {"settings": {"seed": s, "lr": lr}}})
        for s, lr in enumerate((0.1, 0.1, 0.2))
    ]
    assert summarise.differing_settings(folders[:2]) == []
    assert summarise.differing_settings(folders) == ["cam.lr"]


def test_published_figures():
    one, two, three = published.TABLES
    assert one.paper["all"]["cam"] == two.paper["resnet50"]["cam"] == 51.53
    assert one.paper["cls"]["cam"] == two.others["AffinityNet"]["cam"] == 47.82
    assert three.paper["resnest269"] == {"val": 71.9, "test": 72.2}


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 7, 40])
def test_no_image_is_best_and_worst(n):
    places = [i for positions in gallery.places(n, 2).values() for i in positions]
    assert len(places) == len(set(places)) == min(n, 6) and set(places) <= set(range(n))


def test_the_median_is_in_the_middle():
    assert list(gallery.places(41, 1)["median"]) == [20]
    assert list(gallery.places(40, 2)["median"]) == [19, 20]


def test_ticks_are_round_and_inside():
    assert charts.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert charts.ticks(0.05, 0.6) == pytest.approx([0.2, 0.4, 0.6])
    assert charts.line_chart("flat", "x", [charts.Series("a", [(1, 3), (1, 3)])])


def test_markdown_text_stays_text():
    assert text("a|b\n<i>[x](y)`*") == "a\\|b &lt;i&gt;\\[x\\](y)\\`\\*"
