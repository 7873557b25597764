"""On what a run ran: versions, machine, git commit."""

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from core.run import distributed

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "pydensecrf2",
    "timm",
)


@functools.cache
def versions() -> dict[str, str | None]:
    """Of Python, the packages and CUDA; None for what is not there."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def environment(device: torch.device | str) -> dict[str, Any]:
    """Versions, machine and git commit."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "versions": versions(),
        "git": git_commit(),
        "device": str(device),
        "device_name": name,
        "cpus": os.cpu_count(),
        "processes": distributed.world_size(),
    }


@functools.cache
def git_commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), "CPU")
