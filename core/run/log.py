"""`log.jsonl`, the curves of a training."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import files


class Log:
    """`log.jsonl`: one JSON object a row, free of clock times, so that a resumed run's is equal."""

    def __init__(self, path: Path, keep_bytes: int):
        """Open for appending after cutting the file to its first `keep_bytes` bytes."""
        self.path = path
        path.touch()
        os.truncate(path, min(keep_bytes, path.stat().st_size))
        self.rows: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a damaged line
                self.rows.append(json.loads(line))

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; it is on disk when this returns."""
        with files.naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)

    def numbers(self, *names: str) -> Iterator[list[float]]:
        """What the rows so far hold under these names; a row that lacks one is left out."""
        for row in self.rows:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                yield [float(row[name]) for name in names]

    def last_warning(self) -> list[str]:
        """What the last row warns of, in a list; an empty one if of nothing."""
        with contextlib.suppress(TypeError, KeyError, IndexError):
            return [str(self.rows[-1]["warning"])]
        return []

    def bytes(self) -> int:
        """Length of the file."""
        return self.path.stat().st_size
