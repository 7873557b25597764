"""A training step, ours and the usual one, as work that `measure.compare` can time."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from core import recipe
from core.data.datasets import TrainingViews
from core.data.transforms import RandomView, normalize
from core.run import optimizer, precision
from core.run.plan import Plan
from core.run.training import Trainer
from tools.benchmarking import measure, rows
from tools.benchmarking.data import SPLIT, data_root
from tools.benchmarking.measure import Bench, Work

NEVER = 10**9  # steps between log rows and between checkpoints
WEIGHT_DECAY = recipe.CLASSIFICATION.weight_decay
Step = Callable[[Trainer, list[Tensor]], None]  # a script's `step`


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


def plan_of(bench: Bench, stage: recipe.Training, amp: str, compiled: bool = False) -> Plan:
    """The stage's plan: nothing logged, nothing saved, weights that hardly move."""
    return Plan(
        max_step=NEVER,
        batch_size=bench.batch_size,
        lr=1e-4,
        momentum=stage.momentum,
        amp=precision.amp_type(amp, bench.device),
        save_every=NEVER,
        log_every=NEVER,
        compile=compiled,
    )


def our_step(bench: Bench, network: nn.Module, batch: list[Tensor], plan: Plan, step: Step) -> Work:
    """What a training script does with a batch; the work returns its trainer."""
    precision.set_determinism(False, bench.device)  # cuDNN's fastest, for both
    network = copy.deepcopy(network)
    groups = optimizer.parameter_groups(network, WEIGHT_DECAY, pretrained=False)
    out = Path(tempfile.mkdtemp(dir=bench.folder))
    trainer = Trainer(network, groups, plan, out, bench.device)
    trainer.plain.train()
    trainer.bar = tqdm(disable=True)  # `trainer.batches` would show one

    def run() -> Trainer:
        step(trainer, trainer.begin(measure.to_device(batch, bench.device)))
        return trainer

    return run


def usual_step(
    bench: Bench,
    network: nn.Module,
    batch: list[Tensor],
    loss: Callable[..., Tensor],
    plan: Plan,
) -> Work:
    """float32, NCHW, eager: float32 views to the device, loss, backward, stock SGD, `.item()`."""
    network = copy.deepcopy(network).to(bench.device).train()
    groups = optimizer.parameter_groups(network, WEIGHT_DECAY, pretrained=False)
    for group in groups:
        group["lr"] = plan.lr * group.pop("scale")
    sgd = torch.optim.SGD(groups, momentum=plan.momentum, nesterov=True)
    views = normalize(*batch[:2]).contiguous()  # as the loader delivers them
    host = [views, *batch[2:]]
    if bench.device.type == "cuda":
        host = [tensor.pin_memory() for tensor in host]

    def run() -> float:
        sgd.zero_grad()
        value = loss(network, *measure.to_device(host, bench.device))
        value.backward()
        sgd.step()
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
