"""Probes: questions about an answer, one file each. A probe changes nothing of the answer.

A probe's file holds `run(engine, photo, result)`, which gives a `Finding`. Its name here puts it on
the page, on the command line (`--probe NAME`), into the zip and among the endpoints; what it is
called there stands in `app/texts/`. `word`, `thought`, `again` and `truth` take something more
than the answer and have options of their own.
"""

from importlib import import_module
from types import ModuleType

PROBES = ("sentences", "words", "attention", "heads", "zoom")
FILE_STEMS = (
    *PROBES,
    "truth",
    "sentences_masks",
    r"word_\d+",
    "(zoomed|focus_again|again)(_mask|_difference)?",
)
"""Patterns of the names of findings' files, by which an earlier answer's are removed. A probe whose
files are not called as itself adds its pattern here."""
AUTOMATIC_PROBES = ("sentences",)
"""Run without being asked for when an answer is saved as a zip."""


def load_probe(name: str) -> ModuleType:
    """The module of a probe, imported when it is first needed."""
    return import_module(f"{__name__}.{name}")
