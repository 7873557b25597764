"""CAM inference, the random walk, evaluation and the CAM files, each against its usual form."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from core.data import scoring
from core.data.scores import Scores, strided_size
from core.data.transforms import SCALES
from core.method.affinity import paths
from core.method.cam import of_classes, sum_scales
from core.method.networks import Classifier
from core.method.random_walk import random_walk
from core.recipe import EVALUATION, RANDOM_WALK
from core.run import inference, precision
from tools.benchmarking import measure, references, rows
from tools.benchmarking.data import SPLIT, data_root, write_cams
from tools.benchmarking.measure import Bench, Work

RADIUS, BETA, LOG2_STEPS = RANDOM_WALK.radius, RANDOM_WALK.beta, RANDOM_WALK.log2_steps
THRESHOLDS = EVALUATION.paper_thresholds
BATCH_IMAGES = 4  # make_cam.py's default
Rows = Iterator[dict[str, Any]]


def cams(bench: Bench) -> Rows:
    """From JPEG files to CAMs on the host, four scales and mirror images."""
    data = data_root(bench)
    batches = 16 if bench.device.type == "cuda" else 1  # to hide the start of the loader processes
    ids = [i for _ in range(batches) for i in data.ids(SPLIT)[:BATCH_IMAGES]]
    labels = data.image_labels(ids)
    pictures = {i: data.image_path(i) for i in ids}
    network = Classifier(bench.backbone, 20).eval()
    groups = [ids[i : i + BATCH_IMAGES] for i in range(0, len(ids), BATCH_IMAGES)]
    workers = 4 if bench.device.type == "cuda" else 0  # the CPU is busy with the network

    def ours() -> Work:
        ready = copy.deepcopy(network).to(bench.device, memory_format=torch.channels_last)
        autocast = precision.autocast(bench.amp, bench.device)

        @torch.inference_mode()
        def run() -> None:
            views = inference.pyramids(
                pictures, groups, SCALES, max(bench.size), workers, bench.device, "cams"
            )
            for group, copies, size in views:
                with autocast:
                    sums = sum_scales(ready, copies, size)
                for image_id, maps in zip(group, sums, strict=True):
                    of_classes(maps, labels[image_id]).half().cpu()

        return run

    def reference() -> Work:
        ready = copy.deepcopy(network).to(bench.device)

        @torch.no_grad()
        def run() -> None:
            for i in ids:
                references.multi_scale_cam(
                    ready, data.image_path(i), labels[i], SCALES, bench.device
                )

        return run

    found = measure.compare(bench, ours, reference, 3, bench.device, bench.threads)
    bound = rows.arithmetic(bench, len(ids) * _cam_flop(bench), found.ours)
    yield rows.row(
        bench, "multi-scale CAM inference", found, "images/s", bound, items=len(ids),
        device=bench.device, target=4.0 if bench.device.type == "cuda" else 2.0,
        note=f"{bench.backbone}, 4 scales x 2, batches of {BATCH_IMAGES} images, from JPEG",
    )  # fmt: skip


def _cam_flop(bench: Bench) -> float:
    """FLOP of the convolutions for one image: all scales, twice."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = Classifier(bench.backbone, 20).eval()
        for scale in SCALES:
            network(torch.empty(2, 3, *(round(side * scale) for side in bench.size)))
    return counter.get_total_flops()


def walk(bench: Bench) -> Rows:
    """The sparse walk in float64, as the stage runs it, against squaring the dense matrix."""
    height, width = strided_size(bench.size)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, height, width, generator=generator, dtype=torch.float64)
    edge = torch.rand(height, width, generator=generator, dtype=torch.float64) ** 2
    scores, edge = scores.to(bench.device), edge.to(bench.device)
    # A CPU needs minutes for the eight squarings: there, one is timed and multiplied.
    cuda = bench.device.type == "cuda"
    squarings = LOG2_STEPS if cuda else 1

    def reference() -> Work:
        matrix = references.dense_transition(edge.float(), RADIUS, BETA)

        def run() -> None:
            product = matrix
            for _ in range(squarings):
                product = product @ product

        return run

    def ours() -> Work:
        return lambda: random_walk(scores, edge, RADIUS, BETA, LOG2_STEPS)

    found = measure.compare(bench, ours, reference, 9, bench.device, bench.threads, once=not cuda)
    found.reference *= LOG2_STEPS / squarings
    entries = edge.numel() * (2 * len(paths(RADIUS)[0]) + 1)
    gigabytes = 2**LOG2_STEPS * entries * 12 / 1e9
    yield rows.row(
        bench, f"random walk, {height} x {width} grid", found, "ms/image",
        f"memory: 2^{LOG2_STEPS} reads of the sparse matrix, {gigabytes / found.ours:.3g} GB/s",
        device=bench.device, target=None if cuda else 400.0, target_ours=10.0 if cuda else None,
        note="float64. Reference: dense float32, "
        + ("8 squarings" if cuda else "ONE squaring timed and multiplied by 8"),
    )  # fmt: skip


def evaluation(bench: Bench) -> Rows:
    """Scores at 15 thresholds, from the files, on one core."""
    data = data_root(bench)
    write_cams(bench)
    ids = data.ids(SPLIT)
    results: dict[str, list[float]] = {}

    def ours() -> None:
        folder = bench.folder / "cams"
        sweep = scoring.scores(data, folder, "SegmentationClass", THRESHOLDS, ids)
        results["ours"] = [matrix.miou() for matrix in sweep.confusions()]

    def reference() -> None:
        results["reference"] = references.sweep_by_files(
            ids, bench.folder / "usual-cams", data.mask_path, data.n_labels, THRESHOLDS
        )

    found = measure.compare(bench, lambda: ours, lambda: reference, repeats=3)
    pairs = zip(results["ours"], results["reference"], strict=True)
    yield rows.row(
        bench, f"evaluation, {len(THRESHOLDS)} thresholds, per core", found, "images/s",
        "one core: upsampling, argmax and one histogram of every pixel", items=len(ids),
        target=20.0, largest_difference_miou=max(abs(a - b) for a, b in pairs),
    )  # fmt: skip


def cam_bytes(bench: Bench) -> Rows:
    """Bytes of the files on disk."""
    write_cams(bench)
    usual = [p.stat().st_size for p in (bench.folder / "usual-cams").iterdir()]
    ours = [p.stat().st_size for p in (bench.folder / "cams").iterdir()]
    Scores.load(next((bench.folder / "cams").iterdir()), 20)
    yield rows.size_row(
        bench, "CAM bytes", (sum(ours) / len(ours), sum(usual) / len(ours)), "bytes/image",
        "2 bytes for each of 1/16 of the pixels and class", target=20.0,
        note=f"{bench.size[1]}x{bench.size[0]}, 2 classes. Reference: both sizes in float32",
    )  # fmt: skip
