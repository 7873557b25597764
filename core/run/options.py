"""Command lines: the types of values, and the options that several scripts share, each once.

No torch while this is imported: tools/doctor.py runs where torch is broken.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from core import recipe
from core.run.main import end
from core.run.tracking import TRACKERS


class OneLineParser(argparse.ArgumentParser):
    """A command line whose errors are one line, said once where several processes read it."""

    def error(self, message: str) -> NoReturn:
        end(f"{self.prog}: error: {message}; --help lists the options", 2)


def path(text: str) -> Path:
    """An argparse type: a path; an empty one, as of a variable that is not set, is none."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def model(text: str) -> Path:
    """An argparse type: a model.pt, or the directory of the training that made it."""
    found = path(text)
    return found / "model.pt" if found.is_dir() else found


def weights(text: str) -> str:
    """An argparse type: imagenet, none or a file; of a training's directory its model.pt."""
    return text if text in ("imagenet", "none") else str(model(text))


def number(low: float, high: float, kind: type = float) -> Callable[[str], Any]:
    """An argparse type: a number from `low` to `high`, whole if `kind` is int."""
    words = f"a {'whole ' * (kind is int)}number from {low:g} to {high:g}"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = high + 1
        if not low <= value <= high:  # NaN is nowhere between
            raise argparse.ArgumentTypeError(f"{text} is not {words}")
        return value

    return parse


integer = functools.partial(number, kind=int)


def or_word(word: str, kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type: `word` itself, or what `kind` takes."""
    return lambda text: text if text == word else kind(text)


def backbone(name: str) -> str:
    """An argparse type: a backbone's name."""
    from core.method import backbones  # needs torch

    if name not in backbones.NAMES and not backbones.OF_TIMM.fullmatch(name):
        known = f"{', '.join(backbones.NAMES)} or {backbones.PREFIX}NAME"
        raise argparse.ArgumentTypeError(f"{name!r} is not {known}")
    return name


fraction = number(0, 1)
scale = number(0.05, 4)  # of an image
side = integer(16, 16384)  # of an image, in pixels
seed = integer(0, 2**32 - 1)
count = integer(0, 10**9)  # of images, say


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in the help, of options that have one to speak of; a list as it is typed."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.nargs == 0 or action.default in (None, [], "", argparse.SUPPRESS):
            return action.help
        if isinstance(action.default, list | tuple):
            first, *rest = map(str, action.default)
            some = [first, *rest] if len(rest) < 6 else [first, rest[0], "...", rest[-1]]
            return f"{action.help} (default: {' '.join(some)})"
        return super()._get_help_string(action)


class Parser(OneLineParser):
    """A stage's command line, which knows which options decide what the stage computes.

    `add_argument(..., how=True)` marks an option that changes where or how fast a run goes, not
    what it computes. Paths (`type=Path` or `model`) are inputs and outputs: a run compares what
    inputs hold (their digests), not what they are called. Every other option is a setting: a
    directory made with other settings is refused.

    Parsing adds `settings` and `defaults` to the namespace: the values of the settings, and
    what a record that is older than an option is taken to say.
    """

    def __init__(self, doc: str | None):
        self.title = ""  # of the group that options are added to, see `grouped`
        super().__init__(description=doc, formatter_class=_Formatter, allow_abbrev=False)
        self.how: set[str] = {"help"}

    def add_argument(self, *names: str, how: bool = False, **kwargs: Any) -> argparse.Action:
        if kwargs.get("type") in (Path, model):
            how, kwargs["type"] = True, path if kwargs["type"] is Path else model
        groups = {group.title: group for group in self._action_groups}
        add = super().add_argument
        if self.title:
            add = (groups.get(self.title) or self.add_argument_group(self.title)).add_argument
        action = add(*names, **kwargs)
        if how:
            self.how.add(action.dest)
        return action

    def add_constant(self, stage: Any, name: str, kind: Callable[[str], Any], words: str) -> None:
        """An option --name whose default is the constant `name` of a stage of the recipe."""
        default = getattr(stage, name)
        more = {"default": default}
        if isinstance(default, tuple):  # as many as there are, or, of scales, any number
            more = {"default": list(default), "nargs": len(default) if name == "sides" else "+"}
        self.add_argument(f"--{name.replace('_', '-')}", type=kind, help=words, **more)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        parsed, unknown = super().parse_known_args(args, namespace)
        settings = {k: v for k, v in vars(parsed).items() if k not in self.how}
        parsed.settings = as_json(settings)
        parsed.defaults = as_json({name: self.get_default(name) for name in settings})
        return parsed, unknown


def as_json(value: Any) -> Any:
    """`value` as JSON gives it back; what JSON does not know as text."""
    return json.loads(json.dumps(value, default=str))


def grouped(title: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: what a function adds stands under a title of its own in the help."""

    def decorate(add: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(add)
        def inside(p: Parser, *args: Any, **how: Any) -> None:
            outer, p.title = p.title, p.title or title
            add(p, *args, **how)
            p.title = outer

        return inside

    return decorate


@grouped("data and output")
def add_data(p: Parser, split: str) -> None:
    """--data and --split."""
    p.add_argument("--data", type=Path, required=True, help="data root; see data/README.md")
    p.add_argument("--split", default=split, help="list in ImageSets/Segmentation, without .txt")
    add_verify(p)


@grouped("data and output")
def add_verify(p: Parser) -> None:
    """--verify."""
    words = "record and compare the contents of images, not their sizes and times alone"
    p.add_argument("--verify", how=True, action="store_true", help=words)


@grouped("data and output")
def add_out(p: Parser) -> None:
    """--out, --overwrite and --stale."""
    p.add_argument("--out", type=Path, required=True, help="directory of this run")
    add_overwrite(p)


@grouped("data and output")
def add_overwrite(p: Parser) -> None:
    """--overwrite and --stale."""
    p.add_argument("--overwrite", how=True, action="store_true", help="start again from nothing")
    words, both = "what to do where other settings or inputs made what is there", ("refuse", "redo")
    p.add_argument("--stale", how=True, choices=both, default="refuse", help=words)


@grouped("machine")
def add_machine(p: Parser) -> None:
    """--device and --workers."""
    from core.run.parallel import cpu_count

    add_device(p)
    words = "processes that read ahead, for each GPU; 0 for none"
    kind, default = integer(0, 256), min(8, cpu_count())
    p.add_argument("--workers", how=True, type=kind, default=default, help=words)


@grouped("machine")
def add_device(p: Parser) -> None:
    """--device."""
    p.add_argument("--device", how=True, default="auto", help="auto, cpu, cuda or cuda:N")


@grouped("machine")
def add_amp(p: Parser) -> None:
    """--amp."""
    words = "autocast type; auto is bf16 where the hardware multiplies it fast, fp16 on older GPUs,"
    choices = ("auto", "bf16", "fp16", "off")
    p.add_argument("--amp", choices=choices, default="auto", help=f"{words} off elsewhere")


@grouped("training")
def add_training(p: Parser, stage: recipe.Training, rates: str) -> None:
    """Everything the three trainings have in common, with the recipe's values as defaults."""
    from core.method import backbones

    words = f"{', '.join(backbones.NAMES)}, or timm:NAME, any of timm's that gives its features"
    p.add_argument("--backbone", type=backbone, default="resnet50", help=words)
    words = (
        "imagenet, none, or a file: a checkpoint of torchvision's or timm's, any stage's model.pt"
    )
    # Not a setting, since what they hold is compared.
    p.add_argument("--weights", how=True, type=weights, default="imagenet", help=words)
    words = "a model.pt of this stage to start from; of other classes what tells them apart is new"
    p.add_argument("--init", type=model, help=words)
    p.add_constant(stage, "epochs", integer(1, 100_000), "times that every image is seen")
    p.add_constant(stage, "batch_size", integer(1, 65536), "global: over all processes")
    words = "split each batch into this many microbatches to save memory; BatchNorm sees those"
    p.add_argument("--accumulate", type=integer(1, 65536), default=1, help=words)
    p.add_constant(stage, "lr", number(1e-9, 1e6), rates)
    words = "Nesterov; the default is what the authors' code ran with (README, Differences)"
    p.add_constant(stage, "momentum", number(0, 0.9999), words)
    words = "0 on biases, but for the boundary network's"
    p.add_constant(stage, "weight_decay", number(0, 1), words)
    p.add_constant(stage, "sides", side, "range of the longer side after the random resize")
    p.add_constant(stage, "crop", side, "side of the training views")
    p.add_argument("--seed", type=seed, default=0, help="of the weights, views and batches")
    add_amp(p)
    words = "torch.compile: minutes at the start"
    p.add_argument("--compile", how=True, action="store_true", help=words)
    p.add_argument(
        "--sync-bn", action="store_true", help="BatchNorm over all GPUs, of a classifier"
    )
    p.add_argument("--deterministic", action="store_true", help="same bits twice; slower on GPUs")
    words = "steps between checkpoints; 0: epochs"
    p.add_argument("--save-every", how=True, type=integer(0, 10**9), default=0, help=words)
    words = "mirror log.jsonl there; pip install the package of that name first"
    p.add_argument("--track", how=True, choices=TRACKERS, default="none", help=words)
    words = "steps a row of log.jsonl covers"
    p.add_argument("--log-every", how=True, type=integer(1, 10**9), default=10, help=words)


@grouped("inference")
def add_inference(p: Parser, stage: Any, batch_images: int) -> None:
    """--scales, --max-side, --batch-images and --amp."""
    p.add_constant(stage, "scales", scale, "image scales, each with its mirror image")
    words = "larger images are reduced to this longer side, then scaled; lower it to save memory"
    p.add_argument("--max-side", type=side, default=1024, help=words)
    add_batch_images(p, batch_images)
    add_amp(p)


@grouped("inference")
def add_batch_images(p: Parser, default: int) -> None:
    """--batch-images."""
    words = "images of equal size computed together at most; on a CPU large ones are not"
    kind = integer(1, 1024)
    p.add_argument("--batch-images", how=True, type=kind, default=default, help=words)


@grouped("dense CRF")
def add_crf(p: Parser, stage: Any) -> None:
    """--crf-iterations, --crf-backend and --jobs."""
    from core.method import crf

    p.add_constant(stage, "crf_iterations", integer(1, 10_000), "mean-field steps")
    words = "the same labels; pydensecrf is the authors', on one CPU core, an extra to install"
    p.add_argument("--crf-backend", choices=crf.BACKENDS, default="torch", help=words)
    add_jobs(p)


@grouped("machine")
def add_jobs(p: Parser) -> None:
    """--jobs."""
    words = "CPU processes, or GPU streams; 0: automatic"
    p.add_argument("--jobs", how=True, type=integer(0, 256), default=0, help=words)
