"""Pages of mapped files are let go, through links too, and nothing that was written is lost."""

import re
import sys
from pathlib import Path

import pytest
import torch

from coprs_core.checkpoints.mapped_files import release_pages

COUNT = 5_000_000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing happens")


def held(path: Path) -> int:
    """Bytes of a mapped file that count as this process's own."""
    of_file, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            of_file = line.endswith(str(path))
        elif of_file and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def test_pages_are_let_go_through_links_and_nothing_written_is_lost(tmp_path):
    blob, link = tmp_path / "blobs" / "abc", tmp_path / "model.safetensors"
    blob.parent.mkdir()
    values = torch.arange(COUNT, dtype=torch.float32)
    blob.write_bytes(values.numpy().tobytes())
    link.symlink_to(blob)
    mapped = torch.from_file(str(link), shared=False, size=COUNT, dtype=torch.float32)
    assert torch.equal(mapped, values) and held(blob) > 3.9 * COUNT
    mapped[1000] = -1.0  # into this process's own copy
    release_pages([link])
    assert held(blob) < 0.1 * 4 * COUNT
    values[1000] = -1.0
    assert torch.equal(mapped, values)
    other = torch.arange(COUNT, dtype=torch.float32)  # memory of other kinds is left alone
    release_pages([tmp_path / "other.safetensors"])
    assert held(blob) > 3.9 * COUNT and torch.equal(other[1001:], values[1001:])
