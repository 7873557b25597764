"""Every golden has a test, and `pytest -k golden` selects them all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GOLDENS

FILES = sorted(path.stem for path in GOLDENS.glob("*.npz"))


def readers() -> Iterator[tuple[str, str]]:
    """(test function, regular expression of the goldens it reads) of every call of `golden`."""
    for path in Path(__file__).parent.glob("test_*.py"):
        tree = ast.parse(path.read_text())
        for function in filter(lambda node: isinstance(node, ast.FunctionDef), ast.walk(tree)):
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "golden":
                    yield function.name, pattern(call.args[0])


def pattern(argument: ast.expr) -> str:
    """A name, or an f-string that some parameter completes."""
    parts = getattr(argument, "values", [argument])
    return "".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in parts)


@pytest.mark.parametrize("name", FILES)
def test_golden_has_a_test(name):
    assert any(re.fullmatch(reader, name) for _, reader in readers()), f"no test reads {name}"


def test_golden_readers_are_named_so():
    assert [test for test, _ in readers() if "golden" not in test] == []
