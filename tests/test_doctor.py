"""tools/doctor.py: what each check says of a machine and a data root, and that it never raises."""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

from core.data.transforms import pyramid
from core.errors import InputError
from core.method import boundary, cam, segmentation
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from tools import budget, doctor

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

IDS = ["a", "b", "c"]


def options(*given: str) -> Namespace:
    return doctor.get_args_parser().parse_args(list(given))


def level_of(findings: list[tuple[str, ...]], what: str) -> str:
    return {name: level for level, name, *_ in findings}[what]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of 20x12 with labels and masks, in the three lists."""
    folder = tmp_path / "data"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for image_id in IDS:
        Image.new("RGB", (20, 12)).save(folder / "JPEGImages" / f"{image_id}.jpg")
        Image.new("L", (20, 12)).save(folder / "SegmentationClass" / f"{image_id}.png")
    for split in ("train_aug", "train", "val"):
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(IDS))
    (folder / "labels.txt").write_text("a cat\nb dog\nc cat dog\n")
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def test_facts_of_a_data_root(root: Path) -> None:
    Image.new("RGB", (30, 40)).save(root / "JPEGImages" / "c.jpg")
    facts = budget.data_facts(root, "train_aug")
    assert facts == budget.Facts(3, pytest.approx(560), pytest.approx(4 / 3), 2, (40, 30))


@pytest.mark.usefixtures("known_rates")
def test_what_a_check_refuses_is_one_finding(tmp_path: Path) -> None:
    findings = doctor.examine(options("--data", str(tmp_path / "none"), "--weights", "none"))
    assert level_of(findings, "data") == "FAIL"
    assert all(len(finding) == 4 and "\n" not in "".join(finding) for finding in findings)


def test_kept_bytes_against_real_tensors() -> None:
    """The count on shapes equals that of a pass with data; the sum is the documented formula."""
    args = options("--backbone", "resnet18", "--crop", "64", "--batch-size", "4")
    network, kept = Classifier("resnet18", 20).train(), {}
    own = {p.data_ptr() for p in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor  # kept alive: its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(2, 3, 64, 64))
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    weights = 12 * sum(p.numel() for p in network.parameters())
    expected = 1.1 * (2 * activations + weights) + 2**30
    estimate = budget.training_bytes("train_classification", args, half=False, accumulate=2)
    assert estimate == pytest.approx(expected, abs=1)


def test_memory_falls_with_accumulation_and_half_precision() -> None:
    args = options("--backbone", "resnet18")
    for stage in ("train_classification", "train_affinity", "train_segmentation"):
        need = [budget.training_bytes(stage, args, half, n) for half, n in ((0, 1), (0, 4), (1, 4))]
        assert need[0] > need[1] > need[2] > 2**30


def test_peak_bytes_counts_what_lives_at_one_time() -> None:
    def work() -> torch.Tensor:
        first = torch.zeros(1000)  # 4,000 bytes
        second = first.double()  # 8,000
        del first
        second.add_(1)  # in place, and a view of it: nothing more
        return second.view(10, 100).sum(0)  # 800

    assert budget.peak_bytes(work) == 12_000


@pytest.mark.parametrize("stage", ["make_cam", "make_random_walk", "predict"])
def test_inference_bytes_against_real_tensors(root: Path, stage: str) -> None:
    """What is counted on shapes is what a real batch of the largest image holds on the CPU."""
    Image.new("RGB", (120, 90)).save(root / "JPEGImages" / "b.jpg")
    given = ["--data", str(root), "--backbone", "resnet18", "--batch-images", "2"]
    args = options(*given, "--max-side", "80", "--scales", "0.5", "1.0", "1.5")
    network = {
        "make_cam": lambda: Classifier("resnet18", 2),
        "make_random_walk": lambda: AffinityNet("resnet18"),
        "predict": lambda: DeepLabV3Plus("resnet18", 3),
    }[stage]()
    network = network.eval().to(memory_format=torch.channels_last)

    def infer() -> None:
        if stage == "make_random_walk":
            boundary.edge_map(network, torch.zeros(1, 3, 90, 120, dtype=torch.uint8), 512)
            return
        picture = np.zeros((60, 80, 3), np.uint8)
        copies = [torch.stack([c, c]) for c in pyramid(picture, args.scales)]
        if stage == "make_cam":
            cam.sum_scales(network, copies, (90, 120))
        else:
            segmentation.probabilities(network, copies, (60, 80))

    with torch.inference_mode():
        peak = budget.peak_bytes(infer)
    weights = 4 * sum(p.numel() for p in network.parameters())
    estimate = budget.inference_bytes(stage, args, half=False)
    assert estimate == pytest.approx(1.1 * (peak + weights) + 2**30, rel=1e-4)


def test_options_that_save_memory_in_inference(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU, that is: on a CPU images of this size are not computed together."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    Image.new("RGB", (4000, 3000)).save(root / "JPEGImages" / "b.jpg")
    given = ["--data", str(root), "--backbone", "resnet18"]

    def need(stage: str, *more: str, half: bool = False, jobs: int = 4) -> int:
        return budget.memory_bytes(stage, options(*given, *more), half, jobs)

    for stage in ("make_cam", "predict"):
        default = need(stage)
        assert default < need(stage, "--max-side", "4000") / 3
        assert default > need(stage, "--batch-images", "1") > need(stage, "--max-side", "64")
        assert default > need(stage, "--scales", "0.5", "1") and default > need(stage, half=True)
    for stage in ("make_affinity_labels", "make_pseudo_labels"):
        assert need(stage, jobs=4) == 4 * need(stage, jobs=1) > 4 * 450 * 4000 * 3000
    assert need("make_random_walk") > need("make_random_walk", half=True) > 2**30


def test_remedies_are_options_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "training_bytes", lambda *_: 1 << 60)
    monkeypatch.setattr(budget, "inference_bytes", lambda *_: 1 << 60)
    monkeypatch.setattr(budget, "crf_bytes", lambda *_: 1 << 60)
    found = list(doctor.check_memory(options("--backbone", "resnet18")))
    remedies = {text.split()[0]: remedy for level, _, text, remedy in found if level == "FAIL"}
    heavy = "train_classification make_cam make_affinity_labels train_affinity make_random_walk"
    heavy += " make_pseudo_labels train_segmentation predict"
    assert set(heavy.split()) <= remedies.keys() <= budget.STEPS.keys()
    for stage, remedy in remedies.items():
        parser = importlib.import_module(stage).get_args_parser()
        named = re.findall(r"--[\w-]+", remedy)
        assert set(named) <= set(parser._option_string_actions)
        assert ("--max-side" in named) == (stage in ("make_cam", "predict"))


def test_too_little_memory_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--backbone", "resnet18", "--out", str(tmp_path), "--stage", "train_classification"]
    args = options(*given)
    monkeypatch.setattr(budget, "training_bytes", lambda *_: 1 << 60)
    assert level_of(list(doctor.check_memory(args)), "memory") == "FAIL"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 20, 0, 1 << 20))
    findings = list(doctor.check_output(args))
    assert level_of(findings, "output") == "ok" and level_of(findings, "disk") == "FAIL"
    assert level_of(list(doctor.check_workers(args)), "/dev/shm") == "FAIL"
    assert not any(tmp_path.iterdir())


def test_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = options("--out", str(tmp_path / "runs"), "--stage", "make_cam")
    assert level_of(list(doctor.check_output(args)), "locks") == "ok"

    def refuse(number: int) -> Callable[..., None]:
        def lockf(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return lockf

    monkeypatch.setattr(fcntl, "lockf", refuse(errno.ENOLCK))
    findings = list(doctor.check_output(args))
    assert level_of(findings, "output") == "ok" and level_of(findings, "locks") == "warn"
    monkeypatch.setattr(fcntl, "lockf", refuse(errno.EROFS))
    assert level_of(list(doctor.check_output(args)), "output") == "FAIL"
    assert not any(tmp_path.iterdir())


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "is_available": True,
        "device_count": 2,
        "get_device_name": "a GPU",
        "mem_get_info": (30 << 30, 32 << 30),
        "get_device_capability": (8, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    given = ["--stage", "make_cam", "--backbone", "resnet18", "--gpus"]
    for gpus, levels in (("4", {"FAIL", "ok"}), ("2", {"ok"})):
        findings = list(doctor.check_memory(options(*given, gpus)))
        assert {level for level, what, *_ in findings if what == "GPU"} == levels
        assert level_of(findings, "memory") == "ok"


def test_disk_of_cams_is_their_size() -> None:
    """VOC's CAMs: 94 x 125 float16 maps, 1.55 an image; the stage's docstring says 0.5 GB."""
    maps = 10582 * 1.55 * 94 * 125 * 2
    assert maps < budget.disk_bytes("make_cam", options()) < 1.2 * maps


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(doctor.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    args = options("--backbone", "resnet18")
    assert level_of(list(doctor.check_weights(args)), "weights") == "warn"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(b"half of it")
    assert level_of(list(doctor.check_weights(args)), "weights") == "FAIL"
    with pytest.raises(InputError, match="resnet18"):
        list(doctor.check_weights(options("--backbone", "vgg16")))
    with pytest.raises(InputError):
        list(doctor.check_weights(options("--weights", str(tmp_path / "none.pth"))))


def test_a_backbone_that_shapes_alone_do_not_show_to_fail() -> None:
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="takes no images of 480x320"):
        list(doctor.check_weights(options("--backbone", "timm:mvitv2_tiny")))


@pytest.mark.parametrize(
    "python, level", [("3.9.1", "FAIL"), ("3.12.0", "ok"), ("3.14.0", "ok"), ("3.15.0", "warn")]
)
def test_versions(monkeypatch: pytest.MonkeyPatch, python: str, level: str) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: python)
    monkeypatch.setattr(torch, "__version__", "2.3.1+cpu")
    findings = list(doctor.check_versions(options()))
    assert level_of(findings, "python") == level and level_of(findings, "numpy") == "ok"
    assert level_of(findings, "torch") == "FAIL"


def test_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(torchvision.ops, "nms", fail)
    findings = {what: found for _, what, found, _ in doctor.check_versions(options())}
    assert findings["torchvision"] == "does not work: operator torchvision::nms does not exist"


@pytest.mark.usefixtures("known_rates")
def test_report_and_status(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    given = ["--data", str(root), "--out", str(tmp_path / "runs"), "--weights", "none"]
    given += ["--backbone", "resnet18", "--batch-size", "2", "--json", str(report)]
    monkeypatch.setattr(sys, "argv", ["doctor.py", *given])
    with pytest.raises(SystemExit) as stop:
        doctor.main()
    findings = json.loads(report.read_text())["findings"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(findings) + 1 and lines[-1].startswith("ready; ")
    assert all(line[:4] in ("ok  ", "warn") for line in lines[:-1])
    assert stop.value.code == 0 and not (tmp_path / "runs").exists()


def test_broken_torch_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text('raise OSError("libcudart.so: no such file")')
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, doctor.__file__], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert any(line.startswith("FAIL torch: does not work: libcudart.so") for line in lines)
    assert any(line.startswith("warn data: not checked") for line in lines)
    assert not any("please report" in line for line in lines)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "--batch-size 32 is larger than the 3 images"),
        ("--batch-size 3 --accumulate 2", "not divisible by 1 processes x --accumulate 2"),
        ("--batch-size 3 --gpus 2", "not divisible by 2 processes"),
        ("--batch-size 2 --crop 100", "--crop 100 is not divisible by 16 x --grid 2; 96 is"),
    ],
)
def test_what_a_training_would_refuse(root: Path, given: str, words: str) -> None:
    """A failure where it was asked for; a warning of a default, which the stage may be given."""
    found = list(doctor.check_training(options("--data", str(root), *given.split())))
    assert found[0][0] == ("FAIL" if given else "warn") and words in found[0][2]


def test_steps_of_the_trainings(root: Path) -> None:
    found = list(doctor.check_training(options("--data", str(root), "--batch-size", "2")))
    assert [level for level, *_ in found] == ["ok"] * 3
    assert found[0][2] == "train_classification: 15 steps of 2 images"
