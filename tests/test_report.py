"""tools/report.py: tables, text, page and Markdown, on runs made by hand; escaping; damage."""

from __future__ import annotations

import base64
import json
import re
import shutil
import statistics
from pathlib import Path

from core import steps
from core.data.datasets import DataRoot
from core.errors import InputError
from core.steps import Step
from tools.reporting import charts, paper, summarise, templating
from tools.reporting.collect import collect, read_log

import pytest
from conftest import write_cams
from PIL import Image
from report_runs import classifier, evaluation, make, write_demo, write_json, write_run, write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_tree(tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture
def demo(data_root: Path, tmp_path: Path) -> Path:
    write_demo(tmp_path / "demo", data_root)
    return tmp_path / "demo"


def test_the_tables_say_what_was_run(tree, tmp_path):
    page, _, twin = make(tree, out=tmp_path / "out")
    deviation = statistics.stdev([50.0, 52.0])
    assert f"51.00 ± {deviation:.2f}" in page.text and f"51.00 ± {deviation:.2f}" in twin
    assert "| L_cls + L_p-cls + L_re | CAM | 51.53 | 51.00 ± 1.41 | -0.53 | 2 seeds |" in twin
    assert "GPU &lt;1&gt;, 60 min a seed, 2.0 GiB | 8 |" in twin
    assert "| L_cls | CAM | 47.82 | 40.00 | -7.82 \\* | 1 seed |" in twin  # other data: starred
    assert "|  | CAM (hr_cam) | 47.82 | 47.00 | -0.82 |" in twin  # the map that the paper scored
    assert "| L_cls + L_p-cls | CAM | 47.70 | not run | - | - |" in twin
    assert "| L_cls + L_re | CAM | 49.21 | failed | - | 1 of 1 seed failed |" in twin
    assert "| Puzzle-CAM, ResNet-50 | CAM | 51.53 | 51.00 ± 1.41 | -0.53 | 2 seeds |" in twin
    assert "72.46" in twin and "72.46" in page.text
    assert "python evaluate.py --scores 'a b'" in twin and "--scores 'a b'" in page.text


def test_the_page_is_self_contained_and_escaped(tree, tmp_path):
    page, source, twin = make(tree, out=tmp_path / "out")
    for _, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,", "#"))
    assert "<script>alert" not in source and "<script>alert" not in twin
    assert "seed0 failed: <script>alert(1)</script> | out of memory" in page.text
    assert source.count("<script") == 1 and 'name="viewport"' in source
    assert ("html", "lang", "en") in page.attributes
    assert "damaged or not JSON" in page.text and "re/cam.json" in twin


@pytest.mark.parametrize("name", ["index.html", "overview.png", "figures.json"])
def test_files_of_others_are_not_replaced(demo, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"images": [], "annotations": []}')
    more = f"--metrics {tmp_path}/out/figures.json" if name == "figures.json" else ""
    with pytest.raises(InputError, match=name):
        make(demo, out=tmp_path / "out", more=more)
    assert "annotations" in (tmp_path / "out" / name).read_text()


def test_a_report_is_made_again(demo, tmp_path):
    for _ in range(2):
        make(demo, out=tmp_path / "out", more=f"--metrics {tmp_path}/figures.json")


def test_hostile_names_stay_text(demo, data_root, tmp_path):
    name = '"><img src=x onerror=alert(1)>$\\frac|`'
    (data_root / "classes.txt").write_text(f"{name}\nsquare\nbar\n")
    write_json(demo / "puzzle" / "<b>$x.json", evaluation(61.5, [name]))
    page, _, twin = make(demo, out=tmp_path / "out")
    assert name in page.text and "<b>$x" in page.text  # as text, in the tables and the filter
    assert all(value.startswith("data:") for _, key, value in page.attributes if key == "src")
    assert "<img" not in twin and "<b>" not in twin and "$\\\\frac\\|\\`" in twin


def test_curves_and_sweeps_are_drawn(tree, tmp_path):
    page, source, _ = make(tree, out=tmp_path / "out")
    titles = {value for _, name, value in page.attributes if name == "alt"}
    assert {f"classification: {t}" for t in ("losses", "alpha", "learning rate")} <= titles
    assert "mIoU over the background threshold" in titles
    assert "nan" not in re.sub(r"base64,[^\"]+", "", source).lower()
    row = collect([tree], [])[0].rows[-1]
    assert charts.curves(row)[0] == charts.curves(row)[0]  # the same bytes
    assert charts.line_chart("flat", "x", [("a", [(1, 3), (1, 3)])])
    wide = charts.line_chart("wide", "epoch", [("a", [(1, 0.01), (4, 10)])])[1]
    drawn = base64.b64decode(wide.split(",")[1]).decode()
    assert "mathdefault" not in drawn and ">0.01</text>" in drawn  # the style leaves TeX unread


def test_the_table_and_metrics_of_a_demo(demo, tmp_path, capsys):
    metrics = tmp_path / "new" / "metrics.json"
    page, _, _ = make(demo, out=tmp_path / "out", more=f"--images 0 --metrics {metrics}")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["plain", "CAM", "40.00", "0.30", "cam", "train", "8"] in lines
    assert ["Puzzle-CAM", "50.00", "+10.00", "0.30", "cam", "train", "8"] in lines
    assert ["+", "random", "walk", "61.50", "+11.50", "0.30", "cam", "train", "8"] in lines
    assert any(line[:5] == ["+", "dense", "CRF", "63.00", "+1.50"] for line in lines)
    assert any(line[:4] == ["segmentation,", "val", "55.00", "0.30"] for line in lines)  # no change
    written = json.loads(metrics.read_text())
    assert {k: v for k, v in written.items() if k != "seconds"} == {
        "cam_plain": 40.0, "cam": 50.0, "rw": 61.5, "rw_crf": 63.0, "segmentation_val": 55.0
    }  # fmt: skip
    assert written["seconds"]["classification_plain"] == 100 and written["seconds"]["rw"] == 60
    assert "Puzzle-CAM, ResNet-18" not in page.text and "51.53" not in page.text  # no tables of VOC


def test_no_run_hides_the_figures_of_another(tmp_path):
    """Losses that are no row of the paper's are called after their folder."""
    for name, miou, changes in (("a", 50.0, {}), ("b", 20.0, {"re_seams": "drop"})):
        kinds = {"re_seams": "keep", "re_scale": "raw"} | changes
        classifier(tmp_path / name, changes=kinds)
        write_run(tmp_path / name / "cam", "make_cam")
        value = evaluation(miou)
        del value["iou"]["background"]
        write_json(tmp_path / name / "cam.json", value)
    families = collect([tmp_path], [])
    found = summarise.metrics(families)
    assert {k: v for k, v in found.items() if k != "seconds"} == {"cam": 50.0, "cam_b": 20.0}
    assert "20 classes" in summarise.notes(families[0])[0]


def test_a_new_refinement_is_one_line_in_the_list(demo, data_root, tmp_path, capsys, monkeypatch):
    demo = demo.rename(tmp_path / "seed0")  # as tools/tables.py has it
    new = Step("smooth", "make_smooth", "scores", (("--scores", "rw"),), "+ smoothing")
    listed = list(steps.STEPS)
    listed.insert([step.name for step in listed].index("pseudo"), new)
    monkeypatch.setattr(steps, "STEPS", tuple(listed))
    write_cams(data_root, demo / "puzzle" / "smooth")
    write_json(demo / "puzzle" / "smooth.json", evaluation(62.25, DataRoot(data_root).classes, 8))
    metrics = tmp_path / "metrics.json"
    page, _, twin = make(demo, out=tmp_path / "out", more=f"--side 64 --metrics {metrics}")
    out = capsys.readouterr().out
    assert re.search(r"\+ random walk .*\n\+ smoothing +62.25 +\+0.75 .*\n\+ dense CRF", out)
    assert json.loads(metrics.read_text())["smooth"] == 62.25
    assert "|  | + smoothing | - | 62.25 |" in twin  # Table 2
    assert ("img", "alt", "+ smoothing") in page.attributes
    assert Image.open(tmp_path / "out" / "overview.png").size[0] == 7 * 64


def test_without_runs_everything_is_not_run(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    _, _, twin = make(tmp_path / "runs", out=tmp_path / "out")
    ours = sum(len(t.measures) * sum(type(k) is tuple for k in t.rows) for t in paper.TABLES)
    assert twin.count("| not run | - | - | - | - |") == ours and "SEAM" in twin
    assert "no runs in it" in capsys.readouterr().err
    with pytest.raises(InputError, match="no such directory"):
        make(tmp_path / "nowhere", out=tmp_path / "out")


def test_damaged_files_are_named_and_left_out(tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "run.json").write_text("[1]")
    (tmp_path / "a.json").write_text('{"miou": "high"}')
    (tmp_path / "b.json").write_text('{"miou": 5, "iou": [1], "sweep": 3, "run": null}')
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": NaN, "re": 2}\n{"step"\n[3]\n')
    warnings: list[str] = []
    (family,) = collect([tmp_path], warnings)
    assert {Path(w.split(":")[0]).name for w in warnings} == {"run.json", "a.json"}
    (row,) = family.rows
    assert row.values("b") == [5.0] and not charts.curves(row)
    assert summarise.class_figures(family)[1] == []
    warnings.clear()
    assert read_log(tmp_path / "log.jsonl", warnings) == [{"step": 1.0, "re": 2.0}]
    assert "2 damaged lines" in warnings[0]


def test_runs_are_found_by_their_folders(tree, demo):
    families = {Path(f.name).name: f for f in collect([tree, demo], [])}
    assert {name: [row.variant for row in f.rows] for name, f in families.items()} == {
        "resnet50": ["cls", "re", "all"], "demo": ["cls", "all"]
    }  # fmt: skip
    assert [p.name for p in families["resnet50"].rows[-1].seeds] == ["seed0", "seed1"]
    # L_re for small crops is a row of its own; half of it has no name.
    for name in ("small", "half"):
        changes = {"re_seams": "drop"} | ({"re_scale": "relative"} if name == "small" else {})
        classifier(demo / name, changes=changes)
    rows = {Path(row.path).name: row for f in collect([demo], []) for row in f.rows}
    assert rows["small"].title == "Puzzle-CAM, small crops" and rows["half"].title == "half"
    shutil.rmtree(demo / "small"), shutil.rmtree(demo / "half")
    # Two of a kind side by side are strangers.
    (demo / "plain").rename(demo / "other")
    classifier(demo / "other")
    assert len(collect([demo], [])) == 2


def test_seeds_of_other_settings_are_told(tree):
    row = collect([tree], [])[0].rows[-1]
    assert summarise.problems(row) == []
    row.seeds[1].records["classification"]["settings"] |= {"seed": 1, "lr": 0.2}
    told = "the seeds differ in more than the seed: classification.lr"
    assert summarise.problems(row) == [told]


def test_cost_counts_the_steps_on_the_way(demo, tmp_path):
    demo = demo.rename(tmp_path / "seed0")  # as tools/tables.py has it
    tables = {title[:7]: cells[1] for title, cells, _ in paper.tables(collect([demo], []))}
    costs = {name: [line[6] for line in lines if "ResNet-18" in line[0]]
             for name, lines in tables.items()}  # fmt: skip
    assert costs == {
        "Table 1": ["GPU <1>, 3 min", "GPU <1>, 3 min"],
        "Table 2": ["GPU <1>, 5 min"],
        "Table 3": ["GPU <1>, 6 min"],
    }


def test_published_figures():
    one, two, three = paper.TABLES
    all_50 = "all", "resnet50"
    assert all_50 in one.rows and all_50 in two.rows and paper.PUBLISHED[all_50]["cam"] == 51.53
    assert "AffinityNet" in two.rows and paper.PUBLISHED["AffinityNet"]["cam"] == 47.82
    assert paper.PUBLISHED["cls", "resnet50"]["cam"] == 47.82
    figures = paper.PUBLISHED["all", "resnest269"]
    assert {name: figures[name] for name in three.measures} == {"val": 71.9, "test": 72.2}


def test_markdown_text_stays_text():
    assert templating.markdown_text("a|b\n<i>[x](y)`*") == "a\\|b &lt;i&gt;\\[x\\](y)\\`\\*"
    assert templating.fenced(["a ``` b"]).startswith("````sh\n")


def test_confusions_and_figures_without_masks_are_shown(demo, tmp_path):
    names = ["background", "cat", "dog"]
    confusion = [[50, 5, 5, 0], [10, 60, 30, 0], [10, 2, 88, 0]]
    scored = evaluation(60.0, names[1:]) | {"confusion": confusion, "boundary_miou": 12.34}
    scored |= {"at_default": {"threshold": 0.35, "miou": 55.55}, "at_auto": {"miou": 57.57}}
    scored |= {"masks_used_for": "threshold and score", "precision": {"cat": 11.11}}
    for folder in demo.iterdir():
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    classifier(demo)
    write_json(demo / "cam.json", scored)
    _, page, _ = make(demo, out=tmp_path / "out")
    for text in ("55.55", "57.57", "12.34", "threshold and score", "cat as dog 30%, dog as cat 2%"):
        assert text in page
    assert "cat as background" not in page and ">11.1<" in re.sub(r"\s", "", page)
    for damaged in ([1, 2], [[1, 2, "x", 0]] * 3, {"a": 1}):
        write_json(demo / "cam.json", scored | {"confusion": damaged, "at_auto": 3})
        make(demo, out=tmp_path / "out")


def test_the_page_leads_to_the_explorer(demo, tmp_path):
    """To its pages where they are beside the run, else with the command that makes them."""
    page, _, _ = make(demo, out=tmp_path / "out")
    assert f"python tools/explore.py {demo / 'puzzle'} --out" in page.text
    pages = demo / "puzzle" / "explore"
    pages.mkdir()
    (pages / "index.html").touch()
    page, _, _ = make(demo, out=tmp_path / "out")
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    (link,) = [value for value in links if value.endswith("index.html")]
    assert (tmp_path / "out" / link).resolve() == pages / "index.html"
