#!/usr/bin/env python
"""Train DeepLabv3+ on pseudo-labels (or on any label maps).

    python train_segmentation.py --data VOCdevkit/VOC2012 --labels runs/voc/pseudo \\
        --out runs/voc/segmentation

The defaults are the paper's recipe (50 epochs of train_aug; about 12 hours on an A100).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from core import files
from core.data import images
from core.data.datasets import DataRoot, TrainingViews
from core.data.transforms import RandomView, normalize
from core.errors import InputError, run_main
from core.method.networks import DeepLabV3Plus
from core.run import distributed, options, precision, sampling, training, weights
from core.run.record import Run


def get_args_parser() -> argparse.ArgumentParser:
    p = options.parser(__doc__)
    options.add_stage(p, split="train_aug")
    p.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="label maps <id>.png: make_pseudo_labels.py's, or ground truth",
    )
    options.add_training(p, epochs=50, lr=0.007, weight_decay=4e-5, sides=(256, 1024))
    return p


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    max_step = sampling.check_batch(args, len(ids))
    if args.crop % 16:
        raise InputError(f"--crop {args.crop} is not divisible by 16")
    precision.set_determinism(args.deterministic, device)
    start = weights.load(args.weights, args.backbone)
    torch.manual_seed(args.seed)
    network = DeepLabV3Plus(args.backbone, data.n_labels, start)
    inputs = {
        "data": data.digest(ids),
        "labels": files.digest_files([args.labels / f"{i}.png" for i in ids]),
        "weights": training.weights_digest(args),
    }
    resolved = training.resolved(args, device)
    with Run("train_segmentation", args.out, args, device, inputs, resolved) as run:
        if run.finished:
            return
        groups = training.parameter_groups(network, args.weight_decay, args.weights != "none")
        trainer = training.Trainer(run, network, groups, args, max_step)
        view = RandomView(tuple(args.sides), args.crop)

        def loss(
            photos: Tensor, boxes: Tensor, labels: Tensor, valid: Tensor
        ) -> tuple[Tensor, dict]:
            logits = trainer.model(normalize(photos, boxes)).float()
            total = F.cross_entropy(
                logits, labels.long(), ignore_index=images.IGNORE, reduction="sum"
            )
            return total / valid.clamp(min=1), {}

        views = TrainingViews(data, ids, view, args.seed, label_folder=args.labels)
        for batch in trainer.batches(views):
            trainer.update(batch, loss, counts=(batch[2] != images.IGNORE).sum())
        model = trainer.finish(data.classes)
        run.finish(model=files.digest_file(model))
    distributed.finish()


if __name__ == "__main__":
    run_main(main)
