"""Ask again: another instruction about the same photo, or another model, compared with an
answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from coprs_core.answer.compare import compare_answers
from coprs_core.answer.pictures import difference_overlay
from coprs_core.answer.results import Result
from coprs_core.photos.photo import PhotoLike, open_photo
from coprs_core.probes.finding import ResultFinding

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine


@dataclass(frozen=True, eq=False)
class OtherAnswer(ResultFinding):
    """Another answer about the photo of the answer `before`; also writes `again_difference.png`."""

    before: Result

    def stem(self) -> str:
        return "again"

    def facts(self) -> dict:
        return asdict(compare_answers(self.before, self.result))

    def save(self, folder: Path | str, photo: PhotoLike) -> list[Path]:
        written = super().save(folder, photo)
        pixels = np.asarray(open_photo(photo).image)
        overlay = difference_overlay(pixels, self.before.mask, self.result.mask)
        written.append(Path(folder) / f"{self.stem()}_difference.png")
        Image.fromarray(overlay).save(written[-1])
        return written


def run(
    engine: Engine,
    image: PhotoLike,
    result: Result,
    instruction: str | None = None,
    max_new_tokens: int | None = None,
) -> OtherAnswer:
    """Ask an engine about the photo of an answer; by default the same instruction."""
    other = engine.segment(image, instruction or result.instruction, max_new_tokens)
    return OtherAnswer(other, result)
