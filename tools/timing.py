"""Estimates of the time that the stages take, before hours are spent: images by a machine's rates.

What a network computes is counted on shapes; how fast this machine does it is tried on a ResNet-50.
What else takes time has rates of its own, measured with tools/benchmark.py (`results/`), which also
says how near the estimates come to whole stages. The minutes that the README and scripts/ give for
an H100 are these estimates, by its rates.
"""

import argparse
import math
import time
from dataclasses import dataclass
from functools import partial

from core.method.networks import Classifier
from core.recipe import DATA
from core.run import precision
from tools import budget
from tools.benchmarking.measure import count_flop

import torch

START = 4.0  # seconds until the first image
TRIED = "resnet50", DATA.classes  # the classifier whose speed stands for all networks'
LOADED = 700.0  # training views a second and core
# Microseconds a pixel, on a CPU core and on a GPU (an H100's). Of a dense CRF with its lattice: two
# maps of ten iterations; one of one; ten with 21 labels.
CRF = {
    "make_affinity_labels": (1.4, 0.14),
    "make_pseudo_labels": (0.55, 0.05),
    "predict": (2.3, 0.13),
}
WALK = (0.3, 0.09)
SHARES = {"train_affinity": (0.7, 0.35), "train_segmentation": (0.9, 0.85)}  # of Rates.training


@dataclass(frozen=True)
class Rates:
    """FLOP/s of convolutions in training and in inference, each of one GPU or of all cores."""

    training: float
    inference: float
    cores: int
    on_gpu: bool


H100 = Rates(training=1.2e14, inference=4e13, cores=16, on_gpu=True)  # results/benchmark_gpu.json


def measure(device: torch.device, amp: str, cores: int) -> Rates:
    """Try a ResNet-50 on views of 512 x 512, one at a time, 16 on a GPU; about three seconds."""
    on_gpu = device.type == "cuda"
    shape = 16 if on_gpu else 1, 3, 512, 512
    network = Classifier(*TRIED).to(device, memory_format=torch.channels_last)
    views = torch.rand(shape, device=device).to(memory_format=torch.channels_last)
    rates = []
    for training in (True, False):
        network.train(training)
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            with torch.set_grad_enabled(training), precision.autocast(amp, device):
                total = network(views).float().sum()
            if training:
                total.backward()
            total.item()  # waits for a GPU
            taken.append(time.perf_counter() - began)
        with torch.device("meta"):
            same = Classifier(*TRIED).train(training)
        rates.append(count_flop(partial(same.train, training), shape) / min(taken))
    return Rates(*rates, cores, on_gpu)


def middle(facts: budget.Facts) -> tuple[int, int]:
    """(H, W) of an image of the usual number of pixels, in the shape of the largest."""
    scale = math.sqrt(facts.pixels / math.prod(facts.largest))
    height, width = (max(1, round(scale * side)) for side in facts.largest)
    return height, width


def seconds(stage: str, args: argparse.Namespace, rates: Rates) -> float:
    """Estimate of a stage's time on `args.gpus` GPUs, or on the CPU, from command to exit."""
    step, options = budget.STEPS[stage], budget.options_of(stage, args)
    val = "ImageSets/Segmentation/val.txt"  # what predict's script segments, if it is there
    is_val = stage == "predict" and (args.data is None or (args.data / val).exists())
    facts = budget.data_facts(args.data, "val" if is_val else args.split)
    device = beside = 0.0  # seconds an image: what computes, what reads ahead beside it
    usual = middle(facts)
    if step.holds == "model":
        network, _ = budget.network_of(stage, args, False)
        passes = 1 + (stage == "train_classification" and (options.p_cls or options.re))
        once = count_flop(network.train, (2, 3, options.crop, options.crop)) / 2
        rate = rates.training * SHARES.get(stage, (1, 1))[rates.on_gpu]
        device = options.epochs * passes * once / rate
        readers = min(rates.cores, max(1, options.workers * args.gpus))
        beside = options.epochs / (LOADED * readers)
    elif "--checkpoint" in dict(step.reads):
        network, _ = budget.network_of(stage, args, False)
        height, width = usual = budget.seen_size(stage, args, usual)
        scales = getattr(options, "scales", [1.0])
        shapes = [(2, 3, round(height * scale), round(width * scale)) for scale in scales]
        device = count_flop(network.eval, *shapes) / rates.inference
        if stage == "make_random_walk":
            device += WALK[rates.on_gpu] * 1e-6 * facts.pixels
    if stage in CRF:
        jobs = 1 if rates.on_gpu else min(rates.cores, args.jobs or rates.cores)
        pixels = math.prod(usual) if stage == "predict" else facts.pixels
        device += CRF[stage][rates.on_gpu] * 1e-6 * pixels / jobs
    return START + facts.images * max(device / (args.gpus if rates.on_gpu else 1), beside)
