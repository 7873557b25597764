"""Progress bars with a rate and an ETA; plain lines, now and then, where stderr is no terminal."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

COUNT = "{desc}: {percentage:3.0f}%| {n_fmt}/{total_fmt} "
PLAIN = COUNT + "[{elapsed}<{remaining}, {rate_fmt}{postfix}]"
SECONDS = 30.0  # between two plain lines


class Bar(tqdm):
    """tqdm's bar on a terminal; in a file or a pipe a line at most every `SECONDS`."""

    def __init__(self, over: Iterable[Any] | None = None, *args: Any, **how: Any):
        self.is_plain = not (sys.stderr and sys.stderr.isatty())
        self.shown = ""  # on the line that is not ended yet
        if self.is_plain:
            how |= {"mininterval": SECONDS, "maxinterval": 2 * SECONDS, "leave": True}
        else:
            # Within another bar a line of its own, for as long as it runs.
            how = {"dynamic_ncols": True, "leave": None, **how}
        super().__init__(over, *args, **how)
        if self.is_plain and self.total:
            self.bar_format = PLAIN

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Show the state: over the one before or, not on a terminal, below it."""
        if not self.is_plain:
            return super().display(msg, pos)
        text = str(self) if msg is None else msg
        if text.split("[")[0] != self.shown.split("[")[0]:
            self.fp.write("\n" * bool(self.shown) + text)
            self.fp.flush()
            self.shown = text
        return True

    def clear(self, nolock: bool = False) -> None:
        """Make room for a line of others'."""
        if self.disable:
            return None
        if not self.is_plain:
            return super().clear(nolock)
        self.fp.write("\n" * bool(self.shown))
        self.shown = ""
