"""Autocast types and determinism: how exactly a run computes."""

import contextlib
import os
from pathlib import Path

from core.run import distributed

import torch

# The newest hardware's first.
AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}


def amp_type(choice: str, device: torch.device) -> str:
    """Resolve --amp: "auto" is bf16 where that is fast, fp16 on older GPUs, off on other CPUs.

    Of several processes all take what the one with the oldest device can.
    """
    if choice != "auto":
        return choice
    return max(distributed.gather(fastest(device)), key=list(AMP_TYPES).index)


def fastest(device: torch.device) -> str:
    """What "auto" is on a device."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
        if "avx512_bf16" in flags or "amx_bf16" in flags:
            return "bf16"
    return "off"


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """The autocast context of a resolved --amp."""
    return torch.autocast(device.type, AMP_TYPES[amp], enabled=AMP_TYPES[amp] is not None)


def set_determinism(deterministic: bool, device: torch.device) -> None:
    """--deterministic, or cuDNN's fastest convolutions."""
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
