#!/usr/bin/env python
"""Check the installation, the machine and a data root before hours are spent.

    python tools/doctor.py --data VOCdevkit/VOC2012 --out runs/voc

One line a finding: ok, warn or FAIL, what was found, what to do about it; the last line says ready,
or what comes first; exit status 1 if any says FAIL. Takes seconds, and with --data as long as it
takes to decode every picture and mask once. Give the options of the planned training. What memory
and disk it needs is an estimate: tools/budget.py tells how it is made.
"""

import argparse
import importlib
import os
import platform
import re
import shutil
import sys
import urllib.request
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
# What needs torch is imported in the checks: torch may be broken.
from core import files, steps
from core.errors import InputError, first_line, out_of_memory
from core.run import lock
from core.run.main import SAVERS, run_main
from core.run.options import OneLineParser, integer, scale, side, weights

CORES = len(os.sched_getaffinity(0))
REQUIRED = ("numpy", "PIL", "cv2", "tqdm", "matplotlib", "jinja2")
PACKAGES = dict.fromkeys(REQUIRED, "pip install -r requirements.txt") | {
    "torch": "pip install -U torch torchvision; 2.4 or later is needed",
    "torchvision": "pip install -U torch torchvision, both from the same index",
}
Findings = Iterable[tuple[str, str, str, str]]  # level, what, what was found, what to do unless ok


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def check_versions(_: argparse.Namespace) -> Findings:
    def number(version: str) -> tuple[int, ...]:
        return tuple(int(digits) for digits in re.findall(r"\d+", version)[:2])

    python = platform.python_version()
    level = "FAIL" if number(python) < (3, 10) else "warn" if number(python) > (3, 14) else "ok"
    yield level, "python", python, "make an environment with Python 3.10 to 3.14"
    for name, remedy in PACKAGES.items():
        level = "ok"
        try:
            module = importlib.import_module(name)
            found = module.__version__
            if name == "torch" and number(found) < (2, 4):
                level, found = "FAIL", f"{found} is too old"
            if name == "torchvision":  # its compiled half fits one version of torch
                boxes = importlib.import_module("torch").zeros(1, 4)
                module.ops.nms(boxes, boxes[:, 0], 0.5)
        except Exception as error:  # a broken binary raises anything
            level, found = "FAIL", f"does not work: {first_line(error)}"
        yield level, name, found, remedy


def check_memory(args: argparse.Namespace) -> Findings:
    from core.run import precision
    from tools import budget

    import torch

    device = budget.device()
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count < args.gpus:
            yield "FAIL", "GPU", f"{count} of the {args.gpus} wanted", "lower --gpus"
        free, total = min(torch.cuda.mem_get_info(i) for i in range(min(count, args.gpus)))
        yield "ok", "GPU", f"{torch.cuda.get_device_name(0)}, {gib(free)} of {gib(total)} free", ""
    else:
        remedy = "enough for small data, see the time below; with a GPU: does nvidia-smi see it?"
        yield "warn", "GPU", "PyTorch sees none and would train on the CPU", remedy
        kib = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
        free, total = ((int(kib[k]) << 10) // args.gpus for k in ("MemAvailable", "MemTotal"))
    half = precision.amp_type(args.amp, device) != "off"
    jobs = args.jobs or (1 if device.type == "cuda" else max(1, CORES // args.gpus))
    for stage in args.stage:
        need = budget.memory_bytes(stage, args, half, jobs)
        if not need:
            continue
        found = f"{stage} needs about {gib(need)} (estimate), {gib(free)} of {gib(total)} are free"
        level = "ok" if need < free else "warn" if need < total else "FAIL"
        known = vars(budget.options_of(stage, args))
        savers = {k: v for k, v in SAVERS.items() if k[2:].replace("-", "_") in known}
        savers.pop("--workers", None)
        if level != "ok" and "--accumulate" in savers:
            share = max(1, known["batch_size"] // args.gpus)
            counts = (n for n in range(known["accumulate"], share + 1) if share % n == 0)
            fits = (n for n in counts if budget.training_bytes(stage, args, half, n) < free)
            savers["--accumulate"] = f"--accumulate {next(fits, share)}"
        yield level, "memory", found, ", or ".join([*savers.values(), "smaller images"])


def check_time(args: argparse.Namespace) -> Findings:
    from core.run import precision
    from core.run.messages import duration
    from tools import budget, timing

    device = budget.device()
    try:
        rates = timing.measure(device, precision.amp_type(args.amp, device), CORES)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return [("warn", "time", "not estimated: too little memory is free", "try when it is")]
    times = {stage: timing.seconds(stage, args, rates) for stage in args.stage}
    each = ", ".join(f"{stage} {duration(taken)}" for stage, taken in times.items())
    found = f"about {duration(sum(times.values()))} here (estimate: {each})"
    if not rates.on_gpu:
        there = sum(timing.seconds(stage, args, timing.H100) for stage in args.stage)
        found += f"; on {args.gpus} x H100 about {duration(there)}"
    return [("ok", "time", found, "")]


def check_weights(args: argparse.Namespace) -> Findings:
    from core.method import backbones
    from core.run import weights

    import torch

    backbones.build(args.backbone)  # says what to install, or which names there are
    if args.weights != "imagenet":
        weights.load(args.weights, args.backbone)
        return [("ok", "weights", f"{args.weights}, for {args.backbone}", "")]
    if args.backbone not in backbones.TORCHVISION:
        found = f"timm downloads those of {args.backbone} at the first start"
        return [("ok", "weights", found, "")]
    url = weights.imagenet_url(args.backbone)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if path.exists():  # the name ends in the first digits of its SHA-256
        whole = path.stem.rsplit("-", 1)[1] == files.digest_file(path)[:8]
        return [("ok" if whole else "FAIL", "weights", f"{path}", "it is damaged: delete it")]
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3).close()
        return [("ok", "weights", f"{url} can be downloaded", "")]
    except OSError:
        remedy = f"put {path.name} into {path.parent}, or give --weights FILE or none"
        return [("warn", "weights", f"{path.name} is not here, {url} not to be reached", remedy)]


def check_data(args: argparse.Namespace) -> Findings:
    from tools import data_pass  # needs torch

    if args.data is None:
        return [("warn", "data", "not checked; needs are estimated for VOC", "give --data ROOT")]
    return data_pass.check(args.data, args.split, CORES if args.workers is None else args.workers)


def check_training(args: argparse.Namespace) -> Findings:
    from core.data.datasets import DataRoot
    from core.run.plan import Plan
    from tools import budget

    import torch

    if args.data is None:
        return
    images = len(DataRoot(args.data).ids(args.split))
    asked = args.gpus > 1 or any((args.batch_size, args.accumulate, args.crop))
    for stage in (each for each in args.stage if each.startswith("train_")):
        try:
            plan = Plan.of(budget.options_of(stage, args), images, torch.device("cpu"), args.gpus)
            found = f"{stage}: {plan.max_step} steps of {plan.batch_size} images"
            yield "ok", "training", found, ""
        except InputError as error:  # of a default: to be given there
            yield "FAIL" if asked else "warn", "training", f"{stage}: {error}", "do what it says"


def check_output(args: argparse.Namespace) -> Findings:
    out = args.out.resolve()
    folder = next(path for path in (out, *out.parents) if path.exists())
    try:
        locks = lock.works(folder)
        yield "ok", "output", f"{folder} can be written", ""
        found = f"{folder}: its file system has {'' if locks else 'no '}locks"
        yield "ok" if locks else "warn", "locks", found, "never start two runs in one directory"
    except OSError as error:
        yield "FAIL", "output", f"{folder}: {error.strerror}", "choose another --out"
    from tools import budget  # needs torch

    needs = {stage: budget.disk_bytes(stage, args) for stage in args.stage}
    free, total = shutil.disk_usage(folder).free, sum(needs.values())
    each = ", ".join(f"{stage} {need / 2**30:.2f}" for stage, need in needs.items())
    found = f"about {gib(total)} needed (estimate: {each}), {gib(free)} free at {folder}"
    level = "ok" if 1.5 * total < free else "warn" if total < free else "FAIL"
    yield level, "disk", found, "make room or choose another --out"


def check_workers(args: argparse.Namespace) -> Findings:
    share = CORES // args.gpus
    workers = min(8, max(1, share)) if args.workers is None else args.workers
    found = f"{CORES} cores for {args.gpus} x {workers} loader processes"
    yield "ok" if workers <= share else "warn", "CPU", found, f"--workers {share}"
    from tools import budget  # needs torch

    each = max(budget.loader_bytes(stage, args) for stage in args.stage)
    need, free = workers * each, shutil.disk_usage("/dev/shm").free
    found = f"loaders hold up to {gib(need)}, {gib(free)} free"
    remedy = f"--workers {int(free / (each or 1))}; in docker --shm-size={int(need / 2**30) + 1}g"
    yield "ok" if need < free else "FAIL", "/dev/shm", found, remedy


def examine(args: argparse.Namespace) -> list[tuple[str, str, str, str]]:
    """All findings; a check that fails itself is one more."""
    findings: list[tuple[str, str, str, str]] = []
    checks = (check_memory, check_time, check_weights, check_data, check_training, check_output)
    checks += (check_workers,)
    for check in (check_versions, *checks):
        what = check.__name__.removeprefix("check_")
        try:
            findings.extend(check(args))
        except InputError as error:  # what a stage would say
            findings.append(("FAIL", what, first_line(error), "do what it says"))
        except Exception as error:  # a broken package raises anything
            broken = {name for level, name, *_ in findings if level == "FAIL"} & PACKAGES.keys()
            found = f"not checked, {type(error).__name__}: {first_line(error)}"
            remedy = f"fix {min(broken)} first" if broken else "please report this"
            findings.append(("warn" if broken else "FAIL", what, found, remedy))
    return findings


def get_args_parser() -> argparse.ArgumentParser:
    # core.run.options shares most of these with stages, but asks torch for their defaults.
    p = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, help="data root; VOC's sizes are assumed without one")
    p.add_argument("--split", default="train_aug", help="the list to train on (train_aug)")
    p.add_argument("--out", type=Path, default=Path("runs"), help="where the runs will be (runs)")
    stages = tuple(step.script for step in steps.STEPS)
    p.add_argument("--stage", nargs="+", choices=stages, default=stages, help="default: all")
    p.add_argument("--backbone", default="resnet50", help="of the trainings (resnet50)")
    words = "imagenet, none or a file (imagenet)"
    p.add_argument("--weights", type=weights, default="imagenet", help=words)
    p.add_argument("--amp", choices=("auto", "bf16", "fp16", "off"), default="auto", help="auto")
    p.add_argument("--gpus", type=integer(1, 1024), default=1, help="processes on this machine (1)")
    words = "loader processes per GPU (8, or fewer cores)"
    p.add_argument("--workers", type=integer(0, 256), help=words)
    own = "(the stage's own)"
    p.add_argument("--batch-size", type=integer(1, 65536), help=f"over all GPUs {own}")
    p.add_argument("--accumulate", type=integer(1, 65536), help=f"microbatches of a batch {own}")
    p.add_argument("--crop", type=side, help=f"side of the training views {own}")
    p.add_argument("--batch-images", type=integer(1, 1024), help=f"images computed together {own}")
    p.add_argument("--max-side", type=side, help=f"reduce larger images to this longer side {own}")
    p.add_argument("--jobs", type=integer(1, 256), help=f"dense CRFs at the same time {own}")
    p.add_argument("--scales", type=scale, nargs="+", help=f"of inference {own}")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the findings there")
    return p


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.json is not None:
        files.check_own(args.json, "findings")
    findings = examine(args)
    for level, what, found, remedy in findings:
        print(f"{level:<5}{what}: {found}" + (f" -> {remedy}" if level != "ok" else ""))
    if args.json is not None:
        names = ("level", "what", "found", "remedy")
        rows = [dict(zip(names, finding, strict=True)) for finding in findings]
        files.write_json(args.json, {"findings": rows})
    failed = [
        f"{what}: {found} -> {remedy}" for level, what, found, remedy in findings if level == "FAIL"
    ]
    warned = sum(level == "warn" for level, *_ in findings)
    ready = f"ready; {warned} warning{'s' * (warned > 1)}" if warned else "ready"
    print(f"not ready; first {failed[0]}" if failed else ready)
    sys.exit(int(bool(failed)))


if __name__ == "__main__":
    run_main(main, get_args_parser)
