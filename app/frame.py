"""The components of the page that more than one handler changes."""

from dataclasses import dataclass
from typing import Any

Values = dict[Any, Any]
"""New values by component."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The components that more than one handler changes, whatever tab they stand in.

    header, notice, steps, thought, view, trace, verdict, explained: HTML. ways: what stands in
    place of an answer about a picture that the model does not know: unfamiliar, HTML, and the
    button photo_model.
    photo, instruction: what is asked. recent_gallery: the recent answers' pictures. answer, recent:
    this visitor's `StoredAnswer` and the tuple of the last.
    """

    header: Any
    notice: Any
    steps: Any
    thought: Any
    view: Any
    trace: Any
    verdict: Any
    explained: Any
    ways: Any
    unfamiliar: Any
    photo_model: Any
    photo: Any
    instruction: Any
    recent_gallery: Any
    answer: Any
    recent: Any

    @property
    def read_ahead_outputs(self) -> list:
        """What a photo that is read ahead changes."""
        return [self.steps, self.ways, self.unfamiliar, self.photo_model]

    @property
    def answer_outputs(self) -> list:
        """What an answer changes."""
        return [
            *self.reset_outputs,
            self.unfamiliar,
            self.photo_model,
            self.recent,
            self.recent_gallery,
        ]

    @property
    def reset_outputs(self) -> list:
        """What another photo, or none, changes."""
        shown = [self.steps, self.thought, self.view, self.trace, self.verdict]
        return [*shown, self.answer, self.ways, self.explained]

    @property
    def restore_outputs(self) -> list:
        """What an earlier answer changes when it comes back."""
        return [self.photo, self.instruction, *self.answer_outputs]
