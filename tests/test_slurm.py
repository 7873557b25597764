"""scripts/pipeline.sbatch: a job whose time is nearly over keeps its state and queues again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from conftest import REPO, fake_python

STAGE = """\
trap 'sleep 1; echo kept >>"$NOTES"; exit 138' USR1
echo "$1" >>"$NOTES"
[ -e "$NOTES.again" ] && exit 0
while true; do sleep 0.1; done
"""


def start(tmp_path: Path) -> tuple[subprocess.Popen, Path]:
    """The job, with a `python` that works until it is stopped and an `scontrol` that notes."""
    notes = tmp_path / "notes"
    env = os.environ | fake_python(tmp_path / "bin", STAGE) | {"NOTES": str(notes)}
    (tmp_path / "bin/scontrol").write_text('#!/bin/bash\necho "$@" >>"$NOTES"\n')
    (tmp_path / "bin/scontrol").chmod(0o755)
    env |= {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(REPO), "DATA": str(tmp_path / "no data")}
    script = str(REPO / "scripts/pipeline.sbatch")
    return subprocess.Popen(["bash", script], env=env, stderr=subprocess.DEVNULL), notes


def test_the_stage_at_work_ends_before_the_job_queues_again(tmp_path):
    job, notes = start(tmp_path)
    until = time.monotonic() + 60
    while not notes.exists() and time.monotonic() < until:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 0
    assert notes.read_text().split("\n") == ["train_classification.py", "kept", "requeue 7", ""]


def test_a_job_that_ends_in_time_runs_every_stage(tmp_path):
    (tmp_path / "notes.again").touch()
    job, notes = start(tmp_path)
    assert job.wait(timeout=60) == 0
    ran = notes.read_text().split()
    assert ran[0] == "train_classification.py" and ran[-1] == "tools/report.py"
    assert "requeue" not in ran
