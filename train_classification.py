#!/usr/bin/env python
"""Train the classifier whose class activation maps start everything: plain CAM or Puzzle-CAM.

    python train_classification.py --data VOCdevkit/VOC2012 --out runs/voc/classification

The defaults are the paper's recipe (ResNet-50, VOC 2012 train_aug, 15 epochs; 4 GPUs of 8 GB or
one of 24 GB; about 9 minutes and 16 GB on an H100). Expect a CAM mIoU of 48 to 52 on train. The
four rows of Table 1 are `--no-p-cls --no-re`, `--no-re`, `--no-p-cls` and no switch.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence

from core import recipe
from core.data.datasets import DataRoot, TrainingViews
from core.data.transforms import RandomView
from core.errors import InputError
from core.method import losses
from core.method.networks import Classifier
from core.method.puzzle import merge, tile
from core.run import distributed, inference, optimizer, options, precision, weights
from core.run.log import Log
from core.run.main import run_main
from core.run.parallel import over_chunks
from core.run.plan import Plan
from core.run.record import Run
from core.run.training import Trainer

import torch
from torch import Tensor, nn

SMALL_TILE = 150  # pixels; at 96 the maps go flat, the paper's are of 256
WINDOW = 50  # steps over which the height of the maps is averaged before it is compared


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    options.add_data(p, split="train_aug")
    options.add_out(p)
    options.add_machine(p)
    words = "base rate; x2 biases, x10 new layers (with --weights none: all)"
    options.add_training(p, recipe.CLASSIFICATION, words)
    p.add_argument("--no-p-cls", dest="p_cls", action="store_false", help="leave out L_p-cls")
    p.add_argument("--no-re", dest="re", action="store_false", help="leave out L_re")
    stage = recipe.CLASSIFICATION
    p.add_constant(stage, "alpha", options.number(0, 1000), "of L_re after the ramp")
    words = "share of the training in which alpha rises from 0"
    p.add_constant(stage, "alpha_ramp", options.fraction, words)
    words = "L_re on the classes in the image, or on all (the paper's formula)"
    p.add_argument("--masking", choices=("labels", "none"), default="labels", help=words)
    p.add_constant(stage, "grid", options.integer(1, 64), "tiles per side")
    words = "drop: leave the cells at the tiles' seams out of L_re; for small crops"
    p.add_argument("--re-seams", choices=("keep", "drop"), default="keep", help=words)
    words = "relative: L_re on maps divided by their maximum; for small crops"
    p.add_argument("--re-scale", choices=("raw", "relative"), default="raw", help=words)
    words = "held-out list whose average precision is logged after every epoch; needs no masks"
    p.add_argument("--val", how=True, metavar="SPLIT", help=words)
    return p


def held_out(
    args: argparse.Namespace, data: DataRoot, trained: Sequence[str], device: torch.device
) -> Callable[[nn.Module], dict[str, float]] | None:
    """What looks at the images of --val: their mean average precision and every class's.

    Raises InputError where they are trained on, lack an image or labels, or are damaged: all are
    read once, since a training should not end after an epoch for one of them.
    """
    if args.val is None:
        return None
    ids = data.ids(args.val)
    if both := len(set(ids) & set(trained)):
        raise InputError(f"--val {args.val}: {both} of its {len(ids)} images are trained on")
    labels = data.image_labels(ids)
    for _ in over_chunks(data.read_images, ids, args.workers or 1, args.val):
        pass

    def look(network: nn.Module) -> dict[str, float]:
        found = inference.average_precision(
            network, data, ids, labels, args.workers, device, args.val, args.amp
        )
        each = {f"ap/{k}": ap for k, ap in found["average_precision"].items() if ap is not None}
        return {"ap": found["mean_average_precision"], **each}

    return look


def small_tiles(args: argparse.Namespace) -> str | None:
    """A note before the hours are spent: what the paper's L_re does to small photographs."""
    is_papers = args.re and args.re_seams == "keep" and args.re_scale == "raw"
    pretrained = args.init is not None or args.weights != "none"
    if not is_papers or args.crop // args.grid >= SMALL_TILE or not pretrained:
        return None
    return (
        f"note: tiles of {args.crop // args.grid} pixels: on photographs L_re flattens the maps; "
        "--re-seams drop --re-scale relative prevents it (docs/results.md)"
    )


def flat_maps(row: dict[str, float], log: Log, alpha: float) -> str | None:
    """A warning when the maps of present classes go flat: the empty map answers L_re perfectly.

    Flat is what has no height when alpha is past half of its way, or has lost half of the height
    it had over `WINDOW` steps: fewer steps show the accidents of a few batches, and a network's
    first guesses. What the half was chosen on, docs/results.md says.
    """
    if not row.get("alpha"):
        return None
    blocks: dict[int, list[float]] = {}  # heights of the last WINDOW steps, of those before, ...
    for at, peak in [*log.numbers("step", "peak"), (row["step"], row["peak"])]:
        blocks.setdefault(int(row["step"] - at) // WINDOW, []).append(peak)
    whole = [sum(blocks[n]) / len(blocks[n]) for n in blocks if n < row["step"] // WINDOW]
    has_lost_half = whole and whole[-1] < max(whole) / 2
    if not has_lost_half and not (row["peak"] < 1.5 and row["alpha"] >= alpha / 2):
        return None
    now, highest = (whole[-1], max(whole)) if has_lost_half else (row["peak"], row["peak"])
    return (
        f"the class maps of present classes go flat: they rise {now:.2f} above their mean, at "
        f"their highest {highest:.2f}; L_re wins over the classification; give --re-seams drop "
        "--re-scale relative or better --weights"
    )


def step(
    trainer: Trainer,
    batch: list[Tensor],
    alpha: float,
    grid: int = recipe.CLASSIFICATION.grid,
    p_cls: bool = True,
    re: Callable[[Tensor, Tensor, Tensor], Tensor] | None = losses.reconstruction,
) -> None:
    """One update on a batch of `trainer.batches`: L = L_cls + L_p-cls + alpha * L_re."""
    network = trainer.network
    for images, labels in trainer.microbatches(batch):  # (n, 3, crop, crop), (n, C)
        with trainer.autocast():
            a = network(images)  # A: class maps (n, C, crop/16, crop/16) of the images
            a_re = None  # A_re: those of their tiles, put together again
            if p_cls or re is not None:
                a_re = merge(network(tile(images, grid)), grid)
            loss, terms = losses.puzzle(a, a_re, labels, alpha, p_cls, re)
        trainer.backward(loss, **terms)
    trainer.update()


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    labels = data.image_labels(ids)
    plan = Plan.of(args, len(ids), device)
    precision.set_determinism(args.deterministic, device)
    start = weights.of(args)
    torch.manual_seed(args.seed)
    network = Classifier(args.backbone, len(data.classes), start)
    weights.take_rest(network, args.init, data.classes)

    inputs = data.inputs(ids, labels, verify=args.verify)
    inputs["weights"] = weights.digest(args, start)
    run = Run("train_classification", args, device, "model", data.classes, inputs, plan.resolved())
    with run:
        if run.finished:
            return
        look = held_out(args, data, ids, device)
        groups = optimizer.parameter_groups(network, args.weight_decay, start is not None)
        if distributed.is_main() and (note := small_tiles(args)):
            print(note, file=sys.stderr)
        warn = functools.partial(flat_maps, alpha=args.alpha) if args.re else None
        trainer = Trainer(network, groups, plan, args.out, device, run.identity, warn, look)
        seams, relative = args.grid * (args.re_seams == "drop"), args.re_scale == "relative"
        how = {"masked": args.masking == "labels", "seams": seams, "relative": relative}
        re = functools.partial(losses.reconstruction, **how) if args.re else None
        view = RandomView(args.sides, args.crop)
        for batch in trainer.batches(TrainingViews(data, ids, view, args.seed, labels)):
            alpha = losses.alpha(trainer.step, plan.max_step, args.alpha, args.alpha_ramp)
            step(trainer, batch, alpha, args.grid, args.p_cls, re)
        trainer.finish(data)
        run.finish(steps=trainer.step, warnings=trainer.warnings())


if __name__ == "__main__":
    run_main(main, get_args_parser)
