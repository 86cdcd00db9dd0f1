"""JSON inside other text: what begins at any of its brackets.

A reply may hold thousands of brackets that never close. `json` would read from each of them to the
end of the text, in time that grows with the square of its length; here nothing is read twice.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_DEPTH = 50
"""Lists inside of lists: what is deeper is no answer, and soon too deep for Python to compare."""
_WHITESPACE = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(
    r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"'
    r"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
    r"|null|true|false|NaN|-?Infinity"
)
"""Strings, numbers and words, as `json` takes them."""


class _ParsedValue(NamedTuple):
    """A value, where the text behind it begins, and how deep lists lie in it."""

    value: Any
    end: int
    depth: int = 0


@dataclass(eq=False)
class _OpenBracket:
    """A bracket that is not closed yet: where it stands, and what it holds so far; in an object
    keys and values in turn."""

    start: int
    is_object: bool
    parts: list = field(default_factory=list)
    depth: int = 1

    def add(self, read: _ParsedValue) -> None:
        self.parts.append(read.value)
        self.depth = max(self.depth, read.depth + 1)

    def close(self, end: int) -> _ParsedValue:
        keys, values = self.parts[::2], self.parts[1::2]
        value: Any = dict(zip(keys, values, strict=True)) if self.is_object else self.parts
        return _ParsedValue(value if self.depth <= MAX_DEPTH else None, end, self.depth)


class JsonInText:
    """The lists and objects of a text, by where they begin."""

    def __init__(self, text: str):
        self._text = text + "\0"  # which is part of no JSON
        self._parsed: dict[int, _ParsedValue | None] = {}

    def parse_at(self, start: int) -> tuple[Any, int] | None:
        """The value whose bracket stands at `start`, and where it ends; None where that is no JSON,
        or over `MAX_DEPTH` deep."""
        if start not in self._parsed:
            opened: list[_OpenBracket] = []
            try:
                self._parse_from(start, opened)
            except ValueError:  # it ends none of those around it either
                self._parsed |= dict.fromkeys(one.start for one in opened)
        read = self._parsed[start]
        return None if read is None or read.value is None else (read.value, read.end)

    def _parse_from(self, start: int, opened: list[_OpenBracket]) -> None:
        """Read from a bracket to its end; `opened` are those that were not closed when it raises
        `ValueError`, where the text is no JSON."""
        read = self._parse_value_or_open(start, opened)
        while opened:
            around = opened[-1]
            if read is not None:
                around.add(read)
            place = self._skip_whitespace(around.start + 1 if read is None else read.end)
            if self._text[place] == ("}" if around.is_object else "]"):
                read = self._parsed[around.start] = around.close(place + 1)
                opened.pop()
                continue
            if read is not None:
                place = self._expect(",", place)
            if around.is_object:
                place = self._parse_key(place, around)
            read = self._parse_value_or_open(place, opened)

    def _parse_value_or_open(self, place: int, opened: list[_OpenBracket]) -> _ParsedValue | None:
        """What stands there, where that is known or short; None for a bracket, which is open
        now."""
        if self._text[place] not in "[{":
            return self._parse_scalar(place)
        if place not in self._parsed:
            opened.append(_OpenBracket(place, self._text[place] == "{"))
            return None
        known = self._parsed[place]
        if known is None:
            raise ValueError("it does not end")
        return known

    def _parse_scalar(self, place: int) -> _ParsedValue:
        found = _SCALAR.match(self._text, place)
        if not found:
            raise ValueError("no value")
        return _ParsedValue(
            json.loads(found[0]), found.end()
        )  # a ValueError for 4,300 digits and more

    def _parse_key(self, place: int, around: _OpenBracket) -> int:
        key = self._parse_scalar(place)
        if not isinstance(key.value, str):
            raise ValueError("no key")
        around.parts.append(key.value)
        return self._expect(":", self._skip_whitespace(key.end))

    def _expect(self, sign: str, place: int) -> int:
        if self._text[place] != sign:
            raise ValueError(f"no {sign}")
        return self._skip_whitespace(place + 1)

    def _skip_whitespace(self, place: int) -> int:
        found: Any = _WHITESPACE.match(self._text, place)  # always, if nothing
        return found.end()
