"""What a stage says at its start and end: what it has and makes, and what comes next."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import files, recipe, steps
from core.errors import InputError
from core.run import artefacts, options

CARRIED = ("backbone", "batch_size", "sides", "crop")  # options that trainings of a run share


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


def header(record: dict[str, Any], makes: Sequence[str], out: Path, there: int) -> str:
    """Two lines: what is made of how many images where; with what and on what it is computed.

    `makes`: the files; `there`: how many of them are there already.
    """
    classes, settings, resolved = record["classes"], record["settings"], record["resolved"]
    some = ", ".join(classes[:4]) + ", ..." * (len(classes) > 4)
    begun = f", {there} there already" if there else ""
    images = resolved.get("images", len(makes))
    count = f"{images} image{'s' * (images != 1)}, {len(classes)} class{'es' * (len(classes) != 1)}"
    parts = [resolved.get("backbone") or settings.get("backbone")]
    if init := record["arguments"].get("init"):
        parts.append(f"all weights of {init}")
    elif weights := record["arguments"].get("weights"):
        parts.append(f"weights {weights}")
    if steps_of := resolved.get("steps"):
        parts.append(f"{steps_of} steps of {settings['batch_size']} images")
        is_frozen = record["stage"] != "train_classification"
        parts.append("BatchNorm frozen" if is_frozen else f"BatchNorm over {resolved['bn_batch']}")
    parts += [resolved.get("amp"), resolved.get("crf_backend")]
    many = f" and {record['processes'] - 1} more" * (record["processes"] > 1)
    cores = f", {record['cpus']} cores" * (record["device"] == "cpu")
    machine = f"on {record['device_name']}{many}{cores}"
    how = ", ".join(str(part) for part in parts if part)
    return f"{record['stage']}: {count} ({some}) -> {out}{begun}\n  {how}{' ' * bool(how)}{machine}"


def trailer(record: dict[str, Any], files_made: int, out: Path) -> str:
    """What was made in which time, and the next commands to paste, where they are known."""
    made = "model.pt" if record["holds"] == "model" else f"{files_made} {record['holds']}"
    if record["holds"] == "labels":
        made = f"{files_made} label map{'s' * (files_made != 1)}"
    lines = [f"{out}: {made} in {duration(record['seconds'])}"]
    return "\n".join([*lines, *(f"  {command}" for command in next_commands(record, out))])


def next_commands(record: dict[str, Any], out: Path) -> list[str]:
    """The next stage's command line, of a directory that bears the name of its step.

    Where a directory that it reads is not beside this one, and for other names, there is none.
    """
    names = [step.name for step in steps.STEPS]
    arguments = record["arguments"]
    if out.name not in names[:-1] or not arguments.get("data"):
        return []
    step = steps.STEPS[names.index(out.name) + 1]
    models = {each.name for each in steps.STEPS if each.holds == "model"}
    split = "val" if step.split == "val" else arguments["split"]
    if not Path(arguments["data"], "ImageSets/Segmentation", f"{split}.txt").exists():
        return []
    command = ["python", f"{step.script}.py", "--data", arguments["data"], "--split", split]
    for option, name in step.reads:
        source = out.parent / name
        if not (source / "run.json").exists():
            return []
        command += [option, source / "model.pt" if name in models else source]
    if step.name in models:
        command += _carried(out.parent / names[0])
    return ["next: " + shlex.join(map(str, [*command, "--out", out.parent / step.name]))]


def _carried(classifier: Path) -> list[object]:
    """The options that a run's later trainings share with its classifier, but for defaults."""
    try:
        record = files.read_json(classifier / "run.json", "")
    except InputError:
        return []
    words: list[object] = []
    for name in CARRIED:
        value = artefacts.mapping(record, "settings").get(name)
        usual = options.as_json(getattr(recipe.CLASSIFICATION, name, "resnet50"))
        if value is not None and value != usual:
            words += [
                f"--{name.replace('_', '-')}",
                *(value if isinstance(value, list) else [value]),
            ]
    weights = artefacts.mapping(record, "arguments").get("weights", "imagenet")
    if weights == "none":  # without others the classifier's features are the best there are
        weights = classifier / "model.pt"
    return words if weights == "imagenet" else [*words, "--weights", weights]
