"""The table of kinds: everything that the world knows of an object. A new kind is one more row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from coprs_core.mini.world import drawings


@dataclass(frozen=True)
class Kind:
    """One kind of object.

    Attributes:
        name: a noun of one word.
        draw: its parts, back to front (see `drawings`).
        uses: what it does or what is done with it, each to follow "the thing that …".
        categories: what else it is.
        purpose: what to do with it, to follow "something to …"; empty where nothing is.
        may_be_rotated: whether it may lie at any small angle.
    """

    name: str
    draw: Callable[[], list]
    uses: tuple[str, ...]
    categories: tuple[str, ...] = ()
    purpose: str = ""
    may_be_rotated: bool = False


KIND_TABLE = (
    Kind(
        "fish",
        drawings.fish,
        ("swims under water", "breathes in water", "has fins"),
        categories=("animal",),
        may_be_rotated=True,
    ),
    Kind(
        "bird",
        drawings.bird,
        ("sings in the morning", "lays eggs in a nest", "has a beak"),
        categories=("animal",),
    ),
    Kind(
        "butterfly",
        drawings.butterfly,
        ("was once a caterpillar", "drinks from blossoms", "flutters in summer"),
        categories=("animal",),
        may_be_rotated=True,
    ),
    Kind(
        "car",
        drawings.car,
        ("drives on the road", "needs a parking place", "has four wheels"),
        categories=("vehicle",),
        purpose="drive to work with",
    ),
    Kind(
        "boat",
        drawings.boat,
        ("sails on the sea", "floats on the lake", "needs wind in its sails"),
        categories=("vehicle",),
        purpose="cross the lake with",
    ),
    Kind(
        "plane",
        drawings.plane,
        ("takes people to other countries by air", "lands at the airport", "a pilot steers"),
        categories=("vehicle",),
        purpose="fly abroad with",
        may_be_rotated=True,
    ),
    Kind(
        "apple",
        drawings.apple,
        ("keeps the doctor away", "cider is made from", "grows in an orchard"),
        categories=("food", "fruit"),
        purpose="bake in a pie",
    ),
    Kind(
        "banana",
        drawings.banana,
        ("monkeys like to eat", "you peel before you eat it", "is curved and sweet"),
        categories=("food", "fruit"),
        purpose="peel and eat",
        may_be_rotated=True,
    ),
    Kind(
        "carrot",
        drawings.carrot,
        ("rabbits like to eat", "grows under the ground", "makes the nose of a snowman"),
        categories=("food",),
        purpose="feed a rabbit with",
        may_be_rotated=True,
    ),
    Kind(
        "hammer",
        drawings.hammer,
        ("drives nails into wood", "a carpenter hits with", "you break a piggy bank with"),
        categories=("tool",),
        purpose="hit a nail with",
        may_be_rotated=True,
    ),
    Kind(
        "key",
        drawings.key,
        ("opens a door", "turns in a lock", "you must not lose when you leave home"),
        categories=("tool",),
        purpose="open a door with",
        may_be_rotated=True,
    ),
    Kind(
        "chair",
        drawings.chair,
        ("you sit on", "you rest your legs on", "has a seat and a back"),
        categories=("furniture",),
        purpose="sit on",
    ),
    Kind(
        "table",
        drawings.table,
        ("you put plates on", "a family eats dinner at", "you lay a cloth over"),
        categories=("furniture",),
        purpose="put plates on",
    ),
    Kind(
        "tree",
        drawings.tree,
        ("gives shade", "has a trunk and leaves", "you could climb in the forest"),
        categories=("plant",),
        purpose="climb on",
    ),
    Kind(
        "flower",
        drawings.flower,
        ("smells sweet", "you put in a vase", "bees visit"),
        categories=("plant",),
        purpose="put in a vase",
    ),
    Kind(
        "hat",
        drawings.hat,
        ("you wear on your head", "a magician pulls a rabbit out of", "keeps your hair covered"),
        categories=("clothing",),
        purpose="wear on the head",
    ),
    Kind(
        "shirt",
        drawings.shirt,
        ("has two sleeves", "you button up", "covers your chest"),
        categories=("clothing",),
        purpose="wear on the chest",
    ),
    Kind(
        "sun",
        drawings.sun,
        ("warms the day", "rises in the morning", "gives you a tan"),
        categories=("sky",),
        may_be_rotated=True,
    ),
    Kind(
        "moon",
        drawings.moon,
        ("shines at night", "wolves howl at", "astronauts walked on"),
        categories=("sky",),
    ),
    Kind(
        "cloud",
        drawings.cloud,
        ("brings the rain", "hides the blue sky", "is made of tiny drops"),
        categories=("sky",),
    ),
    Kind(
        "house",
        drawings.house,
        ("people live in", "has a roof and a chimney", "a family calls home"),
        purpose="live in",
    ),
    Kind(
        "cup",
        drawings.cup,
        ("you drink coffee from", "holds hot tea", "has a handle and is easily spilled"),
        purpose="drink from",
    ),
    Kind(
        "umbrella",
        drawings.umbrella,
        ("keeps the rain off", "you open when it pours", "keeps you dry in bad weather"),
        purpose="stay dry with",
    ),
    Kind(
        "clock",
        drawings.clock,
        ("tells the time", "wakes you up", "ticks all day"),
        purpose="read the time from",
    ),
)
KINDS: tuple[str, ...] = tuple(kind.name for kind in KIND_TABLE)
KIND_BY_NAME = {kind.name: kind for kind in KIND_TABLE}
_CATEGORY_NAMES = dict.fromkeys(category for kind in KIND_TABLE for category in kind.categories)
CATEGORIES: dict[str, tuple[str, ...]] = {
    category: tuple(kind.name for kind in KIND_TABLE if category in kind.categories)
    for category in _CATEGORY_NAMES
}


@cache
def kind_polygons(kind: str) -> tuple[tuple[np.ndarray, str], ...]:
    """The polygons of a kind, back to front: (points [P, 2] float64, shade) in the object's own
    frame."""
    return tuple((np.array(points), shade) for points, shade in KIND_BY_NAME[kind].draw())
