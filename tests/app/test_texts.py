"""What the page says of errors, in Chinese: every sentence of the code that can reach it."""

import ast
import importlib
import re
from pathlib import Path
from string import Formatter

from app.texts.chinese_errors import CHINESE_ERRORS
from tests import ROOT

SAID_BY = {
    **dict.fromkeys(("CoPRSError", "Cancelled", "NotApplicable", "Phrase"), 0),
    **dict.fromkeys(("TooSlow", "OutOfBounds", "_told"), 0),
    "_refused": 2,
}
"""Calls that make a sentence, and which argument is its template."""
ELSEWHERE = re.compile(
    "app/(ui|texts)|coprs_core/(commands|batch|benchmark|cluster|datasets|evaluation|training|mini"
    "|parsing|random_weights|__main__|checkpoints/(convert|save|shards|doctor))"
)
"""Modules whose sentences the command line, training or evaluation alone can give."""
TRANSLATED_BEFORE = ("problem", "self.why_no_replay(lang, answered)")


def sentences():
    """(where, template or None, names of its values) of all that can reach the page."""
    for top in ("app", "coprs_core"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not ELSEWHERE.match(name):
                yield from _sentences_in(path, name)


def _sentences_in(path: Path, name: str):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        maker = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if maker not in SAID_BY or ast.unparse(node.args[SAID_BY[maker]]) in TRANSLATED_BEFORE:
            continue
        said = node.args[SAID_BY[maker]]
        template = said.value if isinstance(said, ast.Constant) else None
        if isinstance(said, ast.Name):  # a constant of the module
            module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
            template = getattr(module, said.id, None)
        yield f"{name}:{node.lineno}", template, {k.arg for k in node.keywords}


def places(template: str) -> set:
    return {place[1:] for place in Formatter().parse(template) if place[1] is not None}


def test_every_sentence_that_can_reach_the_page_has_a_chinese_one_with_the_same_places():
    said = [(where, template, names) for where, template, names in sentences() if template != ""]
    assert len(said) > 200
    assert not [where for where, template, _ in said if not isinstance(template, str)]
    missing = {template: where for where, template, _ in said if template not in CHINESE_ERRORS}
    assert not missing
    for where, template, names in said:
        if names:
            assert {name for name, *_ in places(template)} == names, where
            assert places(CHINESE_ERRORS[template]) == places(template), where


def test_the_chinese_table_holds_nothing_that_nobody_says(mini):
    said = {template for _, template, _ in sentences()} | {mini.segmenter.note}
    assert not CHINESE_ERRORS.keys() - said


def test_chinese_sentences_are_chinese():
    """But for names of formats and the like, which are the same in both."""
    latin = {english for english, chinese in CHINESE_ERRORS.items() if chinese.isascii()}
    assert latin <= {"JPEG XL", "OpenEXR", "auto: {choice}", "{fault} ({detail})"}
