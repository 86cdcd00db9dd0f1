"""The one exception of this package whose message is meant for the person at the keyboard."""

from collections.abc import Iterable
from difflib import get_close_matches


class CoPRSError(Exception):
    """A problem that the user can fix. The message is one sentence: what was expected, what came,
    what to do."""


class Unwanted(CoPRSError):
    """Nobody waits any more for what was under way."""


def of_the_system(problem: OSError) -> str:
    """The sentence for a file, a folder or a disk that cannot be used."""
    where = f" ({problem.filename})" if problem.filename else ""
    return f"{problem.strerror or problem}{where}: check the path, its permissions and the disk."


def plain(text: object, most: int = 80) -> str:
    """Foreign text for a message: its first line, letters, digits and a few signs alone, so that it
    is no markup anywhere."""
    line = str(text).partition("\n")[0][:most]
    return "".join(c if (c.isascii() and c.isalnum()) or c in " .,:_-×=()'" else "?" for c in line)


def shortened(text: object, most: int = 80) -> str:
    """Foreign text for a message where markup does no harm: one line of at most so many
    characters."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: most + 1])
    return line if len(line) <= most else f"{line[: most - 1]}…"


def meant(name: str, known: Iterable[str]) -> str:
    """ ", did you mean …?" for a name that is like a known one; else empty."""
    near = get_close_matches(str(name)[:100].lower(), list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""


def first_line(problem: BaseException) -> str:
    """The first line of what an exception of a library says, and the next where it announces
    one."""
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    announces = lines[0].endswith(":") and len(lines) > 1
    return shortened(f"{lines[0]} {lines[1].strip()}" if announces else lines[0], 200)
