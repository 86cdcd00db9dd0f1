"""Weights from the internet, once: from the cache where they are complete, else downloaded, with
progress and resuming.

Hugging Face repositories go into its own cache (HF_HOME), SAM's files into torch's (TORCH_HOME).
Nothing is asked of the network where the cache is complete.
"""

import errno
import hashlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from tqdm import tqdm

from coprs_core.errors import CoPRSError, Phrase
from coprs_core.files import read_text, without_hidden
from coprs_core.model.backends.remote.proxies import check_proxies
from coprs_core.parsing import parse_json
from coprs_core.storage import expand_home, format_bytes, free_disk

ProgressCallback = Callable[[str], None]
"""Called with one line of progress at a time."""


def print_progress(line: str) -> None:
    """The default `ProgressCallback`: to standard error, for standard output holds the answer."""
    print(line, file=sys.stderr)


_ALLOW_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
SAM_FILES = {  # name: (file, bytes); six digits of each file's SHA-256 stand in its name
    "vit_b": ("sam_vit_b_01ec64.pth", 375042383),
    "vit_l": ("sam_vit_l_0b3195.pth", 1249524607),
    "vit_h": ("sam_vit_h_4b8939.pth", 2564550879),
}
_PARSE_ERRORS = ValueError, LookupError, TypeError, AttributeError, RecursionError, CoPRSError
"""What is raised over a file that is no JSON, or another than was expected."""
_DISK_FULL_ERRNOS = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything"
"""COPRS_SAM_URL names a mirror."""


def cached_snapshot(repo: str) -> Path | None:
    """The folder of a Hugging Face repository in the local cache, if every file is there."""
    try:
        folder = Path(
            snapshot_download(repo, allow_patterns=_ALLOW_PATTERNS, local_files_only=True)
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        return None
    is_complete = any(without_hidden(folder.rglob("*.json"))) and all(
        p.exists() for p in folder.rglob("*")
    )
    return folder if is_complete and not missing_shards(folder) else None


def missing_shards(folder: Path) -> list[str]:
    """Files that the indices of sharded weights under a folder name and that are not there; an
    index that is broken."""
    missing = [] if without_hidden(folder.rglob("*.safetensors")) else ["*.safetensors"]
    for index in without_hidden(folder.rglob("*.safetensors.index.json")):
        try:
            shard_names = set(parse_json(read_text(index))["weight_map"].values())
            missing += sorted(n for n in shard_names if not (index.parent / n).is_file())
        except (*_PARSE_ERRORS, OSError):
            return [index.name]  # cut short, or not an index at all
    return missing


def download_snapshot(repo: str, report: ProgressCallback | None = None) -> Path:
    """The folder of a Hugging Face repository, downloaded where it is not cached.

    Raises `CoPRSError`: no such repository, no access, no network, a proxy that cannot be used, or
    too little disk (checked before the download).
    """
    if folder := cached_snapshot(repo):
        return folder
    if not constants.is_offline_mode():
        check_proxies()
    bar: Any = _make_bar_class(report, repo) if report else None
    silent: Any = _SilentBar
    try:
        # sizes first: that the disk is too small shows before hours of downloading
        files = snapshot_download(
            repo, allow_patterns=_ALLOW_PATTERNS, dry_run=True, tqdm_class=silent
        )
        _check_disk(
            Path(constants.HF_HUB_CACHE),
            sum(f.file_size or 0 for f in files if f.will_download),
            repo,
        )
        return Path(snapshot_download(repo, allow_patterns=_ALLOW_PATTERNS, tqdm_class=bar))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as problem:
        raise _download_error(repo, problem) from problem


def _download_error(repo: str, problem: Exception) -> CoPRSError:
    """What a failed download of a repository means for the person who asked for it."""
    if isinstance(problem, DryRunError) and isinstance(problem.__cause__, Exception):
        problem = problem.__cause__
    if isinstance(problem, GatedRepoError):
        return CoPRSError(
            "{repo} asks you to accept its terms: do so on huggingface.co, then run `hf auth "
            "login`.",
            repo=repo,
        )
    if isinstance(problem, RepositoryNotFoundError | HFValidationError):
        return CoPRSError(
            "There is no model {repo!r} on Hugging Face that you may read: check the name, "
            "or run `hf auth login`.",
            repo=repo,
        )
    if isinstance(problem, OSError) and (problem.filename or problem.errno in _DISK_FULL_ERRNOS):
        return CoPRSError(
            "{repo} cannot be written into the cache {cache} ({reason}): set HF_HOME to a "
            "folder that can be written to and has room.",
            repo=repo,
            cache=constants.HF_HUB_CACHE,
            reason=problem.strerror,
        )
    return CoPRSError(
        "{repo} is not complete in the cache {cache} and Hugging Face cannot be reached: "
        "connect and run this again (files that are there already are kept), or copy a "
        "filled cache here.",
        repo=repo,
        cache=constants.HF_HUB_CACHE,
    )


def sam_cache_folder() -> Path:
    """Where torch keeps downloads (`torch.hub.get_dir`), without loading torch."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return (
        Path(os.environ.get("TORCH_HOME", f"{caches}/torch")).expanduser() / "hub" / "checkpoints"
    )


def cached_sam_file(name: str) -> Path | None:
    """One of SAM's published files in the local cache."""
    path = sam_cache_folder() / SAM_FILES[name][0]
    return path if path.is_file() else None


def sam_file_path(name: str) -> Path:
    """Where a SAM file lies or would lie: one of SAM's published files, or a path."""
    return sam_cache_folder() / SAM_FILES[name][0] if name in SAM_FILES else expand_home(name)


def download_sam_file(name: str, report: ProgressCallback | None = None) -> Path:
    """The path of "vit_b", "vit_l" or "vit_h", downloaded where it is not cached; or of any file
    that is there."""
    if name not in SAM_FILES:
        if not (path := expand_home(name)).is_file():
            raise CoPRSError(
                "There is no SAM file {name!r}: give vit_b, vit_l, vit_h or the path of a .pth "
                "file.",
                name=name,
            )
        return path
    if path := cached_sam_file(name):
        return path
    file, size = SAM_FILES[name]
    partial_file = sam_cache_folder() / f"{file}.part"
    num_bytes_present = partial_file.stat().st_size if partial_file.is_file() else 0
    _check_disk(partial_file.parent, size - num_bytes_present, file)
    url = f"{os.environ.get('COPRS_SAM_URL', _SAM_URL)}/{file}"
    try:
        partial_file.parent.mkdir(parents=True, exist_ok=True)
        _download_resumable(url, partial_file, num_bytes_present, report)
    except (urllib.error.URLError, OSError) as problem:
        raise CoPRSError(
            "{url} cannot be downloaded ({reason}): run this again (it goes on where it "
            "stopped), or put the file into {folder} yourself.",
            url=url,
            reason=problem,
            folder=partial_file.parent,
        ) from problem
    if not _sha256(partial_file).startswith(file.rsplit("_", 1)[1].removesuffix(".pth")):
        partial_file.unlink()
        raise CoPRSError("{file} was damaged and has been deleted: run this again.", file=file)
    partial_file.rename(partial_file.with_suffix(""))
    return partial_file.with_suffix("")


def _download_resumable(
    url: str, partial_file: Path, num_bytes_present: int, report: ProgressCallback | None
) -> None:
    request = urllib.request.Request(
        url, headers={"Range": f"bytes={num_bytes_present}-"} if num_bytes_present else {}
    )
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as problem:
        if problem.code == 416:  # nothing is left to send
            return
        raise
    is_resumed = response.status == 206
    total = int(response.headers.get("Content-Length", 0)) + (
        num_bytes_present if is_resumed else 0
    )
    with (
        response,
        open(partial_file, "ab" if is_resumed else "wb") as file,
        (_make_bar_class(report, partial_file.stem) if report else tqdm)(
            total=total,
            initial=num_bytes_present if is_resumed else 0,
            unit="B",
            unit_scale=True,
            desc=partial_file.stem,
        ) as bar,
    ):
        while block := response.read(1 << 20):
            file.write(block)
            bar.update(len(block))
    if partial_file.stat().st_size < total:
        raise OSError("the connection broke off")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_disk(folder: Path, needed: int, what: str) -> None:
    free = free_disk(folder)
    if needed > free:
        raise CoPRSError(
            "{what} needs {needed} of disk and {folder} has {free} free: make room, or set "
            "HF_HOME and TORCH_HOME to a larger disk.",
            what=what,
            needed=format_bytes(needed),
            folder=folder,
            free=format_bytes(free),
        )


class _SilentBar(tqdm):
    def __init__(self, *args, **options):
        super().__init__(*args, **(options | {"disable": True}))


def _make_bar_class(report: ProgressCallback, what: str) -> type[tqdm]:
    """A progress bar that shows itself in the terminal and also calls `report`."""

    class Bar(tqdm):
        def __init__(self, *args, **options):
            options.pop("name", None)
            super().__init__(*args, **options)

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.unit == "B" and self.total and n:
                report(
                    Phrase(
                        "Downloading {what}: {done} of {total}",
                        what=what,
                        done=format_bytes(self.n),
                        total=format_bytes(self.total),
                    )
                )
            return shown

    return Bar
