"""Questions about an answer, one file each; asking one changes nothing of the answer.

A probe's file holds `run(engine, photo, result)`, which gives a `Finding`. Its name here puts it on
the page, on the command line (`--probe NAME`), into the zip and among the endpoints; what it is
called there stands in `app/texts/`. `word`, `thought`, `again` and `truth` take something more
than the answer and have options of their own.
"""

from importlib import import_module
from types import ModuleType

PROBES = ("sentences", "words", "attention", "heads", "zoom")
STEMS = (
    *PROBES,
    "truth",
    "sentences_masks",
    r"word_\d+",
    "(zoomed|focus_again|again)(_mask|_difference)?",
)
"""What the files of findings are called, as patterns: an earlier answer's are cleared by them.
A probe that calls its files otherwise than itself adds that here."""
AUTOMATIC = ("sentences",)
"""Asked by themselves when an answer is taken away as a zip."""


def load_probe(name: str) -> ModuleType:
    """The file of a probe, loaded when it is first asked for."""
    return import_module(f"{__name__}.{name}")
