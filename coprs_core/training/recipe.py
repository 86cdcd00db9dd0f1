"""Recipes of the joint stage: small TOML files, each a `JointRecipe`."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from coprs_core.errors import CoPRSError, did_you_mean, truncate
from coprs_core.files import read_text, without_hidden
from coprs_core.parsing import parse_toml
from coprs_core.prompts import MAX_NEW_TOKENS
from coprs_core.training.objective import PRESETS, Objective
from coprs_core.training.rates import LearningRates

RECIPES_FOLDER = Path(__file__).parent / "recipes"
RECIPE_NAMES = tuple(
    p.stem for p in without_hidden(RECIPES_FOLDER.glob("*.toml")) if p.stem != "mini"
)
"""Of joint training; recipes/mini.toml is read by `mini.train.recipe`."""


@dataclass(frozen=True)
class JointRecipe:
    """Everything that a run of the joint stage rests on.

    Attributes:
        model: a checkpoint to begin with, as everywhere: a name or a folder.
        data: "scenes", a plain folder (see `datasets.folder`), or a data set that `coprs evaluate`
            knows by name, whose `split` lies in the folder `root`.
        preset: the objective's settings (see `objective.PRESETS`); those given here take their
            place: policy, segmentation, dice, focal, kl, clip, group, mask_share, least_spread.
        steps: updates; 0: the warm-up is all. `questions`: a step, each answered `group` times.
            `rows_at_once`: replies that are learnt from together, in memory: their tokens' loss is
            averaged over them, and so is L_SEG over their focus tokens. `iterations`: updates from
            the same replies.
        rate: learning rate of the language model; `prior`, `prompt_encoder`, `mask_decoder`:
            multiples of it. It falls along a cosine to `final_rate` of itself.
        temperature, max_new_tokens: of the sampled replies; `vllm`: address of a server that
            writes them (`trl vllm-serve --model FOLDER/mllm`), on a card of its own; "": the
            trainer does.
        other_shapes: share of drawn scenes that are no squares.
        lora: rank of the language model's adapters, which are trained in its place and are the
            finished checkpoint; 0: the language model itself is trained.
        quantize: "none", or "nf4" to hold the language model in 4 bits under its adapters.
        sharded: spread weights, gradients and moments of the whole model over all processes (FSDP).
        checkpointing: compute activations again in the backward pass, to save memory.
        warmup_steps: supervised steps before, of `questions` replies each, at `warmup_rate`, for a
            model that does not know the form of a reply (see `warmup`).
        most_kl: a run whose KL is above this has diverged.
        save_every: steps; with each saved one the first `pictures` items are answered and drawn.
    """

    model: str = "mini"
    data: str = "scenes"
    root: str = ""
    split: str = "train"
    preset: str = "paper"
    policy: float | None = None
    segmentation: float | None = None
    dice: float | None = None
    focal: float | None = None
    kl: float | None = None
    clip: float | None = None
    group: int | None = None
    mask_share: float | None = None
    least_spread: float | None = None
    steps: int = 100
    questions: int = 16
    rows_at_once: int = 16
    iterations: int = 1
    rate: float = 2e-6
    prior: float = 25.0
    prompt_encoder: float = 10.0
    mask_decoder: float = 5.0
    final_rate: float = 1 / 6.67
    temperature: float = 1.0
    max_new_tokens: int = 512
    vllm: str = ""
    other_shapes: float = 0.0
    lora: int = 0
    quantize: str = "none"
    sharded: bool = False
    checkpointing: bool = False
    warmup_steps: int = 0
    warmup_rate: float = 1e-5
    most_kl: float = 10.0
    save_every: int = 20
    pictures: int = 4
    seed: int = 0

    @property
    def rates(self) -> LearningRates:
        """How fast what learns."""
        return LearningRates(self.prior, self.prompt_encoder, self.mask_decoder)

    @property
    def objective(self) -> Objective:
        """The preset with what this recipe sets otherwise."""
        own = {f.name: getattr(self, f.name, None) for f in fields(Objective)}
        given = {name: value for name, value in own.items() if value is not None}
        # who sets a weight means it for the whole run, not up to the preset's switch
        fixed = {"switch_at": None} if {"dice", "focal"} & given.keys() else {}
        return replace(PRESETS[self.preset], **given, **fixed)


def read_recipe(name: str, changes: list[str] | None = None) -> JointRecipe:
    """A recipe by name, or from a TOML file, with `key=value` changes.

    Raises `CoPRSError` where there is no such recipe or key, or a value is of another kind.
    """
    path = RECIPES_FOLDER / f"{name}.toml" if name in RECIPE_NAMES else Path(name)
    if path.suffix != ".toml" or not path.is_file():
        near = did_you_mean(name, ("mini", *RECIPE_NAMES))
        raise CoPRSError(
            f"There is no recipe {name!r}{near}: choose mini, {', '.join(RECIPE_NAMES)} or a .toml "
            "file."
        )
    values = read_toml(path) | dict(map(parse_change, changes or []))
    return _validate(values)


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file; raises `CoPRSError` where it is none."""
    try:
        return parse_toml(read_text(path))
    except (ValueError, CoPRSError) as problem:
        raise CoPRSError(f"{path} is no TOML ({problem}): correct it.") from problem


def parse_change(text: str) -> tuple[str, Any]:
    """ "key=value" as both, the value as TOML reads it; text needs no quotes."""
    key, sign, value = text.partition("=")
    if not sign:
        raise CoPRSError(f"{text!r} sets nothing: write --set key=value.")
    return key.strip(), _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    """A value as TOML reads it; text needs no quotes."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _validate(values: dict[str, Any]) -> JointRecipe:
    like = asdict(JointRecipe()) | asdict(Objective())
    known = {f.name for f in fields(JointRecipe)}
    for key, value in values.items():
        if key not in known:
            near = did_you_mean(key, tuple(known))
            raise CoPRSError(f"A recipe has no {key!r}{near}: correct it or leave it out.")
        kind = type(like[key])
        if type(value) is not kind and not (kind is float and type(value) is int):
            what = f"{truncate(repr(value))} and {_TYPE_NAMES[kind]} was expected"
            raise CoPRSError(f"{key} is {what}: correct it.")
        if kind in (int, float) and not 0 <= value < 1e9:
            raise CoPRSError(f"{key} is {value} and a number from 0 up was expected: correct it.")
    recipe = JointRecipe(**values)
    if recipe.preset not in PRESETS:
        raise CoPRSError(f"There is no preset {recipe.preset!r}: choose {', '.join(PRESETS)}.")
    rows = recipe.questions * recipe.objective.group
    steps = recipe.steps + recipe.warmup_steps
    if min(steps, recipe.questions, recipe.rows_at_once, recipe.save_every) < 1:
        raise CoPRSError(
            "steps (or warmup_steps), questions, rows_at_once and save_every are at least 1."
        )
    if min(recipe.max_new_tokens, recipe.iterations) < 1 or not recipe.temperature:
        raise CoPRSError("max_new_tokens and iterations are at least 1, temperature is over 0.")
    if recipe.max_new_tokens > MAX_NEW_TOKENS:
        raise CoPRSError(
            f"max_new_tokens is {recipe.max_new_tokens:,} and a reply has at most "
            f"{MAX_NEW_TOKENS:,}: set it lower."
        )
    if recipe.save_every % recipe.iterations:
        raise CoPRSError(
            f"Replies are learnt from {recipe.iterations} times and a step between is not saved: "
            "set save_every to a multiple of iterations."
        )
    for name in ("mask_share", "other_shapes", "final_rate"):
        if values.get(name, 0) > 1:
            raise CoPRSError(f"{name} is {values[name]} and is a share, from 0 to 1: correct it.")
    if not recipe.objective.clip:
        raise CoPRSError("clip is over 0: nothing is learnt from replies within no distance.")
    if recipe.objective.group < 2:
        raise CoPRSError("group is at least 2: replies are judged against each other.")
    if recipe.quantize not in ("none", "nf4"):
        raise CoPRSError(f"quantize is {recipe.quantize!r}: choose none or nf4.")
    if recipe.quantize != "none" and not recipe.lora:
        raise CoPRSError("4-bit weights are not trained themselves: set lora, such as lora=16.")
    if recipe.vllm and recipe.quantize != "none":
        raise CoPRSError("vLLM is sent weights of 16 bits: leave quantize or vllm out.")
    if recipe.vllm and recipe.lora:
        raise CoPRSError(
            "Adapters are added to the weights for vLLM and taken off again, which rounds the "
            "weights a little each time: leave lora or vllm out."
        )
    if recipe.sharded and recipe.lora:
        raise CoPRSError("Adapters are not sharded: leave lora or sharded out.")
    if rows % recipe.rows_at_once:
        raise CoPRSError(
            f"A step has {rows} replies (questions × group) and rows_at_once is "
            f"{recipe.rows_at_once}: choose a divisor."
        )
    return recipe


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
