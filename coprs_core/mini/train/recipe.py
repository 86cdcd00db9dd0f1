"""The miniature's recipe, recipes/mini.toml: sizes and stages. `coprs train mini` runs it from
nothing."""

from dataclasses import asdict, dataclass, field
from typing import Any

from coprs_core.errors import CoPRSError, did_you_mean, truncate
from coprs_core.mini.world.questions import FAMILY_WEIGHTS, QuestionMix
from coprs_core.model.decoder import DecoderConfig
from coprs_core.model.vision import VisionConfig
from coprs_core.training.recipe import RECIPES_FOLDER, parse_change, read_toml

PROMPT_TEMPLATE = (
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{instruction}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_MIN_VALUES = {"vocabulary": 300}  # of which 256 are bytes


@dataclass(frozen=True)
class Stage:
    """One stage of the run: `steps` of `scenes` scenes each, `questions` about every scene.

    `rate` is Muon's peak learning rate for hidden matrices, `adam_rate` AdamW's for the rest; both
    rise over the first 2 % of the steps, hold until `hold` of them and fall to nothing along a
    cosine. `learns` says what, as an earlier stage's name, where it is not the stage's own (see
    `stages`). `families` are asked about otherwise than the recipe says; `misread` is the share of
    colours in the replies that are read as another, `other_verbs` that of the varied wordings whose
    verbs do not ask to find anything, such as "blur the hat".
    """

    name: str
    steps: int
    scenes: int
    questions: int
    rate: float
    adam_rate: float
    hold: float = 0.4
    learns: str = ""
    families: dict[str, float] = field(default_factory=dict)
    misread: float = 1 / 12
    other_verbs: float = 0.0

    @property
    def kind(self) -> str:
        """What it learns, as one of the stages' names."""
        return self.learns or self.name


@dataclass(frozen=True)
class Recipe:
    """Everything that a run of the miniature rests on.

    Attributes:
        vision, decoder: sizes of SAM's parts; `prior_heads`, `prior_width`: of the query head.
        llm, tower: sizes of the language model and of its vision tower, as in its config.
        mllm_side: photos reach the tower with an area of so many pixels squared; 336 makes a grid
            of 12×12 visual tokens for a square.
        vocabulary: tokens; `max_new_tokens`: bound of a reply.
        asking: how training asks; spatial choices more often than the test does, for they are
            learnt last; in vain half as often, for the miniature says "nothing" too readily; in
            capitals and with typing errors more often; half the time in varied wordings.
        other_shapes: share of the batches whose pictures are no squares.
        list_weight, request_weight, decision_weight: of a reply's tokens in the language loss: what
            is seen, what is asked, which one it is.
        stages: in order; those before "joint" do not need each other, those after it go on from the
            one before.
    """

    vision: VisionConfig
    decoder: DecoderConfig
    llm: dict[str, int]
    tower: dict[str, int]
    asking: QuestionMix
    stages: tuple[Stage, ...]
    prior_heads: int
    prior_width: int
    mllm_side: int
    vocabulary: int
    max_new_tokens: int
    other_shapes: float
    list_weight: float
    request_weight: float
    decision_weight: float
    prompt_template: str = PROMPT_TEMPLATE

    @property
    def fixed_values(self) -> dict[str, Any]:
        """What a run cannot go on with otherwise than it began."""
        fixed = "vision", "decoder", "llm", "tower", "prior_heads", "prior_width", "vocabulary"
        return {name: value for name, value in asdict(self).items() if name in fixed}


def read_mini_recipe(changes: list[str] | None = None) -> Recipe:
    """The recipe of recipes/mini.toml, with `key=value` changes; keys in tables have dots, such as
    stages.joint.steps.

    Raises `CoPRSError` where there is no such key, or a value is of another kind.
    """
    values = read_toml(RECIPES_FOLDER / "mini.toml")
    for key, value in map(parse_change, changes or []):
        table, _, last = key.rpartition(".")
        place = _tables(values).get(table, {})
        if last not in place or isinstance(place[last], dict):
            near = did_you_mean(key, tuple(_keys(values)))
            raise CoPRSError(f"The recipe mini has no {key!r}{near}: correct it or leave it out.")
        like = place[last]
        is_number = isinstance(like, float) and type(value) in (int, float)
        if type(value) is not type(like) and not is_number:
            came = truncate(repr(value))
            raise CoPRSError(f"{key} is {came} and one like {like!r} was expected: correct it.")
        least = _MIN_VALUES.get(key, int(type(like) is int and like > 0))
        if type(value) in (int, float) and value < least:
            raise CoPRSError(f"{key} is {value} and is at least {least}: correct it.")
        place[last] = value
    asking, vision = values.pop("asking"), values.pop("vision")
    families = FAMILY_WEIGHTS | asking.pop("families")
    stages = tuple(Stage(name, **told) for name, told in values.pop("stages").items())
    return Recipe(
        vision=VisionConfig(**vision | {"global_layers": tuple(vision["global_layers"])}),
        decoder=DecoderConfig(**values.pop("decoder")),
        asking=QuestionMix(families, **asking),
        stages=stages,
        **values,
    )


def _tables(values: dict, prefix: str = "") -> dict[str, dict]:
    """Every table of a recipe by its name with dots; the recipe itself is ""."""
    found = {prefix: values}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _tables(value, f"{prefix}.{key}".strip("."))
    return found


def _keys(values: dict) -> list[str]:
    """Everything that can be set, by its name with dots."""
    found = ((table, key, place[key]) for table, place in _tables(values).items() for key in place)
    return [f"{table}.{key}".strip(".") for table, key, value in found if type(value) is not dict]


MINI_RECIPE = read_mini_recipe()
