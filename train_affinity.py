#!/usr/bin/env python
"""Train the boundary network on affinity labels (IRN, Ahn et al. 2019).

    python train_affinity.py --data VOCdevkit/VOC2012 --labels runs/voc/affinity_labels \\
        --out runs/voc/affinity

The 3 epochs take about a minute on an H100, and 3 GB of its memory.
"""

from pathlib import Path

from core import recipe
from core.data.datasets import DataRoot, TrainingViews
from core.data.transforms import RandomView
from core.errors import InputError
from core.method import losses
from core.method.boundary import at_edges
from core.method.networks import AffinityNet
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
    words = "label maps of make_affinity_labels.py"
    p.add_argument("--labels", type=Path, required=True, help=words)
    options.add_out(p)
    options.add_machine(p)
    options.add_training(p, recipe.AFFINITY, "rate of all that is trained")
    p.add_constant(recipe.AFFINITY, "radius", options.integer(2, 64), "of pairs, stride-4 pixels")
    return p


def step(trainer: Trainer, batch: list[Tensor], radius: int = recipe.AFFINITY.radius) -> None:
    """One update on a batch of `trainer.batches`: an edge only between unlike pairs (IRN)."""
    # What the three means of the loss are over, in the whole global batch.
    pairs = trainer.mean_count(losses.count_pairs(at_edges(batch[2]), radius))
    for images, labels in trainer.microbatches(batch):  # (n, 3, crop, crop), (n, crop, crop)
        with trainer.autocast():
            edge = trainer.network(images).float().sigmoid()  # (n, crop/4, crop/4)
            loss = losses.affinity(edge, at_edges(labels), radius, pairs)
        trainer.backward(loss)
    trainer.update()


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    plan = Plan.of(args, len(ids), device)
    if args.crop // 4 <= 2 * (args.radius - 1):
        raise InputError(f"--crop {args.crop} holds no pair within --radius {args.radius}")
    precision.set_determinism(args.deterministic, device)
    start = weights.of(args)
    if start is None and args.init is None:
        remedy = "give --weights imagenet, or the classifier's model.pt"
        artefacts.note(f"the backbone stays as it is, random features: {remedy}")
    torch.manual_seed(args.seed)
    network = AffinityNet(args.backbone, start)
    weights.take_rest(network, args.init, data.classes)

    inputs = {
        **data.inputs(ids, verify=args.verify),
        "labels": artefacts.read_labels(args.labels, ids, data, confident=True),
        "weights": weights.digest(args, start),
    }
    with Run("train_affinity", args, device, "model", data.classes, inputs, plan.resolved()) as run:
        if run.finished:
            return
        groups = optimizer.one_group(network, args.weight_decay)
        trainer = Trainer(network, groups, plan, args.out, device, run.identity)
        view = RandomView(args.sides, args.crop)
        views = TrainingViews(data, ids, view, args.seed, label_folder=args.labels)
        for batch in trainer.batches(views):
            step(trainer, batch, args.radius)
        trainer.finish(data)
        run.finish(steps=trainer.step, warnings=trainer.warnings())


if __name__ == "__main__":
    run_main(main, get_args_parser)
