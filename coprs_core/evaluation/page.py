"""A run as one HTML file that needs no network: its figures, the paper's figure 3, and its best,
worst and random cases with their thoughts."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from coprs_core.evaluation.report import AT, Line, faults, in_digits
from coprs_core.evaluation.rows import STEPS, Row
from coprs_core.evaluation.run import CASES, NAMES, SHOWN, Settings

PAGE = "report.html"
MOST_POINTS = 3000
"""In the figure; more are drawn at random."""
_MASK, _PRIOR, _GREY = "#2f7d4f", "#c2571a", "#808080"
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--mask:#2f7d4f;--prior:#c2571a}
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .6rem}
p,dd{margin:.2rem 0}.quiet{opacity:.72}.cards{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0}
.card{border:1px solid var(--line);border-radius:10px;padding:.6rem .9rem;min-width:8.5rem}
.card b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}
.card.mask b{color:var(--mask)}.card.prior b{color:var(--prior)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
td:first-child,th:first-child{text-align:left}tbody tr:hover{background:var(--soft)}
.two{display:flex;flex-wrap:wrap;gap:1.5rem}.two>div{flex:1 1 420px}svg{max-width:100%;height:auto}
.case{border:1px solid var(--line);border-radius:10px;padding:.7rem;margin:.7rem 0}
.case img{max-width:100%;border-radius:6px}.case blockquote{margin:.4rem 0;opacity:.85}
"""


def write_page(folder: Path, rows: list[Row], run: dict[str, Any], scores: dict) -> Path:
    """Write the page of a run into its folder: `run` as `read_run` gives it, `scores` as
    `report`."""
    settings = Settings(**run["settings"])
    line = scores["line"] and Line(**scores["line"])
    title = escape(f"{settings.model} on {settings.about}")
    parts = [
        f"<h1>{title}</h1>",
        _what_was_run(rows, run, settings, scores),
        _cards(scores),
        "<h2>Where prior and mask go together</h2><div class=two>",
        f"<div>{_scatter(rows, line)}{_line_in_words(line)}</div>",
        f"<div>{_curve(scores)}<p class=quiet>Mean IoU of the prior with the truth, where it "
        "counts from a threshold on.</p></div></div>",
        f"<h2>By group</h2>{_groups(scores)}",
        _problems(scores),
        *_cases(rows, folder / CASES),
    ]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{title}"
    page = (
        f"<!doctype html><html lang=en>{head}</title><style>{_STYLE}</style>{''.join(parts)}</html>"
    )
    path = folder / PAGE
    path.write_text(page, encoding="utf-8", errors=NAMES)
    return path


def _what_was_run(rows: list[Row], run: dict, settings: Settings, scores: dict) -> str:
    engine = " · ".join(f"{k} {v}" for k, v in run["engine"].items())
    left = scores.get("left", 0)
    failed = " · ".join(f"{count:,} {what}" for what, count in scores["failed"].items())
    lines = [
        f"{len(rows):,} items of split {settings.split}, {failed}. "
        + (f"{left:,} more are still to come." if left else "Nothing is skipped."),
        *faults(scores),
        f"Counted as {scores['protocol']}.",
        f"{engine} · {settings.at_once} at once · judge {settings.judge} · begun {run['began']}",
        " · ".join(f"{k} {v}" for k, v in run["versions"].items()),
    ]
    return "".join(f"<p class=quiet>{escape(line)}</p>" for line in lines)


def _cards(scores: dict) -> str:
    cards = []
    for side in ("mask", "prior"):
        for name in ("giou", "ciou"):
            value, interval = (
                scores["all"][f"{side}_{name}"],
                scores["intervals"].get(f"{side}_{name}"),
            )
            about = f"{side} {name[0]}IoU"
            between = "95 % {:.3f} to {:.3f}".format(*interval) if interval else ""
            cards.append((side, in_digits(value), about, between))
        parts = " · ".join(in_digits(scores["all"][f"{side}@{at}"]) for at in AT)
        cards.append(
            (
                side,
                in_digits(scores["all"][f"{side}@0.5"]),
                f"{side} IoU > 0.5",
                f"at {AT}: {parts}",
            )
        )
    nothing = scores["nothing_there"]
    cards.append(("", in_digits(scores["all"]["well_formed"]), "well-formed replies", ""))
    cards.append(
        (
            "",
            in_digits(nothing["recall"]),
            "“nothing there”, recall",
            f"precision {in_digits(nothing['precision'])}",
        )
    )
    if scores["all"]["thought"] is not None:
        told = [in_digits(scores[f"thought_{side}_correlation"]) for side in ("prior", "mask")]
        cards.append(
            (
                "",
                f"{scores['all']['thought']:.1f}",
                "thought, of 10",
                f"R with prior {told[0]}, mask {told[1]}",
            )
        )
    cards.append(("", in_digits(scores["all"]["tokens"]), "tokens a reply", ""))
    drawn = (
        f"<div class='card {side}'><b>{value}</b>{escape(name)}"
        f"<div class=quiet>{escape(more)}</div></div>"
        for side, value, name, more in cards
    )
    return f"<div class=cards>{''.join(drawn)}</div>"


def _groups(scores: dict) -> str:
    names = [n for n, value in scores["all"].items() if value is not None]
    heads = "".join(f"<th>{escape(n.replace('_', ' ').replace('iou', 'IoU'))}</th>" for n in names)
    lines = []
    for name, values in {"all": scores["all"], **scores["groups"]}.items():
        cells = "".join(f"<td>{in_digits(values.get(n))}</td>" for n in names)
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return (
        f"<div class=wide><table><thead><tr><th></th>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _problems(scores: dict) -> str:
    """The items that were not answered, each with its reason."""
    told, count = scores["problems"], scores["failed"]["not answered"]
    if not told:
        return ""
    lines = "".join(f"<li>item {one['item']}: {escape(one['problem'])}</li>" for one in told)
    more = f"<p class=quiet>and {count - len(told):,} more</p>" if count > len(told) else ""
    return f"<h2>Not answered</h2><ul>{lines}</ul>{more}"


def _scatter(rows: list[Row], line: Line | None) -> str:
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


def _line_in_words(line: Line | None) -> str:
    if line is None:
        return "<p class=quiet>Too few items for a line.</p>"
    return (
        f"<p>R = {line.r:.3f} over {line.count:,} items where something is there and was found; "
        f"mask = {line.intercept:.2f} + {line.slope:.2f} · prior; {line.above:.0%} of the masks "
        "are better than their priors.</p>"
    )


def _curve(scores: dict) -> str:
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


def _svg(figure: Figure) -> str:
    told = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "coprs"}):
        figure.savefig(told, format="svg", transparent=True, dpi=110, metadata={"Date": None})
    return told.getvalue().partition("?>")[2].partition('svg11.dtd">')[2] or told.getvalue()


def _cases(rows: list[Row], folder: Path) -> list[str]:
    there = [r for r in rows if (folder / f"{r.index}.webp").is_file()]
    ordered = sorted(there, key=lambda r: (r.mask_iou, r.index))
    best = [r for r in ordered if r.size is not None][::-1][:SHOWN]
    worst = ordered[:SHOWN]
    some = [r for r in there if r not in best and r not in worst][:SHOWN]
    parts = []
    for name, chosen in (("Worst", worst), ("Random", some), ("Best", best)):
        if chosen:
            parts.append(f"<h2>{name}</h2><p class=quiet>photo · prior · mask · truth</p>")
            parts += [_case(row, folder) for row in chosen]
    return parts


def _case(row: Row, folder: Path) -> str:
    picture = base64.b64encode((folder / f"{row.index}.webp").read_bytes()).decode()
    text = folder / f"{row.index}.txt"
    reply = text.read_text(encoding="utf-8")[:1200] if text.is_file() else ""
    thought = "" if row.thought is None else f" · thought {row.thought:.1f} of 10"
    figures = (
        f"mask IoU {row.mask_iou:.2f} · prior IoU {row.prior_iou:.2f}{thought} · {row.outcome}"
    )
    return (
        f"<div class=case><b>{escape(row.instruction)}</b> <span class=quiet>item {row.index} · "
        f"{escape(figures)}</span><blockquote>{escape(reply)}</blockquote>"
        f"<img alt='photo, prior, mask, truth' src='data:image/webp;base64,{picture}'></div>"
    )
