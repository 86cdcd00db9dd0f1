"""The bundled pictures, each with an instruction."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from app.views import page

EXAMPLES = Path(__file__).resolve().parent.parent / "assets" / "examples"


@dataclass(frozen=True)
class BundledExample:
    """A bundled picture with an instruction.

    Where the answer is no plain success, `note` says so in a word or two and `explanation`, in each
    language of the page, why; `repair` is the sentence of the thought that would mend it.
    """

    file: str
    instruction: str
    note: str = ""
    explanation: dict[str, str] = field(default_factory=dict)
    repair: page.Repair | None = None

    @property
    def caption(self) -> str:
        return f"{self.note}: {self.instruction}" if self.note else self.instruction


def examples() -> list[BundledExample]:
    """The bundled examples, in order."""
    return [
        BundledExample(
            file=str(EXAMPLES / entry["file"]),
            instruction=entry["instruction"],
            note=entry.get("note", ""),
            explanation=entry.get("explanation", {}),
            repair=page.Repair(**entry["repair"]) if "repair" in entry else None,
        )
        for entry in json.loads((EXAMPLES / "examples.json").read_text())
    ]
