"""The one exception of this package whose message is meant for the person at the keyboard, in
words that another language may replace."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

_PLAIN_TYPES = (str, int, float, type(None))


class Phrase(str):
    """English text that remembers how it was made: `Phrase("{count:,} pixels", count=9)`.

    Its `template` is the key under which another language keeps its own, as with gettext, so that
    the English stands in one place: where it is said; its `values` are filled into that, too.
    Without values nothing is filled in, and braces are braces. A value may be a `Phrase`; what is
    no text and no number is kept as text, so that no message holds a tensor.
    """

    template: str
    values: dict[str, Any]

    def __new__(cls, template: str, /, **values: Any):
        plain = {n: v if isinstance(v, _PLAIN_TYPES) else _as_text(v) for n, v in values.items()}
        self = super().__new__(cls, template.format(**plain) if plain else template)
        self.template, self.values = template, plain
        return self


def _as_text(value: object) -> str:
    return value.phrase if isinstance(value, CoPRSError) else str(value)


class CoPRSError(Exception):
    """A problem that the user can fix. The message is one sentence: what was expected, what came,
    what to do. It is a `phrase` (see `Phrase`).

    What can reach the page is given as a template and values, for other languages; what the command
    line, training or evaluation alone can say may come as it is, from an f-string."""

    def __init__(self, template: str, /, **values: Any):
        # `args`, which pickle makes it anew from, are set before this, whatever a subclass takes
        self.phrase = Phrase(template, **values)

    def __str__(self) -> str:
        return str(self.phrase)


class Cancelled(CoPRSError):
    """Nobody waits any more for what was under way."""


def from_os_error(problem: OSError) -> CoPRSError:
    """The sentence for a file, a folder or a disk that cannot be used."""
    reason = problem.strerror or str(problem)
    if not problem.filename:
        return CoPRSError("{reason}: check the path, its permissions and the disk.", reason=reason)
    return CoPRSError(
        "{reason} ({path}): check the path, its permissions and the disk.",
        reason=reason,
        path=problem.filename,
    )


def strip_markup(text: object, max_length: int = 80) -> str:
    """Foreign text for a message: its first line, letters, digits and a few signs alone, so that it
    is no markup anywhere."""
    line = str(text).partition("\n")[0][:max_length]
    return "".join(c if (c.isascii() and c.isalnum()) or c in " .,:_-×=()'" else "?" for c in line)


def truncate(text: object, max_length: int = 80) -> str:
    """Foreign text for a message where markup does no harm: one line of at most so many
    characters."""
    line = "".join(c if c.isprintable() else " " for c in str(text)[: max_length + 1])
    return line if len(line) <= max_length else f"{line[: max_length - 1]}…"


def did_you_mean(name: str, known_names: Iterable[str]) -> Phrase:
    """ ", did you mean …?" for a name that is like a known one; else empty."""
    matches = get_close_matches(str(name)[:100].lower(), list(known_names), n=1, cutoff=0.6)
    return Phrase(", did you mean {near}?", near=matches[0]) if matches else Phrase("")


def first_line(problem: BaseException) -> str:
    """The first line of what an exception of a library says, and the next where it announces
    one."""
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    is_heading = lines[0].endswith(":") and len(lines) > 1
    return truncate(f"{lines[0]} {lines[1].strip()}" if is_heading else lines[0], 200)
