"""Estimates of the memory and disk that the stages need, before hours are spent.

Memory is counted by running the stage's own functions on the meta device: all shapes, no data.
"""

import argparse
import functools
import importlib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from core import steps
from core.data import datasets, images
from core.errors import InputError
from core.method import affinity, boundary, cam, segmentation
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from core.recipe import DATA
from core.run import inference

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
DTYPES = {False: torch.float32, True: torch.bfloat16}  # by whether precision is half
STEPS = {step.script: step for step in steps.STEPS}
NETWORKS = {  # of backbone and classes, by the step that trains them; a classifier otherwise
    "affinity": lambda backbone, _: AffinityNet(backbone),
    "segmentation": lambda backbone, classes: DeepLabV3Plus(backbone, classes + 1),
}


class Facts(NamedTuple):
    """Of a list of images, one on average, and the largest's (H, W); by default VOC's train_aug."""

    images: int = DATA.train_aug_images
    pixels: float = 500 * 375
    labels: float = 1.55
    classes: int = 20
    largest: tuple[int, int] = (500, 500)


@functools.lru_cache
def data_facts(root: Path | None, split: str) -> Facts:
    """Facts of a list, from its pictures' headers; VOC's without a data root."""
    try:
        data = datasets.DataRoot(root or Path("/nowhere"))
        ids = data.ids(split)
        sizes = [images.image_size(data.image_path(i)) for i in ids]
        known = data.known_labels(ids)
        labels = sum(map(len, known.values())) / len(ids) if known else Facts().labels
    except InputError:  # the doctor's check of the data reports it
        return Facts(DATA.val_images) if split == "val" else Facts()
    pixels = [height * width for height, width in sizes]
    largest = sizes[pixels.index(max(pixels))]
    return Facts(len(ids), sum(pixels) / len(pixels), labels, len(data.classes), largest)


def options_of(stage: str, args: argparse.Namespace) -> argparse.Namespace:
    """The stage's options: its defaults, but for those that `args` gives (not None)."""
    parser = importlib.import_module(stage).get_args_parser()
    defaults = {action.dest: parser.get_default(action.dest) for action in parser._actions}
    given = {k: v for k, v in vars(args).items() if k in defaults and v is not None}
    return argparse.Namespace(**defaults | given)


def network_of(stage: str, args: argparse.Namespace, half: bool) -> tuple[torch.nn.Module, int]:
    """The network that a stage trains or reads, on the meta device, and what its weights take.

    4 bytes each, 8 more for gradient and momentum in training, 2 for a copy in half precision.
    """
    step = STEPS[stage]
    make = NETWORKS.get(dict(step.reads).get("--checkpoint", step.name), Classifier)
    with torch.device("meta"):
        network = make(args.backbone, data_facts(args.data, args.split).classes)
    trained = 8 * (step.holds == "model")
    each = ((4 + trained * p.requires_grad + 2 * half) * p.numel() for p in network.parameters())
    return network.to(DTYPES[half]), sum(each)


def memory_bytes(stage: str, args: argparse.Namespace, half: bool, jobs: int) -> int:
    """Estimate of the memory of a stage with so many CRFs at a time, on each GPU or on the CPU."""
    if STEPS[stage].holds == "model":
        return training_bytes(stage, args, half)
    need = inference_bytes(stage, args, half) if "--checkpoint" in dict(STEPS[stage].reads) else 0
    if hasattr(options_of(stage, args), "crf_iterations"):
        need += crf_bytes(stage, args, jobs)
    return need


def training_bytes(stage: str, args: argparse.Namespace, half: bool, accumulate: int = 0) -> int:
    """Estimate of the memory that a training takes on each GPU: 1.1 * (kept + weights) + 1 GiB.

    Kept is what autograd keeps in a forward pass, counted on shapes: twice for the image and its
    tiles; with float32 logits, their softmax and gradient for DeepLabv3+; with 24 bytes for each
    pair of pixels (152 neighbours) for AffinityNet. 10% goes to fragmentation, 1 GiB to CUDA,
    cuDNN's workspace and the backward pass.
    """
    options, (network, weights) = options_of(stage, args), network_of(stage, args, half)
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, Any] = {}  # storages, alive: an address is not used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    n = max(1, options.batch_size // args.gpus // (accumulate or options.accumulate))
    views = torch.zeros(n, 3, options.crop, options.crop, device="meta", dtype=DTYPES[half])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network.train()(views).numel()
    need = sum(storage.nbytes() for storage in kept.values())
    more = {"train_classification": need, "train_segmentation": 12 * output}
    return int(1.1 * (need + more.get(stage, 24 * 152 * output) + weights)) + GIB


def inference_bytes(stage: str, args: argparse.Namespace, half: bool) -> int:
    """Estimate for make_cam, make_random_walk and predict: 1.1 * (peak + weights) + 1 GiB.

    Peak is the most that the tensors of one batch of the largest image hold at one time: copies at
    all scales, activations, sums at stride 4 or at the image's size. The walk takes 40 bytes a pair
    of stride-4 pixels (measured: 33 to 38). The rest is as in training; convolutions on a CPU need
    1.1 to 1.4 times the peak.
    """
    options, size = options_of(stage, args), data_facts(args.data, args.split).largest
    network, weights = network_of(stage, args, half)
    network = network.eval().to(memory_format=torch.channels_last)
    count = inference.together(options.batch_images, seen_size(stage, args), device())
    batch = functools.partial(torch.zeros, dtype=torch.uint8, device="meta")

    def maps(views: torch.Tensor) -> torch.Tensor:
        return network(views.to(DTYPES[half]))

    @torch.inference_mode()
    def infer() -> None:
        if stage == "make_random_walk":
            side = min(seen_size(stage, args))  # which pads to this size
            boundary.edge_map(maps, batch(count, 3, *size), side)
            return
        seen = images.fit_size(size, options.max_side)
        sides = [[round(scale * side) for side in seen] for scale in options.scales]
        copies = [batch(count, 3, *each) for each in sides]
        if stage == "make_cam":
            cam.sum_scales(maps, copies, size)
        else:
            segmentation.probabilities(maps, copies, seen)

    peak = peak_bytes(infer)
    if stage == "make_random_walk":
        pairs = 2 * len(affinity.paths(options.radius)[0]) + 1
        peak = max(peak, count * 40 * pairs * size[0] * size[1] // 16)
    return int(1.1 * (peak + weights)) + GIB


def device() -> torch.device:
    """Where the stages would compute."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seen_size(
    stage: str, args: argparse.Namespace, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(H, W) at which the network of an inference stage sees an image, by default the largest."""
    options, size = options_of(stage, args), size or data_facts(args.data, args.split).largest
    if stage != "make_random_walk":
        return images.fit_size(size, options.max_side)
    auto = options.pad_to == "auto"
    side = options_of("train_affinity", args).crop if auto else options.pad_to
    return boundary.padded_size(size, side)


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that tensors made in a call hold at one time, on any device."""
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
    facts, of_label = data_facts(args.data, args.split), 30.0
    # Background and the image's classes; two label maps at once for affinity labels.
    labels = (2 if stage == "make_affinity_labels" else 1) * (1 + facts.labels)
    height, width = facts.largest
    if stage == "predict":
        height, width = images.fit_size(facts.largest, options_of(stage, args).max_side)
        labels, of_label = facts.classes + 1, 30 + 5 * 4
    return int(jobs * (height * width * (450 + of_label * labels) + 0.3 * GIB))


def loader_bytes(stage: str, args: argparse.Namespace) -> float:
    """What the loader processes hold ready for each of them, of all GPUs: 4 batches or images."""
    options = options_of(stage, args)
    if STEPS[stage].holds == "model":  # views, and masks of one byte
        return 4 * 4 * options.crop**2 * options.batch_size
    if not hasattr(options, "scales"):
        height, width = data_facts(args.data, args.split).largest
        return 4 * 3 * height * width * args.gpus
    height, width = seen_size(stage, args)
    copies = 3 * sum(scale**2 for scale in options.scales)
    count = inference.together(options.batch_images, (height, width), device())
    return 4 * copies * height * width * count * args.gpus


def disk_bytes(stage: str, args: argparse.Namespace) -> float:
    """Estimate of what a stage writes; a file fills half of its last 4 kB block for nothing.

    Models: last.pt (weights and momentum), again while it is replaced, and model.pt, 4 bytes a
    number. Scores: a float16 map at stride 4 for each class of the image, and 1 kB of headers.
    Labels: PNGs of 0.02 bytes a pixel, as VOC's.
    """
    facts, holds = data_facts(args.data, args.split), STEPS[stage].holds
    if holds == "model":
        return 20 * sum(p.numel() for p in network_of(stage, args, False)[0].parameters())
    each = facts.labels * 2 * facts.pixels / 16 + 1000 if holds == "scores" else 0.02 * facts.pixels
    return facts.images * (each + 2048)
