#!/usr/bin/env python
"""Train DeepLabv3+ on pseudo-labels (or on any label maps).

    python train_segmentation.py --data VOCdevkit/VOC2012 --labels runs/voc/pseudo \\
        --out runs/voc/segmentation

The defaults are the paper's recipe (50 epochs of train_aug; about 36 minutes and 15 GB on an H100).
"""

from pathlib import Path

from core import recipe
from core.data.datasets import DataRoot, TrainingViews
from core.data.transforms import RandomView
from core.errors import InputError
from core.method import losses
from core.method.networks import DeepLabV3Plus
from core.run import artefacts, distributed, optimizer, options, precision, weights
from core.run.main import run_main
from core.run.plan import Plan
from core.run.record import Run
from core.run.training import Trainer

import torch
from torch import Tensor


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    options.add_data(p, split="train_aug")
    words = "label maps <id>.png: make_pseudo_labels.py's, or ground truth"
    p.add_argument("--labels", type=Path, required=True, help=words)
    options.add_out(p)
    options.add_machine(p)
    words = "base rate; x2 biases, x10 new layers (with --weights none: all)"
    options.add_training(p, recipe.SEGMENTATION, words)
    words = "objects' pixels weigh together as much as the background's (docs/results.md)"
    p.add_argument("--balanced", action="store_true", help=words)
    return p


def step(trainer: Trainer, batch: list[Tensor], balanced: bool = False) -> None:
    """One update on a batch of `trainer.batches`: cross-entropy of the labelled pixels."""
    # What the means of the loss are over, in the whole global batch.
    pixels = trainer.mean_count(losses.count_pixels(batch[2], balanced))
    for images, labels in trainer.microbatches(batch):  # (n, 3, crop, crop), (n, crop, crop)
        with trainer.autocast():
            logits = trainer.network(images)  # (n, C + 1, crop, crop)
            loss = losses.segmentation(logits, labels.long(), pixels, balanced)
        trainer.backward(loss)
    trainer.update()


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    plan = Plan.of(args, len(ids), device)
    if args.balanced and not data.background:
        raise InputError(f"--balanced: {args.data} has no background to balance; leave it out")
    precision.set_determinism(args.deterministic, device)
    start = weights.of(args)
    torch.manual_seed(args.seed)
    network = DeepLabV3Plus(args.backbone, data.n_labels, start)
    weights.take_rest(network, args.init, data.classes, data.background)
    if not data.background:
        network.rule_out_background()

    inputs = {
        **data.inputs(ids, verify=args.verify),
        "labels": artefacts.read_labels(args.labels, ids, data, confident=False),
        "weights": weights.digest(args, start),
    }
    run = Run("train_segmentation", args, device, "model", data.classes, inputs, plan.resolved())
    with run:
        if run.finished:
            return
        groups = optimizer.parameter_groups(network, args.weight_decay, start is not None)
        trainer = Trainer(network, groups, plan, args.out, device, run.identity)
        view = RandomView(args.sides, args.crop)
        views = TrainingViews(data, ids, view, args.seed, label_folder=args.labels)
        for batch in trainer.batches(views):
            step(trainer, batch, args.balanced)
        trainer.finish(data)
        run.finish(steps=trainer.step, warnings=trainer.warnings())


if __name__ == "__main__":
    run_main(main, get_args_parser)
