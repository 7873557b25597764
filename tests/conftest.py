"""A tiny data set that every stage test shares, and the commands that make each stage small."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from core.data.datasets import DataRoot
from core.data.scores import Scores
from core.run import artefacts
from tools import timing

import numpy as np
import pytest
import torch
from PIL import Image

# One thread, also in the stages that tests start: rounding depends on their number.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# A shell starts background jobs deaf to Ctrl-C, nohup to SIGHUP, and what they start inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"
GOLDENS = Path(__file__).parent / "goldens"

# What makes a training small enough for a test: ResNet-18 from scratch, one short epoch.
SMALL = "--backbone resnet18 --weights none --epochs 2 --batch-size 4 --crop 64 --sides 48 80 "
SMALL += "--lr 0.005 --workers 0 --device cpu --amp off --log-every 1"
SMALL = SMALL.split()


@pytest.fixture(autouse=True)
def _outside_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never start in the middle of somebody's job of several processes."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LAST_WORDS"):
        monkeypatch.delenv(name, raising=False)


def fake_python(folder: Path, text: str = 'printf "%s\\n" "$@"') -> dict[str, str]:
    """A `python` of these lines of bash, by default one that says its arguments, one a line.

    Returns the environment in which scripts start it. `VIRTUAL_ENV` is among it: without an
    active environment a script takes ./.venv of the repository, if there, before PATH.
    """
    folder.mkdir(exist_ok=True)
    (folder / "python").write_text(f"#!/bin/bash\n{text}\n")
    (folder / "python").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "VIRTUAL_ENV": sys.prefix}


def golden(name: str) -> dict[str, np.ndarray]:
    """A file of tests/goldens as a dict of arrays."""
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def write_data_root(
    root: Path,
    n_train: int = 8,
    n_val: int = 3,
    classes: tuple[str, ...] = ("disc", "square", "bar"),
    size: tuple[int, int] = (48, 64),
    masks: bool = True,
) -> Path:
    """A data set in the project's layout: one coloured figure an image, on noise."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "ImageSets/Segmentation", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    lines = []
    for split, count in (("train", n_train), ("val", n_val)):
        ids = [f"{split}{i}" for i in range(count)]
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for number, image_id in enumerate(ids):
            kind = number % len(classes)
            image = rng.integers(60, 120, (*size, 3)).astype(np.uint8)
            y, x = np.mgrid[: size[0], : size[1]]
            inside = [
                (y - 24) ** 2 + (x - 30) ** 2 < 200,
                (abs(y - 24) < 12) & (abs(x - 30) < 12),
                abs(y - 24) < 6,
            ][kind % 3]
            image[inside] = np.roll([220, 40, 60], kind)
            Image.fromarray(image).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95)
            if masks:
                mask = np.where(inside, kind + 1, 0).astype(np.uint8)
                Image.fromarray(mask).save(root / "SegmentationClass" / f"{image_id}.png")
            lines.append(f"{image_id} {classes[kind]}")
    (root / "labels.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A fresh tiny data root that a test may damage."""
    return write_data_root(tmp_path / "data")


def run_stage(main, *arguments: object) -> None:
    """Run a stage script's `main` in this process."""
    main([str(a) for a in arguments])


def write_cams(data_root: Path, out: Path) -> None:
    """CAMs as if make_cam.py had made them: the blurred masks."""
    data = DataRoot(data_root)
    labels = data.image_labels(data.ids("train"))
    out.mkdir()
    for image_id, classes in labels.items():
        mask = np.array(Image.open(data.mask_path(image_id)))
        maps = torch.from_numpy(np.stack([mask == c for c in classes]).astype(np.float32))
        maps = torch.nn.functional.avg_pool2d(maps, 4)
        Scores(classes, maps.numpy(), mask.shape).save(out / f"{image_id}.npz")
    made = {"stage": "make_cam", "holds": "scores", "classes": data.classes, "finished": True}
    made |= {"digest": artefacts.seal(out, [f"{i}.npz" for i in labels]), "results": {"map": "cam"}}
    (out / "run.json").write_text(json.dumps(made))


@pytest.fixture
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates of time come without the seconds that trying this machine takes."""
    rates = timing.Rates(training=1e11, inference=2e11, cores=2, on_gpu=False)
    monkeypatch.setattr(timing, "measure", lambda *_: rates)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """The tiny data set and an undisturbed run of every stage; what a test changes it puts back."""
    from faults.stages import STAGES  # which imports this file

    root = tmp_path_factory.mktemp("undisturbed")
    write_data_root(root / "data")
    for stage in STAGES.values():
        stage.run(root, root)
    return root
