"""The words for the things that a `Filter` means: a red cup, all the pieces of furniture."""

from coprs_core.mini.world.meanings import Filter

_CATEGORY_WORDS = {
    "animal": "animal",
    "vehicle": "vehicle",
    "food": "food",
    "fruit": "fruit",
    "tool": "tool",
    "furniture": "piece of furniture",
    "plant": "plant",
    "clothing": "piece of clothing",
    "sky": "thing of the sky",
}
_IRREGULAR = {"fish": "fish", "clothing": "clothing", "furniture": "furniture"}


def with_article(words: str) -> str:
    """A red cup, an orange car."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def noun_phrase(f: Filter) -> str:
    """The bare words of a filter: red cup, animal, thing."""
    return f"{f.colour} {_base(f)}" if f.colour else _base(f)


def plural_phrase(f: Filter) -> str:
    """The words of a filter for several things: red cups, animals, things of the sky."""
    first, *rest = _base(f).split(" ")
    words = " ".join([_plural(first), *rest])
    return f"{f.colour} {words}" if f.colour else words


def _base(f: Filter) -> str:
    return f.kind or (_CATEGORY_WORDS[f.category] if f.category else "thing")


def _plural(noun: str) -> str:
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
