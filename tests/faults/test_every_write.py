"""Every stage killed at each of its writes (`pytest -m faults`); see power_cut.py.

Two stages run side by side, each forked from a helper of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults.helper import LIMIT, POWER_CUT, Ended, Helper, well
from faults.stages import STAGES, contents, differing, row, said, wait_gone

import pytest
from conftest import REPO, write_data_root

pytestmark = pytest.mark.faults
SOME = (13, 28)  # writes: of the first result and of a later one
FIRST_RESULT = 24  # writes of an --overwrite until there is a new result

TRAININGS = ("classification", "affinity", "segmentation")
# Six images, three steps; each step with a checkpoint, and a row of the log that spans two.
SHORT = dict.fromkeys(TRAININGS, "--batch-size 2 --epochs 1 --log-every 2")
SHORT |= {"cam": "--scales 0.5 1", "affinity_labels": "--workers 0", "pseudo": "--workers 0"}
# Two steps: what is overwritten is killed and started again more often.
SHORTER = SHORT | dict.fromkeys(TRAININGS, "--batch-size 3 --epochs 1 --log-every 2")
# The settings of a directory that is then overwritten.
OTHER = {
    "classification": "--seed 1",
    "cam": "--scales 1",
    "affinity_labels": "--crf-iterations 2",
    "affinity": "--seed 1",
    "rw": "--log2-steps 2",
    "pseudo": "--crf-iterations 2",
    "segmentation": "--seed 1",
    "predictions": "--scales 1",
}


class Case:
    """A stage, what it is given, and what it leaves undisturbed."""

    def __init__(
        self, name: str, inputs: Path, undisturbed: Path, options: str | None = None, ranks: int = 1
    ):
        self.stage, self.inputs, self.ranks = STAGES[name], inputs, ranks
        self.options = SHORT.get(name, "") if options is None else options
        self.wanted = contents(undisturbed, self.stage)
        self.record = settled(undisturbed / self.stage.folders[0])

    def start(self, helper: Helper, out: Path, *more: str, at: int = 0, pool: str = "fork"):
        """Start it below `out`, killed at its write number `at`; 0: let it to its end."""
        options = [*self.options.split(), *more]
        return helper.start(self.stage, self.inputs, out, options, at, self.ranks, pool)

    def check(self, out: Path, ended: Ended) -> None:
        """It ended well, and all it left is what an undisturbed run leaves."""
        well(ended)
        assert not differing(self.wanted, contents(out, self.stage)), ended
        assert settled(out / self.stage.folders[0]) == self.record


def settled(folder: Path) -> dict:
    """The run.json without times, memory and the words of the command."""
    record = json.loads((folder / "run.json").read_text())
    record["results"] = {k: v for k, v in record["results"].items() if not k.startswith("peak")}
    return {k: v for k, v in record.items() if k not in ("argv", "arguments", "started", "seconds")}


@pytest.fixture(scope="module")
def cases(helpers, tmp_path_factory) -> dict[str, Case]:
    """Every stage, after an undisturbed run of all."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_data_root(root / "data", n_train=6, n_val=4)
    for name, stage in STAGES.items():
        options = SHORT.get(name, "").split()
        well(helpers[0].start(stage, root, root, options))
    return {name: Case(name, root, root) for name in STAGES}


def undisturbed(
    name: str, inputs: Path, out: Path, helper: Helper, options: str, ranks: int = 1
) -> Case:
    """The case of other options or several ranks, after an undisturbed run below `out`."""
    well(helper.start(STAGES[name], inputs, out, options.split(), ranks=ranks))
    return Case(name, inputs, out, options, ranks)


def at_every_write(helpers: list[Helper], kill: Callable[[Helper, int], bool]) -> int:
    """Call kill(helper, n) for n = 1, 2, ... until one says that the stage had fewer writes.

    Returns the number of kills.
    """
    with ThreadPoolExecutor(len(helpers)) as pool:
        for first in itertools.count(1, len(helpers)):
            killed = list(pool.map(kill, helpers, itertools.count(first)))
            if not all(killed):
                return first - 1 + killed.index(False)
    raise AssertionError


def killed(case: Case, ended: Ended, out: Path) -> bool:
    """Whether it was killed; if not, it had ended well before."""
    if ended.status == 0:
        case.check(out, ended)
        return False
    assert (ended.status, ended.lines) == (-signal.SIGKILL, []), ended
    return True


def kill_everywhere(case: Case, helpers: list[Helper], tmp_path: Path) -> int:
    """Kill at every write; the same command then ends with the bytes of an undisturbed run."""

    def kill(helper: Helper, n: int) -> bool:
        out = tmp_path / str(n)
        if not killed(case, case.start(helper, out, at=n), out):
            return False
        case.check(out, case.start(helper, out))
        shutil.rmtree(out)
        return True

    return at_every_write(helpers, kill)


@pytest.mark.parametrize("name", STAGES)
def test_killed_at_every_write(cases, helpers, tmp_path, name):
    count = kill_everywhere(cases[name], helpers, tmp_path)
    row(f"SIGKILL in {STAGES[name].script}", "at every write", count, "same bytes")


@pytest.mark.parametrize("name", STAGES)
def test_killed_while_it_overwrites(cases, helpers, tmp_path, name):
    """In a finished directory of other settings, which is not taken for one of these."""
    inputs, options = cases[name].inputs, SHORTER.get(name, "")
    case = undisturbed(name, inputs, tmp_path / "new", helpers[0], options)
    well(case.start(helpers[0], tmp_path / "old", *OTHER[name].split()))
    refused, went_on = [], []

    def kill(helper: Helper, n: int) -> bool:
        out, twin = tmp_path / str(n), tmp_path / f"{n}b"
        shutil.copytree(tmp_path / "old", out)
        if not killed(case, case.start(helper, out, "--overwrite", at=n), out):
            return False
        # Once a new result may be there, one of both ways on is taken at each write.
        if n % 2 == 0 or n < FIRST_RESULT:
            shutil.copytree(out, twin)
        if n % 2 or n < FIRST_RESULT:
            case.check(out, case.start(helper, out, "--overwrite"))
        if twin.exists():
            without = case.start(helper, twin)
            if without.status == 1:
                (line,) = without.lines
                assert "made with other settings" in line and "--overwrite" in line
                refused.append(n)
            else:
                case.check(twin, without)
                went_on.append(n)
            shutil.rmtree(twin)
        shutil.rmtree(out)
        return True

    count = at_every_write(helpers, kill)
    assert refused and went_on and max(refused) < min(went_on)
    without = f"without --overwrite {len(refused)} times refused, {len(went_on)} times same bytes"
    row(f"SIGKILL in {case.stage.script} --overwrite", "at every write", count,
        f"same bytes; {without}")  # fmt: skip


@pytest.mark.parametrize("name", ["affinity", "cam"])
def test_two_ranks_killed_at_every_write(cases, helpers, tmp_path, name):
    one = cases[name]
    case = undisturbed(name, one.inputs, tmp_path / "new", helpers[0], one.options, ranks=2)
    if name == "cam":
        assert not differing(one.wanted, case.wanted)
    count = kill_everywhere(case, helpers, tmp_path)
    row(f"SIGKILL in {case.stage.script}, two ranks", "at every write", count, "same bytes")


@pytest.mark.parametrize("name", ["affinity_labels", "pseudo", "predictions"])
def test_real_pool_killed_at_some_writes(cases, helpers, tmp_path, name):
    """With CRF processes from their fork server, as users have them."""
    case = cases[name]

    def kill(helper: Helper, n: int) -> None:
        out = tmp_path / str(n)
        assert killed(case, case.start(helper, out, at=n, pool="forkserver"), out)
        case.check(out, case.start(helper, out, pool="forkserver"))

    with ThreadPoolExecutor(len(helpers)) as pool:
        list(pool.map(kill, helpers, SOME))
    row(f"SIGKILL in {case.stage.script}, fork server", f"at writes {SOME}", len(SOME),
        "same bytes")  # fmt: skip


@pytest.mark.parametrize("name", ["affinity", "rw"])
def test_launched_ranks_killed_at_some_writes(cases, tmp_path, name):
    """Two processes of core/run/launch.py, and the launcher, are killed at once."""
    one = cases[name]
    options = one.stage.arguments(one.inputs, tmp_path / "out", *SHORT.get(name, "").split())
    launch = [sys.executable, "-m", "core.run.launch", "--processes", "2"]
    log, folder = tmp_path / "writes", tmp_path / "out" / one.stage.folders[0]

    def start(at: int) -> Ended:
        log.unlink(missing_ok=True)
        cut = json.dumps({"at": at, "below": str(folder), "log": str(log)})
        process = subprocess.Popen(
            [*launch, str(POWER_CUT), one.stage.script, *options], cwd=REPO, text=True,
            env=os.environ | {"POWER_CUT": cut}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        _, stderr = process.communicate(timeout=LIMIT)
        groups = log.with_name("writes.groups").read_text().split()
        assert not any(wait_gone(int(group)) for group in groups)
        return Ended(process.returncode, said(stderr), log.read_text().splitlines())

    well(start(0))
    case = Case(name, one.inputs, tmp_path / "out", ranks=2)
    if name == "rw":
        assert not differing(one.wanted, case.wanted)
    for at in SOME:
        shutil.rmtree(folder)
        assert killed(case, start(at), tmp_path / "out")
        case.check(tmp_path / "out", start(0))
    row(f"SIGKILL in {case.stage.script} and its launcher, two ranks", f"at writes {SOME}",
        len(SOME), "same bytes")  # fmt: skip
