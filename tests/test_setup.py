"""scripts/setup.sh in an environment without pip, as uv makes them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, fake_python


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "requirements.txt").write_text("tqdm\n")
    shutil.copytree(REPO / "scripts", tmp_path / "scripts")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    return tmp_path


def setup(
    folder: Path, path: str, then: str = "setup requirements.txt", **active: str
) -> subprocess.CompletedProcess[str]:
    """What a script in the folder does next, with no environment active but the given one."""
    unset = {"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH"}
    env = {k: v for k, v in os.environ.items() if k not in unset} | {"PATH": path} | active
    command = ["bash", "-ec", f"source scripts/setup.sh; {then}"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_uv_installs_where_it_is_there_once(folder: Path) -> None:
    uv, calls = folder / "bin" / "uv", folder / "calls"
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/sh\necho "$VIRTUAL_ENV: $@" >> "{calls}"\n')
    uv.chmod(0o755)
    for _ in range(2):
        run = setup(folder, f"{uv.parent}:/usr/bin:/bin")
        assert run.returncode == 0, run.stderr
    assert calls.read_text() == f"{folder / '.venv'}: pip install --quiet -r requirements.txt\n"


def test_without_uv_one_line_says_what_is_missing(folder: Path) -> None:
    for _ in range(2):  # nothing was marked as done
        run = setup(folder, "/usr/bin:/bin")
        assert run.returncode == 1
        (line,) = run.stderr.splitlines()
        assert line.startswith("error: requirements.txt: the environment has no pip")


@pytest.mark.parametrize("active", ["", "VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_goes_before_the_folders(folder: Path, active: str) -> None:
    env = fake_python(folder / "bin")
    given = {active: sys.prefix} if active else {}
    run = setup(folder, env["PATH"], "command -v python", **given)
    wanted = folder / ("bin/python" if active else ".venv/bin/python")
    assert run.stdout == f"{wanted}\n"
