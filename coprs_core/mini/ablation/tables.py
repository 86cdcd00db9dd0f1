"""What the arms add up to: tables with intervals and paired tests, and their figure."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from coprs_core.evaluation.compare import PairedDifference, bootstrap_interval, paired_difference
from coprs_core.evaluation.report import BOOTSTRAP_SEED
from coprs_core.evaluation.rows import Measurement
from coprs_core.mini.ablation.arms import JOINT_ARM, REFERENCE_ARMS, TABLES, Arm
from coprs_core.mini.ablation.run import ArmResult, Budget

_INK, _MASK, _PRIOR = "#3a3a3a", "#00a090", "#e07020"


@dataclass(frozen=True)
class TableRow:
    """One row of a table, over all seeds of an arm.

    Attributes:
        arm: which; `seeds`: how often it was trained.
        named, mask, prior: (mean, low, high): the share of thoughts that conclude rightly, gIoU of
            mask and prior, with 95 % intervals by bootstrap over scenes, each scene's value the
            mean over the seeds. `prior` is None where the arm has none (attention is no mask).
        by_seed: the mask's gIoU of each seed.
        unusable: share of replies without a readable answer.
        tokens: of a reply.
        against: the mask's gIoU against the table's reference; None for the reference itself.
    """

    arm: Arm
    seeds: int
    named: tuple[float, float, float]
    mask: tuple[float, float, float]
    prior: tuple[float, float, float] | None
    by_seed: tuple[float, ...]
    unusable: float
    tokens: float
    against: PairedDifference | None = None


def build_tables(measured: list[ArmResult]) -> dict[str, list[TableRow]]:
    """The rows of every table that has any, the reference of each among them."""
    seeds: dict[Arm, list[list[Measurement]]] = {}
    for one in measured:
        seeds.setdefault(one.arm, []).append(one.rows)
    masks = {arm.name: _mean_over_seeds(rows, "mask_iou") for arm, rows in seeds.items()}
    tables: dict[str, list[TableRow]] = {}
    for table in TABLES:
        reference = REFERENCE_ARMS.get(table, JOINT_ARM)
        for arm, rows in seeds.items():
            if arm.table == table or (arm.name == reference and table in {a.table for a in seeds}):
                entry = _build_row(arm, rows, masks, reference)
                tables.setdefault(table, []).append(entry)
    return tables


def _build_row(
    arm: Arm, rows: list[list[Measurement]], masks: dict[str, np.ndarray], reference: str
) -> TableRow:
    everything = [row for seed in rows for row in seed]
    against = None
    if arm.name != reference and reference in masks:
        against = paired_difference(masks[reference], masks[arm.name])
    return TableRow(
        arm,
        len(rows),
        _interval(_mean_over_seeds(rows, "named")),
        _interval(masks[arm.name]),
        _interval(_mean_over_seeds(rows, "prior_iou")) if arm.shows == "prior" else None,
        tuple(float(np.mean([r.mask_iou for r in seed])) for seed in rows),
        float(np.mean([r.is_failed for r in everything])),
        float(np.mean([r.tokens for r in everything])),
        against,
    )


def _mean_over_seeds(rows: list[list[Measurement]], name: str) -> np.ndarray:
    """One value for each scene [N]: the mean over the seeds."""
    values = [[_value(r, name) for r in seed] for seed in rows]
    return np.mean(np.array(values, float), axis=0)


def _value(row: Measurement, name: str) -> float:
    return float(row.scores.get("named", False)) if name == "named" else getattr(row, name)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    return float(values.mean()), *bootstrap_interval(values, np.random.default_rng(BOOTSTRAP_SEED))


def to_markdown(tables: dict[str, list[TableRow]], budget: Budget) -> str:
    """All tables as Markdown."""
    lines = [
        f"Start: {budget.model}. {budget.scenes:,} scenes of the test split from number "
        f"{budget.first:,}; 95 % intervals over scenes. Joint stage: {budget.steps} steps of 64 "
        f"replies; camps and encoders: {budget.camp_steps} steps of 36 replies, by imitation, with "
        "heads from nothing.",
    ]
    for table, rows in tables.items():
        lines += [
            "",
            f"**{TABLES[table]}**",
            "",
            "| arm | seeds | named | mask gIoU | each seed | prior gIoU | against the reference "
            "| p | unusable | tokens | shows of its why |",
            "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --- |",
        ]
        lines += [f"| {' | '.join(_format_cells(entry))} |" for entry in rows]
    return "\n".join(lines) + "\n"


def _format_cells(entry: TableRow) -> list[str]:
    d = entry.against
    difference = "" if d is None else f"{d.b - d.a:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
    why = "thought" if entry.arm.shows == "nothing" else f"thought, {entry.arm.shows}"
    return [
        entry.arm.name,
        str(entry.seeds) if entry.arm.is_trained else "–",
        _format_value(entry.named),
        _format_value(entry.mask),
        ", ".join(f"{v:.3f}" for v in entry.by_seed),
        "–" if entry.prior is None else _format_value(entry.prior),
        difference,
        "" if d is None else f"{d.p:.4f}",
        f"{entry.unusable:.3f}",
        f"{entry.tokens:.0f}",
        why,
    ]


def _format_value(value: tuple[float, float, float]) -> str:
    mean, low, high = value
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def draw_figure(tables: dict[str, list[TableRow]]) -> Figure:
    """Mask and prior gIoU of every arm with their intervals, a panel a table."""
    heights = [len(rows) + 1 for rows in tables.values()]
    figure = Figure(figsize=(7.5, 0.36 * sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(tables), 1, sharex=True, height_ratios=heights, squeeze=False)
    for axes, (table, rows) in zip(panels[:, 0], tables.items(), strict=True):
        for y, entry in enumerate(rows):
            for value, colour, shift in ((entry.mask, _MASK, -0.12), (entry.prior, _PRIOR, 0.12)):
                if value is not None:
                    mean, low, high = value
                    axes.plot([low, high], [y + shift] * 2, color=colour, linewidth=2)
                    axes.plot(mean, y + shift, "o", color=colour, markersize=5)
        axes.set_yticks(range(len(rows)), [entry.arm.name for entry in rows], color=_INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(TABLES[table], loc="left", fontsize=9, color=_INK)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=8, length=0)
    panels[-1, 0].set_xlabel("gIoU, 95 % interval", fontsize=9, color=_INK)
    for label, colour in (("mask", _MASK), ("prior", _PRIOR)):
        panels[0, 0].plot([], [], "o-", color=colour, label=label)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(),
        loc="outside upper right",
        fontsize=8,
        frameon=False,
        ncols=2,
    )
    return figure
