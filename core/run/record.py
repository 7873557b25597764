"""What a run was told, where it ran and what it saw: `run.json`, `log.jsonl`, and the lock."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import torch

from core import files
from core.data.datasets import class_difference
from core.errors import InputError
from core.run import distributed, lock, options
from core.run.environment import environment

# What a directory holds, and its files.
HOLDS = {"model": "model.pt", "scores": "*.npz", "labels": "*.png"}
# What `--overwrite` removes, and nothing else: what stages write, and what a killed one leaves.
TEMPORARY = (".*.tmp",)
ARTEFACTS = (
    *HOLDS.values(), "last.pt", "log.jsonl", "overlays/*", "heat_maps/*.jpg", "run.json", *TEMPORARY
)  # fmt: skip


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The settings that differ, `name old -> new`, comma-separated; empty where none does."""
    names = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return ", ".join(f"{k} {old.get(k)} -> {new.get(k)}" for k in names)


def digest(folder: Path, holds: str) -> str:
    """Digest of the files that are what a directory holds."""
    if holds == "model":
        return files.digest_file(folder / HOLDS[holds])
    return files.digest_files(folder.glob(HOLDS[holds]))


def read(folder: Path, holds: str, classes: Sequence[str] | None) -> dict[str, Any]:
    """The run.json of a finished directory that a stage reads, whichever stage made it.

    Its `digest` is that of the files there.

    Args:
        holds: what the reader needs: "model", "scores" or "labels".
        classes: the class names of the data set; None takes any.

    Raises:
        InputError: it holds something else, is not finished, has other classes, or its files have
            changed since.
    """
    record = files.read_json(folder / "run.json", f"give a directory of {holds}")
    if record.get("holds") != holds:
        made = f"{record.get('holds') or 'something else'} (made by {record.get('stage')})"
        raise InputError(f"{folder}: holds {made}; give a directory of {holds}")
    if record.get("finished") is not True:
        raise InputError(f"{folder}: not finished; start {record.get('stage')} again")
    theirs = record.get("classes")
    if classes is not None and theirs != list(classes):
        raise InputError(f"{folder}: {class_difference(theirs, classes)}")
    found = digest(folder, holds)
    if record.get("digest") != found:
        raise InputError(
            f"{folder}: changed since its run finished ({record.get('digest')} -> {found}); "
            f"restore it or start {record.get('stage')} again with --overwrite"
        )
    return record


def read_labels(folder: Path, ids: Sequence[str], classes: Sequence[str]) -> str:
    """Digest of a directory of label maps: a stage's, or anyone's PNGs without a run.json.

    Raises:
        InputError: see `read`; or the label map of an id is missing.
    """
    if (folder / "run.json").exists():
        return read(folder, "labels", classes)["digest"]
    return files.digest_files(folder / f"{i}.png" for i in ids)


def read_model(path: Path, classes: Sequence[str] | None = None) -> str:
    """Digest of a checkpoint; checked like a directory where a run.json lies beside `model.pt`."""
    if path.name == HOLDS["model"] and path.with_name("run.json").exists():
        return read(path.parent, "model", classes)["digest"]
    return files.digest_file(path)


class Run:
    """A stage's output directory, held by one process group at a time.

    Making one takes the lock, refuses a directory made with other settings, and writes
    `run.json`; `finished` then says whether everything is there already. Use it with `with`.

    Args:
        args: from `options.Parser`. holds: "model", "scores" or "labels".
        classes: the class names. inputs: digest of each input, compared like a setting.
        resolved: what options became: what "auto" stands for is compared until the run has
            finished, everything else is on record only.
    """

    def __init__(
        self,
        stage: str,
        args: argparse.Namespace,
        device: torch.device,
        holds: str,
        classes: Sequence[str],
        inputs: dict[str, str],
        resolved: dict[str, Any] | None = None,
    ):
        self.stage, self.out, self.device, self.holds = stage, args.out, device, holds
        self.began = time.monotonic()
        self.defaults = args.defaults
        given = {k: v for k, v in vars(args).items() if k not in ("settings", "defaults")}
        self.record: dict[str, Any] = {
            "stage": stage,
            "holds": holds,
            "classes": list(classes),
            "argv": sys.argv,
            "settings": args.settings,
            "inputs": inputs,
            "arguments": options.as_json(given),
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
            self._lock = lock.take(self.out)
            try:
                state = self._open(args.overwrite, args.stale == "redo")
            except BaseException:
                self.__exit__()
                raise
        self.finished = distributed.agree(state, device) == 1
        distributed.check_shared(self.out)
        if self.finished and distributed.is_main():
            print(f"{self.out}: already there, made with these settings; nothing to do", flush=True)

    @property
    def path(self) -> Path:
        """The run.json of this run."""
        return self.out / "run.json"

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _open(self, overwrite: bool, redo: bool) -> int:
        """Compare with what is there; 1 if the run is complete already."""
        if overwrite:
            self._clear()
        if self.path.exists():
            old = files.read_json(self.path, "start again with --overwrite")
            if any(any(self.out.glob(pattern)) for pattern in (*HOLDS.values(), "last.pt")):
                other = self._compare(old)
                if other and not redo:
                    raise InputError(other)
                if other:
                    self._clear()
                elif old.get("finished") is True:
                    read(self.out, self.holds, self.record["classes"])
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
        if old.get("classes") != self.record["classes"]:
            what = class_difference(old.get("classes"), self.record["classes"])
            return f"{self.out}: {what}; choose another --out, or start again with --overwrite"
        before, now = self.defaults | _mapping(old, "settings"), self.record["settings"]
        same = {k for k in now if old.get("finished") is True and before.get(k) == now[k]}
        # "auto" is what it stands for, and must not come to stand for something else halfway.
        before = before | _resolved(before, old, same)
        now = now | _resolved(now, self.record, same)
        changes = {
            "settings": difference(before, now),
            "inputs": difference(_mapping(old, "inputs"), self.record["inputs"]),
        }
        for what, changed in changes.items():
            if changed:
                return (
                    f"{self.out}: made with other {what} ({changed}); choose another --out, or "
                    "start again with --overwrite"
                )
        return ""

    def _clear(self) -> None:
        """Remove what this stage left, never another stage's results."""
        if not self.path.exists():
            return  # not a directory of ours: _open refuses it if it holds anything
        made_by: Any = self.stage
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

    def finish(self, **results: Any) -> None:
        """Record the digest of what is there, results and the wall time; mark the run complete."""
        distributed.barrier()
        if distributed.is_main():
            seconds = self.record["seconds"] + time.monotonic() - self.began
            # Linux counts in KiB; this process alone, not its workers.
            results["peak_cpu_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            if self.device.type == "cuda":
                results["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(self.device)
            self.record.update(
                digest=digest(self.out, self.holds),
                results=results,
                seconds=round(seconds, 1),
                finished=True,
            )
            self._write()
        distributed.barrier()


def _resolved(settings: dict[str, Any], record: dict[str, Any], but: set[str]) -> dict[str, Any]:
    """What the settings that say "auto" became, but for some of them."""
    resolved = _mapping(record, "resolved")
    return {k: resolved.get(k, v) for k, v in settings.items() if v == "auto" and k not in but}


def _mapping(record: dict[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


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
