#!/usr/bin/env python
"""Score CAMs or random-walk scores, label maps, or a segmentation checkpoint, in mIoU.

    python evaluate.py --data VOCdevkit/VOC2012 --cams runs/voc/cam --json runs/voc/cam.json
    python evaluate.py --data VOCdevkit/VOC2012 --labels runs/voc/pseudo
    python evaluate.py --data VOCdevkit/VOC2012 --split val \\
        --checkpoint runs/voc/segmentation/model.pt

CAMs and scores are scored at every background threshold in one pass, and the best one is reported
(as in the paper's Tables 1 and 2). A checkpoint runs on four scales with mirror images, then a
dense CRF; `--save-predictions` keeps its label maps, and scores nothing where there are no masks.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import files
from core.data import images, scoring
from core.data.datasets import DataRoot
from core.data.metrics import ConfusionMatrix, ThresholdSweep
from core.errors import InputError, run_main
from core.method import crf, segmentation
from core.method.networks import DeepLabV3Plus
from core.run import checkpoint, distributed, inference, options, precision
from core.run.parallel import Pool
from core.run.record import (
    Run,
    difference,
    environment,
    model_digest,
    outputs_digest,
    settings_of,
)

CHUNK = 16  # images a scoring task holds: enough to hide the cost of starting one

PREDICT_OPTIONS = (
    "split",
    "scales",
    "batch_images",
    "crf",
    "crf_iterations",
    "crf_backend",
    "amp",
    "overwrite",
    "stale",
)


def get_args_parser() -> argparse.ArgumentParser:
    p = options.parser(__doc__)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--cams", type=Path, help="directory of CAMs or of random-walk scores")
    what.add_argument("--labels", type=Path, help="directory of label maps <id>.png")
    what.add_argument("--checkpoint", type=Path, help="model.pt of train_segmentation.py")
    options.add_stage(p, split="train", out=False)
    p.add_argument("--masks", default="SegmentationClass", help="folder of the ground truth")
    p.add_argument(
        "--thresholds",
        type=options.fraction,
        nargs="+",
        metavar="T",
        default=[round(0.01 * i, 2) for i in range(5, 61)],
        help="background scores to try on CAMs",
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write the scores there")
    p.add_argument(
        "--save-predictions",
        type=Path,
        metavar="DIR",
        help="keep the label maps a checkpoint predicts",
    )
    p.add_argument("--no-crf", dest="crf", action="store_false", help="leave out the dense CRF")
    p.add_argument("--crf-iterations", type=options.positive, default=10)
    p.add_argument(
        "--batch-images",
        type=options.positive,
        default=2,
        help="images of equal size computed together",
    )
    options.add_overwrite(p)
    options.add_scales(p)
    options.add_crf(p)
    options.add_amp(p)
    return p


def over_images(function: Any, ids: list[str], args: argparse.Namespace, *rest: Any) -> Iterator:
    """Yield function(data, chunk, *rest) over this process's chunks, in a process pool."""
    data = rest[0]
    chunks = distributed.share([ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK)])
    bar = distributed.progress(sum(map(len, chunks)), "evaluate")
    with bar, Pool(args.jobs if len(chunks) > 8 else 1) as pool:
        tasks = ((data, chunk, *rest[1:]) for chunk in chunks)
        for chunk, part in zip(chunks, pool.map(function, tasks), strict=True):
            bar.update(len(chunk))
            yield part


def refine_and_write(
    data: DataRoot, image_id: str, probs: np.ndarray, args: argparse.Namespace, device: torch.device
) -> None:
    """Dense CRF on the probabilities (n_labels, H, W), argmax, palette PNG."""
    if args.crf:
        image = images.as_array(images.read_image(data.image_path(image_id)))
        backend = args.crf_backend
        probs = crf.refine_probabilities(
            image, probs, args.crf_iterations, backend=backend, device=device
        )
    images.write_label(args.save_predictions / f"{image_id}.png", probs.argmax(0))


@torch.inference_mode()
def predictions(args: argparse.Namespace, data: DataRoot, ids: list[str], run: Run) -> Iterator:
    """Yield the tasks of `refine_and_write` for the images without a prediction yet."""
    network = checkpoint.load_model(args.checkpoint, DeepLabV3Plus, data.classes)
    network = network.to(run.device, memory_format=torch.channels_last)
    amp = precision.amp_type(args.amp, run.device)
    groups = inference.equal_size_batches(data, ids, args.batch_images)
    todo = inference.remaining(groups, [(args.save_predictions, ".png")])
    views = inference.pyramids(data, todo, args.scales, args.workers, run.device, "predict")
    for group, copies, size in views:
        with precision.autocast(amp, run.device):
            probs = segmentation.probabilities(network, copies, size)
        for image_id, each in zip(group, probs.cpu().numpy(), strict=True):
            yield data, image_id, each, args, run.device


def predict(args: argparse.Namespace, data: DataRoot, ids: list[str], device: torch.device) -> None:
    """Write the label maps of a segmentation checkpoint to --save-predictions."""
    inputs = {"data": data.digest(ids), "checkpoint": files.digest_file(args.checkpoint)}
    chosen = argparse.Namespace(**{name: getattr(args, name) for name in PREDICT_OPTIONS})
    resolved = {
        "amp": precision.amp_type(args.amp, device),
        "crf_backend": crf.resolve_backend(args.crf_backend, device),
    }
    with Run("predict", args.save_predictions, chosen, device, inputs, resolved) as run:
        if run.finished:
            return
        with Pool(args.jobs, device) as pool:
            for _ in pool.map(refine_and_write, predictions(args, data, ids, run)):
                pass
        run.finish(images=len(ids))


def reduced(matrix: np.ndarray, device: torch.device) -> np.ndarray:
    """The sum of an int64 histogram over all processes."""
    return distributed.total(torch.from_numpy(matrix).to(device)).cpu().numpy()


def evaluate(
    args: argparse.Namespace, data: DataRoot, ids: list[str], device: torch.device
) -> dict[str, Any]:
    """Score what the arguments name; the JSON's content without its `run`."""
    if args.cams is not None:
        thresholds = sorted(set(args.thresholds))
        sweep = ThresholdSweep(data.n_labels, thresholds)
        for part in over_images(scoring.cams, ids, args, data, args.cams, args.masks, thresholds):
            sweep.merge(part)
        sweep.histogram = reduced(sweep.histogram, device)
        rows = [scoring.figures(matrix, data.classes) for matrix in sweep.confusions()]
        best = int(np.argmax([row["miou"] for row in rows]))
        figures = rows[best] | {"threshold": thresholds[best]}
        figures["sweep"] = [
            {"threshold": t, "miou": r["miou"], "fp": r["fp"], "fn": r["fn"]}
            for t, r in zip(thresholds, rows, strict=True)
        ]
    else:
        folder = args.labels or args.save_predictions
        total = ConfusionMatrix(data.n_labels)
        for part in over_images(scoring.labels, ids, args, data, folder, args.masks):
            total.merge(part)
        total.matrix = reduced(total.matrix, device)
        figures = scoring.figures(total, data.classes) | {"threshold": None}
    return figures | {"images": len(ids)}


def print_table(figures: dict[str, Any]) -> None:
    """The figures as a table on stdout."""
    for name, value in figures["iou"].items():
        print(f"{name:<20}{'absent' if value is None else f'{value:6.2f}'}")
    print(f"{'mIoU':<20}{figures['miou']:6.2f}")
    if figures["threshold"] is not None:
        print(f"{'best threshold':<20}{figures['threshold']:6.2f}")
        if figures["threshold"] in (
            figures["sweep"][0]["threshold"],
            figures["sweep"][-1]["threshold"],
        ):
            print("the best threshold lies at the end of the range; widen --thresholds")
    print(f"{'false positives':<20}{figures['fp']:6.3f}")
    print(f"{'false negatives':<20}{figures['fn']:6.3f}")
    print(f"{'images':<20}{figures['images']:6d}", flush=True)


def input_digests(args: argparse.Namespace, data: DataRoot, ids: list[str]) -> dict[str, str]:
    """Digests of everything the scores depend on."""
    inputs = {"data": data.digest(ids)}
    masks = [data.mask_path(i, args.masks) for i in ids]
    if any(path.exists() for path in masks):
        inputs["masks"] = files.digest_files(masks)
    elif args.checkpoint is None or args.save_predictions is None:
        raise InputError(
            f"{masks[0].parent}: no ground truth for split {args.split!r}; only a checkpoint with "
            "--save-predictions can do without"
        )
    if args.cams is not None:
        stage = files.read_json(args.cams / "run.json", "give a directory of CAMs").get("stage")
        stage = "random_walk" if stage == "random_walk" else "make_cam"
        inputs["cams"] = outputs_digest(args.cams, "*.npz", stage)
    elif args.labels is not None:
        inputs["labels"] = files.digest_files([args.labels / f"{i}.png" for i in ids])
    else:
        inputs["checkpoint"] = model_digest(args.checkpoint)
    return inputs


def scored_before(args: argparse.Namespace, record: dict[str, Any]) -> dict[str, Any] | None:
    """The content of --json, if it was made with these settings and inputs."""
    if args.json is None or not args.json.exists() or args.overwrite:
        return None
    old = files.read_json(args.json, "remove it or give --overwrite")
    run = old.get("run")
    same = isinstance(run, dict) and not difference({k: run.get(k) for k in record}, record)
    return old if same else None


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    inputs = input_digests(args, data, ids)
    record = {"stage": "evaluate", "settings": settings_of(args), "inputs": inputs}
    known = scored_before(args, record)
    keep = args.save_predictions is not None  # they may have been deleted since
    with contextlib.ExitStack() as stack:
        if args.checkpoint is not None and (keep or known is None):
            if not keep:
                if distributed.world_size() > 1:
                    raise InputError("several processes share predictions: give --save-predictions")
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                args.save_predictions = Path(folder) / "predictions"
            predict(args, data, ids, device)
        if known is not None:
            print(f"{args.json}: scored before, with these settings and inputs")
            print_table(known)
            return
        if "masks" not in inputs:
            print(f"no ground truth: {len(ids)} predictions in {args.save_predictions}, no score")
            return
        figures = evaluate(args, data, ids, device)
    if distributed.is_main():
        print_table(figures)
        if args.json is not None:
            record["argv"] = sys.argv
            args.json.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(args.json, figures | {"run": record | environment(device)})
    distributed.finish()


if __name__ == "__main__":
    run_main(main)
