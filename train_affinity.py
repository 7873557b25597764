#!/usr/bin/env python
"""Make affinity labels from the CAMs, then train the boundary network (IRN, Ahn et al. 2019).

    python train_affinity.py --data VOCdevkit/VOC2012 --cams runs/voc/cam --out runs/voc/affinity

The labels (two 10-iteration dense CRFs an image) take about 20 minutes on 16 cores, the 3 epochs
of training about 15 minutes on an A100. `OUT/labels/` keeps the labels to look at: 0 confident
background, 1..C confident classes, 255 (cream) neither.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from core import files
from core.data import images
from core.data.datasets import DataRoot, TrainingViews
from core.data.scores import Scores, upsample
from core.data.transforms import RandomView, normalize
from core.errors import InputError, run_main
from core.method import crf, losses
from core.method.boundary import at_edges, confident_labels
from core.method.networks import AffinityNet
from core.run import distributed, options, precision, sampling, training, weights
from core.run.parallel import Pool
from core.run.record import Run, outputs_digest


def get_args_parser() -> argparse.ArgumentParser:
    p = options.parser(__doc__)
    options.add_stage(p, split="train_aug")
    p.add_argument("--cams", type=Path, required=True, help="directory made by make_cam.py")
    options.add_training(p, epochs=3, lr=0.1, weight_decay=1e-4, sides=(320, 640), rates="rate")
    p.add_argument(
        "--foreground-threshold",
        type=options.fraction,
        default=0.40,
        help="background score above which a class is confident",
    )
    p.add_argument(
        "--background-threshold",
        type=options.fraction,
        default=0.10,
        help="background score with which the background is confident",
    )
    p.add_argument("--crf-iterations", type=options.positive, default=10)
    p.add_argument("--radius", type=options.positive, default=10, help="of pairs, stride-4 pixels")
    options.add_crf(p, default="torch")
    return p


def label_image(
    data: DataRoot, image_id: str, args: argparse.Namespace, device: torch.device
) -> None:
    """Write the affinity label map of one image: two CRF passes over one lattice."""
    image = images.as_array(images.read_image(data.image_path(image_id)))
    file = Scores.load(args.cams / f"{image_id}.npz", len(data.classes), image.shape[:2])
    maps = upsample(torch.from_numpy(file.cam).float(), file.size)
    field = crf.DenseCRF(image, **crf.LABEL_WIDTHS, backend=args.crf_backend, device=device)
    background = torch.ones_like(maps[:1])
    labels = [
        torch.cat([threshold * background, maps]).argmax(0).numpy()
        for threshold in (args.foreground_threshold, args.background_threshold)
    ]
    sure = field.refine_label_maps(labels, len(maps) + 1, args.crf_iterations)
    classes = torch.tensor([0, *file.classes.tolist()], dtype=torch.uint8).numpy()
    label = confident_labels(classes[sure[0]], classes[sure[1]])
    images.write_label(args.out / "labels" / f"{image_id}.png", label)


def make_labels(run: Run, args: argparse.Namespace, data: DataRoot, ids: list[str]) -> None:
    """Write `OUT/labels/<id>.png` for every id that has none yet."""
    folder = args.out / "labels"
    folder.mkdir(exist_ok=True)
    todo = distributed.share(ids)
    todo = [i for i in todo if not (folder / f"{i}.png").exists()]
    bar = distributed.progress(len(todo), "affinity labels")
    with bar, Pool(args.jobs, run.device) as pool:
        for _ in pool.map(label_image, ((data, i, args, run.device) for i in todo)):
            bar.update()
    distributed.barrier()


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    max_step = sampling.check_batch(args, len(ids))
    if args.crop % 16:
        raise InputError(f"--crop {args.crop} is not divisible by 16")
    if args.crop // 4 <= 2 * (args.radius - 1):
        raise InputError(f"--crop {args.crop} holds no pair within --radius {args.radius}")
    precision.set_determinism(args.deterministic, device)
    start = weights.load(args.weights, args.backbone)
    torch.manual_seed(args.seed)
    network = AffinityNet(args.backbone, start)
    inputs = {
        "data": data.digest(ids),
        "cams": outputs_digest(args.cams, "*.npz", "make_cam"),
        "weights": training.weights_digest(args),
    }
    resolved = training.resolved(args, device)
    resolved["crf_backend"] = crf.resolve_backend(args.crf_backend, device)
    with Run("train_affinity", args.out, args, device, inputs, resolved) as run:
        if run.finished:
            return
        make_labels(run, args, data, ids)
        groups = training.one_group(network, args.weight_decay)
        trainer = training.Trainer(run, network, groups, args, max_step)
        view = RandomView(tuple(args.sides), args.crop)
        views = TrainingViews(data, ids, view, args.seed, label_folder=args.out / "labels")

        def loss(
            photos: Tensor, boxes: Tensor, labels: Tensor, pairs: Tensor
        ) -> tuple[Tensor, dict]:
            edge = trainer.model(normalize(photos, boxes)).float().sigmoid()
            return losses.affinity(edge, at_edges(labels), args.radius, pairs), {}

        for batch in trainer.batches(views):
            pairs = losses.count_pairs(at_edges(batch[2]), args.radius)
            trainer.update(batch, loss, counts=pairs)
        model = trainer.finish(data.classes)
        run.finish(model=files.digest_file(model))
    distributed.finish()


if __name__ == "__main__":
    run_main(main)
