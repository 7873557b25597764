"""What the inference stages share: batches of equal-sized images, read ahead by processes."""

import argparse
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from core import recipe
from core.data import images, scoring
from core.data.datasets import DataRoot
from core.data.scores import Scores
from core.data.transforms import pyramid, stack
from core.errors import InputError
from core.method.cam import class_logits
from core.run import distributed, precision
from core.run.parallel import Pool, read_ahead

import numpy as np
import torch
from torch import Tensor, nn

T = TypeVar("T", str, list[str])
R = TypeVar("R")
Size = tuple[int, int]  # (H, W)
CLASSIFIED = 8  # images of equal size that a classifier sees at once
PIXELS = {"cuda": 1 << 22, "cpu": 1 << 16}  # of the images of a batch
Views = Iterator[tuple[list[str], list[Tensor], tuple[int, int]]]  # see `pyramids`


def equal_size_batches(
    pictures: Mapping[str, Path],
    batch_images: int,
    device: torch.device,
    network_size: Callable[[Size], Size],
    errors: list[str] | None = None,
) -> list[list[str]]:
    """Group names whose pictures have the same size, as many as `together` says.

    `network_size`: the size at which the network sees a picture of a size, both (H, W).
    The grouping does not depend on the number of processes nor on what is done already, so every
    way of running a stage computes each image in the same batch and gives the same bytes. A bad
    picture is an InputError; with `errors` it is left out and noted there.
    """
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, path in pictures.items():
        try:
            by_size.setdefault(images.image_size(path), []).append(name)
        except InputError as error:
            if errors is None:
                raise
            errors.append(str(error))
    groups = []
    for size, names in by_size.items():
        count = together(batch_images, network_size(size), device)
        groups += [names[i : i + count] for i in range(0, len(names), count)]
    return groups


def together(batch_images: int, size: Size, device: torch.device) -> int:
    """How many images that a network sees at a size (H, W) are one batch: at most `batch_images`.

    On a GPU as many as have the pixels of four 1024 x 1024; on a CPU as many as leave something in
    its caches, at least one: of VOC's size a ResNet-50 takes 1.24 times as long over four, of
    128 x 128 a ResNet-18 0.76 times.
    """
    return max(1, min(batch_images, PIXELS[device.type] // (size[0] * size[1])))


def remaining(items: Sequence[T], out: Path, suffix: str) -> list[T]:
    """This process's share of the ids, or groups of ids, that lack an `OUT/<id><suffix>`."""

    def done(item: T) -> bool:
        group = [item] if isinstance(item, str) else item
        return all((out / f"{image_id}{suffix}").exists() for image_id in group)

    todo = [item for item in items if not done(item)]
    distributed.barrier()  # everyone has looked before anyone writes
    return distributed.share(todo)


def images_and_scores(
    data: DataRoot, ids: Sequence[str], folder: Path, workers: int
) -> Iterator[tuple[str, Tensor, Scores]]:
    """Yield (id, uint8 image (3, H, W), its scores in `folder`), read ahead.

    A bad image or score file, or one made from another size of the image, is an InputError.
    """

    def load(image_id: str) -> tuple[str, Tensor, Scores]:
        image = images.read_image(data.image_path(image_id))
        path = folder / f"{image_id}.npz"
        return image_id, image, Scores.load(path, len(data.classes), tuple(image.shape[1:]))

    return read_ahead(ids, workers, batch_size=None, collate_fn=load)


def label_images(
    labelling: Callable[[str, np.ndarray, Scores], R],
    data: DataRoot,
    ids: Sequence[str],
    args: argparse.Namespace,
    device: torch.device,
) -> list[R]:
    """Call labelling(id, uint8 image (H, W, 3), scores) for all that lack an `OUT/<id>.png`.

    In a pool for `device`, behind a progress bar; returns what the calls did.
    """
    todo = remaining(ids, args.out, ".png")
    loaded = images_and_scores(data, todo, args.scores, args.workers)
    tasks = ((i, images.as_array(image), scores) for i, image, scores in loaded)
    with Pool(args.jobs, device) as pool:
        done = pool.map(labelling, tasks)
        return list(distributed.progress(len(todo), args.out.name, over=done))


@torch.inference_mode()
def average_precision(
    network: nn.Module,
    data: DataRoot,
    ids: Sequence[str],
    labels: Mapping[str, Sequence[int]],
    workers: int,
    device: torch.device,
    what: str,
    amp: str = "auto",
) -> dict[str, Any]:
    """How well a classifier on `device` ranks images, from their image-level labels alone.

    `labels`: classes 1..C of each image. Every process computes a share; all get the figures, see
    `scoring.of_classifier`. The progress bar is named `what`; `amp`: as --amp.
    """
    pictures = {i: data.image_path(i) for i in ids}
    side = recipe.CLASSIFICATION.sides[1]
    network_size = functools.partial(images.fit_size, side=side)
    groups = distributed.share(equal_size_batches(pictures, CLASSIFIED, device, network_size))
    place = {image_id: row for row, image_id in enumerate(ids)}
    logits = torch.zeros(len(ids), len(data.classes), device=device)
    autocast = precision.autocast(precision.amp_type(amp, device), device)
    for group, copies, _ in pyramids(pictures, groups, [1.0], side, workers, device, what):
        with autocast:
            logits[[place[i] for i in group]] = class_logits(network, copies[0])
    rows = distributed.total(logits).cpu().numpy()
    return scoring.of_classifier(rows, [labels[i] for i in ids], data)


def pyramids(
    pictures: Mapping[str, Path],
    groups: Sequence[list[str]],
    scales: Sequence[float],
    max_side: int,
    workers: int,
    device: torch.device,
    what: str,
    errors: list[str] | None = None,
) -> Views:
    """Read groups of pictures of equal size ahead, behind a progress bar named `what`.

    Yields a group's names; per scale its bicubic copies, uint8 (B, 3, h, w) on the device; the
    (H, W) of the pictures. Those with a side above `max_side` are reduced to it before they are
    scaled. A bad picture is an InputError; with `errors` it is left out and noted there.
    """

    def load(group: list[str]) -> tuple[list[str], list[Tensor], tuple[int, int], list[str]]:
        names, copies, bad, size = [], [], [], (0, 0)
        for name in group:
            try:
                pixels, size = images.read_reduced(pictures[name], max_side)
            except InputError as error:
                bad.append(str(error))
                continue
            names.append(name)
            copies.append(pyramid(images.fit(images.as_array(pixels), max_side), scales))
        return names, [stack(each) for each in zip(*copies, strict=True)], size, bad

    how = {"batch_size": None, "collate_fn": load, "pin_memory": device.type == "cuda"}
    loaded = read_ahead(groups, workers, **how)
    with distributed.progress(sum(map(len, groups)), what) as bar:
        for names, copies, size, bad in loaded:
            if bad and errors is None:
                raise InputError(bad[0])
            if errors is not None:
                errors.extend(bad)
            if names:
                yield names, [each.to(device, non_blocking=True) for each in copies], size
            bar.update(len(names) + len(bad))
