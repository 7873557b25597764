"""A mirror of log.jsonl in TensorBoard, Weights & Biases or Trackio; the log stays the record."""

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

from core.errors import InputError

TRACKERS = ("none", "tensorboard", "wandb", "trackio")


def check(kind: str) -> None:
    """Before the work: an InputError where the package of a tracker is not installed."""
    found = None if kind == "none" else importlib.util.find_spec(kind)
    # A mere folder of that name, as wandb leaves one where it ran, has no origin.
    if kind != "none" and (found is None or found.origin is None):
        raise InputError(f"--track {kind}: not installed; pip install {kind}")


class Tracker:
    """Where the rows of a training's log go besides.

    `kind`: one of TRACKERS. `out`: the run's directory; TensorBoard writes into OUT/tensorboard,
    the others into the project "puzzle-cam" under the last parts of its path. `identity`: of the
    run, by which wandb knows it again; `step`: that it goes on from.
    """

    def __init__(self, kind: str, out: Path, identity: str, step: int):
        self.board = self.service = None
        if kind == "tensorboard":
            board = importlib.import_module("torch.utils.tensorboard")
            self.board = board.SummaryWriter(out / "tensorboard", purge_step=step + 1)
        elif kind != "none":
            self.service = importlib.import_module(kind)
            name = re.sub(r"[^\w.-]+", "-", "-".join(out.parts[-3:]), flags=re.ASCII).strip("-")
            how: dict[str, Any] = {"project": "puzzle-cam", "name": name}
            how |= {"id": f"{identity}-{how['name']}"[:64]} if kind == "wandb" else {}
            self.service.init(**how, config={"out": str(out)}, resume="allow")

    def write(self, row: dict[str, Any]) -> None:
        """A row of the log: its numbers under their names, at its step."""
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, row["step"])
        if self.service is not None:
            self.service.log(numbers, step=row["step"])

    def finish(self) -> None:
        """All of it is there when this returns."""
        if self.board is not None:
            self.board.close()
        if self.service is not None:
            self.service.finish()
