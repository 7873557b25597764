#!/usr/bin/env python
"""Turn scores into pseudo-labels: a constant background score, argmax, a dense CRF.

    python make_pseudo_labels.py --data VOCdevkit/VOC2012 --scores runs/voc/rw --out runs/voc/pseudo

About 2 minutes for VOC's train_aug on an H100. Score the label maps with
`evaluate.py --labels`; expect 64.7 mIoU on train with a ResNet-50 (paper).
"""

from dataclasses import dataclass
from pathlib import Path

from core import recipe
from core.data import images
from core.data.datasets import DataRoot
from core.data.scores import Scores, otsu, upsample
from core.method import crf
from core.method.cam import label_map
from core.run import artefacts, distributed, inference, options
from core.run.main import run_main
from core.run.record import Run

import numpy as np
import torch


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    options.add_data(p, split="train_aug")
    p.add_argument("--scores", type=Path, required=True, help="directory of walked scores, or CAMs")
    options.add_out(p)
    stage, kind = recipe.PSEUDO_LABELS, options.or_word("auto", options.fraction)
    words = "background score; auto: Otsu's threshold of each image's own scores, label-free"
    p.add_constant(stage, "threshold", kind, words)
    p.add_argument("--no-crf", dest="crf", action="store_false", help="leave out the dense CRF")
    options.add_crf(p, stage)
    options.add_machine(p)
    return p


@dataclass(frozen=True)
class Labelling:
    """How an image gets its label map.

    Attributes:
        threshold: the background score, or "auto"; None where there is no background.
        iterations: of the dense CRF; 0 leaves it out.
    """

    out: Path
    threshold: float | str | None
    iterations: int
    backend: str
    device: torch.device

    def __call__(self, image_id: str, image: np.ndarray, scores: Scores) -> float | None:
        """Write `OUT/<id>.png` of an image, uint8 (H, W, 3); return the background score used, None
        where there is no score to compare it with."""
        maps = upsample(torch.from_numpy(scores.cam).float(), scores.size)
        threshold = self.threshold
        if threshold == "auto":
            threshold = otsu(maps.amax(0).numpy()) if len(maps) else 1.0
        labels = label_map(maps, threshold).numpy()
        if self.iterations and len(maps):
            how = {"backend": self.backend, "device": self.device}
            labels = crf.refine_labels(image, labels, len(maps) + 1, self.iterations, **how)
        images.write_label(self.out / f"{image_id}.png", scores.class_table()[labels])
        return threshold if len(maps) else None


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    scores = artefacts.read(args.scores, "scores", data.classes, ids)
    inputs = {**data.inputs(ids, verify=args.verify), "scores": scores["digest"]}
    backend = crf.require(args.crf_backend) if args.crf else "no CRF"
    where = crf.device_of(backend, device)
    resolved = {"crf_backend": backend}
    run = Run("make_pseudo_labels", args, device, "labels", data.classes, inputs, resolved, ids)
    with run:
        if run.finished:
            return
        iterations = args.crf_iterations if args.crf else 0
        threshold = args.threshold if data.background else None
        labelling = Labelling(args.out, threshold, iterations, backend, where)
        used = inference.label_images(labelling, data, ids, args, where)
        used = [each for some in distributed.gather(used) for each in some if each is not None]
        if used and data.background and distributed.is_main():
            each = f" (each image its own, {min(used):.2f} to {max(used):.2f} of {len(used)})"
            print(f"background score {np.mean(used):.2f}{each if args.threshold == 'auto' else ''}")
        made_of = artefacts.mapping(scores, "results").get("map")
        run.finish(data.known_labels(ids), images=len(ids), map=made_of)


if __name__ == "__main__":
    run_main(main, get_args_parser)
