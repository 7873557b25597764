"""tools/explore.py: its pages' masks are make_pseudo_labels.py's, in the file and in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import make_pseudo_labels
from core.data.datasets import DataRoot
from core.data.scores import Scores, otsu, upsample
from core.errors import InputError
from tools import explore

import numpy as np
import pytest
import torch
from conftest import run_stage, write_cams
from PIL import Image

LEVELS = (7, 35, 80)
BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
# Moves the slider as a hand does, then writes the label maps and what is drawn into the document.
PROBE = """<script>
addEventListener("load", async () => {
  await Promise.all([...document.querySelectorAll("canvas")].map(load));
  document.querySelectorAll("article").forEach((article) => { article.dataset.seen = "1"; });
  const found = [];
  for (const level of %s) {
    overall.value = level;
    overall.dispatchEvent(new Event("input"));
    for (const canvas of document.querySelectorAll("canvas")) {
      const id = canvas.closest("article").dataset.id;
      const drawn = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      found.push({ level, id, column: canvas.dataset.column, drawn: [...drawn],
        map: [...labelMap(canvas, level)], photo: [...layers.get(canvas).photo] });
    }
    found.push({ level, share: document.querySelector(".share").textContent,
      command: document.querySelector(".command").textContent });
  }
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
});
</script>"""


@pytest.fixture
def run(data_root, tmp_path) -> Path:
    """A run folder of CAMs and pseudo-labels."""
    (tmp_path / "run").mkdir()
    write_cams(data_root, tmp_path / "run/cam")
    command = ("--data", data_root, "--split", "train", "--device", "cpu", "--workers", 0)
    command += ("--jobs", 1, "--no-crf", "--scores", tmp_path / "run/cam")
    run_stage(make_pseudo_labels.main, *command, "--out", tmp_path / "run/pseudo")
    for level in LEVELS:
        more = ("--threshold", level / 100, "--out", tmp_path / f"at{level}")
        run_stage(make_pseudo_labels.main, *command, *more)
    return tmp_path / "run"


def make(run: Path, data_root: Path, *more: object) -> Path:
    out = run.parent / "explore"
    run_stage(explore.main, run, "--data", data_root, "--split", "train", "--out", out, *more)
    return out


def wanted(run: Path, level: int, image_id: str, column: int) -> np.ndarray:
    folder = run / "pseudo" if column else run.parent / f"at{level}"
    return np.array(Image.open(folder / f"{image_id}.png"))


def layers(page: str) -> dict[str, list[np.ndarray]]:
    """Image -> the layers of its columns."""
    found: dict[str, list[np.ndarray]] = {}
    for image_id, article in re.findall(r'<article data-id="(.*?)">(.*?)</article>', page, re.S):
        for data in re.findall(r'data-layers="data:image/png;base64,(.*?)"', article):
            pixels = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
            found.setdefault(image_id, []).append(pixels)
    return found


def test_the_layers_hold_the_label_maps_at_every_level(run, data_root):
    out = make(run, data_root, "--images", 4)
    pages = sorted(out.iterdir(), key=lambda path: (path.name != "index.html", path.name))
    ids = DataRoot(data_root).ids("train")
    assert len(pages) == -(-len(ids) // 4)
    found = {k: v for path in pages for k, v in layers(path.read_text()).items()}
    assert list(found) == ids
    for image_id, (scores, labels) in found.items():
        for level in LEVELS:
            for column, pixels in enumerate((scores, labels)):
                label = np.where(pixels[..., 1] > level, pixels[..., 0], 0)
                np.testing.assert_array_equal(label, wanted(run, level, image_id, column))


def test_large_pictures_are_shown_reduced(run, data_root):
    page = (make(run, data_root, "--side", 32) / "index.html").read_text()
    whole = (make(run, data_root) / "index.html").read_text()
    for image_id, each in layers(page).items():
        assert {pixels.shape for pixels in each} == {(24, 32, 3)}  # of 48x64
        for small, full in zip(each, layers(whole)[image_id], strict=True):
            assert {*np.unique(small[..., 0])} <= {*np.unique(full[..., 0])}
    facts = [re.search(r"const columns = (\[.*?\]), palette", each)[1] for each in (page, whole)]
    assert facts[0] == facts[1]  # of all pixels


def test_shares_and_auto_are_of_all_images(run, data_root):
    page = (make(run, data_root, "--images", 2) / "index.html").read_text()
    scores, labels = json.loads(re.search(r"const columns = (\[.*?\]), palette", page).group(1))
    ids = DataRoot(data_root).ids("train")
    for level in LEVELS:
        maps = [wanted(run, level, i, 0) for i in ids]
        assert scores["shares"][level] == pytest.approx(
            np.concatenate([m.ravel() > 0 for m in maps]).mean(), abs=1e-4
        )
    files = [Scores.load(run / f"cam/{i}.npz", 3) for i in ids]
    best = [upsample(torch.from_numpy(f.cam), f.size).amax(0).numpy() for f in files]
    assert scores["auto"] == pytest.approx(np.mean([otsu(each) for each in best]), abs=0.006)
    assert labels["auto"] is None and len(set(labels["shares"])) == 1


def test_pages_of_an_earlier_larger_run_go(run, data_root):
    out = make(run, data_root, "--images", 1)
    assert len(list(out.iterdir())) > 2
    (out / "pages_mine.html").write_text((out / "index.html").read_text())
    (out / "page99.html").write_text("<title>mine</title>")
    left = {p.name for p in make(run, data_root, "--sample", 2).iterdir()}
    assert left == {"index.html", "pages_mine.html", "page99.html"}
    assert len(layers((out / "index.html").read_text())) == 2


def test_a_sample_of_more_than_there_are_is_all(run, data_root):
    text = (make(run, data_root, "--sample", 200) / "index.html").read_text()
    assert all(f"train{i}" in text for i in range(8))


def test_files_of_others_are_left_alone(run, data_root, tmp_path):
    """A report, or somebody's site: neither its index is overwritten nor its page2 deleted."""
    (tmp_path / "explore").mkdir()
    for name in ("index.html", "page2.html"):
        (tmp_path / "explore" / name).write_text("<title>mine</title>")
    with pytest.raises(InputError, match="holds other files"):
        make(run, data_root)
    for name in ("index.html", "page2.html"):
        assert (tmp_path / "explore" / name).read_text() == "<title>mine</title>"


def test_a_page_needs_no_other_file(run, data_root):
    page = (make(run, data_root) / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|page\d)[^"]+"', page)
    assert "http" not in re.sub(r"data:[^\"]*", "", page)


@pytest.mark.parametrize("what", ["nothing", "model", "labels", "background", "damaged"])
def test_bad_folders_are_told(run, data_root, tmp_path, what):
    given, message = run, ""
    if what == "nothing":
        given, message = tmp_path, "give a run folder"
    elif what == "model":
        record = json.loads((run / "cam/run.json").read_text()) | {"holds": "model"}
        (run / "cam/run.json").write_text(json.dumps(record))
        given, message = run / "cam", "holds model"
    elif what == "labels":
        given, message = run / "pseudo", "no scores"
    elif what == "background":
        names = "\n".join(["background: none", *DataRoot(data_root).classes])
        (data_root / "classes.txt").write_text(names + "\n")
        message = "no background"
    elif what == "damaged":
        next((run / "cam").glob("*.npz")).write_bytes(b"no")
        message = "changed since"
    with pytest.raises(InputError, match=message):
        make(given, data_root)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_draws_the_label_maps_where_the_slider_stands(run, data_root, tmp_path):
    out = make(run, data_root)
    page = out / "index.html"
    page.write_text(page.read_text().replace("</body>", PROBE % list(LEVELS) + "</body>"))
    off = ("gpu", "background-networking", "component-update", "sync")
    switches = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{x}" for x in off)]
    switches += ["--virtual-time-budget=20000", "--dump-dom"]
    home = f"--user-data-dir={tmp_path / 'home'}"
    done = subprocess.run(
        [BROWSER, *switches, home, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = json.loads(re.search("FOUND(.*)END", done.stdout, re.S).group(1).replace("&gt;", ">"))
    palette = np.array(
        json.loads(re.search(r"palette = (\[.*?\]);\n", page.read_text()).group(1)), float
    )
    n = 0
    for each in found:
        if "share" in each:
            assert f"--threshold {each['level'] / 100:.2f} --out" in each["command"]
            assert "% of all pixels above it" in each["share"]
            continue
        label = wanted(run, each["level"], each["id"], int(each["column"]))
        np.testing.assert_array_equal(np.reshape(each["map"], label.shape), label)
        drawn, photo = (np.reshape(each[k], (*label.shape, 4))[..., :3] for k in ("drawn", "photo"))
        blend = np.where((label > 0)[..., None], 0.4 * photo + 0.6 * palette[label], photo)
        assert np.abs(drawn - blend).max() <= 1
        n += 1
    assert n == 2 * len(LEVELS) * len(DataRoot(data_root).ids("train"))
