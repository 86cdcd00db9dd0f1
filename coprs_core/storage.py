"""Sizes in bytes, as words and on a disk; and paths as they are typed."""

import shutil
from pathlib import Path

GB = 1e9


def format_bytes(num_bytes: float) -> str:
    """Bytes as a person reads them: 3 kB, 12 MB, 7.5 GB."""
    if num_bytes < 1e6:
        return f"{num_bytes / 1e3:.0f} kB"
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes < GB else f"{num_bytes / GB:.1f} GB"


def expand_home(path: str | Path) -> Path:
    """A path with `~` replaced by the home folder; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder that may not exist yet."""
    folder = expand_home(folder).absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
