"""The loader and the training steps, each against its usual form."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import train_affinity
import train_classification
import train_segmentation
from core import recipe
from core.data import images
from core.data.datasets import TrainingViews
from core.data.transforms import RandomView, normalize
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from core.run import optimizer, precision
from core.run.plan import Plan
from core.run.training import Trainer
from tools.benchmarking import references
from tools.benchmarking.data import SPLIT, data_root
from tools.benchmarking.measure import Bench, Row, Rows, Targets, Work, count_flop

NEVER = 10**9  # steps between log rows and between checkpoints
WEIGHT_DECAY = recipe.CLASSIFICATION.weight_decay
ALPHA = 2.0
Step = Callable[[Trainer, list[Tensor]], None]  # a script's `step`
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a network, views and their targets
puzzle_step = partial(train_classification.step, alpha=ALPHA)


@dataclasses.dataclass(frozen=True)
class Training:
    """A script's training: its network, constants and step, the usual loss, and its targets.

    Attributes:
        masks: the targets are label maps, not image labels. passes: of all pixels in a step.
    """

    network: Callable[[], nn.Module]
    constants: recipe.Training
    step: Step
    loss: Loss
    masks: bool = True
    passes: int = 1


def training_views(bench: Bench, masks: bool) -> TrainingViews:
    """Random views of the photographs, with image labels or label maps."""
    data = data_root(bench)
    ids, folder = data.ids(SPLIT), data.root / "SegmentationClass" if masks else None
    sides = (bench.crop // 2, bench.crop) if bench.quick else recipe.CLASSIFICATION.sides
    return TrainingViews(
        data, ids, RandomView(sides, bench.crop), 0, data.image_labels(ids), folder
    )


def loader(bench: Bench) -> Rows:
    """Images a second of one loader process, without and with the device's normalisation."""
    bench, views = bench.one_core, training_views(bench, masks=False)
    draws = range(2 * len(views))
    paths = [views.data.image_path(i) for i in views.ids] * 2

    def ours_normalised() -> None:
        for first in draws[::4]:
            batch = [views[draw] for draw in draws[first : first + 4]]
            normalize(*(torch.stack(part) for part in list(zip(*batch, strict=True))[:2]))

    def reference() -> None:
        rng = np.random.default_rng(0)
        for path in paths:
            references.load_view(path, views.view.sides, bench.crop, rng)

    def bound(time_taken: float) -> str:
        decode = partial(map, images.read_image, paths)
        share = min(bench.seconds(decode) for _ in range(3)) / time_taken
        return f"one core: JPEG decoding {100 * share:.0f}% of the time, then resize, flip, crop"

    works = partial(map, views.__getitem__, draws), reference
    note = "uint8 views; the device normalises them. Reference: normalised float32"
    figures = "images/s", bound, note, len(draws), 7
    yield bench.compare("loader, per core", *works, *figures, targets=(3.5, None))
    name, bound = "loader and normalisation, per core", "as above, and writing 3 MiB an image"
    note = "the device's part done by the same core, as where the CPU is the device"
    yield bench.compare(name, ours_normalised, reference, "images/s", bound, note, len(draws), 7)


def puzzle_training(bench: Bench) -> Training:
    """Puzzle-CAM: the images and their tiles go through the network."""
    network = partial(Classifier, bench.backbone, 20)
    loss = partial(references.puzzle_loss, alpha=ALPHA)
    return Training(network, recipe.CLASSIFICATION, puzzle_step, loss, masks=False, passes=2)


def puzzle(bench: Bench) -> Rows:
    """The Puzzle-CAM step: time, and on a GPU peak memory."""
    row = step_row(bench, "Puzzle-CAM step", puzzle_training(bench), (2.5, 3.0))
    yield row
    if bench.cuda:
        torch.backends.cudnn.allow_tf32 = False  # as PyTorch lets float32 convolutions run
        yield step_row(bench, "Puzzle-CAM step, TF32 off", puzzle_training(bench))
        torch.backends.cudnn.allow_tf32 = True
        sizes = np.array([[row["peak_memory_ours"], row["peak_memory_reference"]]]) / 2**20
        bound = "activations kept for the backward pass, half as many bytes in bf16"
        figures = sizes, "MiB", bound, "weights, gradients and activations"
        yield bench.row("Puzzle-CAM step, peak memory", *figures, (None, 1 / 0.6))


def segmentation(bench: Bench) -> Rows:
    """The DeepLabv3+ step."""

    def loss(network: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(network(views), labels.long(), ignore_index=images.IGNORE)

    network = partial(DeepLabV3Plus, bench.backbone, 21)
    training = Training(network, recipe.SEGMENTATION, train_segmentation.step, loss)
    yield step_row(bench, "segmentation step", training, (2.5, 3.0))


def affinity(bench: Bench) -> Rows:
    """The AffinityNet step: frozen backbone, path maxima, pair losses."""
    radius = 4 if bench.quick else recipe.AFFINITY.radius
    side = bench.crop // 4

    @cache
    def pairs() -> references.PairAffinity:
        return references.PairAffinity(radius, side, side, bench.device)

    def loss(network: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
        return pairs().loss(network(views).sigmoid(), labels[:, 2::4, 2::4])

    step = partial(train_affinity.step, radius=radius)
    training = Training(partial(AffinityNet, bench.backbone), recipe.AFFINITY, step, loss)
    yield step_row(bench, "affinity step", training)


def amp(bench: Bench) -> Rows:
    """What bf16 alone brings: our step with and without autocast."""
    name = "Puzzle-CAM step, bf16 against --amp off"
    yield step_row(halved(bench), name, puzzle_training(bench), against="off")


def compiled(bench: Bench) -> Rows:
    """What --compile brings (minutes to compile on a CPU, so only where it is asked for)."""
    name = "Puzzle-CAM step, --compile against eager"
    yield step_row(halved(bench), name, puzzle_training(bench), against="auto", compiled=True)


def halved(bench: Bench) -> Bench:
    """With views of half the side on a CPU."""
    return bench if bench.cuda else dataclasses.replace(bench, crop=max(64, bench.crop // 2))


def step_row(
    bench: Bench,
    name: str,
    training: Training,
    targets: Targets = (None, None),
    against: str | None = None,
    compiled: bool = False,
) -> Row:
    """Our step against the usual one, or against our own, eager, with --amp `against`."""
    precision.set_determinism(False, bench.device)  # cuDNN's fastest, for both
    step = bench, training.network(), step_batch(bench, training.masks)
    plan = plan_of(bench, training.constants, "auto", compiled)
    ours = our_step(*step, plan, training.step)
    reference = usual_step(*step, plan, training.loss)
    if against is not None:
        plan = plan_of(bench, training.constants, against)
        reference = our_step(*step, plan, training.step)
    shape = bench.batch_size, 3, bench.crop, bench.crop
    flop = training.passes * count_flop(training.network, [shape], backward=True)
    note = f"{bench.backbone}, {bench.crop} crop, batch {bench.batch_size}, --amp {bench.amp}"
    figures = "s/step", partial(bench.arithmetic, flop), note, 1, 10 if bench.cuda else 5
    row = bench.compare(name, ours, reference, *figures, targets=targets)
    return {**row, "tflops": flop / row["ours"] / 1e12}


def step_batch(bench: Bench, masks: bool) -> list[Tensor]:
    """A batch of training views of the photographs: images, boxes, image labels or label maps."""
    views = training_views(bench, masks)
    batch = [torch.stack(t) for t in zip(*(views[i] for i in range(bench.batch_size)), strict=True)]
    return [t.pin_memory() for t in batch] if bench.cuda else batch


def plan_of(bench: Bench, stage: recipe.Training, amp: str, compiled: bool = False) -> Plan:
    """The stage's plan: nothing logged, nothing saved, weights that hardly move."""
    often = {"save_every": NEVER, "log_every": NEVER, "compile": compiled}
    amp = precision.amp_type(amp, bench.device)
    return Plan(NEVER, bench.batch_size, lr=1e-4, momentum=stage.momentum, amp=amp, **often)


def our_step(bench: Bench, network: nn.Module, batch: list[Tensor], plan: Plan, step: Step) -> Work:
    """What a training script does with a batch."""

    @cache
    def trainer() -> Trainer:
        own, out = copy.deepcopy(network), Path(tempfile.mkdtemp(dir=bench.folder))
        groups = optimizer.parameter_groups(own, WEIGHT_DECAY, pretrained=False)
        made = Trainer(own, groups, plan, out, bench.device)
        made.plain.train()
        made.bar = tqdm(disable=True)  # `trainer.batches` would show one
        return made

    def run() -> None:
        on_device = [tensor.to(bench.device, non_blocking=True) for tensor in batch]
        step(trainer(), trainer().begin(on_device))

    return run


def usual_step(
    bench: Bench, network: nn.Module, batch: list[Tensor], plan: Plan, loss: Loss
) -> Work:
    """float32, NCHW, eager: float32 views to the device, loss, backward, stock SGD, `.item()`."""
    host = [normalize(*batch[:2]).contiguous(), *batch[2:]]  # as the loader delivers them
    host = [tensor.pin_memory() for tensor in host] if bench.cuda else host

    own = copy.deepcopy(network).train()
    groups = optimizer.parameter_groups(own, WEIGHT_DECAY, pretrained=False)
    for group in groups:
        group["lr"] = plan.lr * group.pop("scale")
    sgd = torch.optim.SGD(groups, momentum=plan.momentum, nesterov=True)
    on_device = cache(partial(own.to, bench.device))

    def run() -> float:
        sgd.zero_grad()
        value = loss(on_device(), *(tensor.to(bench.device, non_blocking=True) for tensor in host))
        value.backward()
        sgd.step()
        return value.item()

    return run
