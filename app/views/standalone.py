"""An answer as one HTML file that needs no server and no network."""

import base64
import json
from pathlib import Path

import numpy as np
from markupsafe import Markup

from app.views import canvas, findings, page
from app.views.render import render
from coprs_core.answer.pictures import (
    DIMMED_BRIGHTNESS,
    GREY_BRIGHTNESS,
    HEAT_OPACITY,
    MASK_OPACITY,
    MIN_HEAT,
    REGION_COLOURS,
    heatmap_colours,
)
from coprs_core.answer.results import Result
from coprs_core.masks import PRIOR_SCALE
from coprs_core.photos.photo import Photo
from coprs_core.probes.trace import SentenceTrace

STATIC = Path(__file__).resolve().parent.parent / "static"
SCRIPTS = "view.js", "thought.js", "page.js"
"""One module in three files: joined, so that a saved page holds it without a build step."""


def script() -> Markup:
    """The page's script, and the colours and strengths that it shares with the core's pictures, as
    HTML."""
    shared = {
        "heatmap": base64.b64encode(heatmap_colours().tobytes()).decode(),
        "tints": REGION_COLOURS,
        "priorSteps": PRIOR_SCALE,
        "opacity": HEAT_OPACITY,
        "leastHeat": MIN_HEAT,
        "grey": GREY_BRIGHTNESS,
        "dim": DIMMED_BRIGHTNESS,
        "tint": MASK_OPACITY,
    }
    source = "".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return Markup(
        f"<script>window.COPRS_PICTURES={json.dumps(shared)};</script>"
        f'<script type="module">{source}</script>'
    )


def standalone(
    lang: str, photo: Photo, result: Result, trace: SentenceTrace | None, why_not: str = ""
) -> Markup:
    """An answer with its canvases, its verdict and, where its thought was traced, its replay; else
    `why_not`."""
    strip = findings.untraced_strip(lang, why_not)
    if trace is not None and result.regions:
        strip = findings.strip_view(lang, photo, trace)
    return render(
        lang,
        "standalone",
        language=lang,
        style=Markup((STATIC / "style.css").read_text(encoding="utf-8")),
        script=script(),
        instruction=result.instruction,
        model=result.model,
        thought=page.finished_thought(lang, result),
        view=canvas.answer_view(lang, np.asarray(photo.image), result),
        strip=strip,
        verdict=page.verdict(lang, result, full_size=photo.full_size),
    )
