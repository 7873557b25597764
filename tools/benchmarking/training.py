"""The loader and the training steps, each against its usual form."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train_affinity
import train_classification
import train_segmentation
from core.data import images
from core.data.datasets import TrainingViews
from core.data.transforms import RandomView, normalize
from core.method import losses
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from tools.benchmarking import measure, references, rows, steps
from tools.benchmarking.data import SPLIT, data_root
from tools.benchmarking.measure import Bench, Work

Rows = Iterator[dict[str, Any]]


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
    args = steps.arguments(bench, train_classification, "off")

    def loss(network: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
        return references.puzzle_loss(network, views, labels, 2.0)

    def reference() -> Work:
        return steps.usual_step(bench, copy.deepcopy(network), batch, loss, args)

    stack, ours = steps.puzzle_step(bench, batch, network, "auto")
    flop = steps.step_flop(bench, lambda: Classifier(bench.backbone, 20), passes=2)
    with stack:
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
    args = steps.arguments(bench, train_segmentation, "auto", "--labels", str(bench.folder))

    with contextlib.ExitStack() as stack:

        def ours() -> Work:
            trainer = stack.enter_context(
                steps.trainer_of(bench, train_segmentation, copy.deepcopy(network), args)
            )

            def loss(photos: Tensor, boxes: Tensor, labels: Tensor, valid: Tensor) -> tuple:
                logits = trainer.model(normalize(photos, boxes)).float()
                total = F.cross_entropy(
                    logits, labels.long(), ignore_index=images.IGNORE, reduction="sum"
                )
                return total / valid.clamp(min=1), {}

            def run() -> None:
                on_device = measure.to_device(batch, bench.device)
                valid = (on_device[2] != images.IGNORE).sum()
                trainer.update(on_device, loss, counts=valid)

            return run

        def usual_loss(network: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(network(views), labels.long(), ignore_index=images.IGNORE)

        def reference() -> Work:
            return steps.usual_step(bench, copy.deepcopy(network), batch, usual_loss, args)

        found = steps.compare(bench, ours, reference)
    flop = steps.step_flop(bench, lambda: DeepLabV3Plus(bench.backbone, 21))
    yield steps.row(bench, "segmentation step", found, flop, targets=(2.5, 3.0))


def affinity(bench: Bench) -> Rows:
    """The AffinityNet step: frozen backbone, path maxima, pair losses."""
    network = AffinityNet(bench.backbone)
    batch = steps.step_batch(bench, labelled=True)
    args = steps.arguments(bench, train_affinity, "auto", "--cams", str(bench.folder))
    radius = 4 if bench.quick else args.radius

    with contextlib.ExitStack() as stack:

        def ours() -> Work:
            trainer = stack.enter_context(
                steps.trainer_of(bench, train_affinity, copy.deepcopy(network), args)
            )

            def loss(photos: Tensor, boxes: Tensor, labels: Tensor, pairs: Tensor) -> tuple:
                edge = trainer.model(normalize(photos, boxes)).float().sigmoid()
                return losses.affinity(edge, labels[:, 2::4, 2::4], radius, pairs), {}

            def run() -> None:
                on_device = measure.to_device(batch, bench.device)
                pairs = losses.count_pairs(on_device[2][:, 2::4, 2::4], radius)
                trainer.update(on_device, loss, counts=pairs)

            return run

        def reference() -> Work:
            pairs = references.PairAffinity(radius, bench.crop // 4, bench.crop // 4)
            pairs = pairs.to(bench.device)

            def loss(network: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
                return pairs.loss(network(views).sigmoid(), labels[:, 2::4, 2::4])

            return steps.usual_step(bench, copy.deepcopy(network), batch, loss, args)

        found = steps.compare(bench, ours, reference)
    flop = steps.step_flop(bench, lambda: AffinityNet(bench.backbone))
    yield steps.row(bench, "affinity step", found, flop)


def amp(bench: Bench) -> Rows:
    """What bf16 alone brings: our step with and without autocast, at half the side."""
    yield from _ours_twice(bench, "Puzzle-CAM step, bf16 against --amp off", ("auto", "off"), ())


def compiled(bench: Bench) -> Rows:
    """What --compile brings (minutes to compile on a CPU, so only where it is asked for)."""
    yield from _ours_twice(
        bench, "Puzzle-CAM step, --compile against eager", ("auto", "auto"), ("--compile",)
    )


def _ours_twice(bench: Bench, stage: str, amps: tuple[str, str], options: tuple[str, ...]) -> Rows:
    """Our Puzzle-CAM step with --amp amps[0] and the options, against the one with amps[1]."""
    small = copy.copy(bench)
    if bench.device.type == "cpu":
        small.crop = max(64, bench.crop // 2)
    network = Classifier(bench.backbone, 20)
    batch = steps.step_batch(small, labelled=False)
    first, ours = steps.puzzle_step(small, batch, network, amps[0], *options)
    second, reference = steps.puzzle_step(small, batch, network, amps[1])
    with first, second:
        found = steps.compare(small, ours, reference)
    flop = steps.step_flop(small, lambda: Classifier(bench.backbone, 20), passes=2)
    yield steps.row(small, stage, found, flop)
