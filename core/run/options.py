"""Command-line options that several scripts share, each defined once."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.data.transforms import SCALES
from core.method import backbones
from core.run.parallel import cpu_count


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help shows the script's docstring and every default."""

    class Formatter(
        argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
    ): ...

    return argparse.ArgumentParser(description=doc, formatter_class=Formatter)


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def fraction(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def threshold(text: str) -> float | str:
    """An argparse type: a background score from 0 to 1, or "auto"."""
    return text if text == "auto" else fraction(text)


def add_stage(p: argparse.ArgumentParser, split: str, out: bool = True) -> None:
    """--data, --split, --out, --device, --workers, --overwrite."""
    p.add_argument("--data", type=Path, required=True, help="data root; see data/README.md")
    p.add_argument("--split", default=split, help="list in ImageSets/Segmentation, without .txt")
    if out:
        p.add_argument("--out", type=Path, required=True, help="directory of this run")
        add_overwrite(p)
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument(
        "--workers",
        type=int,
        default=min(4, cpu_count()),
        help="loader processes per GPU; 0 for none",
    )


def add_overwrite(p: argparse.ArgumentParser) -> None:
    """--overwrite and --stale."""
    p.add_argument("--overwrite", action="store_true", help="start anew, whatever is there")
    p.add_argument(
        "--stale",
        choices=("refuse", "redo"),
        default="refuse",
        help="what to do where other settings or inputs made what is there",
    )


def add_amp(p: argparse.ArgumentParser) -> None:
    """--amp."""
    p.add_argument(
        "--amp",
        choices=("auto", "bf16", "fp16", "off"),
        default="auto",
        help="autocast type; auto is bf16 where the hardware multiplies it fast, off elsewhere",
    )


def add_training(
    p: argparse.ArgumentParser,
    epochs: int,
    lr: float,
    weight_decay: float,
    sides: tuple[int, int],
    rates: str = "base rate; x2 biases, x10 new layers (with --weights none: all)",
) -> None:
    """Everything the three trainings have in common; the arguments are the recipe's values."""
    p.add_argument("--backbone", choices=backbones.NAMES, default="resnet50")
    p.add_argument(
        "--weights",
        default="imagenet",
        help="imagenet, none, or a file: a torchvision checkpoint or any stage's model.pt",
    )
    p.add_argument("--epochs", type=positive, default=epochs)
    p.add_argument("--batch-size", type=positive, default=32, help="global: over all processes")
    p.add_argument(
        "--accumulate",
        type=positive,
        default=1,
        help="split each batch in this many parts to save memory; BatchNorm then sees the parts",
    )
    p.add_argument(
        "--lr",
        type=float,
        default=lr,
        help=rates,
    )
    p.add_argument(
        "--momentum",
        type=float,
        default=1e-4,
        help="Nesterov; 1e-4 is what the authors' code ran with (README, Differences)",
    )
    p.add_argument("--weight-decay", type=float, default=weight_decay, help="0 on biases")
    p.add_argument(
        "--sides",
        type=positive,
        nargs=2,
        default=list(sides),
        help="range of the longer side after the random resize",
    )
    p.add_argument("--crop", type=positive, default=512, help="side of the training views")
    p.add_argument("--seed", type=int, default=0)
    add_amp(p)
    p.add_argument("--compile", action="store_true", help="torch.compile: minutes at the start")
    p.add_argument("--sync-bn", action="store_true", help="BatchNorm over all GPUs")
    p.add_argument("--deterministic", action="store_true", help="same bits twice; slower on GPUs")
    p.add_argument("--save-every", type=int, default=0, help="steps between checkpoints; 0: epochs")
    p.add_argument("--log-every", type=positive, default=10, help="steps a row of log.jsonl covers")


def add_scales(p: argparse.ArgumentParser) -> None:
    """--scales."""
    p.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=list(SCALES),
        help="image scales, each with its mirror image",
    )


def add_crf(p: argparse.ArgumentParser, default: str = "auto") -> None:
    """--crf-backend and --jobs. Two passes over one image are quicker in torch on a CPU too."""
    p.add_argument(
        "--crf-backend",
        choices=("auto", "pydensecrf", "torch"),
        default=default,
        help="auto: torch on a GPU, pydensecrf on a CPU where it is installed",
    )
    p.add_argument("--jobs", type=int, default=0, help="CRF processes; 0: one per CPU core")
