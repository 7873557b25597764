"""--help of every script: a text and a default for each option, and nothing that says nothing."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest
from conftest import REPO

SCRIPTS = [
    ".".join(path.relative_to(REPO).with_suffix("").parts)
    for path in sorted([*REPO.glob("*.py"), *(REPO / "tools").glob("*.py")])
    if "def get_args_parser" in path.read_text(encoding="utf-8")
]


@pytest.fixture(params=SCRIPTS)
def parser(request: pytest.FixtureRequest) -> argparse.ArgumentParser:
    return importlib.import_module(request.param).get_args_parser()


def test_every_script_is_looked_at() -> None:
    stages = {path.stem for path in REPO.glob("*.py")}
    assert stages <= set(SCRIPTS) and len(SCRIPTS) > 2 * len(stages)


def test_every_option_says_what_it_is(parser: argparse.ArgumentParser) -> None:
    silent = [action.dest for action in parser._actions if not (action.help or "").strip()]
    assert silent == []


def test_defaults_are_worth_reading(parser: argparse.ArgumentParser) -> None:
    text = " ".join(parser.format_help().split())
    assert not re.search(r"\(default: (True|False|None|\[|\(\))", text)
    assert max((len(m) for m in re.findall(r"\(default: [^)]*\)", text)), default=0) < 80


def test_an_option_with_a_default_names_it(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        plain = isinstance(action.default, int | float | str) and action.nargs != 0
        if plain and action.default not in ("", argparse.SUPPRESS):
            said = parser._get_formatter()._expand_help(action)
            assert str(action.default) in said, (action.dest, said)


def test_it_starts_with_what_the_script_does(parser: argparse.ArgumentParser) -> None:
    assert parser.description and Path(parser.prog).suffix != ".pyc"
    first = parser.description.strip().splitlines()[0]
    assert first.endswith((".", ":")) and len(first) <= 100


@pytest.mark.parametrize("script", ["make_cam", "make_random_walk", "predict", "evaluate"])
def test_a_checkpoint_may_be_its_directory(script: str, tmp_path: Path) -> None:
    kinds = [a.type for a in importlib.import_module(script).get_args_parser()._actions
             if "--checkpoint" in a.option_strings]  # fmt: skip
    assert [kind(str(tmp_path)) for kind in kinds] == [tmp_path / "model.pt"]
    assert [kind(str(tmp_path / "a.pt")) for kind in kinds] == [tmp_path / "a.pt"]


@pytest.mark.parametrize("script", [path.stem for path in REPO.glob("*.py")])
def test_a_stages_own_options_come_first_the_shared_ones_in_groups(script: str) -> None:
    text = importlib.import_module(script).get_args_parser().format_help()
    titles = re.findall(r"^([a-zA-Z ]+):$", text, re.M)
    own, *shared = [title for title in titles if title != "positional arguments"]
    assert own == "options" and {"data and output", "machine"} <= set(shared)
    assert ("training" in shared) == script.startswith("train_")
    assert len(shared) == len(set(shared))
