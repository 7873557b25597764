#!/usr/bin/env python
"""Carry scores up to the boundaries with a random walk (IRN, Ahn et al. 2019).

    python make_random_walk.py --data VOCdevkit/VOC2012 --scores runs/voc/cam \\
        --checkpoint runs/voc/affinity/model.pt --out runs/voc/rw

About 7 minutes for VOC's train_aug on an H100. Score the result with `evaluate.py --scores`;
expect 64 mIoU on train with a ResNet-50 (paper).
"""

from pathlib import Path

from core import recipe
from core.data.datasets import DataRoot
from core.data.scores import Scores
from core.method.boundary import edge_map
from core.method.networks import AffinityNet
from core.method.random_walk import random_walk, rescale
from core.run import artefacts, checkpoint, distributed, inference, options, precision
from core.run.main import run_main
from core.run.record import Run

import torch
from torch import Tensor, nn


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    options.add_data(p, split="train_aug")
    p.add_argument("--scores", type=Path, required=True, help="directory of CAMs or other scores")
    p.add_argument(
        "--checkpoint",
        how=True,
        type=options.model,
        required=True,
        help="model.pt of train_affinity.py",
    )
    options.add_out(p)
    stage = recipe.RANDOM_WALK
    words = "images are padded to this side; auto: the crop that the network was trained on"
    kind = options.or_word("auto", options.side)
    p.add_argument("--pad-to", type=kind, default="auto", help=words)
    p.add_constant(stage, "radius", options.integer(2, 64), "of a step, stride-4 pixels")
    p.add_constant(stage, "beta", options.number(0, 1000), "exponent of the affinities")
    p.add_constant(stage, "log2_steps", options.integer(0, 12), "the walk has 2^N steps")
    options.add_amp(p)
    options.add_machine(p)
    return p


@torch.no_grad()
def walk(
    network: nn.Module,
    image: Tensor,
    scores: Scores,
    pad_to: int,
    radius: int,
    beta: float,
    log2_steps: int,
    autocast: torch.autocast,
) -> Scores:
    """The scores of one image, uint8 (3, H, W) on the network's device, after the walk."""
    with autocast:
        edge = edge_map(network, image, pad_to)
    cam = torch.from_numpy(scores.cam).to(image.device, non_blocking=True).double()
    walked = random_walk(cam, edge.double(), radius, beta, log2_steps).float()
    return Scores(scores.classes, rescale(walked, scores.size).cpu().numpy(), scores.size)


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    before = artefacts.read(args.scores, "scores", data.classes, ids)
    inputs = {
        **data.inputs(ids, verify=args.verify),
        "scores": before["digest"],
        "checkpoint": artefacts.read_model(args.checkpoint),
    }
    amp = precision.amp_type(args.amp, device)
    network = checkpoint.load_model(args.checkpoint, (AffinityNet,), None)
    pad_to = args.pad_to
    if pad_to == "auto":  # checkpoints of before have no crop
        pad_to = network.crop or recipe.RANDOM_WALK.pad_to
    resolved = {"amp": amp, "pad_to": pad_to}

    run = Run("make_random_walk", args, device, "scores", data.classes, inputs, resolved, ids)
    with run:
        if run.finished:
            return
        network = network.to(device, memory_format=torch.channels_last)
        options_of_walk = pad_to, args.radius, args.beta, args.log2_steps
        autocast = precision.autocast(amp, device)
        todo = inference.remaining(ids, args.out, ".npz")
        tasks = inference.images_and_scores(data, todo, args.scores, args.workers)
        with distributed.progress(len(todo), "make_random_walk") as bar:
            for image_id, image, scores in tasks:
                image = image.to(device, non_blocking=True)
                walked = walk(network, image, scores, *options_of_walk, autocast)
                walked.save(args.out / f"{image_id}.npz")
                bar.update()
        walked_from = before["results"].get("map", "scores")
        run.finish(images=len(ids), map=f"random walk from {walked_from}")


if __name__ == "__main__":
    run_main(main, get_args_parser)
