#!/usr/bin/env python
"""Draw what every stage made of some images: image, truth, CAM, +RW, +RW+dCRF, segmentation.

    python tools/overview.py --data data/shapes --demo runs/demo
    python tools/overview.py --data VOCdevkit/VOC2012 --cams runs/voc/cam --scores runs/voc/rw \\
        --labels runs/voc/pseudo --predictions runs/voc/predictions --out overview.png

The CAM is a heat map of the image's strongest class; the later stages are label maps over the
photograph, scores at their best threshold, with the image's own IoU below. Some seconds.
`--checkpoint` segments the images that have no prediction. Missing files leave their place blank.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from tools.predict import Options, segment

from core import files
from core.data import images, visual
from core.data.datasets import DataRoot
from core.errors import InputError
from core.method.networks import DeepLabV3Plus
from core.run import checkpoint, distributed, options
from core.run.main import run_main
from tools.reporting.pictures import TITLES, Cell, StageFolders, image_iou, mean_iou

DEMO = {"cams": "cam", "scores": "rw", "labels": "pseudo", "predictions": "predictions"}


def get_args_parser() -> argparse.ArgumentParser:
    p = options.parser(__doc__)
    p.add_argument("--data", type=Path, required=True, help="data root; see data/README.md")
    p.add_argument(
        "--split", nargs="+", default=["train"], help="lists to take the images from, in turn"
    )
    p.add_argument("--images", type=options.positive, default=6, help="images, spread over a list")
    p.add_argument("--ids", nargs="+", help="these images instead")
    p.add_argument("--masks", default="SegmentationClass", help="folder of the ground truth")
    p.add_argument("--cams", type=Path, nargs="+", help="directories of make_cam.py")
    p.add_argument("--scores", type=Path, nargs="+", help="directories of --save-scores")
    p.add_argument("--labels", type=Path, nargs="+", help="directories of pseudo-labels")
    p.add_argument("--predictions", type=Path, nargs="+", help="directories of predictions")
    p.add_argument("--checkpoint", type=Path, help="segmentation model.pt for images without one")
    p.add_argument(
        "--threshold",
        type=options.fraction,
        help="background score of --scores; without it that of --scores-json, or 0.35",
    )
    p.add_argument("--cams-json", type=Path, help="evaluation that names the CAMs' threshold")
    p.add_argument("--scores-json", type=Path, help="evaluation that names the scores' threshold")
    p.add_argument(
        "--demo",
        type=Path,
        metavar="DIR",
        help="take cam/, rw/, pseudo/, predictions/, segmentation/model.pt, cam.json and rw.json "
        "of this directory where no option says otherwise, and write overview.png there",
    )
    p.add_argument("--side", type=options.positive, default=192, help="of a picture, in pixels")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--out", type=Path, help="the picture, a PNG")
    return p


def fill_from_demo(args: argparse.Namespace) -> None:
    """Complete the options from the layout of a demo directory."""
    for option, name in DEMO.items():
        if getattr(args, option) is None and (args.demo / name).is_dir():
            setattr(args, option, [args.demo / name])
    single = {
        "cams_json": "cam.json",
        "scores_json": "rw.json",
        "checkpoint": "segmentation/model.pt",
    }
    for option, name in single.items():
        if getattr(args, option) is None and (args.demo / name).is_file():
            setattr(args, option, args.demo / name)
    args.out = args.out or args.demo / "overview.png"


def thresholds(args: argparse.Namespace) -> dict[str, float]:
    """The background scores of "cam" and "rw" that an option or an evaluation names."""
    chosen = {}
    for stage, path in (("cam", args.cams_json), ("rw", args.scores_json)):
        if path is not None:
            value = files.read_json(path, "give an evaluation of evaluate.py").get("threshold")
            if not isinstance(value, int | float):
                raise InputError(f"{path}: names no threshold; give an evaluation of CAMs")
            chosen[stage] = float(value)
    if args.threshold is not None:
        chosen["rw"] = args.threshold
    return chosen


def choose(args: argparse.Namespace, data: DataRoot) -> list[str]:
    """The images' ids: those asked for, or evenly spread over the splits."""
    if args.ids:
        return args.ids
    chosen = []
    for number, split in enumerate(args.split):
        ids = data.ids(split)
        share = args.images * (number + 1) // len(args.split) - len(chosen)
        places = np.linspace(0, len(ids), min(share, len(ids)), endpoint=False)
        chosen += [ids[int(place)] for place in places]
    return chosen


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.demo is not None:
        fill_from_demo(args)
    if args.out is None:
        raise InputError("--out: say where the picture goes")
    data = DataRoot(args.data)
    ids = choose(args, data)
    given = (
        ("cam", args.cams),
        ("rw", args.scores),
        ("pseudo", args.labels),
        ("segmentation", args.predictions),
    )
    for folder in [each for _, group in given for each in group or []]:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such directory")
    folders = {stage: group for stage, group in given if group}
    stages = StageFolders(data, folders, thresholds(args), args.masks)
    missing = [i for i in ids if stages.find("segmentation", i) is None]
    network, device = None, distributed.start(args.device)
    if args.checkpoint is not None and missing:
        network = checkpoint.load_model(args.checkpoint, DeepLabV3Plus, data.classes).to(device)
    rows, captions = [], []
    for image_id in tqdm(ids, desc="overview", unit="image", dynamic_ncols=True):
        image = stages.image(image_id)
        cells = {stage: stages.cell(stage, image_id, image) for stage in TITLES}
        if cells["segmentation"] is None and network is not None:
            label = segment(network, image, Options(device=device))
            cells["segmentation"] = Cell(visual.overlay(image, label, 0.8), label)
        rows.append([cell and cell.picture for cell in cells.values()])
        captions.append(captions_of(cells, image_id))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    images.write_png(args.out, visual.grid(rows, list(TITLES.values()), captions, args.side))
    print(f"{args.out}: {len(ids)} images")


def captions_of(cells: dict[str, Cell | None], image_id: str) -> list[str]:
    """The id under the photograph, the image's IoU under every stage."""
    truth = cells["truth"].label if cells["truth"] is not None else None
    lines = []
    for stage, cell in cells.items():
        if stage in ("image", "truth") or cell is None or truth is None:
            lines.append(image_id if stage == "image" else "")
        else:
            iou = mean_iou(image_iou(cell.label, truth))
            lines.append("" if iou is None else f"IoU {iou:.0f}")
    return lines


if __name__ == "__main__":
    run_main(main)
