"""CAM inference, the random walk, evaluation and the CAM files, each against its usual form."""

from __future__ import annotations

import copy
from functools import cache, partial

import numpy as np
import torch

from core.data import scoring
from core.data.scores import strided_size
from core.data.transforms import SCALES
from core.method.affinity import paths
from core.method.cam import of_classes, sum_scales
from core.method.networks import Classifier
from core.method.random_walk import random_walk
from core.recipe import EVALUATION, RANDOM_WALK
from core.run import inference, precision
from tools.benchmarking import references
from tools.benchmarking.data import SPLIT, data_root
from tools.benchmarking.measure import Bench, Rows, count_flop

RADIUS, BETA, LOG2_STEPS = RANDOM_WALK.radius, RANDOM_WALK.beta, RANDOM_WALK.log2_steps
THRESHOLDS = EVALUATION.paper_thresholds
BATCH_IMAGES = 4  # make_cam.py's default


def cams(bench: Bench) -> Rows:
    """From JPEG files to CAMs on the host, four scales and mirror images."""
    data, device = data_root(bench), bench.device
    group = data.ids(SPLIT)[:BATCH_IMAGES]
    groups = [group] * (16 if bench.cuda else 1)  # to hide the start of the loader processes
    workers = 4 if bench.cuda else 0  # the CPU is busy with the network
    labels = data.image_labels(group)
    pictures = {i: data.image_path(i) for i in group}
    network = Classifier(bench.backbone, 20).eval()
    usual = copy.deepcopy(network)

    @torch.inference_mode()
    def ours() -> None:
        side = max(bench.size)
        views = inference.pyramids(pictures, groups, SCALES, side, workers, device, "cams")
        ready = network.to(device, memory_format=torch.channels_last)
        for names, copies, size in views:
            with precision.autocast(bench.amp, device):
                sums = sum_scales(ready, copies, size)
            for name, maps in zip(names, sums, strict=True):
                of_classes(maps, labels[name]).half().cpu()

    @torch.no_grad()
    def reference() -> None:
        usual.to(device)
        for i in len(groups) * group:
            references.multi_scale_cam(usual, pictures[i], labels[i], device)

    items = len(groups) * len(group)
    shapes = [(2, 3, *(round(side * scale) for side in bench.size)) for scale in SCALES]
    flop = items * count_flop(lambda: Classifier(bench.backbone, 20).eval(), *shapes)
    note = f"{bench.backbone}, 4 scales x 2, batches of {BATCH_IMAGES} images, from JPEG"
    figures = "images/s", partial(bench.arithmetic, flop), note, items
    works, target = (ours, reference), 4.0 if bench.cuda else 2.0
    yield bench.compare("multi-scale CAM inference", *works, *figures, target=target)


def walk(bench: Bench) -> Rows:
    """The sparse walk in float64, as the stage runs it, against squaring the dense matrix."""
    height, width = strided_size(bench.size)
    scores = torch.rand(2, height, width, dtype=torch.float64).to(bench.device)
    edge = torch.rand(height, width, dtype=torch.float64).to(bench.device) ** 2
    matrix = cache(partial(references.dense_transition, edge.float(), RADIUS, BETA))
    parts = 1 if bench.cuda else 8  # a CPU needs half a minute for a whole squaring

    def reference() -> None:
        matrix()[: edge.numel() // parts] @ matrix()

    def bound(time_taken: float) -> str:
        entries = edge.numel() * (2 * len(paths(RADIUS)[0]) + 1)
        rate = 2**LOG2_STEPS * entries * 12 / 1e9 / time_taken
        return f"memory: 2^{LOG2_STEPS} reads of the sparse matrix, {rate:.3g} GB/s"

    timed = f"{'ONE squaring' if bench.cuda else '1/8 of ONE squaring'} timed and multiplied"
    note = f"float64. Reference: dense float32, {timed} by {parts * LOG2_STEPS}"
    works = partial(random_walk, scores, edge, RADIUS, BETA, LOG2_STEPS), reference
    figures = "ms/image", bound, note, 1, parts * LOG2_STEPS
    goals = {"target_ours": 10.0} if bench.cuda else {"target": 400.0}
    yield bench.compare(f"random walk, {height} x {width} grid", *works, *figures, **goals)


def evaluation(bench: Bench) -> Rows:
    """Scores at 15 thresholds, from the files, on one core."""
    data = data_root(bench)
    ids = data.ids(SPLIT)

    def ours() -> list[float]:
        folder = bench.folder / "cams"
        sweep = scoring.scores(data, folder, "SegmentationClass", THRESHOLDS, ids)
        return [matrix.miou() for matrix in sweep.confusions()]

    def reference() -> list[float]:
        return references.sweep_by_files(data, ids, bench.folder / "usual-cams", THRESHOLDS)

    name = f"evaluation, {len(THRESHOLDS)} thresholds, per core"
    bound = "one core: upsampling, argmax and one histogram of every pixel"
    difference = float(np.abs(np.subtract(ours(), reference())).max())
    figures = "images/s", bound, "", len(ids)
    row = bench.one_core.compare(name, ours, reference, *figures, target=20.0)
    yield {**row, "largest_difference_miou": difference}


def cam_bytes(bench: Bench) -> Rows:
    """Bytes of the files on disk."""
    n_images = len(data_root(bench).ids(SPLIT))
    folders = bench.folder / "cams", bench.folder / "usual-cams"
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in folders]
    each = np.array([sizes]) / n_images
    bound = "2 bytes for each of 1/16 of the pixels and class"
    note = f"{bench.size[1]}x{bench.size[0]}, 2 classes. Reference: both sizes in float32"
    yield bench.one_core.row("CAM bytes", each, "bytes/image", bound, note, target=20.0)
