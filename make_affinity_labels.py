#!/usr/bin/env python
"""Make the labels the boundary network learns from: what CAMs are confident of, after dense CRFs.

    python make_affinity_labels.py --data VOCdevkit/VOC2012 --scores runs/voc/cam \\
        --out runs/voc/affinity_labels

About 5 minutes for VOC's train_aug on an H100; two CRFs of 10 iterations an image.
The label maps are worth a look: 0 confident background, 1..C confident classes, 255 (cream)
neither (IRN, Ahn et al. 2019).
"""

from dataclasses import dataclass
from pathlib import Path

from core import recipe
from core.data import images
from core.data.datasets import DataRoot
from core.data.scores import Scores, upsample
from core.errors import InputError
from core.method import crf
from core.method.boundary import confident_labels
from core.method.cam import label_map
from core.run import artefacts, distributed, inference, options
from core.run.main import run_main
from core.run.record import Run

import numpy as np
import torch


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    options.add_data(p, split="train_aug")
    p.add_argument("--scores", type=Path, required=True, help="directory of CAMs")
    options.add_out(p)
    stage = recipe.AFFINITY_LABELS
    words = "background score above which a class is confident"
    p.add_constant(stage, "foreground_threshold", options.fraction, words)
    words = "background score with which the background is confident"
    p.add_constant(stage, "background_threshold", options.fraction, words)
    options.add_crf(p, stage)
    options.add_machine(p)
    return p


@dataclass(frozen=True)
class Labelling:
    """How an image gets its labels: two dense CRFs over one lattice."""

    out: Path
    # Background scores: a class beats the first, none the second (None: there is no background).
    thresholds: tuple[float, float | None]
    iterations: int
    backend: str
    device: torch.device

    def __call__(self, image_id: str, image: np.ndarray, scores: Scores) -> None:
        """Write `OUT/<id>.png` of an image, uint8 (H, W, 3)."""
        maps = upsample(torch.from_numpy(scores.cam).float(), scores.size)
        both = [label_map(maps, threshold).numpy() for threshold in self.thresholds]
        if len(maps):
            how = {"backend": self.backend, "device": self.device}
            dense_crf = crf.DenseCRF(image, **crf.LABEL_WIDTHS, **how)
            both = dense_crf.refine_label_maps(both, len(maps) + 1, self.iterations)
        labels = confident_labels(*(scores.class_table()[each] for each in both))
        images.write_label(self.out / f"{image_id}.png", labels)


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.foreground_threshold < args.background_threshold:
        raise InputError(
            f"--foreground-threshold {args.foreground_threshold} is under --background-threshold "
            f"{args.background_threshold}; a class must beat a higher background score"
        )
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    scores = artefacts.read(args.scores, "scores", data.classes, ids)
    inputs = {**data.inputs(ids, verify=args.verify), "scores": scores["digest"]}
    backend = crf.require(args.crf_backend)
    where = crf.device_of(backend, device)
    resolved = {"crf_backend": backend}
    run = Run("make_affinity_labels", args, device, "labels", data.classes, inputs, resolved, ids)
    with run:
        if run.finished:
            return
        low = args.background_threshold if data.background else None
        thresholds = args.foreground_threshold, low
        labelling = Labelling(args.out, thresholds, args.crf_iterations, backend, where)
        inference.label_images(labelling, data, ids, args, where)
        made_of = artefacts.mapping(scores, "results").get("map")
        run.finish(data.known_labels(ids), images=len(ids), map=made_of)


if __name__ == "__main__":
    run_main(main, get_args_parser)
