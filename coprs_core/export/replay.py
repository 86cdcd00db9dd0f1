"""Write the replay of an answer as an animated picture: the thought sentence by sentence, where
the model looked after each, then the mask."""

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
from coprs_core.probes.trace import SentenceTrace

PICTURE_SIDE, THOUGHT_WIDTH, GAP, TOP_MARGIN = 300, 400, 16, 44
FORMATS = (".webp", ".gif")
_BACKGROUND, _TEXT_COLOUR = (250, 248, 244), (36, 27, 43)
_LABEL_COLOUR, _INSTRUCTION_COLOUR = (141, 132, 144), (91, 26, 107)
_TYPING_MS, _FOCUS_MS, _FINAL_MS = 140, 1100, 2600
_CJK_FONTS = ["Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Source Han Sans SC"]


def save_replay(path: Path, photo: Photo, result: Result, trace: SentenceTrace) -> Path:
    """Write the replay of an answer, with the trace of its thought, as animated WebP or GIF.

    At most 1,064 × 360 pixels. Raises `CoPRSError` for another suffix.
    """
    if path.suffix.lower() not in FORMATS:
        raise CoPRSError("{file!r} is no animated picture: name it .webp or .gif.", file=path.name)
    pictures, milliseconds = [], []
    for frame, shown_for in _draw_frames(photo, result, trace):
        pictures.append(frame)
        milliseconds.append(shown_for)
    options = {"quality": 72, "method": 3} if path.suffix.lower() == ".webp" else {}
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, **options
    )
    return path


def _draw_frames(photo: Photo, result: Result, trace: SentenceTrace):
    """(picture, milliseconds) one after the other."""
    small = thumbnail(np.asarray(photo.image), PICTURE_SIDE)
    font = _font(14, _has_cjk(result.instruction + result.reasoning))
    prior, mask, lines_so_far = small, small, []
    for view in trace.views:
        words, lines = view.text.split(), []
        third = max(1, -(-len(words) // 3))  # a sentence appears in three steps: each is a frame
        for typed in range(third, len(words) + third, third):
            lines = _wrap_lines(" ".join(words[:typed]), font, THOUGHT_WIDTH)
            yield _draw_frame(result, font, lines_so_far + lines, prior, mask, ""), _TYPING_MS
        lines_so_far += lines
        prior = prior_overlay(small, downscale_prior(view.prior, PICTURE_SIDE))
        mask = mask_overlay(small, downscale_mask(view.mask, PICTURE_SIDE))
        yield _draw_frame(result, font, lines_so_far, prior, mask, f"IoU {view.iou:.2f}"), _FOCUS_MS
    agreement = ""
    if result.prior is not None:
        prior = prior_overlay(small, downscale_prior(result.prior, PICTURE_SIDE))
        mask = mask_overlay(small, *(downscale_mask(r.mask, PICTURE_SIDE) for r in result.regions))
        agreement = f"IoU of prior and mask {result.prior_iou:.2f}"
    yield _draw_frame(result, font, lines_so_far, prior, mask, agreement), _FINAL_MS


def _draw_frame(
    result: Result, font, lines: list[str], prior: np.ndarray, mask: np.ndarray, caption: str
) -> Image.Image:
    """The question, the last lines of the thought that have room, prior and mask."""
    height, width = prior.shape[:2]
    size = THOUGHT_WIDTH + 2 * width + 4 * GAP, max(height, 240) + TOP_MARGIN + GAP
    frame = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(frame)
    left = [GAP, THOUGHT_WIDTH + 2 * GAP, THOUGHT_WIDTH + width + 3 * GAP]
    instruction = _wrap_lines(f"“{result.instruction}”", font, size[0] - 2 * GAP)[0]
    draw.text((GAP, 6), instruction, _INSTRUCTION_COLOUR, font)
    max_lines = (size[1] - TOP_MARGIN - GAP) // 20
    thought = "\n".join(lines[-max_lines:])
    draw.multiline_text((GAP, TOP_MARGIN), thought, _TEXT_COLOUR, font, spacing=5)
    for x, picture in zip(left[1:], (prior, mask), strict=True):
        frame.paste(Image.fromarray(picture), (x, TOP_MARGIN))
    draw.text((left[1], 27), "prior", _LABEL_COLOUR, _font(12, False))
    draw.text((left[2], 27), "mask", _LABEL_COLOUR, _font(12, False))
    draw.text((left[2] + width, 27), caption, _LABEL_COLOUR, _font(12, False), anchor="ra")
    return frame


def _wrap_lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
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


def _has_cjk(text: str) -> bool:
    return any(c >= "\u2e80" for c in text)


@cache
def _font(size: int, is_cjk: bool) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font; for Chinese, Japanese and Korean the system's, where it has one."""
    import matplotlib
    from matplotlib import font_manager

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for name in _CJK_FONTS if is_cjk else ():
        try:
            path = Path(font_manager.findfont(name, fallback_to_default=False))
            break
        except ValueError:
            continue
    return ImageFont.truetype(path, size)
