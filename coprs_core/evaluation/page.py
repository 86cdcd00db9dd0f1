"""A run as one HTML file that needs no network: its figures, the paper's figure 3, and its best,
worst and random cases with their thoughts. What it looks like stands in page.html."""

import base64
import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from coprs_core.evaluation.report import AT, Regression, faults, in_digits
from coprs_core.evaluation.rows import STEPS, Measurement
from coprs_core.evaluation.run import CASES, SHOWN, Settings
from coprs_core.run_settings import PATH_ERRORS

PAGE = "report.html"
MOST_POINTS = 3000
"""In the figure; more are drawn at random."""
_MASK, _PRIOR, _GREY = "#2f7d4f", "#c2571a", "#808080"
_MOST_LETTERS = 1200  # of a reply beside its picture
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["digits"] = in_digits


def write_page(folder: Path, rows: list[Measurement], run: dict[str, Any], scores: dict) -> Path:
    """Write the page of a run into its folder: `run` as `read_run` gives it, `scores` as
    `report`."""
    line = scores["line"] and Regression(**scores["line"])
    page = _TEMPLATES.get_template("page.html").render(
        settings=Settings(**run["settings"]),
        run=run,
        count=len(rows),
        scores={"left": 0} | scores,
        faults=faults(scores),
        levels=AT,
        shares={side: _shares(scores["all"], side) for side in ("mask", "prior")},
        groups={"all": scores["all"], **scores["groups"]},
        line=line,
        scatter=_scatter(rows, line),
        curve=_curve(scores),
        shown=_cases(rows, folder / CASES),
    )
    path = folder / PAGE
    path.write_text(page, encoding="utf-8", errors=PATH_ERRORS)
    return path


def _shares(measures: dict, side: str) -> str:
    """The shares of items over each level of IoU, in digits."""
    return " · ".join(in_digits(measures[f"{side}@{at}"]) for at in AT)


def _scatter(rows: list[Measurement], line: Regression | None) -> Markup:
    shown = [r for r in rows if r.is_masked]
    if len(shown) > MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(shown), MOST_POINTS, replace=False)
        shown = [shown[i] for i in chosen]
    figure, axes = _axes("IoU of the prior", "IoU of the mask")
    points = np.array([(r.prior_iou, r.mask_iou) for r in shown]).reshape(-1, 2)
    axes.plot(*points.T, ".", color=_MASK, alpha=0.35, markersize=5, rasterized=True)
    axes.plot([0, 1], [0, 1], ":", color=_GREY, linewidth=1)
    if line:
        at = np.linspace(0, 1, len(line.band))
        middle, band = line.intercept + line.slope * at, np.array(line.band)
        axes.fill_between(at, middle - band, middle + band, color=_PRIOR, alpha=0.25, linewidth=0)
        axes.plot(at, middle, color=_PRIOR, linewidth=1.5)
    return _svg(figure)


def _curve(scores: dict) -> Markup:
    figure, axes = _axes("threshold of the prior", "mean IoU")
    if scores["prior_curve"]:
        axes.plot(STEPS, list(scores["prior_curve"].values()), color=_PRIOR, linewidth=2)
    return _svg(figure)


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel(x, color=_GREY), axes.set_ylabel(y, color=_GREY)
    axes.tick_params(colors=_GREY)
    for spine in axes.spines.values():
        spine.set_color(_GREY)
    axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure) -> Markup:
    told = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "coprs"}):
        figure.savefig(told, format="svg", transparent=True, dpi=110, metadata={"Date": None})
    drawn = told.getvalue()
    return Markup(drawn.partition("?>")[2].partition('svg11.dtd">')[2] or drawn)


def _cases(rows: list[Measurement], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows that have a picture, the worst, some at random and the best, by that name."""
    there = [r for r in rows if (folder / f"{r.index}.webp").is_file()]
    ordered = sorted(there, key=lambda r: (r.mask_iou, r.index))
    best = [r for r in ordered if r.size is not None][::-1][:SHOWN]
    worst = ordered[:SHOWN]
    some = [r for r in there if r not in best and r not in worst][:SHOWN]
    shown = {"Worst": worst, "Random": some, "Best": best}
    return {name: [_case(row, folder) for row in chosen] for name, chosen in shown.items()}


def _case(row: Measurement, folder: Path) -> dict[str, Any]:
    picture = base64.b64encode((folder / f"{row.index}.webp").read_bytes()).decode()
    text = folder / f"{row.index}.txt"
    reply = text.read_text(encoding="utf-8")[:_MOST_LETTERS] if text.is_file() else ""
    return {"row": row, "picture": picture, "reply": reply}
