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

from coprs_core.evaluation.report import (
    IOU_LEVELS,
    Regression,
    describe_data_problems,
    format_number,
)
from coprs_core.evaluation.rows import CURVE_THRESHOLDS, Measurement
from coprs_core.evaluation.run import CASES_FOLDER, NUM_CASES, RunSettings
from coprs_core.run_settings import PATH_ERRORS

PAGE_FILE = "report.html"
MAX_POINTS = 3000
"""In the figure; more are drawn at random."""
_MASK, _PRIOR, _GREY = "#2f7d4f", "#c2571a", "#808080"
_MAX_REPLY_LETTERS = 1200  # of a reply beside its picture
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["digits"] = format_number


def write_page(folder: Path, rows: list[Measurement], run: dict[str, Any], scores: dict) -> Path:
    """Write the page of a run into its folder: `run` as `read_run` gives it, `scores` as
    `compute_scores`."""
    line = scores["line"] and Regression(**scores["line"])
    page = _TEMPLATES.get_template("page.html").render(
        settings=RunSettings(**run["settings"]),
        run=run,
        count=len(rows),
        scores={"left": 0} | scores,
        faults=describe_data_problems(scores),
        levels=IOU_LEVELS,
        shares={side: _format_shares(scores["all"], side) for side in ("mask", "prior")},
        groups={"all": scores["all"], **scores["groups"]},
        line=line,
        scatter=_draw_scatter(rows, line),
        curve=_draw_curve(scores),
        shown=_select_cases(rows, folder / CASES_FOLDER),
    )
    path = folder / PAGE_FILE
    path.write_text(page, encoding="utf-8", errors=PATH_ERRORS)
    return path


def _format_shares(measures: dict, side: str) -> str:
    """The shares of items over each level of IoU, in digits."""
    return " · ".join(format_number(measures[f"{side}@{at}"]) for at in IOU_LEVELS)


def _draw_scatter(rows: list[Measurement], line: Regression | None) -> Markup:
    found = [r for r in rows if r.has_target_and_mask]
    if len(found) > MAX_POINTS:
        # every point is an element of the SVG: browsers stall over tens of thousands
        chosen = np.random.default_rng(0).choice(len(found), MAX_POINTS, replace=False)
        found = [found[i] for i in chosen]
    figure, axes = _create_axes("IoU of the prior", "IoU of the mask")
    points = np.array([(r.prior_iou, r.mask_iou) for r in found]).reshape(-1, 2)
    axes.plot(*points.T, ".", color=_MASK, alpha=0.35, markersize=5, rasterized=True)
    axes.plot([0, 1], [0, 1], ":", color=_GREY, linewidth=1)
    if line:
        at = np.linspace(0, 1, len(line.band))
        middle, band = line.intercept + line.slope * at, np.array(line.band)
        axes.fill_between(at, middle - band, middle + band, color=_PRIOR, alpha=0.25, linewidth=0)
        axes.plot(at, middle, color=_PRIOR, linewidth=1.5)
    return _to_svg(figure)


def _draw_curve(scores: dict) -> Markup:
    figure, axes = _create_axes("threshold of the prior", "mean IoU")
    if scores["prior_curve"]:
        axes.plot(CURVE_THRESHOLDS, list(scores["prior_curve"].values()), color=_PRIOR, linewidth=2)
    return _to_svg(figure)


def _create_axes(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xlabel(x, color=_GREY), axes.set_ylabel(y, color=_GREY)
    axes.tick_params(colors=_GREY)
    for spine in axes.spines.values():
        spine.set_color(_GREY)
    axes.patch.set_alpha(0)
    return figure, axes


def _to_svg(figure: Figure) -> Markup:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "coprs"}):
        figure.savefig(buffer, format="svg", transparent=True, dpi=110, metadata={"Date": None})
    svg = buffer.getvalue()
    return Markup(svg.partition("?>")[2].partition('svg11.dtd">')[2] or svg)


def _select_cases(rows: list[Measurement], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows that have a picture, the worst, some at random and the best, by that name."""
    pictured = [r for r in rows if (folder / f"{r.index}.webp").is_file()]
    ordered = sorted(pictured, key=lambda r: (r.mask_iou, r.index))
    best = [r for r in ordered if r.size is not None][::-1][:NUM_CASES]
    worst = ordered[:NUM_CASES]
    some = [r for r in pictured if r not in best and r not in worst][:NUM_CASES]
    cases = {"Worst": worst, "Random": some, "Best": best}
    return {name: [_load_case(row, folder) for row in chosen] for name, chosen in cases.items()}


def _load_case(row: Measurement, folder: Path) -> dict[str, Any]:
    picture = base64.b64encode((folder / f"{row.index}.webp").read_bytes()).decode()
    text = folder / f"{row.index}.txt"
    reply = text.read_text(encoding="utf-8")[:_MAX_REPLY_LETTERS] if text.is_file() else ""
    return {"row": row, "picture": picture, "reply": reply}
