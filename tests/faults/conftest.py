"""Prints the table of what was injected at the end of a run that includes the long tests."""

from __future__ import annotations

from collections.abc import Iterator

from faults.helper import Helper
from faults.stages import ROWS

import pytest


@pytest.fixture(scope="package")
def helpers(tmp_path_factory) -> Iterator[list[Helper]]:
    """Two helpers, for the stages that run side by side."""
    both = [Helper(tmp_path_factory.mktemp("helper")) for _ in range(2)]
    yield both
    for helper in both:
        helper.close()


def pytest_sessionfinish(session) -> None:
    if hasattr(session.config, "workeroutput"):  # of pytest-xdist's: the rows go to the parent
        session.config.workeroutput["rows"] = [list(entry) for entry in ROWS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    ROWS.extend(map(tuple, getattr(node, "workeroutput", {}).get("rows", ())))


def pytest_terminal_summary(terminalreporter, config) -> None:
    if ROWS and config.getoption("markexpr") != "not faults":
        terminalreporter.section("faults injected")
        for entry in ROWS:
            terminalreporter.write_line("| " + " | ".join(map(str, entry)) + " |")
