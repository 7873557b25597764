"""The loader and the training steps, each against its usual form."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train_affinity
import train_classification
import train_segmentation
from core import recipe
from core.data import images
from core.data.datasets import TrainingViews
from core.data.transforms import RandomView, normalize
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from tools.benchmarking import measure, references, rows, steps
from tools.benchmarking.data import SPLIT, data_root
from tools.benchmarking.measure import Bench, Work

Rows = Iterator[dict[str, Any]]
ALPHA = 2.0
puzzle_step = functools.partial(train_classification.step, alpha=ALPHA)


def loader(bench: Bench) -> Rows:
    """Images a second of one loader process, without and with the device's normalisation."""
    data = data_root(bench)
    ids = data.ids(SPLIT)
    sides = steps.sides(bench)
    views = TrainingViews(data, ids, RandomView(sides, bench.crop), 0, data.image_labels(ids))
    draws = range(2 * len(ids))

    def ours() -> None:
        for draw in draws:
            views[draw]

    def ours_normalised() -> None:
        for first in draws[::4]:
            batch = [views[draw] for draw in draws[first : first + 4]]
            normalize(*(torch.stack(part) for part in list(zip(*batch, strict=True))[:2]))

    def reference() -> None:
        rng = np.random.default_rng(0)
        for draw in draws:
            path = data.image_path(ids[draw % len(ids)])
            references.load_view(path, sides, bench.crop, rng)

    def decode() -> None:
        for draw in draws:
            images.read_image(data.image_path(ids[draw % len(ids)]))

    found = measure.compare(bench, lambda: ours, lambda: reference, repeats=7)
    with measure.cpu_threads(1):
        share = min(measure.seconds(decode) for _ in range(3)) / found.ours
    bound = f"one core: JPEG decoding {100 * share:.0f}% of the time, then resize, flip, crop"
    yield rows.row(
        bench, "loader, per core", found, "images/s", bound, items=len(draws), target=3.5,
        note="uint8 views; the device normalises them. Reference: normalised float32",
    )  # fmt: skip
    found = measure.compare(bench, lambda: ours_normalised, lambda: reference, repeats=7)
    yield rows.row(
        bench, "loader and normalisation, per core", found, "images/s",
        "as above, and writing 3 MiB of float32 an image", items=len(draws),
        note="the device's part done by the same core, as where the CPU is the device",
    )  # fmt: skip


def puzzle(bench: Bench) -> Rows:
    """The Puzzle-CAM step: time, then peak memory."""
    network = Classifier(bench.backbone, 20)
    batch = steps.step_batch(bench, labelled=False)
    plan = steps.plan_of(bench, recipe.CLASSIFICATION, "auto")

    def loss(network: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
        return references.puzzle_loss(network, views, labels, ALPHA)

    def ours() -> Work:
        return steps.our_step(bench, network, batch, plan, puzzle_step)

    def reference() -> Work:
        return steps.usual_step(bench, network, batch, loss, plan)

    flop = steps.step_flop(bench, lambda: Classifier(bench.backbone, 20), passes=2)
    found = steps.compare(bench, ours, reference)
    yield steps.row(bench, "Puzzle-CAM step", found, flop, targets=(2.5, 3.0))
    if bench.device.type == "cuda":
        with steps.without_tf32():
            strict = steps.compare(bench, ours, reference)
        yield steps.row(bench, "Puzzle-CAM step, TF32 off", strict, flop)
    if found.memory_ours and found.memory_reference:
        cuda = bench.device.type == "cuda"
        sizes = found.memory_ours / measure.MIB, found.memory_reference / measure.MIB
        bound = "activations kept for the backward pass, half as many bytes in bf16"
        yield rows.size_row(
            bench, "Puzzle-CAM step, peak memory", sizes, "MiB", bound, bench.device,
            target=1 / 0.6 if cuda else None, note="weights, gradients and activations",
        )  # fmt: skip


def segmentation(bench: Bench) -> Rows:
    """The DeepLabv3+ step."""
    network = DeepLabV3Plus(bench.backbone, 21)
    batch = steps.step_batch(bench, labelled=True)
    plan = steps.plan_of(bench, recipe.SEGMENTATION, "auto")

    def ours() -> Work:
        return steps.our_step(bench, network, batch, plan, train_segmentation.step)

    def usual_loss(network: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(network(views), labels.long(), ignore_index=images.IGNORE)

    def reference() -> Work:
        return steps.usual_step(bench, network, batch, usual_loss, plan)

    found = steps.compare(bench, ours, reference)
    flop = steps.step_flop(bench, lambda: DeepLabV3Plus(bench.backbone, 21))
    yield steps.row(bench, "segmentation step", found, flop, targets=(2.5, 3.0))


def affinity(bench: Bench) -> Rows:
    """The AffinityNet step: frozen backbone, path maxima, pair losses."""
    network = AffinityNet(bench.backbone)
    batch = steps.step_batch(bench, labelled=True)
    plan = steps.plan_of(bench, recipe.AFFINITY, "auto")
    radius = 4 if bench.quick else recipe.AFFINITY.radius

    def ours() -> Work:
        step = functools.partial(train_affinity.step, radius=radius)
        return steps.our_step(bench, network, batch, plan, step)

    def reference() -> Work:
        pairs = references.PairAffinity(radius, bench.crop // 4, bench.crop // 4)
        pairs = pairs.to(bench.device)

        def loss(network: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
            return pairs.loss(network(views).sigmoid(), labels[:, 2::4, 2::4])

        return steps.usual_step(bench, network, batch, loss, plan)

    found = steps.compare(bench, ours, reference)
    flop = steps.step_flop(bench, lambda: AffinityNet(bench.backbone))
    yield steps.row(bench, "affinity step", found, flop)


def amp(bench: Bench) -> Rows:
    """What bf16 alone brings: our step with and without autocast, at half the side."""
    yield from _ours_twice(bench, "Puzzle-CAM step, bf16 against --amp off", ("auto", "off"))


def compiled(bench: Bench) -> Rows:
    """What --compile brings (minutes to compile on a CPU, so only where it is asked for)."""
    name = "Puzzle-CAM step, --compile against eager"
    yield from _ours_twice(bench, name, ("auto", "auto"), compiled=True)


def _ours_twice(bench: Bench, stage: str, amps: tuple[str, str], compiled: bool = False) -> Rows:
    """Our Puzzle-CAM step with --amp amps[0], perhaps compiled, against the one with amps[1]."""
    small = copy.copy(bench)
    if bench.device.type == "cpu":
        small.crop = max(64, bench.crop // 2)
    network = Classifier(bench.backbone, 20)
    batch = steps.step_batch(small, labelled=False)

    def ours(amp: str, compiled: bool) -> Work:
        plan = steps.plan_of(small, recipe.CLASSIFICATION, amp, compiled)
        return steps.our_step(small, network, batch, plan, puzzle_step)

    found = steps.compare(
        small,
        functools.partial(ours, amps[0], compiled),
        functools.partial(ours, amps[1], False),
    )
    flop = steps.step_flop(small, lambda: Classifier(bench.backbone, 20), passes=2)
    yield steps.row(small, stage, found, flop)
