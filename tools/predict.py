#!/usr/bin/env python
"""Segment anyone's pictures with a trained model: masks, overlays and a legend of the classes.

    python tools/predict.py photos/ cat.jpg --checkpoint runs/voc/segmentation/model.pt --out out
    python tools/predict.py photos/ --checkpoint runs/voc/puzzle/model.pt --cam --out out

Writes OUT/masks/<name>.png (VOC palette, the picture's own size), OUT/overlays/<name>.jpg and
OUT/legend.png; with `--cam`, of a classifier, also OUT/cams/<name>_<class>.jpg for every class it
sees. Four scales with mirror images and a dense CRF, as evaluate.py does. The network and the CRF
never see more than `--max-side` pixels on the longer side (times the scale), so memory does not
grow with the picture: a ResNet-50 takes 3.6 GB and 85 seconds on one CPU core for 4000x3000.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.data import images
from core.data.datasets import check_name
from core.data.scores import upsample
from core.data.transforms import normalize, pyramid
from core.errors import InputError, run_main
from core.method import cam, crf, segmentation
from core.method.networks import Classifier, DeepLabV3Plus
from core.run import checkpoint, distributed, options
from core.run.precision import amp_type, autocast
from core.run.record import Run
from tools import visual

BAND = 64  # rows upsampled at a time: 4000 pixels wide and 21 classes make 21 MB
STAGE = "predict_images"
NOT_SETTINGS = {"images", "checkpoint", "out", "device"}
EXIF_ORIENTATION = 0x112


@dataclass(frozen=True)
class Options:
    """How a picture is computed; `threshold` and `class_threshold` are for CAMs alone."""

    device: torch.device
    scales: tuple[float, ...] = cam.SCALES
    max_side: int = 1024
    crf: bool = True
    crf_iterations: int = 10
    crf_backend: str = "auto"
    amp: str = "off"
    threshold: float = 0.2
    class_threshold: float = 0.5


def get_args_parser() -> argparse.ArgumentParser:
    p = options.parser(__doc__)
    p.add_argument("images", type=Path, nargs="+", help="JPEG or PNG files, or folders of them")
    p.add_argument("--checkpoint", type=Path, required=True, help="model.pt")
    p.add_argument("--out", type=Path, required=True, help="directory of the results")
    p.add_argument("--cam", action="store_true", help="the checkpoint is a classifier")
    p.add_argument(
        "--threshold",
        type=options.fraction,
        default=Options.threshold,
        help="background score of the masks made from CAMs",
    )
    p.add_argument(
        "--class-threshold",
        type=options.fraction,
        default=Options.class_threshold,
        help="a classifier sees the classes of this probability, or else the likeliest",
    )
    p.add_argument(
        "--max-side",
        type=options.positive,
        default=Options.max_side,
        help="larger pictures are reduced to this for the network; lower it to save memory",
    )
    p.add_argument("--no-crf", dest="crf", action="store_false", help="leave out the dense CRF")
    p.add_argument("--crf-iterations", type=options.positive, default=Options.crf_iterations)
    p.add_argument(
        "--crf-backend",
        choices=crf.BACKENDS,
        default="auto",
        help="auto: torch on a GPU, pydensecrf on a CPU where it is installed",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_overwrite(p)
    options.add_scales(p)
    options.add_amp(p)
    return p


def find_images(given: list[Path]) -> dict[str, Path]:
    """Output name -> file: the given files, and the images right inside the given folders.

    Raises:
        InputError: nothing there, or two files that would overwrite each other's results.
    """
    found: dict[str, Path] = {}
    endings = {extension.lower() for extension in images.EXTENSIONS}
    for path in given:
        members = [path]
        if path.is_dir():
            members = sorted(p for p in path.iterdir() if p.suffix.lower() in endings)
            members = [p for p in members if p.is_file() and not p.name.startswith(".")]
            if not members:
                raise InputError(f"{path}: no JPEG or PNG in this folder")
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


def argmax_at_size(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The index of the largest of (L, h, w) maps, bilinearly resized to (H, W): uint8 (H, W).

    Worked in bands of rows: all maps at full size would take L x H x W floats.
    """
    if maps.shape[1:] == size:
        return maps.argmax(0).to(torch.uint8).cpu().numpy()
    height, width = size
    # The source rows of align_corners=False, which F.interpolate offers for whole maps only.
    rows = (torch.arange(height, device=maps.device) + 0.5) * maps.shape[1] / height - 0.5
    rows = rows.clamp(0, maps.shape[1] - 1)
    label = np.empty(size, np.uint8)
    for start in range(0, height, BAND):
        band = rows[start : start + BAND]
        low = band.floor().long()
        high = (low + 1).clamp(max=maps.shape[1] - 1)
        between = torch.lerp(maps[:, low], maps[:, high], (band - low)[None, :, None])
        wide = F.interpolate(between[None], (len(band), width), mode="bilinear")[0]
        label[start : start + BAND] = wide.argmax(0).to(torch.uint8).cpu().numpy()
    return label


@torch.inference_mode()
def segment(network: nn.Module, image: np.ndarray, how: Options) -> np.ndarray:
    """The label map, uint8 (H, W), that a segmentation network gives an image, uint8 (H, W, 3)."""
    small = visual.fit(image, how.max_side)
    copies = [copy[None].to(how.device) for copy in pyramid(small, how.scales)]
    with autocast(how.amp, how.device):
        probs = segmentation.probabilities(network, copies, small.shape[:2])[0]
    if how.crf:
        refined = crf.refine_probabilities(
            small,
            probs.cpu().numpy(),
            how.crf_iterations,
            backend=how.crf_backend,
            device=how.device,
        )
        probs = torch.from_numpy(refined)
    return argmax_at_size(probs, image.shape[:2])


@torch.inference_mode()
def activate(
    network: nn.Module, image: np.ndarray, how: Options
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """What a classifier gives an image, uint8 (H, W, 3).

    Returns the label map, uint8 (H, W), and the CAM of every class it sees (index 1..C): float32
    (h, w) in 0..1 of the reduced image, so that they stay small.
    """
    small = visual.fit(image, how.max_side)
    views = normalize(torch.from_numpy(small).permute(2, 0, 1)[None].to(how.device))
    with autocast(how.amp, how.device):
        logits = network(torch.cat([views, views.flip(-1)])).float().mean((0, 2, 3))
        sums = cam.multi_scale(network, small, how.scales, how.device)
    classes = (torch.nonzero(logits.sigmoid() >= how.class_threshold).flatten() + 1).tolist()
    classes = classes or [int(logits.argmax()) + 1]
    maps = upsample(cam.of_classes(sums, classes), small.shape[:2])
    labels = torch.cat([torch.full_like(maps[:1], how.threshold), maps]).argmax(0)
    if how.crf:
        refined = crf.refine_labels(
            small,
            labels,
            len(classes) + 1,
            how.crf_iterations,
            backend=how.crf_backend,
            device=how.device,
        )
        labels = torch.from_numpy(refined.astype(np.int64))
    best = F.one_hot(labels, len(classes) + 1).permute(2, 0, 1).float()
    label = np.array([0, *classes], np.uint8)[argmax_at_size(best, image.shape[:2])]
    return label, dict(zip(classes, maps.cpu().numpy(), strict=True))


def write_jpeg(path: Path, pixels: np.ndarray) -> None:
    """Write a picture for the eye, all of it or nothing."""
    with files.atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="JPEG", quality=90)


def predict(network: nn.Module, path: Path, name: str, how: Options, out: Path) -> None:
    """Write everything of one picture; the mask comes last and says that the rest is there.

    Raises:
        InputError: the picture is missing, damaged or too large.
    """
    image = images.as_array(images.read_image(path))
    with images.open_checked(path) as header:
        if header.getexif().get(EXIF_ORIENTATION, 1) != 1:
            tqdm.write(f"note: {path}: its EXIF rotation is ignored; turn the pixels to have it")
    if isinstance(network, Classifier):
        label, maps = activate(network, image, how)
        small = visual.fit(image, how.max_side)
        for index, score in maps.items():
            file = f"{name}_{network.classes[index - 1]}.jpg"
            write_jpeg(out / "cams" / file, visual.heat_map(small, score))
    else:
        label = segment(network, image, how)
    write_jpeg(out / "overlays" / f"{name}.jpg", visual.overlay(image, label))
    images.write_label(out / "masks" / f"{name}.png", label)


def clear(out: Path) -> None:
    """Remove the results below `out`, and nothing else."""
    for pattern in ("masks/*.png", "overlays/*.jpg", "cams/*.jpg"):
        for path in out.glob(pattern):
            path.unlink()


def predict_all(network: nn.Module, found: dict[str, Path], how: Options, out: Path) -> int:
    """Predict every picture that has no mask yet; the number of bad ones, each named."""
    for folder in ("masks", "overlays", "cams")[: 3 if isinstance(network, Classifier) else 2]:
        (out / folder).mkdir(exist_ok=True)
    todo = {n: p for n, p in found.items() if not (out / "masks" / f"{n}.png").exists()}
    bad = 0
    for name, path in tqdm(todo.items(), desc="predict", unit="image", dynamic_ncols=True):
        try:
            predict(network, path, name, how, out)
        except InputError as error:
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            bad += 1
    return bad


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    found = find_images(args.images)
    if any(not 0 < scale <= 4 for scale in args.scales):
        raise InputError(f"--scales {' '.join(map(str, args.scales))}: each must be in (0, 4]")
    device = distributed.start(args.device)
    kind = Classifier if args.cam else DeepLabV3Plus
    network = checkpoint.load_model(args.checkpoint, kind, None).eval()
    network = network.to(device, memory_format=torch.channels_last)
    how = Options(
        device,
        tuple(args.scales),
        args.max_side,
        args.crf,
        args.crf_iterations,
        crf.resolve_backend(args.crf_backend, device),
        amp_type(args.amp, device),
        args.threshold,
        args.class_threshold,
    )
    settings = {k: v for k, v in vars(args).items() if k not in NOT_SETTINGS}
    inputs = {
        "checkpoint": files.digest_file(args.checkpoint),
        "pictures": files.digest_files(found.values()),
    }
    resolved = {"amp": how.amp, "crf_backend": how.crf_backend}
    chosen = argparse.Namespace(**settings)
    if args.overwrite and (args.out / "run.json").exists():
        if files.read_json(args.out / "run.json", "choose another --out").get("stage") != STAGE:
            raise InputError(f"{args.out}: not made by this tool; choose another --out")
        clear(args.out)
    with Run(STAGE, args.out, chosen, device, inputs, resolved) as run:
        if run.finished:
            return
        if not (args.out / "legend.png").exists():  # a fresh start: nothing may stay from before
            clear(args.out)
            images.write_png(args.out / "legend.png", visual.legend(network.classes))
        bad = predict_all(network, found, how, args.out)
        if bad:
            raise InputError(f"{bad} of {len(found)} pictures left out, named above; mend them")
        run.finish(images=len(found))
    print(f"{args.out}: {len(found)} masks and overlays, legend.png")


if __name__ == "__main__":
    run_main(main)
