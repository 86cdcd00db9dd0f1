"""What is said to the language model and how its reply is read: the focus token, the prompt, the parts of a reply."""

import re
from dataclasses import dataclass

from coprs_core.errors import CoPRSError

FOCUS_TOKEN = "<REF_POS>"
"""The paper's concentration token: its hidden state is the focus embedding."""
IMAGE_SLOT, INSTRUCTION_SLOT = "{image}", "{instruction}"
MAX_INSTRUCTION_CHARACTERS = 2000

QWEN_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>"
    "Find what this instruction means in the picture: {instruction}\n"
    "First think aloud between <think> and </think>: what is in the picture, what is asked, which one it is and why. "
    "Then write <REF_POS> once, or say that nothing fits.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""A template for Qwen2.5-VL models whose checkpoint does not bring the one it was trained with."""


SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？]|\n+")


def last_sentence(text: str) -> str:
    """The last sentence of a thought; empty where there is none."""
    ends = [m.end() for m in SENTENCE_END.finditer(text.strip())]
    places = [0, *(e for e in ends if e < len(text.strip()))]
    return text.strip()[places[-1] :].strip()


@dataclass(frozen=True)
class Reply:
    """A reply in its parts. `closed` tells whether `</think>` was written; `answer` is what follows it."""

    reasoning: str
    answer: str
    closed: bool


def check_instruction(instruction: str) -> str:
    """The instruction as typed; raises `CoPRSError` where it is empty, longer than 2,000 characters or no valid text."""
    if not isinstance(instruction, str) or not instruction.strip():
        raise CoPRSError(
            "The instruction is empty: type what to look for, such as “the thing that keeps the rain off”."
        )
    if len(instruction) > MAX_INSTRUCTION_CHARACTERS:
        raise CoPRSError(
            f"The instruction has {len(instruction):,} characters and at most {MAX_INSTRUCTION_CHARACTERS:,} are read: shorten it."
        )
    return check_characters(instruction, "instruction")


def check_characters(text: str, what: str) -> str:
    """The text as it is; raises `CoPRSError` where it holds half a character, which no tokenizer and no file takes."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise CoPRSError(f"The {what} holds half of a character (a lone surrogate): type it again.")
    return text


def encode_prompt(tokenizer, template: str, instruction: str, image_ids: list[int]) -> list[int]:
    """Token ids of the filled template, a list of int.

    Only the template's own special tokens become special tokens. The instruction is ordinary text whatever it holds:
    `<REF_POS>` or `<|im_end|>` typed by a person are read character by character. `image_ids` stand in for `{image}`.
    """
    special = sorted({t.content for t in tokenizer.added_tokens_decoder.values()} | {IMAGE_SLOT}, key=len, reverse=True)
    ids: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, special)) + ")", template):
        if piece == IMAGE_SLOT:
            ids += image_ids
        elif piece in special:
            ids.append(tokenizer.convert_tokens_to_ids(piece))
        elif piece:
            text = piece.replace(INSTRUCTION_SLOT, instruction)
            ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return ids


def parse_reply(text: str) -> Reply:
    """Split a reply, finished or not, into thought and answer. A reply without `<think>` is read as thought."""
    before, opened, rest = text.partition("<think>")
    thought, closed, answer = (rest if opened else before).partition("</think>")
    return Reply(thought.strip(), answer.replace(FOCUS_TOKEN, "").strip(), bool(closed))
