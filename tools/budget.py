"""Estimates of the memory and disk that the stages need, before hours are spent.

Memory is counted by running the stage's own functions on the meta device: all shapes, no data.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InputError
from tools import steps

GIB = 2**30
HOLDS = {step.script: step.holds for step in steps.STEPS}
NETWORKS = {
    "train_classification": "Classifier",
    "make_cam": "Classifier",
    "train_affinity": "AffinityNet",
    "make_random_walk": "AffinityNet",
    "train_segmentation": "DeepLabV3Plus",
    "predict": "DeepLabV3Plus",
}


@dataclass(frozen=True)
class Facts:
    """Of a list of images; the defaults are VOC's train_aug.

    Attributes:
        pixels, labels: of one image on average. classes: of the data set. largest: (H, W).
    """

    images: int = 10_582
    pixels: float = 500 * 375
    labels: float = 1.55
    classes: int = 20
    largest: tuple[int, int] = (500, 500)


@functools.lru_cache
def data_facts(root: Path | None, split: str) -> Facts:
    """Facts of a list, sizes of a sample of 512 images; VOC's without a data root."""
    from core.data import datasets, images

    try:
        data = datasets.DataRoot(root or Path("/nowhere"))
        ids = data.ids(split)
        sizes = [images.image_size(data.image_path(i)) for i in ids[:: len(ids) // 512 + 1]]
        labels = sum(map(len, data.image_labels(ids).values())) / len(ids)
    except InputError:  # the doctor's check of the data reports it
        return Facts()
    pixels = [height * width for height, width in sizes]
    largest = sizes[pixels.index(max(pixels))]
    return Facts(len(ids), sum(pixels) / len(pixels), labels, len(data.classes), largest)


def options_of(stage: str, args: argparse.Namespace) -> argparse.Namespace:
    """The stage's options: its defaults, but for those that `args` gives (not None)."""
    parser = importlib.import_module(stage).get_args_parser()
    names = {action.dest for action in parser._actions}
    given = {k: v for k, v in vars(args).items() if k in names and v is not None}
    return argparse.Namespace(**{name: parser.get_default(name) for name in names} | given)


def network_of(stage: str, args: argparse.Namespace) -> Any:
    """The network of a stage, on the meta device."""
    import torch

    from core.method import networks

    classes = data_facts(args.data, args.split).classes
    name = NETWORKS.get(stage, "Classifier")
    sizes = {"Classifier": (classes,), "DeepLabV3Plus": (classes + 1,)}.get(name, ())
    with torch.device("meta"):
        return getattr(networks, name)(args.backbone, *sizes)


def memory_bytes(stage: str, args: argparse.Namespace, half: bool, jobs: int) -> int | None:
    """Estimate of the memory that a stage takes: on each GPU, or on the CPU.

    Args:
        half: whether it computes in half precision. jobs: CRFs at work at the same time.

    Returns:
        Bytes; None for a stage that nothing is known of.
    """
    if HOLDS[stage] == "model":
        return training_bytes(stage, args, half)
    need = inference_bytes(stage, args, half) if stage in NETWORKS else 0
    if hasattr(options_of(stage, args), "crf_iterations"):
        need += crf_bytes(stage, args, jobs)
    return need or None


def training_bytes(stage: str, args: argparse.Namespace, half: bool, accumulate: int = 0) -> int:
    """Estimate of the memory that a training takes on each GPU: 1.1 * (kept + weights) + 1 GiB.

    Kept is what autograd keeps in a forward pass, counted on shapes: twice for the image and its
    tiles; with float32 logits, their softmax and gradient for DeepLabv3+; with 24 bytes for each
    pair of pixels (152 neighbours) for AffinityNet. Weights are 4 bytes a parameter, 8 more for
    gradient and momentum, 2 more for a copy in half precision. 10% goes to fragmentation, 1 GiB to
    CUDA, cuDNN's workspace and the backward pass.
    """
    import torch

    options = options_of(stage, args)
    dtype = torch.bfloat16 if half else torch.float32
    network = network_of(stage, args).train().to(dtype)
    storages: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    n = max(1, options.batch_size // args.gpus // (accumulate or options.accumulate))
    views = torch.zeros(n, 3, options.crop, options.crop, device="meta", dtype=dtype)
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


def inference_bytes(stage: str, args: argparse.Namespace, half: bool) -> int:
    """Estimate for make_cam, make_random_walk and predict: 1.1 * (peak + weights) + 1 GiB.

    Peak is the most that the tensors of one batch of the largest image hold at one time: copies at
    all scales, activations, sums at stride 4 or at the image's size. The walk takes 40 bytes a pair
    of stride-4 pixels (measured: 33 to 38). Weights are 4 bytes a parameter, 2 more for a copy in
    half precision. The rest is as in training; convolutions on a CPU need 1.1 to 1.4 times the
    peak.
    """
    import torch

    from core.data import images
    from core.method import affinity, boundary, cam, segmentation

    options, size = options_of(stage, args), data_facts(args.data, args.split).largest
    dtype = torch.bfloat16 if half else torch.float32
    network = network_of(stage, args).eval().to(dtype, memory_format=torch.channels_last)

    def maps(views: torch.Tensor) -> torch.Tensor:
        return network(views.to(dtype))

    def batch(n: int, height: float, width: float) -> torch.Tensor:
        return torch.zeros(n, 3, round(height), round(width), dtype=torch.uint8, device="meta")

    def pyramid() -> list[torch.Tensor]:
        return [batch(options.batch_images, s * seen[0], s * seen[1]) for s in options.scales]

    with torch.inference_mode():
        if stage == "make_random_walk":
            edges = peak_bytes(lambda: boundary.edge_map(maps, batch(1, *size)[0], options.pad_to))
            pairs = 2 * len(affinity.paths(options.radius)[0]) + 1
            peak = max(edges, 40 * pairs * size[0] * size[1] // 16)
        else:
            seen = images.fit_size(size, options.max_side)
            if stage == "make_cam":
                peak = peak_bytes(lambda: cam.sum_scales(maps, pyramid(), size))
            else:
                peak = peak_bytes(lambda: segmentation.probabilities(maps, pyramid(), seen))
    weights = (4 + 2 * half) * sum(p.numel() for p in network.parameters())
    return int(1.1 * (peak + weights)) + GIB


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that tensors made in a call hold at one time, on any device."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    living: dict[int, int] = {}  # storages
    peak = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            nonlocal peak
            result = operation(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    if storage._cdata not in living:
                        living[storage._cdata] = storage.nbytes()
                        weakref.finalize(storage, living.pop, storage._cdata)
            peak = max(peak, sum(living.values()))
            return result

    with Count():
        function()
    return peak


def crf_bytes(stage: str, args: argparse.Namespace, jobs: int) -> int:
    """Estimate of the dense CRFs of the largest image, on a GPU or in processes of a CPU.

    A job takes 450 bytes a pixel and 30 more for each label (measured on photographs: 75 to 95% of
    it in torch, 45 to 60% in pydensecrf) and 0.3 GiB for itself. predict keeps up to five
    pictures' probabilities waiting for each job.
    """
    from core.data import images

    options, facts = options_of(stage, args), data_facts(args.data, args.split)
    # Background and the image's classes; two label maps at once for affinity labels.
    labels = (2 if stage == "make_affinity_labels" else 1) * (1 + facts.labels)
    height, width = facts.largest
    waiting = 0.0
    if stage == "predict":
        height, width = images.fit_size(facts.largest, options.max_side)
        labels = facts.classes + 1
        waiting = 5 * 4 * labels
    return int(jobs * (height * width * (450 + 30 * labels + waiting) + 0.3 * GIB))


def loader_bytes(stage: str, args: argparse.Namespace) -> float:
    """What the loader processes hold ready for each of them, of all GPUs: 4 batches."""
    from core.data import images

    options = options_of(stage, args)
    if HOLDS[stage] == "model":  # views, and masks of one byte
        return 4 * 4 * options.crop**2 * options.batch_size
    if not hasattr(options, "batch_images"):
        return 0.0
    height, width = images.fit_size(data_facts(args.data, args.split).largest, options.max_side)
    copies = 3 * sum(scale**2 for scale in options.scales)
    return 4 * copies * height * width * options.batch_images * args.gpus


def disk_bytes(stage: str, args: argparse.Namespace) -> float:
    """Estimate of what a stage writes; a file fills half of its last 4 kB block for nothing.

    Models: last.pt (weights and momentum), again while it is replaced, and model.pt, 4 bytes a
    number. Scores: a float16 map at stride 4 for each class of the image, and 1 kB of headers.
    Labels: PNGs of 0.02 bytes a pixel, as VOC's.
    """
    facts = data_facts(args.data, args.split)
    if HOLDS[stage] == "model":
        return 20 * sum(p.numel() for p in network_of(stage, args).parameters())
    if HOLDS[stage] == "scores":
        return facts.images * (facts.labels * 2 * facts.pixels / 16 + 1000 + 2048)
    return facts.images * (0.02 * facts.pixels + 2048)
