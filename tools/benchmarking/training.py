"""The loader and the training steps, each against its usual form."""

import dataclasses
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

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
from tools.benchmarking.measure import Bench, Row, Rows, Work, count_flop

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEVER = 10**9  # steps between log rows and between checkpoints
RATE = 1e-4  # the weights hardly move
ALPHA = 2.0


def training_views(bench: Bench, masks: bool) -> TrainingViews:
    """Random views of the photographs, with image labels or label maps."""
    data = data_root(bench)
    ids, folder = data.ids(SPLIT), data.root / "SegmentationClass" if masks else None
    shortest, longest = recipe.CLASSIFICATION.sides
    share = bench.crop / recipe.CLASSIFICATION.crop
    view = RandomView((round(shortest * share), round(longest * share)), bench.crop)
    return TrainingViews(data, ids, view, 0, data.image_labels(ids), folder)


@dataclasses.dataclass(frozen=True)
class Training:
    """A training: a script's `step`, and the usual one with `loss` (network, views, targets).

    Attributes:
        masks: the targets are label maps, not image labels. passes: of all pixels in a step.
    """

    bench: Bench
    network: Callable[[], nn.Module]
    constants: recipe.Training
    step: Callable[[Trainer, list[Tensor]], None]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    masks: bool = True
    passes: int = 1

    def start(self) -> tuple[nn.Module, list[dict], list[Tensor]]:
        """A network, its parameter groups and a batch: images, boxes, targets; always the same."""
        torch.manual_seed(0)
        network, views = self.network().train(), training_views(self.bench, self.masks)
        groups = optimizer.parameter_groups(network, self.constants.weight_decay, False)
        return network, groups, views.collate([views[i] for i in range(self.bench.batch_size)])

    def on_device(self, host: list[Tensor]) -> Callable[[], list[Tensor]]:
        """What copies the tensors to the device, without a wait where the device is a GPU."""
        host = [tensor.pin_memory() for tensor in host] if self.bench.cuda else host
        return lambda: [tensor.to(self.bench.device, non_blocking=True) for tensor in host]

    def ours(self, amp: str = "auto", compiled: bool = False) -> Work:
        """What the script does with a batch."""
        network, groups, batch = self.start()
        load, device = self.on_device(batch), self.bench.device
        how = {"amp": precision.amp_type(amp, device), "compile": compiled}
        how |= {"save_every": NEVER, "log_every": NEVER}
        plan = Plan(NEVER, len(batch[0]), RATE, self.constants.momentum, **how)

        @cache
        def trainer() -> Trainer:
            out = Path(tempfile.mkdtemp(dir=self.bench.folder))
            return Trainer(network, groups, plan, out, device)

        return lambda: self.step(trainer(), trainer().begin(load()))

    def usual(self) -> Work:
        """float32, NCHW, eager: float32 views to the device, loss, backward, SGD, `.item()`."""
        network, groups, batch = self.start()
        for group in groups:
            group["lr"] = RATE * group.pop("scale")
        sgd = torch.optim.SGD(groups, momentum=self.constants.momentum, nesterov=True)
        load = self.on_device([normalize(*batch[:2]).contiguous(), *batch[2:]])
        ready = cache(partial(network.to, self.bench.device))

        def run() -> float:
            sgd.zero_grad()
            value = self.loss(ready(), *load())
            value.backward()
            sgd.step()
            return value.item()

        return run

    def row(self, name: str, ours: Work, reference: Work, target: float | None = None) -> Row:
        """The row of two steps."""
        bench = self.bench
        precision.set_determinism(False, bench.device)  # cuDNN's fastest, for both
        shape = bench.batch_size, 3, bench.crop, bench.crop
        flop = self.passes * count_flop(self.network, shape)
        note = f"{bench.backbone}, {bench.crop} crop, batch {bench.batch_size}, --amp {bench.amp}"
        figures = "s/step", partial(bench.arithmetic, flop), note
        row = bench.compare(name, ours, reference, *figures, target=target)
        return {**row, "tflops": flop / row["ours"] / 1e12}


def loader(bench: Bench) -> Rows:
    """Images a second of one loader process, without and with the device's normalisation."""
    bench, views = bench.one_core, training_views(bench, masks=False)
    draws = range(2 * len(views))
    paths = [views.data.image_path(i) for i in views.ids] * 2

    def ours_normalised() -> None:
        for first in draws[::4]:
            batch = views.collate([views[draw] for draw in draws[first : first + 4]])
            normalize(*batch[:2])

    def reference() -> None:
        rng = np.random.default_rng(0)
        for path in paths:
            references.load_view(path, views.view.sides, bench.crop, rng)

    def bound(time_taken: float) -> str:
        decoding = min(bench.seconds(partial(map, images.read_image, paths)) for _ in range(3))
        share = 100 * decoding / time_taken
        return f"one core: JPEG decoding {share:.0f}% of the time, then resize, flip, crop"

    works = partial(map, views.__getitem__, draws), reference
    note = "uint8 views; the device normalises them. Reference: normalised float32"
    figures = "images/s", bound, note, len(draws)
    yield bench.compare("loader, per core", *works, *figures, target=3.5)
    name = "loader and normalisation, per core"
    bound = "as above, and writing 3 MiB of float32 an image"
    note = "the device's part done by the same core, as where the CPU is the device"
    yield bench.compare(name, ours_normalised, reference, "images/s", bound, note, len(draws))


def puzzle_training(bench: Bench, halved: bool = False) -> Training:
    """Puzzle-CAM: views, perhaps of half the side, and their tiles go through the network."""
    bench = dataclasses.replace(bench, crop=max(64, bench.crop // 2)) if halved else bench
    network = partial(Classifier, bench.backbone, 20)
    step = partial(train_classification.step, alpha=ALPHA)
    loss = partial(references.puzzle_loss, alpha=ALPHA)
    return Training(bench, network, recipe.CLASSIFICATION, step, loss, masks=False, passes=2)


def puzzle(bench: Bench) -> Rows:
    """The Puzzle-CAM step: time, and on a GPU peak memory."""
    training, target = puzzle_training(bench), 3.0 if bench.cuda else 2.5
    row = training.row("Puzzle-CAM step", training.ours(), training.usual(), target)
    yield row
    if bench.cuda:
        torch.backends.cudnn.allow_tf32 = False  # else float32 convolutions run in TF32
        yield training.row("Puzzle-CAM step, TF32 off", training.ours(), training.usual())
        torch.backends.cudnn.allow_tf32 = True
        sizes = np.array([[row["peak_memory_ours"], row["peak_memory_reference"]]]) / 2**20
        bound = "activations kept for the backward pass, half as many bytes in bf16"
        figures = sizes, "MiB", bound, "weights, gradients and activations"
        yield bench.row("Puzzle-CAM step, peak memory", *figures, target=1 / 0.6)


def segmentation(bench: Bench) -> Rows:
    """The DeepLabv3+ step."""

    def loss(network: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(network(views), labels.long(), ignore_index=images.IGNORE)

    network = partial(DeepLabV3Plus, bench.backbone, 21)
    training = Training(bench, network, recipe.SEGMENTATION, train_segmentation.step, loss)
    target = 3.0 if bench.cuda else 2.5
    yield training.row("segmentation step", training.ours(), training.usual(), target)


def affinity(bench: Bench) -> Rows:
    """The AffinityNet step: frozen backbone, path maxima, pair losses."""
    radius = min(recipe.AFFINITY.radius, bench.crop // 16)
    side = bench.crop // 4
    pairs = cache(partial(references.PairAffinity, radius, side, side, bench.device))

    def loss(network: nn.Module, views: Tensor, labels: Tensor) -> Tensor:
        return pairs().loss(network(views).sigmoid(), labels[:, 2::4, 2::4])

    network = partial(AffinityNet, bench.backbone)
    step = partial(train_affinity.step, radius=radius)
    training = Training(bench, network, recipe.AFFINITY, step, loss)
    yield training.row("affinity step", training.ours(), training.usual())


def amp(bench: Bench) -> Rows:
    """What bf16 alone brings: our step with and without autocast."""
    training = puzzle_training(bench, halved=not bench.cuda)
    name = "Puzzle-CAM step, bf16 against --amp off"
    yield training.row(name, training.ours(), training.ours("off"))


def compiled(bench: Bench) -> Rows:
    """What --compile brings (minutes to compile on a CPU, so only where it is asked for)."""
    training = puzzle_training(bench, halved=not bench.cuda)
    name = "Puzzle-CAM step, --compile against eager"
    yield training.row(name, training.ours(compiled=True), training.ours())
