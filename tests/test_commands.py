"""Every command printed in scripts/, the README and docs/ parses, and every script has --help."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

PYTHON = sorted([*REPO.glob("*.py"), *REPO.glob("tools/*.py")])
SCRIPTS = [p for p in PYTHON if p.read_text().startswith("#!")]
SOURCES = sorted([*REPO.glob("scripts/*.sh"), *REPO.glob("*.md"), *REPO.glob("docs/*.md"),
                  *REPO.glob("data/*.md"), *SCRIPTS])  # fmt: skip


def commands(path: Path) -> list[tuple[str, list[str]]]:
    """(script, arguments) of the stage and tool commands in a shell script, page or docstring."""
    text = path.read_text().replace("\\\\\n", " ").replace("\\\n", " ")
    if path.suffix == ".py":
        text = text.split('"""')[1]
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*(?:[A-Z_]+=\S+ )*(?:python|stage|run_once|torchrun .*?) "
                         r"((?:tools/)?\w+\.py)(?= |$)(.*)", line)  # fmt: skip
        if match and (REPO / match[1]).exists():
            arguments = re.sub(r"\s[#>|].*$", "", match[2])
            arguments = re.sub(r'"\$\{?(\w+\[@\]|@)\}?"', "", arguments)  # arrays of more options
            arguments = re.sub(r"\$\{\w+:\+(.*?)\}", r"\1", arguments)  # ${SET:+options}
            arguments = re.sub(r"\$\{?\w+[^\s\"}/]*\}?", "0", arguments)
            found.append((match[1], shlex.split(arguments)))
    return found


ALL = [(source, *command) for source in SOURCES for command in commands(source)]


def parser_of(script: str):
    return importlib.import_module(script[:-3].replace("/", ".")).get_args_parser()


@pytest.mark.parametrize(
    ("source", "script", "arguments"), ALL, ids=[f"{s.name}:{c}" for s, c, _ in ALL]
)
def test_command_parses(source, script, arguments, capsys):
    choices = {"--backbone": "resnet50", "--backbones": "resnet50", "--gpus": "4"}
    for name, value in choices.items():
        if name in arguments and arguments[arguments.index(name) + 1] == "0":
            arguments[arguments.index(name) + 1] = value
    try:
        parser_of(script).parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{source.name}: {script} {shlex.join(arguments)}\n{capsys.readouterr().err}")


def test_the_search_for_commands_finds_them():
    assert len(ALL) > 20
    assert {c for s, c, _ in ALL if s.parent.name == "scripts"} >= {
        "train_classification.py", "make_cam.py", "train_affinity.py", "make_pseudo_labels.py",
        "train_segmentation.py", "evaluate.py",
    }  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_help_opens_with_a_command_to_paste(script):
    name = str(script.relative_to(REPO))
    text = parser_of(name).format_help()
    assert f"python {name}" in text
    assert any(command == name for command, _ in commands(script))


@pytest.mark.parametrize("script", sorted(REPO.glob("scripts/*.sh")), ids=lambda p: p.name)
def test_shell_scripts_are_sound(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    if text.startswith("#!"):
        assert "set -euo pipefail" in text


def test_scripts_find_core_from_any_directory(tmp_path):
    """Each is read as Python starts it, its own directory first on the path and this one not."""
    program = """
import runpy, sys
path = [p for p in sys.path if p]
for script in sys.argv[1:]:
    for name in [m for m in sys.modules if m.partition(".")[0] in ("core", "tools")]:
        del sys.modules[name]
    sys.path[:] = [script.rpartition("/")[0], *path]
    try:
        runpy.run_path(script, run_name="read")
    except ImportError as error:
        print(script, error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, *map(str, SCRIPTS)],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == ""
