"""How good a checkpoint is on drawn scenes: one row an example, then the table."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from coprs_core.answer.engine import Engine
from coprs_core.metrics import correlation, iou
from coprs_core.prompts import FOCUS_TOKEN, parse_reply
from coprs_core.world.questions import FAMILIES, Question, conclusion_of, examples
from coprs_core.answer.results import NOTHING_FOUND, Result
from coprs_core.world.scenes import SIDE, UNSEEN_PAIRS, Scene

SIZES = (("under 1 %", 0, 0.01), ("1 to 3 %", 0.01, 0.03), ("3 to 8 %", 0.03, 0.08), ("over 8 %", 0.08, 1))


@dataclass(frozen=True)
class Row:
    """One example: what was asked and how the answer fares against the truth.

    `size` is the target's share of the picture, None where nothing fits. `named`: the thought concludes with the right
    kind and colour, or says that nothing fits where nothing does; `hit`: the mask overlaps the target more than any
    other thing, or is absent where nothing fits. IoUs are against the true mask; both empty counts 1.
    """

    index: int
    family: str
    size: float | None
    unseen_pair: bool
    unseen_wording: bool
    well_formed: bool
    said_nothing: bool
    named: bool
    hit: bool
    mask_iou: float
    prior_iou: float
    seconds: float


def well_formed(reply: str) -> bool:
    """One non-empty thought, closed, and after it either one focus token or words that say why there is none."""
    parts = parse_reply(reply)
    tokens = reply.count(FOCUS_TOKEN)
    once = reply.startswith("<think>") and reply.count("<think>") == reply.count("</think>") == 1
    return bool(
        once and parts.reasoning and (tokens == 1 and reply.endswith(FOCUS_TOKEN) or tokens == 0 and parts.answer)
    )


def judge(index: int, scene: Scene, question: Question, result: Result) -> Row:
    """Hold one answer against the truth."""
    target = None if question.target is None else scene.things[question.target]
    truth, mask = scene.mask(question.target), result.mask
    prior = result.regions[0].prior >= 0.5 if result.regions else np.zeros_like(mask)
    overlaps = [int((mask & scene.mask(i)).sum()) for i in range(len(scene.things))]
    nothing = result.outcome == NOTHING_FOUND
    if target is None:
        named, hit = nothing, not mask.any()
    else:
        named = conclusion_of(result.reasoning) == (target.kind, target.colour)
        hit = overlaps[question.target] > max([0, *(o for i, o in enumerate(overlaps) if i != question.target)])
    return Row(
        index=index,
        family=question.family,
        size=None if target is None else target.area / SIDE**2,
        unseen_pair=target is not None and (target.kind, target.colour) in UNSEEN_PAIRS,
        unseen_wording=question.unseen_wording,
        well_formed=well_formed(result.reply),
        said_nothing=nothing,
        named=named,
        hit=hit,
        mask_iou=iou(mask, truth),
        prior_iou=iou(prior, truth),
        seconds=sum(result.seconds.values()),
    )


def evaluate(engine: Engine, split: str, seed: int, count: int) -> Iterator[Row]:
    """Answer `count` examples of a split, one row each."""
    for i, (scene, question) in enumerate(examples(split, seed, count)):
        yield judge(seed + i, scene, question, engine.segment(scene.image, question.instruction))


def figures(rows: list[Row]) -> dict[str, float]:
    """The measures of a group of rows, each in [0, 1] but `count` and `seconds` (a mean)."""
    mean = lambda values: float(np.mean(values)) if len(values) else float("nan")  # noqa: E731
    return {
        "count": len(rows),
        "well_formed": mean([r.well_formed for r in rows]),
        "hit": mean([r.hit for r in rows]),
        "named": mean([r.named for r in rows]),
        "mask_giou": mean([r.mask_iou for r in rows]),
        "prior_giou": mean([r.prior_iou for r in rows]),
        "mask_giou_if_named": mean([r.mask_iou for r in rows if r.named and r.size is not None]),
        "seconds": mean([r.seconds for r in rows]),
    }


def report(rows: list[Row]) -> dict:
    """All figures: overall, by family, by target size, and on what training never showed."""
    nothing = [r for r in rows if r.size is None]
    said = [r for r in rows if r.said_nothing]
    masked = [r for r in rows if r.size is not None and not r.said_nothing]
    groups: dict[str, Callable[[Row], bool]] = {f: lambda r, f=f: r.family == f for f in FAMILIES}
    groups |= {f"target {n}": lambda r, a=a, b=b: r.size is not None and a <= r.size < b for n, a, b in SIZES}
    groups |= {"unseen pair": lambda r: r.unseen_pair, "unseen wording": lambda r: r.unseen_wording}
    return {
        "all": figures(rows),
        "nothing_there": {
            "precision": sum(r.size is None for r in said) / len(said) if said else float("nan"),
            "recall": sum(r.said_nothing for r in nothing) / len(nothing) if nothing else float("nan"),
        },
        "prior_mask_correlation": correlation([r.prior_iou for r in masked], [r.mask_iou for r in masked]),
        "groups": {n: figures([r for r in rows if keep(r)]) for n, keep in groups.items()},
        "rows": [asdict(r) for r in rows],
    }


def table(result: dict) -> str:
    """The report as text for a terminal."""
    columns = ("count", "well_formed", "hit", "named", "mask_giou", "prior_giou", "mask_giou_if_named", "seconds")
    heads = ("count", "formed", "hit", "named", "mask gIoU", "prior gIoU", "if named", "seconds")
    lines = [f"{'':18}" + "".join(f"{h:>11}" for h in heads)]
    for name, group in {"all": result["all"], **result["groups"]}.items():
        cells = (f"{group[c]:>11d}" if c == "count" else f"{group[c]:>11.3f}" for c in columns)
        lines.append(f"{name:18}" + "".join(cells).replace("nan", "  –"))
    nothing = result["nothing_there"]
    lines.append(f"“nothing there”: precision {nothing['precision']:.3f}, recall {nothing['recall']:.3f}")
    lines.append(f"R(prior IoU, mask IoU) = {result['prior_mask_correlation']:.3f}")
    return "\n".join(lines)
