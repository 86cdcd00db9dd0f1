"""Sizes in bytes: as words, and what is free on a disk."""

import shutil
from pathlib import Path

GB = 1e9


def in_words(size: float) -> str:
    """Bytes as a person reads them: 3 kB, 12 MB, 7.5 GB."""
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.0f} MB" if size < GB else f"{size / GB:.1f} GB"


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder that may not exist yet."""
    folder = folder.expanduser().absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
