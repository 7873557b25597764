"""A training step, ours and the usual one, as work that `measure.compare` can time."""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import train_classification
from core.data.datasets import TrainingViews
from core.data.transforms import RandomView, normalize
from core.run import precision
from core.run import training as engine
from core.run.record import Run
from tools.benchmarking import measure, rows
from tools.benchmarking.data import SPLIT, data_root
from tools.benchmarking.measure import Bench, Work

NEVER = 10**9  # steps between log rows and between checkpoints


def sides(bench: Bench) -> tuple[int, int]:
    """The range of the longer side after the random resize; the classifier's recipe."""
    return (bench.crop // 2, bench.crop) if bench.quick else (320, 640)


def step_batch(bench: Bench, labelled: bool) -> list[Tensor]:
    """A batch of training views of the photographs: images, boxes, image labels or label maps."""
    data = data_root(bench)
    ids = data.ids(SPLIT)
    labels = {"label_folder": data.root / "SegmentationClass"}
    if not labelled:
        labels = {"labels": data.image_labels(ids)}
    views = TrainingViews(data, ids, RandomView(sides(bench), bench.crop), 0, **labels)
    batch = [torch.stack(t) for t in zip(*(views[i] for i in range(bench.batch_size)), strict=True)]
    return [t.pin_memory() for t in batch] if bench.device.type == "cuda" else batch


def arguments(bench: Bench, script: ModuleType, amp: str, *options: str) -> argparse.Namespace:
    """The script's arguments: nothing logged, nothing saved, weights that hardly move."""
    out = Path(tempfile.mkdtemp(dir=bench.folder)) / "run"
    return script.get_args_parser().parse_args([
        "--data", str(bench.folder), "--out", str(out), "--weights", "none", "--lr", "1e-4",
        "--device", str(bench.device), "--workers", "0", "--amp", amp,
        "--batch-size", str(bench.batch_size), "--crop", str(bench.crop),
        "--log-every", str(NEVER), "--save-every", str(NEVER), *options,
    ])  # fmt: skip


@contextlib.contextmanager
def trainer_of(
    bench: Bench, script: ModuleType, network: nn.Module, args: argparse.Namespace
) -> Iterator[engine.Trainer]:
    """The trainer that the script would make."""
    precision.set_determinism(False, bench.device)  # cuDNN's fastest, for both
    with Run(script.__name__, args.out, args, bench.device, {}) as run:
        groups = engine.parameter_groups(network, args.weight_decay, pretrained=False)
        trainer = engine.Trainer(run, network, groups, args, NEVER)
        trainer.network.train()
        trainer.bar = tqdm(disable=True)  # `trainer.batches` would show one
        yield trainer


def usual_step(
    bench: Bench,
    network: nn.Module,
    batch: list[Tensor],
    loss: Callable[..., Tensor],
    args: argparse.Namespace,
) -> Work:
    """float32, NCHW, eager: float32 views to the device, loss, backward, stock SGD, `.item()`."""
    network = network.to(bench.device).train()
    groups = engine.parameter_groups(network, args.weight_decay, pretrained=False)
    for group in groups:
        group["lr"] = args.lr * group.pop("scale")
    optimizer = torch.optim.SGD(groups, momentum=args.momentum, nesterov=True)
    views = normalize(*batch[:2]).contiguous()  # as the loader delivers them
    host = [views, *batch[2:]]
    if bench.device.type == "cuda":
        host = [tensor.pin_memory() for tensor in host]

    def run() -> float:
        optimizer.zero_grad()
        value = loss(network, *measure.to_device(host, bench.device))
        value.backward()
        optimizer.step()
        return value.item()

    return run


def step_flop(bench: Bench, make: Callable[[], nn.Module], passes: int = 1) -> float:
    """FLOP of the matrix products of a step: counted on shapes alone, without computing."""
    with torch.device("meta"):
        network = make().train()
        views = torch.empty(bench.batch_size, 3, bench.crop, bench.crop)
        with FlopCounterMode(display=False) as counter:
            network(views).sum().backward()
    return passes * counter.get_total_flops()


def puzzle_step(
    bench: Bench, batch: list[Tensor], network: nn.Module, amp: str, *options: str
) -> tuple[contextlib.ExitStack, Callable[[], Work]]:
    """Our Puzzle-CAM step: what train_classification.py does with a batch."""
    stack = contextlib.ExitStack()

    def make() -> Work:
        args = arguments(bench, train_classification, amp, *options)
        trainer = stack.enter_context(
            trainer_of(bench, train_classification, copy.deepcopy(network), args)
        )

        def loss(photos: Tensor, boxes: Tensor, targets: Tensor) -> tuple[Tensor, dict]:
            views = normalize(photos, boxes)
            return train_classification.puzzle_loss(trainer.model, views, targets, 2.0, args)

        def run() -> engine.Trainer:
            trainer.update(measure.to_device(batch, bench.device), loss)
            return trainer

        return run

    return stack, make


def compare(
    bench: Bench, ours: Callable[[], Work], reference: Callable[[], Work]
) -> measure.Measured:
    """`measure.compare` of two steps, with all the threads."""
    repeats = 10 if bench.device.type == "cuda" else 5
    return measure.compare(bench, ours, reference, repeats, bench.device, bench.threads)


def row(
    bench: Bench,
    stage: str,
    found: measure.Measured,
    flop: float,
    targets: tuple[float, float] | tuple[None, None] = (None, None),
) -> dict[str, Any]:
    """A row in seconds a step, for a step of `flop`; targets of the CPU and the GPU."""
    note = f"{bench.backbone}, {bench.crop} crop, batch {bench.batch_size}, --amp {bench.amp}"
    return rows.row(
        bench, stage, found, "s/step", rows.arithmetic(bench, flop, found.ours),
        device=bench.device, target=targets[bench.device.type == "cuda"], note=note,
        tflops=flop / found.ours / 1e12,
    )  # fmt: skip


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """PyTorch lets float32 convolutions run in TF32 on a GPU; inside the block it does not."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
