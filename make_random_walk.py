#!/usr/bin/env python
"""Carry scores up to the boundaries with a random walk (IRN, Ahn et al. 2019).

    python make_random_walk.py --data VOCdevkit/VOC2012 --scores runs/voc/cam \\
        --checkpoint runs/voc/affinity/model.pt --out runs/voc/rw

About 4 minutes for VOC's train_aug on an H100. Score the result with `evaluate.py --scores`;
expect 64 mIoU on train with a ResNet-50 (paper).
"""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

from core import recipe
from core.data.datasets import DataRoot
from core.data.scores import Scores
from core.data.transforms import stack
from core.method.boundary import edge_map, padded_size
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
    words = "model.pt of train_affinity.py"
    p.add_argument("--checkpoint", type=options.model, required=True, help=words)
    options.add_out(p)
    stage = recipe.RANDOM_WALK
    words = "images are padded to this side; auto: the crop that the network was trained on"
    kind = options.or_word("auto", options.side)
    p.add_argument("--pad-to", type=kind, default="auto", help=words)
    p.add_constant(stage, "radius", options.integer(2, 64), "of a step, stride-4 pixels")
    p.add_constant(stage, "beta", options.number(1e-9, 1000), "exponent of the affinities")
    p.add_constant(stage, "log2_steps", options.integer(0, 12), "the walk has 2^N steps")
    options.add_batch_images(p, 4)
    options.add_amp(p)
    options.add_machine(p)
    return p


@torch.no_grad()
def walk(
    network: nn.Module,
    images: Tensor,
    scores: Sequence[Scores],
    pad_to: int,
    radius: int,
    beta: float,
    log2_steps: int,
    autocast: torch.autocast,
) -> list[Scores]:
    """The scores of images, uint8 (B, 3, H, W) on the network's device, after the walk."""
    with autocast:
        edges = edge_map(network, images, pad_to)
    # (B, K, h, w): an image of fewer classes than others has maps of zeros, which stay so.
    cams = edges.new_zeros(len(images), max(len(s.cam) for s in scores), *edges.shape[1:])
    for cam, each in zip(cams, scores, strict=True):
        cam[: len(each.cam)] = torch.from_numpy(each.cam).to(images.device, non_blocking=True)
    walked = random_walk(cams.double(), edges.double(), radius, beta, log2_steps).float()
    maps = [rescale(w[: len(s.cam)], s.size) for w, s in zip(walked, scores, strict=True)]
    return [Scores(s.classes, m.cpu().numpy(), s.size) for m, s in zip(maps, scores, strict=True)]


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
        pictures = {i: data.image_path(i) for i in ids}
        network_size = functools.partial(padded_size, pad_to=pad_to)
        groups = inference.equal_size_batches(pictures, args.batch_images, device, network_size)
        todo = inference.remaining(groups, args.out, ".npz")
        in_order = [image_id for group in todo for image_id in group]
        read = inference.images_and_scores(data, in_order, args.scores, args.workers)
        with distributed.progress(len(in_order), "make_random_walk") as bar:
            for group in todo:
                _, images, scores = zip(*itertools.islice(read, len(group)), strict=True)
                batch = stack(images).to(device, non_blocking=True)
                walked = walk(network, batch, scores, *options_of_walk, autocast)
                for image_id, each in zip(group, walked, strict=True):
                    each.save(args.out / f"{image_id}.npz")
                bar.update(len(group))
        walked_from = artefacts.mapping(before, "results").get("map", "scores")
        run.finish(images=len(ids), map=f"random walk from {walked_from}")


if __name__ == "__main__":
    run_main(main, get_args_parser)
