"""Errors a user can fix, reported in one line (core/run/main.py prints them)."""

from __future__ import annotations


class InputError(Exception):
    """Bad input. The message is one line that names the file and the remedy."""

    def __init__(self, message: str):
        # A DataLoader re-raises a worker's exception with its whole traceback as the message.
        line = " ".join(message.rsplit("InputError: ", 1)[-1].strip().splitlines())
        super().__init__(line if len(line) < 2000 else f"{line[:2000]} ...")
