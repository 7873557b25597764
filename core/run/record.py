"""What a run was told, where it ran and what it saw: `run.json`, and the lock."""

import argparse
import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from core import files
from core.data import health
from core.data.datasets import FOLDERS, class_difference
from core.errors import InputError
from core.run import distributed, lock, messages, options
from core.run import main as ending
from core.run.artefacts import (
    HOLDS,
    SUMS,
    mapping,
    note_versions,
    read,
    read_sums,
    repeat_warnings,
    seal,
    write_sums,
)
from core.run.environment import environment

import torch


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The settings that differ, `name old -> new`, comma-separated; empty where none does."""
    names = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return ", ".join(f"{k} {old.get(k)} -> {new.get(k)}" for k in names)


def _refuse_overlap(args: argparse.Namespace) -> None:
    """Keep a run from writing where it, or another run, reads.

    Raises:
        InputError: --out is an input, or lies in one, or an input file lies there.
    """
    out = args.out.resolve()
    for option, value in vars(args).items():
        for each in value if isinstance(value, list) else [value]:
            path = Path(each) if option == "weights" else each
            if option == "out" or not isinstance(path, Path):
                continue
            if path.is_file() and path.resolve().parent == out:
                raise InputError(f"{path} is read, and lies in --out {args.out}; choose another")
            if not path.is_dir():
                continue
            inside = [path] if option != "data" else [path / name for name in FOLDERS]
            if out == path.resolve() or any(p.resolve() in (out, *out.parents) for p in inside):
                raise InputError(f"--out {args.out} is in {path}, which is read; choose another")


class Run:
    """A stage's output directory, held by one process group at a time.

    Making one takes the lock, refuses a directory made with other settings, and writes
    `run.json`; `finished` then says whether everything is there already. Use it with `with`.

    Args:
        args: from `options.Parser`. holds: "model", "scores" or "labels".
        classes: the class names. inputs: digest of each input, compared like a setting.
        names: of scores or label maps: the images that they are made of.
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
        names: Sequence[str] = ("",),
    ):
        _refuse_overlap(args)
        self.stage, self.out, self.device, self.holds = stage, args.out, device, holds
        self.makes = [f"{name}{HOLDS[holds]}" for name in names]
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
        ending.resumes = ending.going_on(args.overwrite)
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
        elif distributed.is_main():
            there = sum((self.out / name).exists() for name in self.makes)
            print(messages.header(self.record, self.makes, self.out, there), flush=True)

    @property
    def path(self) -> Path:
        """The run.json of this run."""
        return self.out / "run.json"

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if self._lock is not None:
            if kind is not None and not self.record["finished"]:  # the next start counts on
                with contextlib.suppress(OSError, InputError):
                    self.record["seconds"] = self._seconds()
                    self._write()
            self._lock.close()

    def _seconds(self) -> float:
        """Wall time of this start and of those before it."""
        return round(self.record["seconds"] + time.monotonic() - self.began, 1)

    @property
    def identity(self) -> str:
        """Digest of all that decides what the run computes, for what it writes on the way."""
        settings, inputs = self.record["settings"], self.record["inputs"]
        decided = settings | _resolved(settings, self.record, set())
        # Not the defaults, so that a new option changes nothing; images are compared by `_compare`.
        rows = [f"{k} {v}" for k, v in sorted(decided.items()) if v != self.defaults[k]]
        rows += [f"{k} {v}" for k, v in inputs.items() if k not in ("images", "contents")]
        return files.digest_text([*self.record["classes"], "", *rows])

    def _open(self, overwrite: bool, redo: bool) -> int:
        """Compare with what is there; 1 if the run is complete already."""
        if self.path.exists():
            old = files.read_json(self.path, "choose another --out or remove this directory")
            if old.get("stage") != self.stage:
                raise InputError(f"{self.out}: made by {old.get('stage')}; choose another --out")
            begun = [name for name in self._written(old) if (self.out / name).exists()]
            other = self._compare(old) if begun and not overwrite else ""
            if other and not redo:
                raise InputError(other)
            if other or overwrite:
                files.write_json(self.path, old | {"finished": False})
                for name in begun:
                    (self.out / name).unlink()
            elif old.get("finished") is True:
                read(self.out, self.holds, self.record["classes"])
                self.record = old
                return 1
            elif begun:
                seconds = old.get("seconds")
                self.record["seconds"] = seconds if isinstance(seconds, float) else 0.0
                note_versions(self.out, "begun", old)
                self._note_batch(mapping(old, "resolved").get("bn_batch"))
        elif any(p.is_file() and not p.name.startswith(".") for p in self.out.rglob("*")):
            raise InputError(f"{self.out}: holds files but no run.json; choose an empty directory")
        for folder in (".", "overlays", "heat_maps", "heat_maps/*"):
            for path in self.out.glob(f"{folder}/.*.tmp"):  # what a killed run left half-written
                path.unlink()
        self._write()
        write_sums(self.out, dict.fromkeys(self.makes, "-"))
        return 0

    def _note_batch(self, before: int | str | None) -> None:
        """Say, and keep on record, that a BatchNorm saw batches of another size before."""
        resolved = self.record["resolved"]
        now = resolved.get("bn_batch")
        if before is None or now is None or self.stage != "train_classification":
            return  # the others' are frozen
        if str(before).split()[-1] != str(now):
            what = f"BatchNorm over {before} images before, over {now} from here"
            words = f"{what}: another result than of one number of processes; run.json says so"
            print(f"note: {self.out}: {words}", file=sys.stderr)
            before = f"{before}, then {now}"
        resolved["bn_batch"] = before

    def _written(self, old: dict[str, Any]) -> Iterator[str]:
        """Names of all files that the run of a record may have written: its results."""
        makes = read_sums(self.out) if (self.out / SUMS).exists() else {}
        yield from makes
        if self.holds == "model":
            yield from ("last.pt", "log.jsonl")
        if self.stage == "predict":
            yield "overlays/legend.png"
            classes = old.get("classes")
            for name in (Path(each).stem for each in makes):
                yield f"overlays/{name}.jpg"
                for each in classes if isinstance(classes, list) else ():
                    yield f"heat_maps/{name}/{each}.jpg"
                    yield f"heat_maps/{name}_{each}.jpg"  # of earlier versions

    def _compare(self, old: dict[str, Any]) -> str:
        """What forbids going on from an earlier run.json, in one line; empty if nothing does."""
        if old.get("classes") != self.record["classes"]:
            what = class_difference(old.get("classes"), self.record["classes"])
            return f"{self.out}: {what}; choose another --out, or start again with --overwrite"
        before, now = self.defaults | mapping(old, "settings"), self.record["settings"]
        same = {k for k in now if old.get("finished") is True and before.get(k) == now[k]}
        # "auto" is what it stands for, and must not come to stand for something else halfway.
        before = before | _resolved(before, old, same)
        now = now | _resolved(now, self.record, same)
        if before.get("crf_backend") == "no CRF":  # of older records, where it could be "auto"
            before["crf_backend"] = now["crf_backend"]
        read, reads = mapping(old, "inputs"), self.record["inputs"]
        changes = {
            "settings": difference(before, now),
            "inputs": difference(comparable(read, reads), comparable(reads, read)),
        }
        for what, changed in changes.items():
            if changed:
                return (
                    f"{self.out}: made with other {what} ({changed}); choose another --out, or "
                    "start again with --overwrite"
                )
        return ""

    def _write(self) -> None:
        files.write_json(self.path, self.record)

    def finish(
        self,
        labels: Mapping[str, list[int]] | None = None,
        warnings: Sequence[str] = (),
        **results: Any,
    ) -> None:
        """Record the digest of what is there, results and the wall time; mark the run complete.

        `labels`: of label maps: the classes in each image, where they are known, for their health.
        `warnings`: what a reader of this directory should know.
        """
        distributed.barrier()
        if distributed.is_main():
            warnings = list(warnings)
            names, classes = [Path(name).stem for name in self.makes], self.record["classes"]
            if self.holds == "labels":
                results["health"] = health.measure(self.out, names, classes, labels)
            elif self.holds == "scores":
                results["health"] = health.measure_scores(self.out, names, classes)
            if "health" in results:
                warnings += health.warnings(results["health"])
            if warnings:
                results["warnings"] = warnings
            # Linux counts in KiB; this process alone, not its workers.
            results["peak_cpu_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            if self.device.type == "cuda":
                results["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(self.device)
            self.record["digest"] = seal(self.out, self.makes)
            self.record |= {"results": results, "seconds": self._seconds(), "finished": True}
            self._write()
            repeat_warnings(self.out, self.record)
            print(messages.trailer(self.record, len(self.makes), self.out), flush=True)
        distributed.barrier()


def _resolved(settings: dict[str, Any], record: dict[str, Any], but: set[str]) -> dict[str, Any]:
    """What the settings that say "auto" became, but for some of them."""
    resolved = mapping(record, "resolved")
    return {k: resolved.get(k, v) for k, v in settings.items() if v == "auto" and k not in but}


def comparable(inputs: dict[str, str], other: dict[str, str]) -> dict[str, str]:
    """Inputs without sizes and times of images where both have digests of their contents.

    And without those digests where only one has them.
    """
    left_out = "images" if "contents" in inputs and "contents" in other else "contents"
    return {k: v for k, v in inputs.items() if k != left_out}
