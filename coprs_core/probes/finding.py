"""What a probe found, and how it is written to files and shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from coprs_core.answer.pictures import chain_figure
from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError
from coprs_core.photos.photo import Photo, PhotoLike, open_photo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120


class NotApplicable(CoPRSError):
    """A probe that this answer gives no occasion for; `stem` begins the names of the probe's
    files."""

    def __init__(self, template: str, stem: str, /, **values: Any):
        super().__init__(template, **values)
        self.stem = stem


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture for the page: `pixels` uint8 [H, W, 3] and its caption, a key of `app/texts/`."""

    caption: str
    values: dict[str, Any]
    pixels: np.ndarray = field(repr=False)


class Finding:
    """What a probe found. `stem` and `to_dict` are needed; the rest has a default.

    Files: `STEM.json` (`to_dict`), `STEM.npy` (`array`) and `STEM.png` (`figure`).
    """

    def stem(self) -> str:
        """What the names of its files begin with."""
        raise NotImplementedError

    def to_dict(self) -> dict:
        """The finding in plain values, without pixels."""
        raise NotImplementedError

    def summary(self) -> str:
        """Its figures in a few words, for a terminal."""
        return ", ".join(f"{k} {_short(v)}" for k, v in self.to_dict().items() if _is_short(v))

    def payloads(self) -> Iterator[Any]:
        """What the endpoint gives, one after the other; plain values, pictures as text."""
        yield self.to_dict()

    def pictures(self, photo: Photo) -> list[Picture]:
        """What the page shows, where it has no view of its own for this probe."""
        return []

    def array(self) -> np.ndarray | None:
        """The numbers behind the pictures."""
        return None

    def figure(self, photo: Photo) -> Figure | None:
        """One figure for a page or a paper; by default the pictures in a row."""
        shown = self.pictures(photo)
        if not shown:
            return None
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.4 * len(shown), 3.8), layout="constrained", facecolor="white")
        for ax, picture in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
            ax.imshow(picture.pixels)
            ax.set_axis_off()
        return figure

    def save(self, folder: Path | str, photo: PhotoLike) -> list[Path]:
        """Write the finding's files into a folder, which is made where there is none; returns their
        paths."""
        folder, photo = Path(folder), open_photo(photo)
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{self.stem()}.json"]
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        written[0].write_text(text + "\n", encoding="utf-8")
        if (array := self.array()) is not None:
            np.save(folder / f"{self.stem()}.npy", array)
            written.append(folder / f"{self.stem()}.npy")
        if (figure := self.figure(photo)) is not None:
            figure.savefig(folder / f"{self.stem()}.png", dpi=DPI)
            written.append(folder / f"{self.stem()}.png")
        return written


@dataclass(frozen=True, eq=False)
class ResultFinding(Finding):
    """A finding that is another answer about the same photo; also writes `STEM_mask.png`."""

    result: Result

    def facts(self) -> dict:
        """What is said beside the other answer."""
        return {}

    def to_dict(self) -> dict:
        return self.facts() | {"result": self.result.to_dict()}

    def summary(self) -> str:
        facts = ", ".join(f"{k} {_short(v)}" for k, v in self.facts().items() if _is_short(v))
        return f"{self.result.outcome}. {self.result.reason} {facts}".strip()

    def payloads(self) -> Iterator[Any]:
        yield self.facts() | {"result": self.result.to_dict(with_priors=True)}

    def array(self) -> np.ndarray | None:
        return self.result.prior

    def figure(self, photo: Photo) -> Figure:
        return chain_figure(np.asarray(photo.image), self.result)

    def save(self, folder: Path | str, photo: PhotoLike) -> list[Path]:
        written = super().save(folder, photo)
        if self.result.regions:
            written.append(Path(folder) / f"{self.stem()}_mask.png")
            Image.fromarray(self.result.mask).save(written[-1])
        return written


@dataclass(frozen=True)
class InapplicableProbe(Finding):
    """In place of a finding: why this answer gives no occasion for the probe."""

    files: str
    problem: str

    def stem(self) -> str:
        return self.files

    def to_dict(self) -> dict:
        return {"problem": self.problem}


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) and len(str(value)) < 200


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
