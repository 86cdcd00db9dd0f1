"""The miniature's recipe: sizes and stages. `python -m coprs_core train mini` runs it from
nothing."""

from dataclasses import dataclass, field

from coprs_core.model.decoder import DecoderConfig
from coprs_core.model.vision import VisionConfig
from coprs_core.world.questions import FAMILY_WEIGHTS, Asking

PROMPT_TEMPLATE = (
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{instruction}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


_MORE_OF = {
    "relation": 2.8,
    "extreme": 2.2,
    "exclusion": 1.2,
    "two steps": 2.4,
    "several": 1.6,
    "unknown word": 1.6,
}


@dataclass(frozen=True)
class Stage:
    """One stage of the run: `steps` of `scenes` scenes each, `questions` about every scene.

    `rate` is Muon's peak learning rate for hidden matrices, `adam_rate` AdamW's for the rest; both
    rise over the first 2 % of the steps, hold until `hold` of them and fall to nothing along a
    cosine.
    """

    name: str
    steps: int
    scenes: int
    questions: int
    rate: float
    adam_rate: float
    hold: float = 0.4


@dataclass(frozen=True)
class Recipe:
    """Everything that a run of the miniature rests on.

    Attributes:
        vision, decoder: sizes of SAM's parts; `prior_heads`, `prior_width`: of the query head.
        llm, tower: sizes of the language model and of its vision tower, as in its config.
        mllm_side: photos reach the tower with an area of so many pixels squared; 280 makes a grid
            of 10×10 visual tokens for a square.
        vocabulary: tokens; `max_new_tokens`: bound of a reply.
        asking: how training asks; spatial choices more often than the test does, for they are
            learnt last; in vain half as often, for the miniature says "nothing" too readily; in
            capitals and with typing errors more often.
        other_shapes: share of the batches whose pictures are no squares.
        list_weight, request_weight, decision_weight: of a reply's tokens in the language loss: what
            is seen, what is asked, which one it is.
        stages: in order; those before "joint" do not need each other.
    """

    vision: VisionConfig = VisionConfig(
        side=256,
        patch=16,
        width=128,
        depth=5,
        heads=4,
        mlp_ratio=3.0,
        window=0,
        global_layers=(),
        channels=96,
    )
    decoder: DecoderConfig = DecoderConfig(
        mask_channels=16, depth=2, heads=4, mlp_width=384, iou_depth=2, iou_width=96
    )
    prior_heads: int = 4
    prior_width: int = 192
    llm: dict[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
        }
    )
    tower: dict[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 128,
            "intermediate_size": 384,
            "depth": 4,
            "num_heads": 4,
        }
    )
    mllm_side: int = 280
    vocabulary: int = 1500
    max_new_tokens: int = 200
    prompt_template: str = PROMPT_TEMPLATE
    asking: Asking = Asking(FAMILY_WEIGHTS | _MORE_OF, nothing=0.06, slips=0.2, capitals=0.12)
    other_shapes: float = 0.25
    list_weight: float = 1.0
    request_weight: float = 2.0
    decision_weight: float = 4.0
    stages: tuple[Stage, ...] = (
        Stage("eyes", steps=4500, scenes=8, questions=0, rate=2e-3, adam_rate=1e-3),
        Stage("focus", steps=5000, scenes=8, questions=0, rate=2e-3, adam_rate=1e-3),
        Stage("language", steps=7000, scenes=8, questions=3, rate=2e-3, adam_rate=1e-3),
        Stage("joint", steps=4000, scenes=6, questions=3, rate=7e-4, adam_rate=4e-4, hold=0.2),
    )


MINI = Recipe()
