#!/usr/bin/env python
"""Turn CAMs into pseudo-labels: random walk along the boundaries, then a dense CRF.

    python make_pseudo_labels.py --data VOCdevkit/VOC2012 --cams runs/voc/cam \\
        --affinity runs/voc/affinity/model.pt --out runs/voc/pseudo --save-scores runs/voc/rw

About 30 minutes for VOC's train_aug on an A100 with 16 cores. Score the label maps with
`evaluate.py --labels` and the walk's scores with `evaluate.py --cams`; expect 64 mIoU on train.
`--no-random-walk` and `--no-crf` leave a part out.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.data import images
from core.data.datasets import DataRoot
from core.data.scores import Scores, upsample
from core.errors import InputError, run_main
from core.method import cam, crf
from core.method.boundary import edge_map
from core.method.networks import AffinityNet
from core.method.random_walk import random_walk
from core.run import checkpoint, distributed, inference, options, precision
from core.run.parallel import Pool
from core.run.record import Run, model_digest, outputs_digest

# The options the scores depend on; a directory of scores is not stale when a threshold changes.
WALK_OPTIONS = (
    "split",
    "random_walk",
    "radius",
    "beta",
    "log2_steps",
    "pad_to",
    "amp",
    "overwrite",
    "stale",
)


def get_args_parser() -> argparse.ArgumentParser:
    p = options.parser(__doc__)
    options.add_stage(p, split="train_aug")
    p.add_argument("--cams", type=Path, required=True, help="directory made by make_cam.py")
    p.add_argument("--affinity", type=Path, help="model.pt of train_affinity.py")
    p.add_argument(
        "--save-scores",
        type=Path,
        metavar="DIR",
        help="keep the scores after the walk, in the form of CAM files",
    )
    p.add_argument("--no-random-walk", dest="random_walk", action="store_false")
    p.add_argument("--no-crf", dest="crf", action="store_false")
    p.add_argument(
        "--threshold",
        type=options.threshold,
        default=0.35,
        help="background score; auto: Otsu's threshold of each image's own scores, label-free",
    )
    p.add_argument(
        "--pad-to", type=options.positive, default=512, help="the --crop of train_affinity.py"
    )
    p.add_argument("--radius", type=options.positive, default=5, help="of the walk's steps")
    p.add_argument("--beta", type=float, default=10.0, help="exponent of the affinities")
    p.add_argument("--log2-steps", type=int, default=8, help="the walk has 2^N steps")
    p.add_argument("--crf-iterations", type=options.positive, default=1)
    options.add_crf(p)
    options.add_amp(p)
    return p


def walk(file: Scores, image: Tensor, network: AffinityNet, args: argparse.Namespace) -> Tensor:
    """Scores (K, h, w) after the walk, divided by the GLOBAL maximum of the upsampled maps."""
    device = image.device
    with precision.autocast(precision.amp_type(args.amp, device), device):
        edge = edge_map(network, image, args.pad_to)
    maps = torch.from_numpy(file.cam).to(device, torch.float64)
    scores = random_walk(maps, edge.double(), args.radius, args.beta, args.log2_steps).float()
    return scores / upsample(scores, file.size).max().clamp(min=1e-20)


def pseudo_label(
    data: DataRoot, image_id: str, file: Scores, args: argparse.Namespace, device: torch.device
) -> float:
    """Write the label map of one image: constant background, argmax, dense CRF.

    Returns the background score it used.
    """
    maps = upsample(torch.from_numpy(np.asarray(file.cam, np.float32)), file.size)
    threshold = args.threshold
    if threshold == "auto":
        threshold = cam.otsu(maps.amax(0).numpy())
    labels = torch.cat([torch.full_like(maps[:1], threshold), maps]).argmax(0).numpy()
    if args.crf:
        image = images.as_array(images.read_image(data.image_path(image_id)))
        backend = args.crf_backend
        labels = crf.refine_labels(
            image, labels, len(maps) + 1, args.crf_iterations, backend=backend, device=device
        )
    classes = np.array([0, *file.classes], np.uint8)
    images.write_label(args.out / f"{image_id}.png", classes[labels])
    return threshold


def scored(
    args: argparse.Namespace, data: DataRoot, ids: list[str], device: torch.device
) -> Iterator[tuple]:
    """Yield the tasks of `pseudo_label`, with the scores after the walk."""
    network = None
    if args.random_walk:
        network = checkpoint.load_model(args.affinity, AffinityNet, None)
        network = network.to(device, memory_format=torch.channels_last)

    def load(image_id: str) -> tuple[str, Scores, Tensor]:
        image = images.read_image(data.image_path(image_id))
        path = args.cams / f"{image_id}.npz"
        return image_id, Scores.load(path, len(data.classes), tuple(image.shape[1:])), image

    for image_id, file, image in inference.read_ahead(ids, load, args.workers):
        if network is not None:
            with torch.inference_mode():
                file.cam = walk(file, image.to(device), network, args).cpu().numpy()
        if args.save_scores is not None:
            file.save(args.save_scores / f"{image_id}.npz")
        yield data, image_id, file, args, device


def make_labels(args: argparse.Namespace, data: DataRoot, ids: list[str], run: Run) -> None:
    """Write the label maps (and scores) that are not there yet."""
    wanted = [(args.out, ".png")]
    if args.save_scores is not None:
        wanted.append((args.save_scores, ".npz"))
    groups = inference.remaining([[i] for i in ids], wanted)
    todo = [i for group in groups for i in group]
    bar = distributed.progress(len(todo), "make_pseudo_labels")
    with bar, Pool(args.jobs if args.crf else 1, run.device) as pool:
        used = []
        for threshold in pool.map(pseudo_label, scored(args, data, todo, run.device)):
            used.append(threshold)
            bar.update()
    if used and distributed.is_main():
        spread = f" (each image its own, {min(used):.2f} to {max(used):.2f})"
        print(f"background score {np.mean(used):.2f}{spread if args.threshold == 'auto' else ''}")


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.random_walk and args.affinity is None:
        raise InputError("--affinity: give train_affinity.py's model.pt, or --no-random-walk")
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    inputs = {"data": data.digest(ids), "cams": outputs_digest(args.cams, "*.npz", "make_cam")}
    if args.random_walk:
        inputs["affinity"] = model_digest(args.affinity)
    resolved = {
        "amp": precision.amp_type(args.amp, device),
        "crf_backend": crf.resolve_backend(args.crf_backend, device),
    }
    with contextlib.ExitStack() as stack:
        runs = [Run("make_pseudo_labels", args.out, args, device, inputs, resolved)]
        stack.enter_context(runs[0])
        if args.save_scores is not None:
            walk_only = argparse.Namespace(**{name: getattr(args, name) for name in WALK_OPTIONS})
            runs.append(Run("random_walk", args.save_scores, walk_only, device, inputs, resolved))
            stack.enter_context(runs[1])
        if all(run.finished for run in runs):
            return
        make_labels(args, data, ids, runs[0])
        for run, outputs in zip(runs, ("*.png", "*.npz"), strict=False):
            run.finish(outputs, images=len(ids))
    distributed.finish()


if __name__ == "__main__":
    run_main(main)
