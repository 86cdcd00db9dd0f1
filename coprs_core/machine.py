"""What this machine has: devices, free memory, free disk, read live. Sizes are bytes throughout."""

import platform
import shutil
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from coprs_core.errors import CoPRSError

GB = 1e9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
          "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # fmt: skip


def in_words(size: float) -> str:
    """Bytes as a person reads them: 3 kB, 12 MB, 7.5 GB."""
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.0f} MB" if size < GB else f"{size / GB:.1f} GB"


def choose_device(device: str) -> torch.device:
    """The torch device of a name, "auto" included; raises `CoPRSError` where this machine does not have it."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as problem:
        raise CoPRSError(f"Device {device!r} is not known: choose auto, cuda, cuda:1, mps or cpu.") from problem
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(
        chosen.type, False
    )
    if not there or (chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()):
        raise CoPRSError(f"This machine has no device {device!r}: choose auto or cpu.")
    return chosen


def choose_dtype(dtype: str, device: torch.device, weights: int = 0) -> torch.dtype:
    """The precision of a name. "auto" is bfloat16 on a GPU; on a CPU float32, but bfloat16 from 1 GB of weights on."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" and weights < GB else torch.bfloat16
    if dtype not in DTYPES:
        raise CoPRSError(f"Precision {dtype!r} is not known: choose auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def free_memory(device: torch.device) -> int:
    """Bytes that a model could still take on a device: the GPU's own memory, else the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, *_container_limits())


def _container_limits() -> list[int]:
    """Free memory under each limit that a container sets (control groups, version 2)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return [limit - used + int(stat["inactive_file"])]  # pages of files are given up when memory is asked for
    except (OSError, ValueError, KeyError):  # no such file, or "max"
        return [psutil.virtual_memory().total]


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder that may not exist yet."""
    folder = folder.expanduser().absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


@cache
def package_versions() -> dict[str, str]:
    """Version of Python and of each package that an answer depends on; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "segment-anything", "bitsandbytes", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
