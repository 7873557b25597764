"""Prints the table of what was injected at the end of a run that includes the long tests."""

from __future__ import annotations

from faults.stages import ROWS


def pytest_terminal_summary(terminalreporter, config) -> None:
    if ROWS and config.getoption("markexpr") != "not faults":
        terminalreporter.section("faults injected")
        for entry in ROWS:
            terminalreporter.write_line("| " + " | ".join(map(str, entry)) + " |")
