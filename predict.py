#!/usr/bin/env python
"""Segment pictures with a trained model: a split of a data set, or anyone's files and folders.

    python predict.py --checkpoint runs/voc/segmentation/model.pt --data VOCdevkit/VOC2012 \\
        --split val --out runs/voc/predictions
    python predict.py photos/ cat.jpg --checkpoint runs/voc/segmentation/model.pt --out out

Writes OUT/<name>.png (VOC palette, the picture's own size); of files and folders also
OUT/overlays/<name>.jpg and OUT/overlays/legend.png. Four scales with mirror images and a dense
CRF; about 2 minutes for VOC's val on an H100. A classifier's model.pt does as well: its masks are
of the CAMs of the classes it sees, and OUT/heat_maps/<name>/<class>.jpg shows those. Network and
CRF never see more than `--max-side` pixels on the longer side (times the scale), so memory does not
grow with the picture.
"""

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core import files, recipe
from core.data import images, visual
from core.data.datasets import DataRoot, check_name, class_difference
from core.errors import InputError
from core.method import cam, crf, segmentation
from core.method.networks import Classifier, DeepLabV3Plus
from core.run import artefacts, checkpoint, distributed, inference, options, precision
from core.run.main import run_main
from core.run.parallel import Pool
from core.run.record import Run

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    p.add_argument(
        "pictures", type=Path, nargs="*", help=f"files, {images.FORMS}, or folders of them"
    )
    p.add_argument("--data", type=Path, help="data root, in place of pictures")
    p.add_argument("--split", default="val", help="list in ImageSets/Segmentation, without .txt")
    options.add_verify(p)
    words = "model.pt of a segmentation, or of a classifier"
    p.add_argument("--checkpoint", type=options.model, required=True, help=words)
    options.add_out(p)
    options.add_inference(p, recipe.PREDICTION, batch_images=2)
    p.add_argument("--no-crf", dest="crf", action="store_false", help="leave out the dense CRF")
    options.add_crf(p, recipe.PREDICTION)
    words = "of a classifier: background score of its CAMs' masks; none: every pixel has a class"
    words += ", as where its data have no background"
    kind = options.or_word("none", options.fraction)
    p.add_argument("--threshold", type=kind, default=0.2, help=words)
    words = "a classifier sees the classes of this probability, or else the likeliest"
    p.add_argument("--class-threshold", type=options.fraction, default=0.5, help=words)
    options.add_machine(p)
    return p


def find_pictures(given: list[Path]) -> dict[str, Path]:
    """Output name -> file: the given files, and the images right inside the given folders.

    Raises:
        InputError: nothing there, or two files that would overwrite each other's results.
    """
    found: dict[str, Path] = {}
    for path in given:
        members = [path]
        if path.is_dir():
            members = sorted(p for p in path.iterdir() if p.suffix.lower() in images.ENDINGS)
            members = [p for p in members if p.is_file() and not p.name.startswith(".")]
            visible = [p for p in path.iterdir() if not (p.is_dir() or p.name.startswith("."))]
            others = len(visible) - len(members)
            if others and members and distributed.is_main():
                what = f"{others} other files, no {images.FORMS}, or links that lead nowhere"
                print(f"note: {path}: {what}", file=sys.stderr)
            if not members:
                raise InputError(f"{path}: no picture in this folder ({images.FORMS})")
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        for member in members:
            name = check_name(member.stem, member, "name")
            other = found.setdefault(name, member)
            if other.resolve() != member.resolve():
                raise InputError(
                    f"{other} and {member} would both become {name}.png; rename one, or predict "
                    "them into different --out"
                )
    return found


@dataclass(frozen=True)
class Refinement:
    """How one picture gets its files, from a segmentation's probabilities or a classifier's CAMs.

    Attributes:
        iterations: of the CRF; 0 leaves it out. device: where the CRF runs.
        overlays: write a picture for the eye as well.
    """

    out: Path
    max_side: int
    iterations: int
    backend: str
    device: torch.device
    overlays: bool

    def segment(self, name: str, path: Path, maps: Tensor | np.ndarray) -> None:
        """Write the files of a picture from its probabilities (C + 1, h, w).

        The label map comes last: it says that the rest is there.
        """
        image = images.as_array(images.read_image(path))
        size = image.shape[:2]
        if self.iterations:
            small = images.fit(image, self.max_side)
            how = {"backend": self.backend, "device": self.device, "size": size}
            how["left_out"] = crf.may_leave_out(len(maps))
            label = crf.most_probable(small, maps, self.iterations, **how)
        else:
            label = segmentation.argmax_at_size(torch.as_tensor(maps), size).cpu().numpy()
        self.write(name, image, label)

    def activate(
        self, network: nn.Module, name: str, path: Path, scales: Sequence[float],
        class_threshold: float, threshold: float | None, device: torch.device,
    ) -> None:  # fmt: skip
        """Write the files of a picture from the CAMs of the classes that a classifier finds."""
        image = images.as_array(images.read_image(path))
        small = images.fit(image, self.max_side)
        classes, maps = cam.of_predicted_classes(network, small, scales, class_threshold, device)
        for index, score in zip(classes, maps.cpu().numpy(), strict=True):
            file = self.out / "heat_maps" / name / f"{network.classes[index - 1]}.jpg"
            file.parent.mkdir(exist_ok=True)
            write_jpeg(file, visual.heat_map(small, score))
        labels = cam.label_map(maps, threshold)
        if self.iterations:
            how = {"backend": self.backend, "device": self.device}
            labels = crf.refine_labels(small, labels, len(classes) + 1, self.iterations, **how)
        labels = torch.as_tensor(labels).long().cpu()
        best = F.one_hot(labels, len(classes) + 1).permute(2, 0, 1).float()
        label = segmentation.argmax_at_size(best, image.shape[:2]).numpy()
        self.write(name, image, np.array([0, *classes], np.uint8)[label])

    def write(self, name: str, image: np.ndarray, label: np.ndarray) -> None:
        """Write overlay and label map of a picture."""
        if self.overlays:
            write_jpeg(self.out / "overlays" / f"{name}.jpg", visual.overlay(image, label))
        images.write_label(self.out / f"{name}.png", label)


def write_jpeg(path: Path, pixels: np.ndarray) -> None:
    """Write a picture for the eye, all of it or nothing."""
    with files.atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="JPEG", quality=90)


@torch.inference_mode()
def probabilities(
    network: nn.Module, views: inference.Views, max_side: int, autocast: torch.autocast, host: bool
) -> Iterator[tuple[str, Tensor]]:
    """Name and softmax (C + 1, h, w) of every picture, on the host or where the network is."""
    for group, copies, size in views:
        with autocast:
            probs = segmentation.probabilities(network, copies, images.fit_size(size, max_side))
        yield from zip(group, probs.cpu() if host else probs, strict=True)


def predict_by_cams(
    args: argparse.Namespace,
    network: nn.Module,
    pictures: dict[str, Path],
    refinement: Refinement,
    device: torch.device,
    autocast: torch.autocast,
) -> list[str]:
    """A classifier's label map of every picture that has none yet; the errors of the bad ones."""
    errors: list[str] = []
    threshold = None if args.threshold == "none" else args.threshold
    how = args.scales, args.class_threshold, threshold, device
    todo = inference.remaining(list(pictures), args.out, ".png")
    with distributed.progress(len(todo), "predict") as bar:
        for name in todo:
            try:
                with autocast, torch.inference_mode():
                    refinement.activate(network, name, pictures[name], *how)
            except InputError as error:
                errors.append(str(error))
            bar.update()
    return errors


def predict(
    args: argparse.Namespace,
    network: nn.Module,
    pictures: dict[str, Path],
    refinement: Refinement,
    device: torch.device,
    autocast: torch.autocast,
) -> list[str]:
    """The label map of every picture that has none yet; the errors of the bad ones."""
    errors: list[str] = []
    network_size = functools.partial(images.fit_size, side=args.max_side)
    groups = inference.equal_size_batches(pictures, args.batch_images, device, network_size, errors)
    todo = inference.remaining(groups, args.out, ".png")
    views = inference.pyramids(
        pictures, todo, args.scales, args.max_side, args.workers, device, "predict", errors
    )
    to_host = refinement.device.type == "cpu"
    with Pool(args.jobs, refinement.device) as pool:
        tasks = (
            (name, pictures[name], maps.numpy() if to_host else maps)
            for name, maps in probabilities(network, views, args.max_side, autocast, to_host)
        )
        for _ in pool.map(refinement.segment, tasks):
            pass
    return errors


def check_all_there(out: Path, pictures: dict[str, Path]) -> None:
    """An InputError where a finished run left pictures out that could not be read."""
    left = [name for name in pictures if not (out / f"{name}.png").exists()]
    if left:
        what = f"{len(left)} of {len(pictures)} pictures left out, named above"
        remedy = "the others are done; predict these, once replaced, into another --out"
        raise InputError(f"{what}; {remedy}")


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if bool(args.pictures) == (args.data is not None):
        raise InputError("give either pictures and folders, or --data with --split")
    device = distributed.start(args.device)
    network = checkpoint.load_model(args.checkpoint, (DeepLabV3Plus, Classifier), None)
    background = network.background
    inputs, known = {"checkpoint": artefacts.read_model(args.checkpoint)}, None
    if args.data is not None:
        data = DataRoot(args.data)
        if network.classes != data.classes:
            what = class_difference(network.classes, data.classes)
            raise InputError(f"{args.checkpoint}: {what}")
        ids = data.ids(args.split)
        pictures = {i: data.image_path(i) for i in ids}
        inputs |= data.inputs(ids, verify=args.verify)
        known, background = data.known_labels(ids), data.background
    else:
        pictures = find_pictures(args.pictures)
        inputs["pictures"] = files.digest_files(pictures.values())
    if not background:
        args.threshold = "none"
        if args.pictures and isinstance(network, Classifier):  # which older runs did not know
            args.settings["threshold"] = "none"
    amp = precision.amp_type(args.amp, device)
    backend = crf.require(args.crf_backend) if args.crf else "no CRF"
    resolved = {"amp": amp, "crf_backend": backend}
    if args.crf and isinstance(network, DeepLabV3Plus):
        left_out = crf.may_leave_out(len(network.classes) + 1)
        resolved |= {"crf_left_out": left_out} if left_out else {}
    run = Run("predict", args, device, "labels", network.classes, inputs, resolved, list(pictures))
    with run:
        if run.finished:
            check_all_there(args.out, pictures)
            return
        overlays = bool(args.pictures)
        if overlays:
            (args.out / "overlays").mkdir(exist_ok=True)
        if overlays and distributed.is_main():  # of other machines one may have this one's number
            legend = args.out / "overlays" / "legend.png"
            images.write_png(legend, visual.legend(network.classes))
        if isinstance(network, Classifier):
            (args.out / "heat_maps").mkdir(exist_ok=True)
        network = network.to(device, memory_format=torch.channels_last)
        where = crf.device_of(backend, device) if args.crf else device
        iterations = args.crf_iterations if args.crf else 0
        refinement = Refinement(args.out, args.max_side, iterations, backend, where, overlays)
        write = predict_by_cams if isinstance(network, Classifier) else predict
        autocast = precision.autocast(amp, device)
        errors = write(args, network, pictures, refinement, device, autocast)
        for error in errors:
            print(f"left out: {error}", file=sys.stderr)
        distributed.barrier()
        left = [name for name in pictures if not (args.out / f"{name}.png").exists()]
        if left and (args.data is not None or len(left) == len(pictures)):
            bad = f"{len(left)} of {len(pictures)} pictures left out, named above"
            raise InputError(f"{bad}; replace them and start again with --overwrite")
        run.makes = [f"{name}.png" for name in pictures if name not in left]
        what = f"left out, {len(left)} that could not be read: {', '.join(left)}"
        warnings = [what[:200]] if left else []
        run.finish(known, warnings, images=len(run.makes))
        check_all_there(args.out, pictures)
    if overlays and distributed.is_main():
        print(f"{args.out}: {len(pictures)} label maps; overlays and a legend in overlays/")


if __name__ == "__main__":
    run_main(main, get_args_parser)
