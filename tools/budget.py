"""Estimates of the memory and disk that the stages need, before hours are spent."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from core.errors import InputError

GIB = 2**30
TRAININGS = ("train_classification", "train_affinity", "train_segmentation")


@functools.lru_cache
def data_facts(root: Path | None, split: str) -> tuple[int, float, float, int]:
    """Images, mean pixels of one, its mean number of classes, all classes; VOC's without a root."""
    from core.data import datasets, images

    try:
        data = datasets.DataRoot(root or Path("/nowhere"))
        ids = data.ids(split)
        sizes = [images.image_size(data.image_path(i)) for i in ids[:: len(ids) // 64 + 1]]
        labels = sum(map(len, data.image_labels(ids).values()))
    except InputError:  # the doctor's check of the data reports it
        return 10582, 500 * 375, 1.55, 20
    pixels = sum(height * width for height, width in sizes) / len(sizes)
    return len(ids), pixels, labels / len(ids), len(data.classes)


def network_of(stage: str, args: argparse.Namespace) -> Any:
    """The network of a training, on the meta device: shapes without memory."""
    import torch

    from core.method import networks

    classes = data_facts(args.data, args.split)[3]
    with torch.device("meta"):
        if stage == "train_affinity":
            return networks.AffinityNet(args.backbone).train()
        if stage == "train_segmentation":
            return networks.DeepLabV3Plus(args.backbone, classes + 1).train()
        return networks.Classifier(args.backbone, classes).train()


def training_bytes(stage: str, args: argparse.Namespace, half: bool, accumulate: int) -> int:
    """Estimate of the memory that a training takes on each GPU: 1.1 * (kept + weights) + 1 GiB.

    Kept is what autograd keeps in a forward pass, counted on shapes: twice for the image and its
    tiles; with float32 logits, their softmax and gradient for DeepLabv3+; with 24 bytes for each
    pair of pixels (152 neighbours) for AffinityNet. Weights are 4 bytes a parameter, 8 more for
    gradient and momentum, 2 more for a copy in half precision. 10% goes to fragmentation, 1 GiB to
    CUDA, cuDNN's workspace and the backward pass.
    """
    import torch

    dtype = torch.bfloat16 if half else torch.float32
    network = network_of(stage, args).to(dtype)
    storages: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    n = max(1, args.batch_size // args.gpus // accumulate)
    views = torch.zeros(n, 3, args.crop, args.crop, device="meta", dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(views).numel()
    weights = 0
    for parameter in network.parameters():
        storages.pop(parameter.untyped_storage()._cdata, None)
        each = 4 + 8 * parameter.requires_grad + 2 * half
        weights += each * parameter.numel()
    kept = sum(storage.nbytes() for storage in storages.values())
    kept += {"train_classification": kept, "train_segmentation": 12 * output}.get(
        stage, 24 * 152 * output
    )
    return int(1.1 * (kept + weights)) + GIB


def disk_bytes(stage: str, args: argparse.Namespace) -> float:
    """Estimate of what a stage writes; a file fills half of its last 4 kB block for nothing.

    Trainings: last.pt (weights and momentum), again while it is replaced, and model.pt, 4 bytes a
    number. CAMs and walk scores: a float16 map at stride 4 for each class of the image, and 1 kB of
    headers. Label maps: PNGs of 0.02 bytes a pixel, as VOC's.
    """
    images, pixels, labels, _ = data_facts(args.data, args.split)
    maps = images * (labels * 2 * pixels / 16 + 1000 + 2048)
    pngs = images * (0.02 * pixels + 2048)
    if stage in TRAININGS:
        checkpoints = 20 * sum(p.numel() for p in network_of(stage, args).parameters())
        return checkpoints + (pngs if stage == "train_affinity" else 0)
    return {"make_cam": maps, "make_pseudo_labels": maps + pngs, "evaluate": pngs}[stage]
