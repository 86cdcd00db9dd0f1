"""Files that other people and other systems wrote: their texts, their names, their by-products."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from coprs_core.errors import CoPRSError, Phrase, truncate

_BOMS = {  # what a text begins with that tells its encoding; the longer ones first
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
_CP1252_QUOTES = frozenset("…‘’“”–—")
_CP1252_CHARACTERS = _CP1252_QUOTES | frozenset(
    "€™ £«°´»½¿¡" + "".join(chr(c) for c in range(0xC0, 0x100) if c not in (0xD7, 0xF7))
)
_GIT_LFS_SIGNATURE = b"version https://git-lfs"
GIT_LFS_HINT = Phrase("it is a pointer of Git LFS; run `git lfs pull` there")
_SURROGATE_ESCAPE, _NON_ASCII_RUN = re.compile("[\udc80-\udcff]"), re.compile("[^\0-\x7f]+")
_MOJIBAKE = re.compile("[\0\x80-\x84\x86-\x9f\ufffd]")


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 where its first bytes say so, without the mark that it
    may begin with.

    Raises `CoPRSError` for any other encoding: to guess at GBK or cp1252 would be to read rubbish.
    """
    return decode_text(path.read_bytes(), str(path))


def decode_text(data: bytes, where: str) -> str:
    """The text of bytes, as `read_text`."""
    if data.startswith(_GIT_LFS_SIGNATURE):
        raise CoPRSError("{where} cannot be read: {hint}.", where=where, hint=GIT_LFS_HINT)
    encoding = next((name for mark, name in _BOMS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise CoPRSError(
            "{where} is no UTF-8 text (its line {line} holds the byte 0x{byte:02X}): write it so.",
            where=where,
            line=line,
            byte=problem.object[problem.start],
        ) from problem
    # UTF-16 without a mark passes as UTF-8 with a zero in every other place
    if "\0" in text[:1000] or (data and not text and encoding != "utf-8-sig"):
        raise CoPRSError(
            "{where} is no UTF-8 text (it holds bytes of another): write it so.", where=where
        )
    return text


def is_git_lfs_pointer(path: Path) -> bool:
    """Whether a file is a pointer of Git LFS, which stands for the file itself."""
    try:
        with path.open("rb") as file:
            return file.read(len(_GIT_LFS_SIGNATURE)) == _GIT_LFS_SIGNATURE
    except OSError:
        return False


def has_bom(path: Path) -> bool:
    """Whether a text begins with a mark of its encoding, which many readers of JSON refuse."""
    try:
        with path.open("rb") as file:
            return file.read(4).startswith(tuple(_BOMS))
    except OSError:
        return False


def repair_cp1252(text: str, where: str) -> str:
    """Text that was decoded from UTF-8 with `surrogateescape`: what is left of bytes is read as
    letters and quotes of Windows' Western alphabet (cp1252), as older English data sets have them.

    Raises `CoPRSError` where such letters stand side by side, which English has not: the text is of
    another encoding, such as GBK.
    """

    def read(found: re.Match) -> str:
        run = found[0]
        if not _SURROGATE_ESCAPE.search(run):
            return run
        try:
            letters = run.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
        except UnicodeEncodeError:  # half a character stands beside it
            letters = "\ufffd"
        if (
            set(letters) <= _CP1252_CHARACTERS
            and sum(c not in _CP1252_QUOTES for c in letters) <= 1
        ):
            return letters
        raise CoPRSError(
            "{where} is neither UTF-8 nor English in cp1252: write it as UTF-8.", where=where
        )

    return _NON_ASCII_RUN.sub(read, text)


def check_no_mojibake(text: str, where: str) -> str:
    """The text as it is; raises `CoPRSError` where it holds what only a wrong decoding leaves."""
    if match := _MOJIBAKE.search(text):
        raise CoPRSError(
            "{where} was written in another encoding than it was read in (it holds "
            "U+{code:04X}): write it again as UTF-8.",
            where=where,
            code=ord(match[0]),
        )
    for run in _NON_ASCII_RUN.findall(text):
        try:
            decoded = run.encode("cp1252").decode("utf-8")
        except UnicodeError:
            continue
        raise CoPRSError(
            "{where} was written in another encoding than it was read in (it holds {found!r} "
            "for {meant!r}): write it again as UTF-8.",
            where=where,
            found=truncate(run, 20),
            meant=truncate(decoded, 20),
        )
    return text


def without_hidden(paths: Iterable[Path]) -> list[Path]:
    """Paths in order, without those whose names begin with a dot: macOS keeps `._a.jpg` beside
    a.jpg, which is no picture."""
    return sorted(path for path in paths if not path.name.startswith("."))


def find_file(path: Path) -> Path:
    """The file that a path means: itself, or the one whose name is the same but for the Unicode
    form (é as one character or as two) or the case of its ending; itself where there is none."""
    if os.path.exists(path) or path.parent == path:  # pathlib raises over a name no disk can hold
        return path
    folder, normalized = find_file(path.parent), normalize_name(path.name)
    if not os.path.isdir(folder):
        return path
    names = sorted(os.listdir(folder))
    return next((folder / name for name in names if normalize_name(name) == normalized), path)


def normalize_name(name: str) -> str:
    """What names have in common that differ only in Unicode form or in the case of the ending."""
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()
