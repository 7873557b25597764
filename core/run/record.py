"""What a run was told, where it ran and what it saw: `run.json`, `log.jsonl`, and the lock."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from core import files
from core.errors import InputError
from core.run import distributed

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "opencv-python-headless", "pydensecrf2")
# Options that change where and how fast a run goes, not what it computes. Paths of inputs are
# compared by what they hold (the digests), not by name.
EXECUTION = {
    "data",
    "out",
    "device",
    "workers",
    "jobs",
    "overwrite",
    "stale",
    "save_every",
    "log_every",
    "json",
    "labels",
    "cams",
    "affinity",
    "checkpoint",
    "weights",
    "save_scores",
    "compile",
    "save_predictions",
    "batch_images",
}
# What the stages leave in their directories; `--overwrite` removes these and nothing else.
RESULTS = (
    "*.npz", "*.png", "*.pt", "labels/*.png", "masks/*.png", "overlays/*.jpg", "cams/*.jpg",
)  # fmt: skip
TEMPORARY = (".*.tmp", "labels/.*.tmp")  # left by a process that was killed while it wrote
ARTEFACTS = (*RESULTS, "log.jsonl", "run.json", *TEMPORARY)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The resolved options that decide what a run computes, as JSON values."""
    chosen = {k: v for k, v in vars(args).items() if k not in EXECUTION}
    return json.loads(json.dumps(chosen, default=str))


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The settings that differ, `name old -> new`, comma-separated; empty where none does."""
    names = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return ", ".join(f"{k} {old.get(k)} -> {new.get(k)}" for k in names)


def environment(device: torch.device | str) -> dict[str, Any]:
    """Versions, machine and git commit."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "versions": versions,
        "git": _git_commit(),
        "device": str(device),
        "device_name": name,
        "cpus": os.cpu_count(),
        "processes": distributed.world_size(),
    }


def _git_commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), "CPU")


def outputs_digest(folder: Path, pattern: str, stage: str) -> str:
    """Digest of a finished stage's files, for the stage after it.

    Raises:
        InputError: not a directory of that stage, or one that was not finished.
    """
    record = files.read_json(folder / "run.json", f"give a directory that {stage} made")
    if record.get("stage") != stage:
        raise InputError(f"{folder}: made by {record.get('stage')}, not by {stage}")
    if record.get("finished") is not True:
        raise InputError(f"{folder}: {stage} has not finished there; start it again")
    digest = files.digest_files(folder.glob(pattern))
    _compare_recorded(folder, record, "files", digest)
    return digest


def model_digest(path: Path) -> str:
    """Digest of a checkpoint, for the stage that reads it.

    Raises:
        InputError: missing, or not the `model.pt` that the run.json beside it tells of.
    """
    digest = files.digest_file(path)
    record = path.with_name("run.json")
    if path.name == "model.pt" and record.exists():
        _compare_recorded(path, files.read_json(record, "restore it"), "model", digest)
    return digest


def _compare_recorded(path: Path, record: dict[str, Any], name: str, digest: str) -> None:
    results = record.get("results")
    recorded = results.get(name, digest) if isinstance(results, dict) else digest
    if recorded != digest:
        raise InputError(
            f"{path}: changed since its run finished ({recorded} -> {digest}); restore it or start "
            f"{record.get('stage')} again with --overwrite"
        )


class Run:
    """A stage's output directory, held by one process group at a time.

    Making one takes the lock, refuses a directory made with other settings, and writes
    `run.json`; `finished` then says whether everything is there already. Use it with `with`.

    Args:
        inputs: digest of each input (data, CAMs, checkpoint ...), compared like a setting.
        resolved: facts worth recording that are not options (e.g. the AMP type "auto" became).
    """

    def __init__(
        self,
        stage: str,
        out: Path,
        args: argparse.Namespace,
        device: torch.device,
        inputs: dict[str, str],
        resolved: dict[str, Any] | None = None,
    ):
        self.stage, self.out, self.device = stage, out, device
        self.began = time.monotonic()
        self.record: dict[str, Any] = {
            "stage": stage,
            "argv": sys.argv,
            "settings": settings_of(args),
            "inputs": inputs,
            "arguments": json.loads(json.dumps(vars(args), default=str)),
            "resolved": resolved or {},
            "seed": getattr(args, "seed", None),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "finished": False,
            **environment(device),
        }
        self._lock: IO[str] | None = None
        state = 0
        if distributed.is_main():
            self._take_lock()
            try:
                state = self._open(args.overwrite, args.stale == "redo")
            except BaseException:
                self.__exit__()
                raise
        self.finished = distributed.agree(state, device) == 1
        if self.finished and distributed.is_main():
            print(f"{out}: already there, made with these settings; nothing to do", flush=True)

    @property
    def path(self) -> Path:
        """The run.json of this run."""
        return self.out / "run.json"

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _take_lock(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.out / ".lock", "w")  # noqa: SIM115 - held for the run's life
        except OSError as error:
            raise InputError(f"{self.out}: cannot be written ({error.strerror})") from None
        try:
            # A POSIX lock: unlike flock's it is not inherited by worker processes, which may
            # outlive a killed run for some seconds.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._lock.close()
            raise InputError(f"{self.out}: another process is writing there; wait for it") from None

    def _open(self, overwrite: bool, redo: bool) -> int:
        """Compare with what is there; 1 if the run is complete already."""
        if overwrite:
            self._clear()
        if self.path.exists():
            old = files.read_json(self.path, "start anew with --overwrite")
            if any(any(self.out.glob(pattern)) for pattern in RESULTS):
                other = self._compare(old)
                if other and not redo:
                    raise InputError(other)
                if other:
                    self._clear()
                elif old.get("finished") is True:
                    self.record = old
                    return 1
                else:
                    seconds = old.get("seconds")
                    self.record["seconds"] = seconds if isinstance(seconds, float) else 0.0
        elif any(p.is_file() and not p.name.startswith(".") for p in self.out.rglob("*")):
            raise InputError(f"{self.out}: holds files but no run.json; choose an empty directory")
        self._remove(TEMPORARY)
        self._write()
        return 0

    def _compare(self, old: dict[str, Any]) -> str:
        """What forbids going on from an earlier run.json, in one line; empty if nothing does."""
        if old.get("stage") != self.stage:
            raise InputError(f"{self.out}: made by {old.get('stage')}; choose another --out")
        for what in ("settings", "inputs"):
            before = old.get(what) if isinstance(old.get(what), dict) else {}
            changed = difference(before, self.record[what])
            if changed:
                return (
                    f"{self.out}: made with other {what} ({changed}); choose another --out, or "
                    "start anew with --overwrite"
                )
        return ""

    def _clear(self) -> None:
        """Remove what this stage left, never another stage's results."""
        if not self.path.exists():
            return  # not a directory of ours: _open refuses it if it holds anything
        made_by = self.stage
        with contextlib.suppress(InputError):  # a damaged run.json is what --overwrite mends
            made_by = files.read_json(self.path, "").get("stage")
        if made_by != self.stage:
            raise InputError(f"{self.out}: made by {made_by}; choose another --out")
        self._remove(ARTEFACTS)

    def _remove(self, patterns: Sequence[str]) -> None:
        for pattern in patterns:
            for path in self.out.glob(pattern):
                path.unlink()

    def _write(self) -> None:
        files.write_json(self.path, self.record)

    def finish(self, outputs: str | None = None, **results: Any) -> None:
        """Record results and the wall time, and mark the run complete. Rank 0 only acts.

        Args:
            outputs: pattern of the files whose digest is recorded, for `outputs_digest`.
        """
        distributed.barrier()
        if distributed.is_main():
            if outputs is not None:
                results["files"] = files.digest_files(self.out.glob(outputs))
            seconds = self.record["seconds"] + time.monotonic() - self.began
            self.record["seconds"] = round(seconds, 1)
            # Linux counts in KiB; this process alone, not its workers.
            results["peak_cpu_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            if self.device.type == "cuda":
                results["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(self.device)
            self.record.update(results=results, finished=True)
            self._write()
        distributed.barrier()


class Log:
    """`log.jsonl`: one JSON object a row, free of clock times, so that a resumed run's is equal."""

    def __init__(self, path: Path, keep_bytes: int):
        """Open for appending after cutting the file to its first `keep_bytes` bytes."""
        self.path = path
        path.touch()
        os.truncate(path, min(keep_bytes, path.stat().st_size))

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it is on disk when this returns."""
        with files.naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def bytes(self) -> int:
        """Length of the file."""
        return self.path.stat().st_size
