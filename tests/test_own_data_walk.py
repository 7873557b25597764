"""docs/own_data.md as its reader walks through it: its commands, in order, on pictures of ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, fake_python, write_data_root
from PIL import Image

SMALL = "--epochs 1 --batch-size 4 --crop 64 --sides 48 96"
MORE = {  # what makes a stage small, after the reader's words
    "tools/doctor.py": "--backbone resnet18 --weights none",
    "train_classification.py": SMALL,
    "train_affinity.py": f"{SMALL} --radius 5",
    "train_segmentation.py": SMALL,
    "make_cam.py": "--scales 1",
    "make_affinity_labels.py": "--crf-iterations 1",
    "make_random_walk.py": "--log2-steps 2",
    "predict.py": "--scales 1 --crf-iterations 1",
}
# Alternatives to the first way of making a data root; and what needs packages that are extras.
LEFT_OUT = ("--labels labels.csv", "--labels export.json", "--masks ~/masks", "export_model.py")


def commands() -> list[str]:
    """Every line of the page's shell blocks, without remarks; continued lines are one."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPO / "docs/own_data.md").read_text(), re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s#.*$", "", line).strip() for line in lines if line.strip()]


@pytest.fixture
def house(tmp_path) -> tuple[Path, dict[str, str]]:
    """The repository as a reader has it, pictures in the home folder; what makes stages small."""
    for entry in REPO.iterdir():
        if entry.name not in ("runs", "my") and entry.name[0] != ".":
            (tmp_path / "repo" / entry.name).parent.mkdir(exist_ok=True)
            (tmp_path / "repo" / entry.name).symlink_to(entry)
    data = write_data_root(tmp_path / "source", n_train=24)
    for line in (data / "labels.txt").read_text().splitlines():
        image_id, name = line.split()
        new = image_id.startswith("val")
        folder = tmp_path / "home" / ("new_pictures" if new else f"pictures/{name}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image_id}.jpg").write_bytes((data / f"JPEGImages/{image_id}.jpg").read_bytes())
    cases = "".join(f'{name}) set -- "$@" {more};;\n' for name, more in MORE.items())
    python = f'case $1 in\n{cases}esac\nexec "{sys.executable}" "$@"'
    return tmp_path, fake_python(tmp_path / "bin", python)


def test_its_commands_lead_from_pictures_to_a_segmentation(house):
    house, small = house
    lines = [line for line in commands() if not any(each in line for each in LEFT_OUT)]
    assert len(lines) < len(commands())
    done, repo = [], house / "repo"
    env = os.environ | small | {"HOME": str(house / "home")}
    env |= {"BACKBONE": "resnet18", "WEIGHTS": "none", "CUDA_VISIBLE_DEVICES": ""}
    exported = ""
    for line in lines:
        if line.startswith("export"):
            exported = line
            continue
        if "prepare_own.py" in line:
            line += " --val 0.2"  # as the page says below
        if "--split check" in line:  # twenty masks drawn by hand
            ids = (repo / "my/ImageSets/Segmentation/train_aug.txt").read_text().split()[:5]
            (repo / "my/ImageSets/Segmentation/check.txt").write_text("\n".join(ids) + "\n")
            (repo / "my/SegmentationClass").mkdir()
            classes = (repo / "my/classes.txt").read_text().split()
            for image_id in ids:  # named after class and file
                name, _, stem = image_id.partition("_")
                mask = np.array(Image.open(house / f"source/SegmentationClass/{stem}.png")) > 0
                label = np.where(mask, 1 + classes.index(name), 0).astype(np.uint8)
                Image.fromarray(label).save(repo / f"my/SegmentationClass/{image_id}.png")
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{exported}\n{line}"],
            cwd=repo, env=env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert run.returncode == 0, f"{line}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
        done.append(line)

    runs = repo / "runs/my"
    assert (repo / "my/classes.txt").read_text().split() == ["bar", "disc", "square"]
    assert len(list((repo / "predictions").glob("*.png"))) == 3
    assert (repo / "predictions/overlays/legend.png").exists()
    assert (runs / "explore/index.html").exists() and (runs / "report/index.html").exists()
    assert json.loads((runs / "pseudo25/run.json").read_text())["settings"]["threshold"] == 0.25
    assert json.loads((runs / "classification.json").read_text())["mean_average_precision"] > 0
    page = (runs / "report/report.md").read_text()
    assert "51.53" not in page and "not run" not in page  # nothing of VOC's tables
