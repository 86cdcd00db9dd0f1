"""Records the `--help` page of every command: `python -m tests.record_help` writes
assets/docs/help.md."""

import os
from argparse import _SubParsersAction

from coprs_core.__main__ import build_parser
from tests import ROOT

PATH = ROOT / "assets" / "docs" / "help.md"
WIDTH = "100"


def pages() -> str:
    """The whole document, as it is today."""
    os.environ["COLUMNS"] = WIDTH  # argparse wraps its lines by it
    whole = build_parser()
    (commands,) = (a for a in whole._actions if isinstance(a, _SubParsersAction))
    parts = [("coprs", whole), *((f"coprs {name}", p) for name, p in commands.choices.items())]
    sections = (f"\n## {name}\n\n```text\n{p.format_help().rstrip()}\n```\n" for name, p in parts)
    return (
        "# Every command's `--help`\n\nWritten by `python -m tests.record_help`; "
        "[Command line](command-line.md) tells what they are for.\n" + "".join(sections)
    )


if __name__ == "__main__":
    PATH.write_text(pages(), encoding="utf-8")
