"""Command lines and the types of their values, for scripts that run without torch too."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from core.run.main import end

N = TypeVar("N", int, float)


class OneLineParser(argparse.ArgumentParser):
    """A command line whose errors are one line, said once where several processes read it."""

    def error(self, message: str) -> NoReturn:
        end(f"{self.prog}: error: {message}; --help lists the options", 2)


def path(text: str) -> Path:
    """An argparse type: a path; an empty one, as of a variable that is not set, is none."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def _bounded(kind: type[N], low: N, high: N, words: str) -> Callable[[str], N]:
    def parse(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            value = high + 1
        if not low <= value <= high:  # NaN is nowhere between
            raise argparse.ArgumentTypeError(f"{text} is not {words} from {low:g} to {high:g}")
        return value

    return parse


def integer(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: an integer from `low` to `high`."""
    return _bounded(int, low, high, "a whole number")


def number(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`."""
    return _bounded(float, low, high, "a number")


def or_word(word: str, kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type: `word` itself, or what `kind` takes."""
    return lambda text: text if text == word else kind(text)


fraction = number(0, 1)
scale = number(0.05, 4)  # of an image
side = integer(16, 16384)  # of an image, in pixels
seed = integer(0, 2**32 - 1)
count = integer(0, 10**9)  # of images, say
