"""Whole stages from command to exit, what their start takes, and how costs grow with the work."""

import os
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

from core.data import scoring
from core.data.datasets import DataRoot
from core.data.scores import strided_size
from core.method import crf
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from core.method.random_walk import random_walk
from core.recipe import PREDICTION
from core.run import checkpoint
from core.run.parallel import cpu_count
from tools import budget, doctor, timing
from tools.benchmarking.data import SPLIT, data_root, photograph
from tools.benchmarking.inference import BETA, LOG2_STEPS, RADIUS, THRESHOLDS
from tools.benchmarking.measure import Bench, Rows, Work

import numpy as np
import torch

REPO = Path(__file__).resolve().parents[2]
MANY, KEPT = 81, 6  # labels of COCO with the background; of them in a picture
ALL = 84  # labels that all count: four times VOC's 21
# Stage -> options, and what bounds it but for its start. {} is the folder of this run.
STAGES = {
    "make_cam": ("--checkpoint {}/classifier.pt", "convolutions"),
    "make_affinity_labels": ("--scores {}/make_cam-all", "the CRF"),
    "make_random_walk": (
        "--scores {}/make_cam-all --checkpoint {}/affinity.pt",
        "convolutions, the walk",
    ),
    "make_pseudo_labels": ("--scores {}/make_cam-all", "the CRF's lattices"),
    "predict": ("--checkpoint {}/segmentation.pt", "convolutions, the CRF"),
    "evaluate": ("--scores {}/make_cam-all", "reading files"),
}


def run(script: str, *options: object) -> None:
    """A script of the project in a process of its own."""
    command = [sys.executable, str(REPO / f"{script}.py"), *map(str, options)]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"{script}: {found.stderr}")


def start(bench: Bench) -> Rows:
    """What a stage takes until it looks at its options."""
    late = "import torchvision, train_classification; train_classification.get_args_parser()"
    reference = partial(subprocess.run, [sys.executable, "-c", late], cwd=REPO, check=True)
    bound = "importing torch"
    note = "to --help. Reference: the same, torchvision imported as well"
    works = partial(run, "train_classification", "--help"), reference
    yield bench.one_core.compare("start of a stage", *works, "s/run", bound, note, target=1.5)


def stages(bench: Bench) -> Rows:
    """Images a second of whole stages, the reference being without what one image alone takes."""
    data, folder = _many_images(bench), bench.folder / "whole"
    data_options = "--data", data.root, "--device", str(bench.device)
    count = len(data.ids("all"))
    told = "--data", str(data.root), "--split", "all", "--backbone", bench.backbone
    expected = doctor.get_args_parser().parse_args(told)
    rates = timing.measure(bench.device, bench.amp, cpu_count())
    for script, (options, bound) in STAGES.items():
        seconds = {}
        for split in ("one", "all"):
            out = folder / f"{script}-{split}"
            where = ("--json", f"{out}.json") if script == "evaluate" else ("--out", out)
            given = options.replace("{}", str(folder)).split()
            began = time.perf_counter()
            run(script, *data_options, "--split", split, *where, *given)
            seconds[split] = time.perf_counter() - began
        # A busy machine can take longer for the one image.
        rest = max(seconds["all"] - seconds["one"], 0.01 * seconds["all"])
        figures = np.array([[count / seconds["all"], (count - 1) / rest]])
        note = f"{count} images, from command to exit. Reference: without the first one"
        if script in budget.STEPS:
            guess = count / timing.seconds(script, expected, rates)
            note += f". The estimate of tools/timing.py: {guess:.3g} images/s"
        bound = f"{seconds['one']:.1f} s for start and first image, then {bound}"
        yield bench.row(f"{script}.py", figures, "images/s", bound, note)


def _many_images(bench: Bench) -> DataRoot:
    """The photographs and masks under many names (links), and models with random weights."""
    data, folder = data_root(bench), bench.folder / "whole"
    per_image = 1 if bench.quick else 64 if bench.cuda else 2
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    labels, found, ids = data.image_labels(data.ids(SPLIT)), data.ids(SPLIT), []
    for number in range(per_image):
        for image_id in found:
            ids.append(f"{image_id}_{number}")
            for source, target in (
                (data.image_path(image_id), f"JPEGImages/{ids[-1]}.jpg"),
                (data.mask_path(image_id), f"SegmentationClass/{ids[-1]}.png"),
            ):
                os.link(source, folder / target)
    names = [" ".join([i, *(data.classes[c - 1] for c in labels[i.split("_")[0]])]) for i in ids]
    (folder / "labels.txt").write_text("\n".join(names))
    for split, part in (("all", ids), ("one", ids[:1])):
        path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.write_text("\n".join(part))
    torch.manual_seed(0)
    for name, network in (
        ("classifier", Classifier(bench.backbone, 20)),
        ("affinity", AffinityNet(bench.backbone)),
        ("segmentation", DeepLabV3Plus(bench.backbone, 21)),
    ):
        checkpoint.save_model(folder / f"{name}.pt", network, data.classes, bench.crop)
    return DataRoot(folder)


def scaling(bench: Bench) -> Rows:
    """Four times the pixels, labels or images against four times the cost: 1 is linear."""
    small, large = bench.size, (2 * bench.size[0], 2 * bench.size[1])
    rng = np.random.default_rng(0)
    photos = {size: photograph(0, size)[0] for size in (small, large)}
    probs = {
        (n, s): _probabilities(rng, n, n, s) for n, s in ((21, small), (21, large), (ALL, small))
    }

    def refine(n_labels: int, size: tuple[int, int]) -> Work:
        given = photos[size], probs[n_labels, size], PREDICTION.crf_iterations
        return partial(crf.refine_probabilities, *given, "torch", bench.device)

    @cache
    def grid(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        edge = torch.rand(strided_size(size), dtype=torch.float64)
        return edge.expand(2, -1, -1).to(bench.device), edge.to(bench.device) ** 2

    def walk(size: tuple[int, int]) -> Work:
        return lambda: random_walk(*grid(size), RADIUS, BETA, LOG2_STEPS)

    def evaluate(times: int) -> Work:
        data = data_root(bench)
        given = data, bench.folder / "cams", "SegmentationClass", THRESHOLDS
        return partial(scoring.scores, *given, data.ids(SPLIT) * times)

    note = "against four times the small cost: 1 is linear"
    for name, ours, reference, bound in (
        ("CRF, 4 x the pixels", refine(21, large), refine(21, small), "the lattice's vertices"),
        (
            "CRF, 4 x the labels",
            refine(ALL, small),
            refine(21, small),
            "a value a label and vertex",
        ),
        ("random walk, 4 x the pixels", walk(large), walk(small), "the matrix, past the caches"),
        ("evaluation, 4 x the images", evaluate(4), evaluate(1), "every pixel, once"),
    ):
        yield bench.compare(name, ours, reference, "ms/image", bound, note, 1, 4, target=0.8)


def many_labels(bench: Bench) -> Rows:
    """The CRF of 81 labels, of which a picture holds few, against all of them."""
    photo, rng = photograph(0, bench.size)[0], np.random.default_rng(0)
    given = photo, _probabilities(rng, MANY, KEPT, bench.size), PREDICTION.crf_iterations
    reference = partial(crf.refine_probabilities, *given, "torch", bench.device)
    refine = partial(reference, left_out=crf.may_leave_out(MANY))
    note = f"{KEPT} of them count. Reference: all of them"
    figures = "ms/image", "memory: values of the labels that count", note
    name = f"CRF in torch, {MANY} labels"
    yield bench.compare(name, refine, reference, *figures, target=3.0)


def _probabilities(
    rng: np.random.Generator, n_labels: int, kept: int, size: tuple[int, int]
) -> np.ndarray:
    """float32 (n_labels, H, W), smooth, of which only the first `kept` exceed 0.05 anywhere."""
    logits = rng.normal(0, 2, (n_labels, -(-size[0] // 25), -(-size[1] // 25))).astype(np.float32)
    logits[kept:] -= 12
    coarse = torch.from_numpy(logits)[None]
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].softmax(0).numpy()
