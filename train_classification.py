#!/usr/bin/env python
"""Train the classifier whose class activation maps start everything: plain CAM or Puzzle-CAM.

    python train_classification.py --data VOCdevkit/VOC2012 --out runs/voc/puzzle

The defaults are the paper's recipe (ResNet-50, VOC 2012 train_aug, 15 epochs; 4 GPUs of 11 GB or
one of 40 GB, about 3 hours on an A100). Expect a CAM mIoU of 48 to 52 on train. The four rows of
Table 1 are `--no-p-cls --no-re`, `--no-re`, `--no-p-cls` and no switch.
"""

from __future__ import annotations

import argparse
import functools

import torch
from torch import Tensor, nn

from core import files
from core.data.datasets import DataRoot, TrainingViews
from core.data.transforms import RandomView, normalize
from core.errors import InputError, run_main
from core.method import losses
from core.method.networks import Classifier
from core.method.puzzle import merge, tile
from core.run import distributed, options, precision, sampling, training, weights
from core.run.record import Run


def get_args_parser() -> argparse.ArgumentParser:
    p = options.parser(__doc__)
    options.add_stage(p, split="train_aug")
    options.add_training(p, epochs=15, lr=0.1, weight_decay=1e-4, sides=(320, 640))
    p.add_argument("--no-p-cls", dest="p_cls", action="store_false", help="leave out L_p-cls")
    p.add_argument("--no-re", dest="re", action="store_false", help="leave out L_re")
    p.add_argument("--alpha", type=float, default=4.0, help="weight of L_re after the ramp")
    p.add_argument(
        "--alpha-ramp",
        type=options.fraction,
        default=0.5,
        help="share of the training in which alpha rises from 0",
    )
    p.add_argument(
        "--masking",
        choices=("labels", "none"),
        default="labels",
        help="L_re on the classes in the image, or on all (the paper's formula)",
    )
    p.add_argument("--grid", type=options.positive, default=2, help="tiles per side")
    return p


def puzzle_loss(
    network: nn.Module, images: Tensor, labels: Tensor, alpha: float, args: argparse.Namespace
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = L_cls + L_p-cls + alpha * L_re (Puzzle-CAM, section 2) of normalised images (N, 3, H, W).

    Returns the loss and its terms; `peak` is the mean height of the present classes' maps over
    their own average, which goes to 0 when the maps collapse into flat ones.
    """
    maps = network(images).float()  # a mean of bf16 maps would be rounded to bf16
    terms = {"cls": losses.classification(maps.mean((2, 3)), labels)}
    loss = terms["cls"]
    if args.p_cls or args.re:
        merged = merge(network(tile(images, args.grid)).float(), args.grid)
    if args.p_cls:
        terms["p_cls"] = losses.classification(merged.mean((2, 3)), labels)
        loss = loss + terms["p_cls"]
    if args.re:
        masked = args.masking == "labels"
        terms["re"] = losses.reconstruction(maps, merged, labels, masked=masked)
        terms["alpha"] = loss.new_tensor(alpha)
        loss = loss + alpha * terms["re"]
    flat = maps.detach().flatten(2)
    height = (flat.amax(2) - flat.mean(2)) * labels
    terms["peak"] = height.sum() / labels.sum().clamp(min=1)
    return loss, terms


def flat_maps(row: dict[str, float], alpha: float) -> str | None:
    """A warning when the maps of present classes go flat: the empty map answers L_re perfectly."""
    if row.get("alpha", 0) < alpha / 2 or row["peak"] >= 1.5:
        return None
    return (
        f"the class maps of present classes are nearly flat (they rise {row['peak']:.2f} above "
        "their mean): L_re has won over the classification; lower --alpha, start from better "
        "--weights or train longer"
    )


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    labels = data.image_labels(ids)
    max_step = sampling.check_batch(args, len(ids))
    if args.crop % (16 * args.grid):
        raise InputError(f"--crop {args.crop} is not divisible by 16 x --grid {args.grid}")
    precision.set_determinism(args.deterministic, device)
    start = weights.load(args.weights, args.backbone)
    torch.manual_seed(args.seed)
    network = Classifier(args.backbone, len(data.classes), start)

    inputs = {"data": data.digest(ids, labels), "weights": training.weights_digest(args)}
    resolved = training.resolved(args, device)
    with Run("train_classification", args.out, args, device, inputs, resolved) as run:
        if run.finished:
            return
        warn = functools.partial(flat_maps, alpha=args.alpha) if args.re else None
        groups = training.parameter_groups(network, args.weight_decay, args.weights != "none")
        trainer = training.Trainer(run, network, groups, args, max_step, warn)
        view = RandomView(tuple(args.sides), args.crop)

        def loss(images: Tensor, boxes: Tensor, targets: Tensor) -> tuple[Tensor, dict]:
            alpha = losses.alpha(trainer.step, max_step, args.alpha, args.alpha_ramp)
            return puzzle_loss(trainer.model, normalize(images, boxes), targets, alpha, args)

        for batch in trainer.batches(TrainingViews(data, ids, view, args.seed, labels)):
            trainer.update(batch, loss)
        model = trainer.finish(data.classes)
        run.finish(model=files.digest_file(model))
    distributed.finish()


if __name__ == "__main__":
    run_main(main)
