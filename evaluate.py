#!/usr/bin/env python
"""Score CAMs or walked scores, label maps or a segmentation network in mIoU, a classifier in AP.

    python evaluate.py --data VOCdevkit/VOC2012 --scores runs/voc/cam --json runs/voc/cam.json
    python evaluate.py --data VOCdevkit/VOC2012 --labels runs/voc/pseudo --json runs/voc/pseudo.json
    python evaluate.py --data VOCdevkit/VOC2012 --split val --json runs/voc/val.json \\
        --checkpoint runs/voc/segmentation/model.pt
    python evaluate.py --data my --split val --classifier runs/my/classification

Scores are scored at every background threshold in one pass, and the best one is reported (as in the
paper's Tables 1 and 2). A checkpoint predicts first, with the options of predict.py, which may be
given here too (`--scales 1 --no-crf`); `--save-predictions` keeps the label maps. A classifier is
scored against the image-level labels of images it was not trained on; no mask is opened.
"""

import argparse
import contextlib
import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

import predict
from core import files, recipe
from core.data import images, scoring
from core.data.datasets import DataRoot
from core.errors import InputError
from core.method.networks import Classifier
from core.run import artefacts, checkpoint, distributed, inference, options, record
from core.run import main as ending
from core.run.environment import environment
from core.run.main import run_main
from core.run.parallel import over_chunks

import torch


class Thresholds(argparse.Action):
    """--thresholds: numbers, or the word "paper" for the released code's."""

    def __call__(self, parser, namespace, values, option_string=None):
        if "paper" in values:
            if len(values) > 1:
                parser.error("--thresholds paper: no numbers beside it")
            values = list(recipe.EVALUATION.paper_thresholds)
        setattr(namespace, self.dest, values)


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    options.add_data(p, split="train")
    p.add_argument("--scores", type=Path, help="directory of CAMs or of other scores")
    p.add_argument("--labels", type=Path, help="directory of label maps <id>.png")
    p.add_argument("--checkpoint", type=options.model, help="model.pt of train_segmentation.py")
    p.add_argument("--classifier", type=options.model, help="model.pt of train_classification.py")
    p.add_argument("--masks", default="SegmentationClass", help="folder of the ground truth")
    p.add_argument(
        "--thresholds", type=options.or_word("paper", options.fraction), nargs="+", metavar="T",
        action=Thresholds, default=list(recipe.EVALUATION.thresholds),
        help="background scores to try; paper: the released code's, 0.05 to 0.75 by 0.05",
    )  # fmt: skip
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    words = "keep the label maps that a checkpoint predicts"
    p.add_argument("--save-predictions", type=Path, metavar="DIR", help=words)
    options.add_overwrite(p)
    options.add_jobs(p)
    options.add_machine(p)
    return p


def evaluate(
    args: argparse.Namespace, data: DataRoot, ids: list[str], folder: Path, device: torch.device
) -> dict[str, Any]:
    """Score a directory of scores or label maps; the JSON's content without its `run`."""
    how: tuple[Any, ...] = (data, folder, args.masks)
    score, thresholds = scoring.labels, None
    if args.scores is not None:
        thresholds = sorted(set(args.thresholds)) if data.background else [-1.0]
        score, how = scoring.scores, (*how, thresholds)
    total = scoring.nothing(data, thresholds)
    for part in over_chunks(functools.partial(score, *how), ids, args.jobs, "evaluate"):
        total.merge(part)
    total.reduce(
        lambda counts: distributed.total(torch.from_numpy(counts).to(device)).cpu().numpy()
    )
    return total.figures(data) | {"images": len(ids)}


def print_table(figures: dict[str, Any]) -> None:
    """The figures as a table on stdout."""
    is_classifier = "average_precision" in figures
    for name, value in figures["average_precision" if is_classifier else "iou"].items():
        print(f"{name:<20}{'absent' if value is None else f'{value:6.2f}'}")
    if is_classifier:
        print(f"{'mean AP':<20}{figures['mean_average_precision']:6.2f}")
        print(f"{'images':<20}{figures['images']:6d}", flush=True)
        return
    print(f"{'mIoU':<20}{figures['miou']:6.2f}")
    if figures.get("boundary_miou") is not None:
        print(f"{'boundary IoU, mean':<20}{figures['boundary_miou']:6.2f}")
    if figures["threshold"] is not None:
        thresholds = [each["threshold"] for each in figures["sweep"]]
        name = "best threshold" if thresholds else "threshold"
        how = "chosen on these masks" if thresholds else "given"
        print(f"{name:<20}{figures['threshold']:6.2f}  ({how})")
        for key, word in (("at_default", "default"), ("at_auto", "auto, label-free")):
            if other := figures.get(key):
                level = f" {other['threshold']:.2f}" if "threshold" in other else ""
                print(f"{'mIoU at ' + word + level:<26}{other['miou']:6.2f}")
        if figures["threshold"] in (thresholds[:1] + thresholds[-1:]):
            print("the best threshold lies at the end of the range; widen --thresholds")
    if figures["map"] is not None:
        print(f"{'map':<20}{figures['map']}")
    if truth := figures.get("ground_truth"):
        print(f"{'ground truth':<20}{truth['masks']} (digest {truth['digest']})")
    for key, name in (("fp", "false positives"), ("fn", "false negatives")):
        print(f"{name:<20}{'none of a class' if figures[key] is None else f'{figures[key]:6.3f}'}")
    if figures["fn"] is None:
        print("warning: no class in the masks nor in the labels: the figure is the background's")
    print(f"{'images':<20}{figures['images']:6d}", flush=True)


def prediction_command(args: argparse.Namespace, out: Path, more: list[str]) -> list[str]:
    """The command line of predict.py that this one asks for; `more` are its own options."""
    command = ["--data", args.data, "--split", args.split, "--checkpoint", args.checkpoint]
    command += ["--out", out, "--device", args.device, "--workers", args.workers]
    command += ["--jobs", args.jobs, "--stale", args.stale]
    command += ["--overwrite"] * args.overwrite + ["--verify"] * args.verify
    return [*map(str, command), *more]


def inputs_of(
    args: argparse.Namespace, data: DataRoot, ids: list[str]
) -> tuple[dict[str, str], str | None]:
    """Digests of everything the figures depend on, and which map is scored."""
    if args.classifier is not None:
        inputs = data.inputs(ids, data.image_labels(ids), verify=args.verify)
        return inputs | {"checkpoint": artefacts.read_model(args.classifier, data.classes)}, None
    masks = [data.mask_path(i, args.masks) for i in ids]
    inputs, map_name = data.inputs(ids, verify=args.verify), None
    if any(path.exists() for path in masks):
        inputs["masks"] = files.digest_files(masks)
        images.check_classes(masks, data.background)
    elif args.save_predictions is None or args.json is not None:
        raise InputError(
            f"{masks[0].parent}: no ground truth for split {args.split!r}; predict.py makes label "
            "maps without"
        )
    if args.scores is not None:
        made = artefacts.read(args.scores, "scores", data.classes, ids)
        inputs["scores"], map_name = made["digest"], artefacts.mapping(made, "results").get("map")
    elif args.labels is not None:
        inputs["labels"] = artefacts.read_labels(args.labels, ids, data)
        if (path := args.labels / "run.json").exists():
            made = files.read_json(path, "make the labels again")
            map_name = artefacts.mapping(made, "results").get("map")
    else:
        inputs["checkpoint"] = artefacts.read_model(args.checkpoint, data.classes)
    return inputs, map_name


def note_trained_on(args: argparse.Namespace, data: DataRoot, ids: list[str]) -> None:
    """Warn where a classifier was trained on images that it is scored on, as its run.json says."""
    beside = args.classifier.with_name("run.json")
    with contextlib.suppress(InputError):  # none is there, or the list is gone
        how = artefacts.mapping(files.read_json(beside, ""), "arguments")
        if Path(str(how.get("data"))).resolve() == args.data.resolve():
            both = len(set(ids) & set(data.ids(str(how.get("split")))))
            if both and distributed.is_main():
                what = f"the classifier was trained on {both} of these {len(ids)} images"
                print(f"warning: {what}: give --split another list", file=sys.stderr)


def ground_truth(args: argparse.Namespace, digest: str) -> dict[str, str]:
    """What the figures are against: the masks' folder, or the rule that tools/prepare_coco.py drew
    them by, and their digest."""
    rule, prepared = args.masks, args.data / "coco.json"
    if args.masks == "SegmentationClass":
        with contextlib.suppress(InputError):  # no such file, or one of another tool's
            masks = artefacts.mapping(files.read_json(prepared, ""), "masks")
            rule = masks.get("rule", rule)
    return {"masks": str(rule), "digest": digest}


def scored_before(args: argparse.Namespace, made: dict[str, Any]) -> dict[str, Any] | None:
    """The content of --json, if it was made with these settings and inputs."""
    if args.json is None or not args.json.exists() or args.overwrite:
        return None
    old = files.read_json(args.json, "remove it or give --overwrite")
    run = old.get("run")
    same = isinstance(run, dict) and not record.difference({k: run.get(k) for k in made}, made)
    return old if same else None


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser()
    args, more = parser.parse_known_args(argv)
    given = (args.scores, args.labels, args.checkpoint, args.classifier)
    if sum(each is not None for each in given) != 1:
        parser.error("give one of --scores, --labels, --checkpoint and --classifier")
    if more and args.checkpoint is None:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if args.save_predictions is not None and args.checkpoint is None:
        parser.error("--save-predictions goes with --checkpoint")
    if args.thresholds != parser.get_default("thresholds") and args.scores is None:
        parser.error("--thresholds goes with --scores")
    device = distributed.start(args.device)
    if args.json is not None and distributed.is_main():
        files.check_own(args.json, "iou" if args.classifier is None else "average_precision")
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    inputs, map_name = inputs_of(args, data, ids)
    made = {"stage": "evaluate", "settings": args.settings, "inputs": inputs}
    with contextlib.ExitStack() as stack:
        folder = args.scores or args.labels or args.save_predictions
        if args.checkpoint is not None:
            if folder is None:
                if distributed.world_size() > 1:
                    raise InputError("several processes share predictions: give --save-predictions")
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "predictions"
                stack.callback(setattr, ending, "resumes", "")  # nothing stays to go on from
            command = prediction_command(args, folder, more)
            predicted = predict.get_args_parser().parse_args(command)
            if predicted.out != folder:
                parser.error("--out is predict.py's; give --save-predictions")
            made["predict"] = predicted.settings
        if args.classifier is not None:
            note_trained_on(args, data, ids)
        known = scored_before(args, made)
        # Predictions that were asked for may have been deleted since.
        if args.checkpoint is not None and (args.save_predictions is not None or known is None):
            predict.main(command)
        if known is not None:
            if distributed.is_main():
                print(f"{args.json}: scored before, with these settings and inputs")
                try:
                    print_table(known)
                except (KeyError, TypeError, ValueError, AttributeError, IndexError):
                    raise InputError(f"{args.json}: damaged; give --overwrite") from None
            return
        if args.classifier is not None:
            network = checkpoint.load_model(args.classifier, (Classifier,), data.classes)
            network = network.to(device, memory_format=torch.channels_last)
            figures = inference.average_precision(
                network, data, ids, data.image_labels(ids), args.workers, device, "evaluate"
            )
        elif "masks" not in inputs:
            if distributed.is_main():
                print(f"no ground truth: {len(ids)} predictions in {folder}, no score")
            return
        else:
            figures = evaluate(args, data, ids, folder, device) | {"map": map_name}
            figures["ground_truth"] = ground_truth(args, inputs["masks"])
    if distributed.is_main():
        if args.json is not None:
            made["argv"] = sys.argv
            files.write_json(args.json, figures | {"run": made | environment(device)})
        print_table(figures)


if __name__ == "__main__":
    run_main(main, get_args_parser)
