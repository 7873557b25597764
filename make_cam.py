#!/usr/bin/env python
"""Make the class activation maps of a split: four scales, each with its mirror image, summed.

    python make_cam.py --data VOCdevkit/VOC2012 --checkpoint runs/voc/puzzle/model.pt \\
        --out runs/voc/cam

About 10 minutes for VOC's train_aug on an A100, 0.5 GB on disk. Score them with
`evaluate.py --cams`; expect 48 to 52 mIoU on train with a ResNet-50.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from core.data.datasets import DataRoot
from core.data.scores import Scores
from core.errors import run_main
from core.method.cam import of_classes, sum_scales
from core.method.networks import Classifier
from core.run import checkpoint, distributed, inference, options, precision
from core.run.record import Run, model_digest


def get_args_parser() -> argparse.ArgumentParser:
    p = options.parser(__doc__)
    options.add_stage(p, split="train_aug")
    p.add_argument("--checkpoint", type=Path, required=True, help="model.pt of the classifier")
    options.add_scales(p)
    p.add_argument(
        "--batch-images",
        type=options.positive,
        default=4,
        help="images of equal size computed together",
    )
    options.add_amp(p)
    return p


@torch.inference_mode()
def make_cams(run: Run, args: argparse.Namespace, data: DataRoot, ids: list[str]) -> None:
    """Write `OUT/<id>.npz` for every id that has none yet."""
    labels = data.image_labels(ids)
    network = checkpoint.load_model(args.checkpoint, Classifier, data.classes)
    network = network.to(run.device, memory_format=torch.channels_last)
    autocast = precision.autocast(precision.amp_type(args.amp, run.device), run.device)
    groups = inference.equal_size_batches(data, ids, args.batch_images)
    todo = inference.remaining(groups, [(args.out, ".npz")])
    views = inference.pyramids(data, todo, args.scales, args.workers, run.device, "make_cam")
    with ThreadPoolExecutor(2) as writers:
        writing = []
        for group, copies, size in views:
            with autocast:
                sums = sum_scales(network, copies, size)
            for image_id, maps in zip(group, sums, strict=True):
                cam = of_classes(maps, labels[image_id]).half().cpu().numpy()
                file = Scores(labels[image_id], cam, size)
                writing.append(writers.submit(file.save, args.out / f"{image_id}.npz"))
            while len(writing) > 64:
                writing.pop(0).result()
        for each in writing:
            each.result()


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    inputs = {
        "data": data.digest(ids, data.image_labels(ids)),
        "checkpoint": model_digest(args.checkpoint),
    }
    resolved = {"amp": precision.amp_type(args.amp, device)}
    with Run("make_cam", args.out, args, device, inputs, resolved) as run:
        if run.finished:
            return
        make_cams(run, args, data, ids)
        run.finish(outputs="*.npz", images=len(ids))
    distributed.finish()


if __name__ == "__main__":
    run_main(main)
