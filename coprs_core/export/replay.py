"""The replay of an answer as one animated picture: the thought sentence by sentence, where the
model looked after each, then the mask."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from coprs_core.answer.pictures import (
    downscale_mask,
    downscale_prior,
    mask_overlay,
    prior_overlay,
    thumbnail,
)
from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError
from coprs_core.photos.photo import Photo
from coprs_core.probes.trace import Sentences

PICTURE_SIDE, THOUGHT_WIDTH, GAP, TOP = 300, 400, 16, 44
FORMATS = (".webp", ".gif")
_PAPER, _INK, _SOFT, _VIOLET = (250, 248, 244), (36, 27, 43), (141, 132, 144), (91, 26, 107)
_TYPED_MS, _LOOKED_MS, _LAST_MS = 140, 1100, 2600
_WIDE_FONTS = ["Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Source Han Sans SC"]


def save_replay(path: Path, photo: Photo, result: Result, trace: Sentences) -> Path:
    """Write the replay of an answer, with the trace of its thought, as animated WebP or GIF.

    At most 1,064 × 360 pixels. Raises `CoPRSError` where the name says neither.
    """
    if path.suffix.lower() not in FORMATS:
        raise CoPRSError("{file!r} is no animated picture: name it .webp or .gif.", file=path.name)
    pictures, milliseconds = [], []
    for frame, shown_for in _frames(photo, result, trace):
        pictures.append(frame)
        milliseconds.append(shown_for)
    options = {"quality": 72, "method": 3} if path.suffix.lower() == ".webp" else {}
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, **options
    )
    return path


def _frames(photo: Photo, result: Result, trace: Sentences):
    """(picture, milliseconds) one after the other."""
    small = thumbnail(np.asarray(photo.image), PICTURE_SIDE)
    font = _font(14, _is_wide(result.instruction + result.reasoning))
    prior, mask, said = small, small, []
    for view in trace.views:
        words, lines = view.text.split(), []
        third = max(1, -(-len(words) // 3))
        for typed in range(third, len(words) + third, third):
            lines = _lines(" ".join(words[:typed]), font, THOUGHT_WIDTH)
            yield _frame(result, font, said + lines, prior, mask, ""), _TYPED_MS
        said += lines
        prior = prior_overlay(small, downscale_prior(view.prior, PICTURE_SIDE))
        mask = mask_overlay(small, downscale_mask(view.mask, PICTURE_SIDE))
        yield _frame(result, font, said, prior, mask, f"IoU {view.iou:.2f}"), _LOOKED_MS
    agreement = ""
    if result.prior is not None:
        prior = prior_overlay(small, downscale_prior(result.prior, PICTURE_SIDE))
        mask = mask_overlay(small, *(downscale_mask(r.mask, PICTURE_SIDE) for r in result.regions))
        agreement = f"IoU of prior and mask {result.prior_iou:.2f}"
    yield _frame(result, font, said, prior, mask, agreement), _LAST_MS


def _frame(
    result: Result, font, said: list[str], prior: np.ndarray, mask: np.ndarray, words: str
) -> Image.Image:
    """The question, the last lines of the thought that have room, prior and mask."""
    height, width = prior.shape[:2]
    size = THOUGHT_WIDTH + 2 * width + 4 * GAP, max(height, 240) + TOP + GAP
    frame = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(frame)
    left = [GAP, THOUGHT_WIDTH + 2 * GAP, THOUGHT_WIDTH + width + 3 * GAP]
    asked = _lines(f"“{result.instruction}”", font, size[0] - 2 * GAP)[0]
    draw.text((GAP, 6), asked, _VIOLET, font)
    room = (size[1] - TOP - GAP) // 20
    draw.multiline_text((GAP, TOP), "\n".join(said[-room:]), _INK, font, spacing=5)
    for x, picture in zip(left[1:], (prior, mask), strict=True):
        frame.paste(Image.fromarray(picture), (x, TOP))
    draw.text((left[1], 27), "prior", _SOFT, _font(12, False))
    draw.text((left[2], 27), "mask", _SOFT, _font(12, False))
    draw.text((left[2] + width, 27), words, _SOFT, _font(12, False), anchor="ra")
    return frame


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A text broken where it gets too wide, at spaces where there are any."""
    lines, line = [], ""
    for word in text.split():
        pieces = [word] if font.getlength(word) <= width else list(word)
        for i, piece in enumerate(pieces):
            joined = f"{line}{' ' if line and not i else ''}{piece}"
            if line and font.getlength(joined) > width:
                lines.append(line)
                joined = piece
            line = joined
    return [*lines, line]


def _is_wide(text: str) -> bool:
    return any(c >= "\u2e80" for c in text)


@cache
def _font(size: int, wide: bool) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font; for Chinese, Japanese and Korean the system's, where it has one."""
    import matplotlib
    from matplotlib import font_manager

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for name in _WIDE_FONTS if wide else ():
        try:
            path = Path(font_manager.findfont(name, fallback_to_default=False))
            break
        except ValueError:
            continue
    return ImageFont.truetype(path, size)
