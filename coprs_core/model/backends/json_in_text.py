"""Parse JSON inside other text, from any of its brackets.

A reply may hold thousands of brackets that never close. `json` would read from each of them to the
end of the text, in time that grows with the square of its length; here nothing is parsed twice.
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
    """A value, where the text after it begins, and how deep lists are nested in it."""

    value: Any
    end: int
    depth: int = 0


@dataclass(eq=False)
class _OpenBracket:
    """A bracket that is not closed yet: its position, and what it holds so far; in an object keys
    and values in turn."""

    start: int
    is_object: bool
    parts: list = field(default_factory=list)
    depth: int = 1

    def add(self, parsed: _ParsedValue) -> None:
        self.parts.append(parsed.value)
        self.depth = max(self.depth, parsed.depth + 1)

    def close(self, end: int) -> _ParsedValue:
        keys, values = self.parts[::2], self.parts[1::2]
        value: Any = dict(zip(keys, values, strict=True)) if self.is_object else self.parts
        return _ParsedValue(value if self.depth <= MAX_DEPTH else None, end, self.depth)


class JsonInText:
    """The lists and objects of a text, by the position where they begin."""

    def __init__(self, text: str):
        self._text = text + "\0"  # part of no JSON: so no position needs a check for the end
        self._parsed: dict[int, _ParsedValue | None] = {}

    def parse_at(self, start: int) -> tuple[Any, int] | None:
        """The value whose bracket is at `start`, and where it ends; None where that is no JSON,
        or over `MAX_DEPTH` deep."""
        if start not in self._parsed:
            opened: list[_OpenBracket] = []
            try:
                self._parse_from(start, opened)
            except ValueError:  # what is open around it never closes either
                self._parsed |= dict.fromkeys(one.start for one in opened)
        parsed = self._parsed[start]
        return None if parsed is None or parsed.value is None else (parsed.value, parsed.end)

    def _parse_from(self, start: int, opened: list[_OpenBracket]) -> None:
        """Parse from a bracket to its end, without recursion: a reply may nest as deep as it likes.

        Where the text is no JSON it raises `ValueError`; `opened` are the brackets that were not
        closed by then.
        """
        parsed = self._parse_value_or_open(start, opened)
        while opened:
            innermost = opened[-1]
            if parsed is not None:
                innermost.add(parsed)
            position = self._skip_whitespace(innermost.start + 1 if parsed is None else parsed.end)
            if self._text[position] == ("}" if innermost.is_object else "]"):
                parsed = self._parsed[innermost.start] = innermost.close(position + 1)
                opened.pop()
                continue
            if parsed is not None:
                position = self._expect(",", position)
            if innermost.is_object:
                position = self._parse_key(position, innermost)
            parsed = self._parse_value_or_open(position, opened)

    def _parse_value_or_open(
        self, position: int, opened: list[_OpenBracket]
    ) -> _ParsedValue | None:
        """The value at a position, where it is a scalar or was parsed before; None for a bracket,
        which is open now."""
        if self._text[position] not in "[{":
            return self._parse_scalar(position)
        if position not in self._parsed:
            opened.append(_OpenBracket(position, self._text[position] == "{"))
            return None
        known = self._parsed[position]
        if known is None:
            raise ValueError("it does not end")
        return known

    def _parse_scalar(self, position: int) -> _ParsedValue:
        match = _SCALAR.match(self._text, position)
        if not match:
            raise ValueError("no value")
        value = json.loads(match[0])  # a ValueError for 4,300 digits and more
        return _ParsedValue(value, match.end())

    def _parse_key(self, position: int, innermost: _OpenBracket) -> int:
        key = self._parse_scalar(position)
        if not isinstance(key.value, str):
            raise ValueError("no key")
        innermost.parts.append(key.value)
        return self._expect(":", self._skip_whitespace(key.end))

    def _expect(self, sign: str, position: int) -> int:
        if self._text[position] != sign:
            raise ValueError(f"no {sign}")
        return self._skip_whitespace(position + 1)

    def _skip_whitespace(self, position: int) -> int:
        match: Any = _WHITESPACE.match(self._text, position)  # always, if nothing
        return match.end()
