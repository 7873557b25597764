"""The loader and the training steps, each against its usual form."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import train_affinity
import train_classification
import train_segmentation
from core import images, losses
from core import training as engine
from core.datasets import TrainingViews
from core.networks import AffinityNet, Classifier, DeepLabV3Plus
from core.runlog import Run
from core.transforms import RandomView, normalize
from tools.benchmarking import measure, references
from tools.benchmarking.data import SPLIT, data_root
from tools.benchmarking.measure import Bench, Work

SIDES = (320, 640)
NEVER = 10**9  # steps between log rows and between checkpoints
Rows = Iterator[dict[str, Any]]


def loader(bench: Bench) -> Rows:
    """Images a second of one loader process, without and with the device's normalisation."""
    data = data_root(bench)
    ids = data.ids(SPLIT)
    sides = SIDES if not bench.quick else (bench.crop // 2, bench.crop)
    views = TrainingViews(data, ids, RandomView(sides, bench.crop), 0, data.image_labels(ids))
    draws = range(2 * len(ids))

    def ours() -> list[tuple[Tensor, ...]]:
        return [views[draw] for draw in draws]

    def ours_normalised() -> None:
        for first in draws[::4]:
            batch = [views[draw] for draw in draws[first : first + 4]]
            normalize(*(torch.stack(part) for part in list(zip(*batch, strict=True))[:2]))

    def reference() -> None:
        rng = measure.generator()
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
    yield measure.row(
        bench, "loader, per core", found, "images/s", bound, items=len(draws), target=3.5,
        note="uint8 views; the device normalises them. Reference: normalised float32",
    )  # fmt: skip
    found = measure.compare(bench, lambda: ours_normalised, lambda: reference, repeats=7)
    yield measure.row(
        bench, "loader and normalisation, per core", found, "images/s",
        "as above, and writing 3 MiB of float32 an image", items=len(draws),
        note="the device's part done by the same core, as where the CPU is the device",
    )  # fmt: skip


def step_batch(bench: Bench, labelled: bool) -> list[Tensor]:
    """A batch of training views of the photographs: images, boxes, image labels or label maps."""
    data = data_root(bench)
    ids = data.ids(SPLIT)
    sides = SIDES if not bench.quick else (bench.crop // 2, bench.crop)
    labels = {"label_folder": data.root / "SegmentationClass"}
    if not labelled:
        labels = {"labels": data.image_labels(ids)}
    views = TrainingViews(data, ids, RandomView(sides, bench.crop), 0, **labels)
    batch = [torch.stack(t) for t in zip(*(views[i] for i in range(bench.batch_size)), strict=True)]
    return [t.pin_memory() for t in batch] if bench.device.type == "cuda" else batch


@contextlib.contextmanager
def trainer_of(
    bench: Bench, script: ModuleType, network: nn.Module, amp: str, *options: str
) -> Iterator[tuple[engine.Trainer, Any]]:
    """The trainer that the script would make (and its arguments), which neither logs nor saves."""
    out = bench.folder / f"{script.__name__}-{amp}{''.join(options)}".replace("/", "_")
    args = script.get_args_parser().parse_args([
        "--data", str(bench.folder), "--out", str(out), "--weights", "none", "--overwrite",
        "--device", str(bench.device), "--workers", "0", "--amp", amp,
        "--batch-size", str(bench.batch_size), "--crop", str(bench.crop),
        "--log-every", str(NEVER), "--save-every", str(NEVER), *options,
    ])  # fmt: skip
    engine.set_determinism(False, bench.device)  # cuDNN's fastest algorithms, for both contenders
    with Run(script.__name__, out, args, bench.device, {}) as run:
        trainer = engine.Trainer(run, network, args, NEVER)
        trainer.network.train()
        trainer.bar = tqdm(disable=True)  # `trainer.batches` would show one
        yield trainer, args


def usual_step(
    bench: Bench, network: nn.Module, batch: list[Tensor], loss: Callable[..., Tensor], args: Any
) -> Work:
    """float32, NCHW, eager: float32 views to the device, loss, backward, stock SGD, `.item()`."""
    network = network.to(bench.device).train()
    groups = engine.parameter_groups(network, args.weight_decay)
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


def step_flop(
    bench: Bench, make: Callable[[], nn.Module], passes: int = 1, backward: bool = True
) -> float:
    """FLOP of the matrix products of a step: counted on shapes alone, without computing."""
    with torch.device("meta"):
        network = make().train()
        views = torch.empty(bench.batch_size, 3, bench.crop, bench.crop)
        with FlopCounterMode(display=False) as counter:
            output = network(views)
            if backward:
                output.sum().backward()
    return passes * counter.get_total_flops()


def puzzle_step(
    bench: Bench, batch: list[Tensor], network: nn.Module, amp: str, *options: str
) -> tuple[contextlib.ExitStack, Callable[[], Work]]:
    """Our Puzzle-CAM step: what train_classification.py does with a batch."""
    stack = contextlib.ExitStack()

    def make() -> Work:
        trainer, args = stack.enter_context(
            trainer_of(bench, train_classification, copy.deepcopy(network), amp, *options)
        )

        def loss(photos: Tensor, boxes: Tensor, targets: Tensor) -> tuple[Tensor, dict]:
            views = normalize(photos, boxes)
            return train_classification.puzzle_loss(trainer.model, views, targets, 2.0, args)

        return lambda: trainer.update(measure.to_device(batch, bench.device), loss)

    return stack, make


def puzzle(bench: Bench) -> Rows:
    """The Puzzle-CAM step: time, then peak memory."""
    network = Classifier(bench.backbone, 20)
    batch = step_batch(bench, labelled=False)
    args = train_classification.get_args_parser().parse_args(["--data", ".", "--out", "."])

    def loss(network: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
        return references.puzzle_loss(network, views, labels, 2.0)

    def reference() -> Work:
        return usual_step(bench, copy.deepcopy(network), batch, loss, args)

    stack, ours = puzzle_step(bench, batch, network, "auto")
    flop = step_flop(bench, lambda: Classifier(bench.backbone, 20), passes=2)
    with stack:
        found = _steps(bench, ours, reference)
        yield _step_row(bench, "Puzzle-CAM step", found, flop, targets=(2.5, 3.0))
        if bench.device.type == "cuda":
            with _without_tf32():
                strict = _steps(bench, ours, reference)
            yield _step_row(bench, "Puzzle-CAM step, TF32 off", strict, flop)
    if found.memory_ours and found.memory_reference:
        cuda = bench.device.type == "cuda"
        sizes = found.memory_ours / measure.MIB, found.memory_reference / measure.MIB
        bound = "activations kept for the backward pass, half as many bytes in bf16"
        yield measure.size_row(
            bench, "Puzzle-CAM step, peak memory", sizes, "MiB", bound, bench.device,
            target=1 / 0.6 if cuda else None, note="weights, gradients and activations",
        )  # fmt: skip


def segmentation(bench: Bench) -> Rows:
    """The DeepLabv3+ step."""
    network = DeepLabV3Plus(bench.backbone, 21)
    batch = step_batch(bench, labelled=True)
    options = "--labels", str(bench.folder)
    args = train_segmentation.get_args_parser().parse_args(
        ["--data", ".", "--out", ".", *options]
    )  # fmt: skip

    with contextlib.ExitStack() as stack:

        def ours() -> Work:
            trainer, _ = stack.enter_context(
                trainer_of(bench, train_segmentation, copy.deepcopy(network), "auto", *options)
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
            return usual_step(bench, copy.deepcopy(network), batch, usual_loss, args)

        found = _steps(bench, ours, reference)
    flop = step_flop(bench, lambda: DeepLabV3Plus(bench.backbone, 21))
    yield _step_row(bench, "segmentation step", found, flop, targets=(2.5, 3.0))


def affinity(bench: Bench) -> Rows:
    """The AffinityNet step: frozen backbone, path maxima, pair losses."""
    network = AffinityNet(bench.backbone)
    batch = step_batch(bench, labelled=True)
    options = "--cams", str(bench.folder)
    args = train_affinity.get_args_parser().parse_args(["--data", ".", "--out", ".", *options])
    radius = 4 if bench.quick else args.radius

    with contextlib.ExitStack() as stack:

        def ours() -> Work:
            trainer, _ = stack.enter_context(
                trainer_of(bench, train_affinity, copy.deepcopy(network), "auto", *options)
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

            return usual_step(bench, copy.deepcopy(network), batch, loss, args)

        found = _steps(bench, ours, reference)
    flop = step_flop(bench, lambda: AffinityNet(bench.backbone))
    yield _step_row(bench, "affinity step", found, flop)


def amp(bench: Bench) -> Rows:
    """What bf16 alone brings: our step with and without autocast, at half the side."""
    yield from _ours_twice(bench, "Puzzle-CAM step, bf16 against --amp off", ("auto", "off"), ())


def compiled(bench: Bench) -> Rows:
    """What --compile brings (minutes to compile on a CPU, so only where it is asked for)."""
    yield from _ours_twice(
        bench, "Puzzle-CAM step, --compile against eager", ("auto", "auto"), ("--compile",)
    )


def _ours_twice(
    bench: Bench, stage: str, amps: tuple[str, str], options: tuple[str, ...]
) -> Rows:
    small = copy.copy(bench)
    if bench.device.type == "cpu":
        small.crop = max(64, bench.crop // 2)
    network = Classifier(bench.backbone, 20)
    batch = step_batch(small, labelled=False)
    first, ours = puzzle_step(small, batch, network, amps[0], *options)
    second, reference = puzzle_step(small, batch, network, amps[1])
    with first, second:
        found = _steps(small, ours, reference)
    flop = step_flop(small, lambda: Classifier(bench.backbone, 20), passes=2)
    yield _step_row(small, stage, found, flop)


def _steps(
    bench: Bench, ours: Callable[[], Work], reference: Callable[[], Work]
) -> measure.Measured:
    repeats = 10 if bench.device.type == "cuda" else 5
    return measure.compare(bench, ours, reference, repeats, bench.device, bench.threads)


def _step_row(
    bench: Bench,
    stage: str,
    found: measure.Measured,
    flop: float,
    targets: tuple[float, float] | tuple[None, None] = (None, None),
) -> dict[str, Any]:
    note = f"{bench.backbone}, {bench.crop} crop, batch {bench.batch_size}, --amp {bench.amp}"
    return measure.row(
        bench, stage, found, "s/step", measure.arithmetic(bench, flop, found.ours),
        device=bench.device, target=targets[bench.device.type == "cuda"], note=note,
        tflops=flop / found.ours / 1e12,
    )  # fmt: skip


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """PyTorch lets float32 convolutions run in TF32 on a GPU; inside the block it does not."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
