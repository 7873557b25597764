"""Command-line options that several scripts share, each defined once."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import recipe
from core.method import backbones, crf
from core.run.parallel import default_workers


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter): ...


class Parser(argparse.ArgumentParser):
    """A stage's command line, which knows which options decide what the stage computes.

    `add_argument(..., how=True)` marks an option that changes where or how fast a run goes, not
    what it computes. Paths (`type=Path`) are inputs and outputs: a run compares what inputs hold
    (their digests), not what they are called. Every other option is a setting: a directory made
    with other settings is refused.

    Parsing adds `settings` and `defaults` to the namespace: the values of the settings, and
    what a record that is older than an option is taken to say.
    """

    def __init__(self, doc: str | None):
        super().__init__(description=doc, formatter_class=_Formatter, allow_abbrev=False)
        self.how: set[str] = {"help"}

    def add_argument(self, *names: str, how: bool = False, **kwargs: Any) -> argparse.Action:
        action = super().add_argument(*names, **kwargs)
        if how or action.type is Path:
            self.how.add(action.dest)
        return action

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        parsed, unknown = super().parse_known_args(args, namespace)
        settings = {k: v for k, v in vars(parsed).items() if k not in self.how}
        parsed.settings = as_json(settings)
        parsed.defaults = as_json({name: self.get_default(name) for name in settings})
        return parsed, unknown


def as_json(value: Any) -> Any:
    """`value` as JSON gives it back; what JSON does not know as text."""
    return json.loads(json.dumps(value, default=str))


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


def scale(text: str) -> float:
    """An argparse type: an image scale in (0, 4]."""
    value = float(text)
    if not 0 < value <= 4:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 4")
    return value


def threshold(text: str) -> float | str:
    """An argparse type: a background score from 0 to 1, or "auto"."""
    return text if text == "auto" else fraction(text)


def add_thresholds(p: Parser) -> None:
    """--thresholds."""
    p.add_argument(
        "--thresholds",
        type=lambda text: text if text == "paper" else fraction(text),
        nargs="+",
        metavar="T",
        action=_Thresholds,
        default=list(recipe.EVALUATION.thresholds),
        help="background scores to try; paper: the released code's, 0.05 to 0.75 by 0.05",
    )


class _Thresholds(argparse.Action):
    """--thresholds: numbers, or the word "paper" for the released code's."""

    def __call__(self, parser, namespace, values, option_string=None):
        if "paper" in values:
            if len(values) > 1:
                parser.error("--thresholds paper: no numbers beside it")
            values = list(recipe.EVALUATION.paper_thresholds)
        setattr(namespace, self.dest, values)


def add_data(p: Parser, split: str) -> None:
    """--data and --split."""
    p.add_argument("--data", type=Path, required=True, help="data root; see data/README.md")
    p.add_argument("--split", default=split, help="list in ImageSets/Segmentation, without .txt")


def add_out(p: Parser) -> None:
    """--out, --overwrite and --stale."""
    p.add_argument("--out", type=Path, required=True, help="directory of this run")
    add_overwrite(p)


def add_overwrite(p: Parser) -> None:
    """--overwrite and --stale."""
    p.add_argument("--overwrite", how=True, action="store_true", help="start again from nothing")
    p.add_argument(
        "--stale",
        how=True,
        choices=("refuse", "redo"),
        default="refuse",
        help="what to do where other settings or inputs made what is there",
    )


def add_machine(p: Parser) -> None:
    """--device and --workers."""
    add_device(p)
    p.add_argument(
        "--workers",
        how=True,
        type=int,
        default=default_workers(),
        help="processes that read ahead, for each GPU; 0 for none",
    )


def add_device(p: Parser) -> None:
    """--device."""
    p.add_argument("--device", how=True, default="auto", help="auto, cpu, cuda or cuda:N")


def add_amp(p: Parser) -> None:
    """--amp."""
    p.add_argument(
        "--amp",
        choices=("auto", "bf16", "fp16", "off"),
        default="auto",
        help="autocast type; auto is bf16 where the hardware multiplies it fast, fp16 on older "
        "GPUs, off elsewhere",
    )


def add_training(p: Parser, stage: recipe.Training, rates: str) -> None:
    """Everything the three trainings have in common, with the recipe's values as defaults."""
    p.add_argument("--backbone", choices=backbones.NAMES, default="resnet50")
    p.add_argument(
        "--weights",
        how=True,  # what they hold is compared
        default="imagenet",
        help="imagenet, none, or a file: a torchvision checkpoint or any stage's model.pt",
    )
    p.add_argument("--epochs", type=positive, default=stage.epochs)
    p.add_argument(
        "--batch-size", type=positive, default=stage.batch_size, help="global: over all processes"
    )
    p.add_argument(
        "--accumulate",
        type=positive,
        default=1,
        help="split each batch into this many microbatches to save memory; BatchNorm sees those",
    )
    p.add_argument("--lr", type=float, default=stage.lr, help=rates)
    p.add_argument(
        "--momentum",
        type=float,
        default=stage.momentum,
        help="Nesterov; the default is what the authors' code ran with (README, Differences)",
    )
    p.add_argument("--weight-decay", type=float, default=stage.weight_decay, help="0 on biases")
    p.add_argument(
        "--sides",
        type=positive,
        nargs=2,
        default=list(stage.sides),
        help="range of the longer side after the random resize",
    )
    p.add_argument("--crop", type=positive, default=stage.crop, help="side of the training views")
    p.add_argument("--seed", type=int, default=0)
    add_amp(p)
    p.add_argument(
        "--compile", how=True, action="store_true", help="torch.compile: minutes at the start"
    )
    p.add_argument("--sync-bn", action="store_true", help="BatchNorm over all GPUs")
    p.add_argument("--deterministic", action="store_true", help="same bits twice; slower on GPUs")
    p.add_argument(
        "--save-every",
        how=True,
        type=int,
        default=0,
        help="steps between checkpoints; 0: epochs",
    )
    p.add_argument(
        "--log-every",
        how=True,
        type=positive,
        default=10,
        help="steps a row of log.jsonl covers",
    )


def add_inference(p: Parser, scales: Sequence[float], batch_images: int) -> None:
    """--scales, --max-side, --batch-images and --amp."""
    p.add_argument(
        "--scales",
        type=scale,
        nargs="+",
        default=list(scales),
        help="image scales, each with its mirror image",
    )
    p.add_argument(
        "--max-side",
        type=positive,
        default=1024,
        help="the network sees larger images reduced to this longer side; lower it to save memory",
    )
    p.add_argument(
        "--batch-images",
        how=True,
        type=positive,
        default=batch_images,
        help="images of equal size computed together",
    )
    add_amp(p)


def add_crf(p: Parser, iterations: int, default: str = "auto") -> None:
    """--crf-iterations, --crf-backend and --jobs."""
    p.add_argument("--crf-iterations", type=positive, default=iterations, help="mean-field steps")
    p.add_argument(
        "--crf-backend",
        choices=crf.BACKENDS,
        default=default,
        help="auto: torch on a GPU, pydensecrf on a CPU where it is installed",
    )
    add_jobs(p)


def add_jobs(p: Parser) -> None:
    """--jobs."""
    p.add_argument(
        "--jobs", how=True, type=int, default=0, help="CPU processes, or GPU streams; 0: automatic"
    )
