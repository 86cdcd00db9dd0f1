"""What is compared: the rows of every table."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from coprs_core.errors import CoPRSError, did_you_mean

Camp = Literal["focus token", "hidden state", "coordinates"]
START_ARM, JOINT_ARM = "start", "joint"


@dataclass(frozen=True)
class Arm:
    """One row of a table.

    Attributes:
        name: as it is called in the table; `table`: the one it belongs to.
        changes: `key=value` of the joint stage's recipe.
        camp: how the language model tells the decoder where: by a focus token and its prior
            (CoPRS), by a hidden state alone (LISA), or by coordinates in text (Seg-Zero); None:
            an arm of the joint stage.
        imitates: it learns by the supervised warm-up, in as many steps as the joint stage.
        vision: what its image encoder has otherwise; it is then learnt from nothing.
        seeds: how many times it is trained.
        shows: what it can show of its why, beside the thought.
    """

    name: str
    table: str
    changes: tuple[str, ...] = ()
    camp: Camp | None = None
    imitates: bool = False
    vision: dict[str, Any] | None = field(default=None, hash=False)
    seeds: int = 1
    shows: str = "prior"

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return re.sub(r"\W+", "-", self.name.lower()).strip("-")

    @property
    def is_trained(self) -> bool:
        """False for the start, which is only measured."""
        return self.name != START_ARM


TABLES = {
    "objective": "What is learnt: the unified objective, or one half of it",
    "mask share": "Share of the reward that is the mask's (the joint arm has 0.7)",
    "group": "Replies to a question, G, as many replies in all (the joint arm has 8)",
    "camp": "The three camps: how the language model tells the decoder where",
    "image encoder": "Size of the image encoder, learnt from nothing",
}
REFERENCE_ARMS = {"camp": "focus token and prior", "image encoder": "encoder of width 128"}
"""The row that the others of a table are held against; elsewhere the joint arm."""
ARMS = (
    Arm(START_ARM, "objective"),
    Arm(JOINT_ARM, "objective", seeds=2),
    Arm("only RL", "objective", ("segmentation=0.0",), seeds=2),
    Arm("only segmentation", "objective", ("policy=0.0",), seeds=2),
    Arm("imitation", "objective", ("questions=64", "warmup_rate=3e-5"), imitates=True, seeds=2),
    Arm("mask share 0", "mask share", ("mask_share=0.0",)),
    Arm("mask share 1", "mask share", ("mask_share=1.0",)),
    Arm("G = 2", "group", ("group=2", "questions=32")),
    Arm("G = 4", "group", ("group=4", "questions=16")),
    Arm("focus token and prior", "camp", camp="focus token", seeds=2),
    Arm("hidden state", "camp", camp="hidden state", seeds=2, shows="nothing"),
    Arm("coordinates", "camp", camp="coordinates", seeds=2, shows="box, attention"),
    Arm(
        "encoder of width 64",
        "image encoder",
        camp="focus token",
        vision={"width": 64, "depth": 3, "heads": 2},
    ),
    Arm("encoder of width 128", "image encoder", camp="focus token", vision={}),
    Arm(
        "encoder of width 192",
        "image encoder",
        camp="focus token",
        vision={"width": 192, "depth": 7, "heads": 6},
    ),
)


def select_arms(names: list[str]) -> tuple[Arm, ...]:
    """The arms, or tables, of these names; all where none is given. Raises `CoPRSError` for a name
    that is neither."""
    known = (*(arm.name for arm in ARMS), *TABLES)
    for name in names:
        if name not in known:
            raise CoPRSError(
                f"There is no arm or table {name!r}{did_you_mean(name, known)}: choose from "
                f"{', '.join(known)}."
            )
    return tuple(a for a in ARMS if not names or {a.name, a.table} & {*names})
