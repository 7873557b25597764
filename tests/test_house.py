"""The house: imports go one way, what a script computes by default is the recipe's."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

from core import recipe
from core.run import options
from core.run.plan import Plan

import pytest
from conftest import REPO

# Each room may import those before it, and its own; nothing but scripts imports scripts.
ROOMS = ("core", "core.data", "core.method", "core.run", "scripts", "tools")
STAGES = sorted(p.stem for p in REPO.glob("*.py"))


def room(module: str) -> str | None:
    """The room of a module of the project; None for others'."""
    if module in STAGES:
        return "scripts"
    inside = [name for name in ROOMS if module == name or module.startswith(f"{name}.")]
    return max(inside, key=len) if inside else None


def imports(path: Path) -> set[str]:
    """The modules a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted([*REPO.glob("core/**/*.py"), *REPO.glob("*.py"), *REPO.glob("tools/**/*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPO)))
def test_imports_go_one_way(path):
    own = room(".".join(path.relative_to(REPO).with_suffix("").parts))
    for module in imports(path):
        other = room(module)
        assert other is None or ROOMS.index(other) <= ROOMS.index(own), f"imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPO)))
def test_documents_that_are_cited_are_here(path):
    text = path.read_text()
    assert not re.search(r"\bSPEC\b", text)
    for name in re.findall(r"\b(?:docs|data|results)/\w+\.(?:md|json|txt)\b", text):
        if not name.startswith("results/"):
            assert (REPO / name).exists(), name


def test_nothing_is_started_at_import():
    """Importing every script in one process prints nothing and needs no GPU."""
    code = "import " + ", ".join(STAGES)
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# Option of a script -> the constant of the recipe that it takes its default from.
DEFAULTS = {
    "train_classification": (
        recipe.CLASSIFICATION,
        "epochs batch_size lr momentum weight_decay sides crop alpha alpha_ramp grid",
    ),
    "make_cam": (recipe.CAM, "scales"),
    "make_affinity_labels": (
        recipe.AFFINITY_LABELS,
        "foreground_threshold background_threshold crf_iterations",
    ),
    "train_affinity": (
        recipe.AFFINITY,
        "epochs batch_size lr momentum weight_decay sides crop radius",
    ),
    "make_random_walk": (recipe.RANDOM_WALK, "radius beta log2_steps"),
    "make_pseudo_labels": (recipe.PSEUDO_LABELS, "threshold crf_iterations"),
    "train_segmentation": (
        recipe.SEGMENTATION,
        "epochs batch_size lr momentum weight_decay sides crop",
    ),
    "predict": (recipe.PREDICTION, "scales crf_iterations"),
    "evaluate": (recipe.EVALUATION, "thresholds"),
}


def test_what_takes_a_second_to_import_waits():
    """torchvision brings torch._dynamo along; only what builds a network needs it."""
    names = ", ".join(STAGES)
    heavy = "torchvision", "timm", "torch._dynamo", "scipy", "matplotlib", "jinja2"
    code = f"import sys, {names}; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert found.stdout == "[]\n", found


@pytest.mark.parametrize(
    ("script", "name"), [(s, n) for s, (_, names) in DEFAULTS.items() for n in names.split()]
)
def test_options_default_to_the_recipe(script, name):
    default = importlib.import_module(script).get_args_parser().get_default(name)
    wanted = getattr(DEFAULTS[script][0], name)
    assert (tuple(default) if isinstance(default, list) else default) == wanted


@pytest.mark.parametrize("script", STAGES)
def test_every_option_is_used(script):
    """As `args.NAME` in the script or in core/run, or by `Plan`, which takes its fields by name."""
    sources = [REPO / f"{script}.py", *REPO.glob("core/run/*.py")]
    used = set(re.findall(r"\bargs\.(\w+)", "".join(path.read_text() for path in sources)))
    used |= {"help", *Plan.__dataclass_fields__}
    for action in importlib.import_module(script).get_args_parser()._actions:
        assert action.dest in used, f"nothing of {script}.py reads args.{action.dest}"


# Options that change where or how fast a stage runs. Everything else is a setting: a directory
# that was made with another value of it is refused.
HOW = {
    "accumulate": False,  # BatchNorm sees the microbatches
    "batch_images": True,
    "compile": True,
    "device": True,
    "jobs": True,
    "log_every": True,
    "overwrite": True,
    "save_every": True,
    "stale": True,
    "track": True,
    "val": True,  # looked at, not learned from
    "verify": True,
    "weights": True,  # what they hold is compared
    "workers": True,
}


@pytest.mark.parametrize("script", STAGES)
def test_every_option_is_a_setting_or_says_how(script):
    parser = importlib.import_module(script).get_args_parser()
    for action in parser._actions:
        is_path = action.type in (options.path, options.model)
        how = is_path or HOW.get(action.dest, action.dest == "help")
        assert (action.dest in parser.how) == how, action.dest


@pytest.mark.parametrize("script", STAGES)
def test_every_stage_takes_the_options_of_the_machine(script):
    actions = importlib.import_module(script).get_args_parser()._option_string_actions
    assert {"--data", "--split", "--device", "--workers"} <= actions.keys()
