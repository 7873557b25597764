#!/usr/bin/env python
"""Make the class activation maps of a split: four scales, each with its mirror image, summed.

    python make_cam.py --data VOCdevkit/VOC2012 --checkpoint runs/voc/classification/model.pt \\
        --out runs/voc/cam

About 3 minutes for VOC's train_aug on an H100, 0.5 GB on disk. Score them with
`evaluate.py --scores`; expect 48 to 52 mIoU on train with a ResNet-50. `--map hr_cam` writes the
map that the released code scores and makes affinity labels from (README, Differences).
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core import recipe
from core.data import images
from core.data.datasets import DataRoot
from core.data.scores import Scores
from core.method.cam import of_classes, sum_scales
from core.method.networks import Classifier
from core.run import artefacts, checkpoint, distributed, inference, options, precision
from core.run.main import run_main
from core.run.record import Run

import torch
from torch import nn


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    options.add_data(p, split="train_aug")
    p.add_argument(
        "--checkpoint", type=options.model, required=True, help="model.pt of a classifier"
    )
    options.add_out(p)
    words = "cam: summed at stride 4; hr_cam: summed at the image's size, sampled at stride 4"
    p.add_argument("--map", choices=("cam", "hr_cam"), default="cam", help=words)
    options.add_inference(p, recipe.CAM, batch_images=4)
    options.add_machine(p)
    return p


@torch.inference_mode()
def make_cams(
    network: nn.Module,
    views: inference.Views,
    labels: dict[str, list[int]],
    out: Path,
    high_res: bool,
    autocast: torch.autocast,
) -> None:
    """Write `OUT/<id>.npz` of every image of `views`."""
    with ThreadPoolExecutor(2) as writers:
        writing = []
        for group, copies, size in views:
            present = sorted({c for image_id in group for c in labels[image_id]}) or [1]
            with autocast:
                sums = sum_scales(network, copies, size, high_res, present)
            for image_id, maps in zip(group, sums, strict=True):
                own = [present.index(c) + 1 for c in labels[image_id]]
                cam = of_classes(maps, own).half().cpu().numpy()
                scores = Scores(labels[image_id], cam, size)
                writing.append(writers.submit(scores.save, out / f"{image_id}.npz"))
            while len(writing) > 64:
                writing.pop(0).result()
        for each in writing:
            each.result()


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    labels = data.image_labels(ids)
    inputs = {
        **data.inputs(ids, labels, verify=args.verify),
        "checkpoint": artefacts.read_model(args.checkpoint, data.classes),
    }
    network = checkpoint.load_model(args.checkpoint, (Classifier,), data.classes)
    amp = precision.amp_type(args.amp, device)
    run = Run("make_cam", args, device, "scores", data.classes, inputs, {"amp": amp}, ids)
    with run:
        if run.finished:
            return
        network = network.to(device, memory_format=torch.channels_last)
        pictures = {i: data.image_path(i) for i in ids}
        network_size = functools.partial(images.fit_size, side=args.max_side)
        if args.map == "hr_cam":  # which is as large as the image
            network_size = tuple
        groups = inference.equal_size_batches(pictures, args.batch_images, device, network_size)
        todo = inference.remaining(groups, args.out, ".npz")
        views = inference.pyramids(
            pictures, todo, args.scales, args.max_side, args.workers, device, "make_cam"
        )
        autocast = precision.autocast(amp, device)
        make_cams(network, views, labels, args.out, args.map == "hr_cam", autocast)
        run.finish(images=len(ids), map=args.map)


if __name__ == "__main__":
    run_main(main, get_args_parser)
