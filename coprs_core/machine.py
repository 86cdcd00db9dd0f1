"""What this machine has: devices, free memory, free disk, read live; and what is done when memory
runs out.

Sizes are bytes throughout.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from coprs_core.errors import CoPRSError, Phrase, first_line
from coprs_core.files import GIT_LFS_HINT, is_git_lfs_pointer
from coprs_core.storage import format_bytes

if TYPE_CHECKING:
    import torch

DTYPES = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
}
"""Names of precisions, and what torch calls them."""
_GPU_DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "C:/Windows/System32/nvcuda.dll")


@dataclass(frozen=True)
class DeviceName:
    """A device by its type, where torch, which takes seconds to load, is not needed to know it."""

    type: str

    def __str__(self) -> str:
        return self.type


def resolve_device_name(device: str) -> torch.device | DeviceName:
    """The device of a name, as `choose_device`: without torch where this machine has no sign of
    another than its CPU."""
    has_gpu = sys.platform == "darwin" or any(Path(p).exists() for p in _GPU_DEVICE_FILES)
    return DeviceName("cpu") if device in ("auto", "cpu") and not has_gpu else choose_device(device)


def choose_device(device: str) -> torch.device:
    """The torch device of a name, "auto" included; raises `CoPRSError` where this machine does not
    have it."""
    import torch

    is_available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if is_available[name])
    try:
        resolved = torch.device(device)
    except RuntimeError as problem:
        raise CoPRSError(
            "Device {device!r} is not known: choose auto, cuda, cuda:1, mps or cpu.", device=device
        ) from problem
    index_is_free = resolved.type != "cuda" or (resolved.index or 0) < torch.cuda.device_count()
    if not is_available.get(resolved.type, False) or not index_is_free:
        raise CoPRSError(
            "This machine has no device {device!r}: choose auto or cpu.", device=device
        )
    return resolved


def has_native_bfloat16(device: torch.device | DeviceName) -> bool:
    """Whether a device has instructions for bfloat16. A CPU without them computes in it, too, but
    many times slower than in float32; one that does not tell is taken for such a one."""
    return device.type != "cpu" or _cpu_has_bfloat16()


@cache
def _cpu_has_bfloat16() -> bool:
    """As Linux tells it: avx512_bf16 and amx_bf16 of x86, bf16 of Arm."""
    with suppress(OSError):
        words = Path("/proc/cpuinfo").read_text().split()
        return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)
    return False


def resolve_dtype_name(dtype: str) -> str:
    """The name of torch for a name in `DTYPES`; raises `CoPRSError` for any other."""
    if dtype not in DTYPES:
        raise CoPRSError(
            "Precision {dtype!r} is not known: choose auto, {names}.",
            dtype=dtype,
            names=", ".join(DTYPES),
        )
    return DTYPES[dtype]


def parse_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a name in `DTYPES`; raises `CoPRSError` for any other."""
    import torch

    return getattr(torch, resolve_dtype_name(dtype))


def free_memory(device: torch.device | DeviceName) -> int:
    """Bytes that a model could still take on a device: the GPU's own memory, else the machine's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(str(device))[0]
    return min(psutil.virtual_memory().available, *_free_memory_in_container())


def total_memory(device: torch.device | DeviceName) -> int:
    """Bytes that a device has in all: the GPU's own memory, else what the machine or its container
    has."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(str(device))[1]
    total = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # no such file, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def peak_memory(device: torch.device) -> int:
    """The most memory held so far, in bytes: on CUDA what torch allocated, else this process's
    resident memory."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    process = psutil.Process().memory_info()
    if hasattr(process, "peak_wset"):  # Windows, which has no resource module
        return process.peak_wset
    # on Linux getrusage's peak is inherited from the parent process
    status = Path("/proc/self/status")
    if status.is_file() and (peak := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _free_memory_in_container() -> list[int]:
    """Free memory under each limit that a container sets (control groups, version 2)."""
    control_group = Path("/sys/fs/cgroup")
    try:
        limit, used = (
            int((control_group / f"memory.{name}").read_text()) for name in ("max", "current")
        )
        lines = (control_group / "memory.stat").read_text().splitlines()
        stat = dict(line.split() for line in lines)
        # pages of files are given up when memory is asked for
        return [limit - used + int(stat["inactive_file"])]
    except (OSError, ValueError, KeyError):  # no such file, or "max"
        return [psutil.virtual_memory().total]


@cache
def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that an answer depends on."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "segment-anything", "bitsandbytes", "numpy", "pillow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


# --- when memory runs out


@contextmanager
def out_of_memory_as_user_error(
    subject: str,
    device: torch.device,
    hint: str,
    release: Callable[[], None] | None = None,
) -> Generator[None, None, None]:
    """Where memory runs out inside, give it back and raise a `CoPRSError`.

    Args:
        subject: begins the sentence: a model's name, "This answer".
        device: where memory ran out; what is free there is part of the sentence.
        hint: ends the sentence: the next smaller choice.
        release: called first, to empty caches.
    """
    try:
        yield
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        if release:
            release()
        release_memory(problem)
        raise out_of_memory_error(subject, device, hint) from None


def out_of_memory_error(subject: str, device: torch.device, hint: str) -> CoPRSError:
    """The sentence for what ran out of memory: what is free, and the next smaller choice."""
    free = format_bytes(free_memory(device))
    return CoPRSError(
        "{what} needs more memory than there is and {device} has {free} free: {hint}.",
        what=subject,
        device=device,
        free=free,
        hint=hint,
    )


def release_memory(problem: BaseException | None = None) -> None:
    """Let go of everything that a failed computation, or a model no longer in use, still holds."""
    clear_traceback_frames(problem)
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def clear_traceback_frames(problem: BaseException | None) -> None:
    """Let go of what the functions that a problem came through still hold: as long as it is kept,
    it keeps them."""
    while problem:
        traceback.clear_frames(problem.__traceback__)
        problem = problem.__cause__ or problem.__context__


def trim_memory() -> None:
    """Give the system what the C library keeps of freed memory, for it keeps ever more under many
    threads (glibc's malloc_trim; elsewhere nothing happens)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


_OUT_OF_MEMORY_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "invalid thread pool",  # torch, without room for the stacks of its threads
    "can't start new thread",
)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception of torch, Python or a library means that memory ran out, on whatever
    device."""
    import torch

    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(problem).lower()
    return not isinstance(problem, CoPRSError) and any(
        message in text for message in _OUT_OF_MEMORY_MESSAGES
    )


COPY_AGAIN_HINT = Phrase("copy it again from its source")
_WRONG_PATH_ERRNOS = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
"""The system's problems with a file that are of its folder, not of this machine."""


@contextmanager
def as_user_error(
    fault: str,
    hint: str | Callable[[Exception], Phrase] = COPY_AGAIN_HINT,
    file: Path | None = None,
) -> Generator[None, None, None]:
    """For a library that reads a file of others: whatever it raises becomes a `CoPRSError`, but for
    memory that ran out.

    Args:
        fault: begins the sentence.
        hint: ends it: what helps, or what tells that of an exception. Where the system does not
            let the file be read, the sentence says so instead.
        file: what is read, where that is one file: a pointer of Git LFS gets its own hint.
    """
    try:
        yield
    except CoPRSError:
        raise
    except Exception as problem:  # libraries raise anything at all over such a file
        if is_out_of_memory(problem):
            raise
        if (
            isinstance(problem, OSError)
            and problem.errno
            and problem.errno not in _WRONG_PATH_ERRNOS
        ):
            final_hint: str = Phrase("check its permissions and the disk")
        elif file and is_git_lfs_pointer(file):
            final_hint = GIT_LFS_HINT
        else:
            final_hint = hint(problem) if callable(hint) else hint
        raise CoPRSError(
            "{fault} ({reason}): {hint}.", fault=fault, reason=first_line(problem), hint=final_hint
        ) from problem


def rank_and_world_size() -> tuple[int, int]:
    """(number, how many) of this process, where a launcher such as torchrun started several."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
