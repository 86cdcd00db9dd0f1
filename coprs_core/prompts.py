"""The prompt, the focus token, and the parts of a reply."""

import re
from dataclasses import dataclass
from typing import Final, Literal

from coprs_core.errors import CoPRSError, Phrase

FOCUS_TOKEN = "<REF_POS>"
"""The paper's concentration token: its hidden state is the focus embedding."""
IMAGE_SLOT, INSTRUCTION_SLOT = "{image}", "{instruction}"
MAX_NEW_TOKENS = 4096
MAX_GIVEN_THOUGHT_CHARACTERS = 8000
MAX_INSTRUCTION_CHARACTERS = 2000

QWEN_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>"
    "Find what this instruction means in the picture: {instruction}\n"
    "First think aloud between <think> and </think>: what is in the picture, what is asked, which "
    "one it is and why. "
    "Then write <REF_POS> once, or say that nothing fits.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""A template for Qwen2.5-VL models whose checkpoint does not bring the one it was trained with."""


Outcome = Literal["found", "nothing found", "unfinished"]
FOUND: Final = "found"
NOTHING_FOUND: Final = "nothing found"
UNFINISHED: Final = "unfinished"
"""What a reply amounts to."""
PriorKind = Literal["focus token", "attention", "coordinates"]
FOCUS_TOKEN_PRIOR: Final = "focus token"
ATTENTION_PRIOR: Final = "attention"
COORDINATES_PRIOR: Final = "coordinates"
PRIOR_KINDS = FOCUS_TOKEN_PRIOR, ATTENTION_PRIOR, COORDINATES_PRIOR
"""What a prior is made of: the focus token; the model's own attention while it wrote coordinates;
or those coordinates, drawn, where the attention is not known."""

Detail = Literal["low", "normal", "high"]
"""How many visual tokens a photo becomes, in a model that writes coordinates."""

_JSON_START = re.compile(r"```|[\[{]\s*[\[{\"']|\[\s*-?\d+(?:\.\d+)?\s*,")
"""Where coordinates begin in a reply without tags."""
MAX_THOUGHT_CHARACTERS, MAX_ANSWER_WORDS = 2048, 10
"""A tidy reply has at most so many characters of thought, and words between thought and focus
token."""
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？]|\n+")


def split_sentences(text: str) -> list[str]:
    """The sentences of a thought, in order."""
    text = text.strip()
    ends = [0, *(m.end() for m in SENTENCE_END.finditer(text)), len(text)]
    parts = (text[a:b].strip() for a, b in zip(ends, ends[1:], strict=False))
    return [part for part in parts if part]


def replace_sentence(text: str, index: int, sentence: str) -> str:
    """Replace the sentence of a thought at an index, counted from 0, or remove it where `sentence`
    is empty; all else stays as it is. Raises `IndexError` where there is none."""
    text, start = text.strip(), 0
    sentences = split_sentences(text)
    for earlier in sentences[:index]:  # the same sentence may occur twice
        start = text.index(earlier, start) + len(earlier)
    start = text.index(sentences[index], start)
    return (text[:start] + sentence.strip() + text[start + len(sentences[index]) :]).strip()


def last_sentence(text: str) -> str:
    """The last sentence of a thought; empty where there is none."""
    return (split_sentences(text) or [""])[-1]


@dataclass(frozen=True)
class Reply:
    """A reply in its parts. `is_thought_closed`: whether `</think>` was written; `answer` is what
    follows it."""

    reasoning: str
    answer: str
    is_thought_closed: bool


def check_instruction(instruction: str) -> str:
    """Return the instruction as typed; raises `CoPRSError` where it is empty, longer than 2,000
    characters or no valid text."""
    if not isinstance(instruction, str) or not instruction.strip():
        raise CoPRSError(
            "The instruction is empty: type what to look for, such as “the thing that keeps the "
            "rain off”."
        )
    if len(instruction) > MAX_INSTRUCTION_CHARACTERS:
        raise CoPRSError(
            "The instruction has {count:,} characters and at most {most:,} are read: shorten it.",
            count=len(instruction),
            most=MAX_INSTRUCTION_CHARACTERS,
        )
    return check_characters(instruction, Phrase("instruction"))


def check_characters(text: str, what: str) -> str:
    """Return the text as it is; raises `CoPRSError` where it holds a lone surrogate, which no
    tokenizer and no file takes."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise CoPRSError(
            "The {what} contains an invalid character (a lone surrogate): type it again.", what=what
        )
    return text


def encode_prompt(tokenizer, template: str, instruction: str, image_ids: list[int]) -> list[int]:
    """Fill a template and return its token ids.

    Only the template's own special tokens become special tokens. The instruction is ordinary text
    whatever it holds: `<REF_POS>` or `<|im_end|>` typed by a person are read character by
    character. `image_ids` stand in for `{image}`.
    """
    ids: list[int] = []
    special = special_tokens(tokenizer)
    for piece in _split_at_special_tokens(template, special):
        if piece == IMAGE_SLOT:
            ids += image_ids
        elif piece in special:
            ids.append(tokenizer.convert_tokens_to_ids(piece))
        elif piece:
            text = piece.replace(INSTRUCTION_SLOT, instruction)
            ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return ids


def shared_prefix(tokenizer, template: str) -> str:
    """The part of a template that all instructions share: up to the last special token, or end of a
    line, before the instruction. A tokenizer may merge what stands beside the instruction with it.
    """
    before = template.partition(INSTRUCTION_SLOT)[0]
    *whole, last = _split_at_special_tokens(before, special_tokens(tokenizer))
    return "".join(whole) + last[: last.rfind("\n") + 1]


def special_tokens(tokenizer) -> set[str]:
    """The tokens of a template that are not text, the image's slot among them."""
    return {t.content for t in tokenizer.added_tokens_decoder.values()} | {IMAGE_SLOT}


def _split_at_special_tokens(template: str, special: set[str]) -> list[str]:
    """Split a template at its special tokens, which are pieces of their own."""
    longest_first = sorted(special, key=len, reverse=True)
    return re.split("(" + "|".join(map(re.escape, longest_first)) + ")", template)


def parse_reply(text: str) -> Reply:
    """Split a reply, finished or not, into thought and answer. A reply without tags is read as
    thought, up to coordinates in JSON."""
    end = find_thought_end(text)
    thought, answer = text[:end], text[end:].removeprefix("</think>")
    _, opened, rest = thought.partition("<think>")
    thought = rest if opened else thought
    return Reply(thought.strip(), answer.replace(FOCUS_TOKEN, "").strip(), end < len(text))


def find_thought_end(text: str) -> int:
    """How many characters of a reply come before its thought's closing tag; without tags, before
    coordinates in JSON; else all."""
    begins = text.find("<think>")
    closing = text.find("</think>", max(begins, 0))
    if closing >= 0:
        return closing
    written = None if begins >= 0 else _JSON_START.search(text)
    return written.start() if written else len(text)


def format_score(reply: str, num_focus_tokens: int = 1) -> float:
    """The format reward of the method (paper, section 3.3): 0, 0.9 or 1.

    0 unless there is exactly one non-empty thought and behind it exactly one focus token, or as
    many (`num_focus_tokens`) as objects are asked for. 0.9 where the thought is over 2,048
    characters, text stands before it, or over 10 words stand between it and the first token.
    """
    thoughts = _split_thoughts(reply)
    if len(thoughts) != 1 or reply.count(FOCUS_TOKEN) != num_focus_tokens:
        return 0.0
    before, thought, after = thoughts[0]
    if not thought.strip():
        return 0.0
    if after.count(FOCUS_TOKEN) != num_focus_tokens:
        return 0.0
    words = after.split(FOCUS_TOKEN)[0].split()
    is_untidy = (
        len(thought) > MAX_THOUGHT_CHARACTERS
        or bool(before.strip())
        or len(words) > MAX_ANSWER_WORDS
    )
    return 0.9 if is_untidy else 1.0


def is_well_formed(reply: str, num_focus_tokens: int = 1) -> bool:
    """Whether a reply keeps to the form: as many focus tokens as objects are asked for, or, behind
    one thought, in words that nothing fits."""
    if FOCUS_TOKEN in reply:
        return format_score(reply, num_focus_tokens) == 1.0
    thoughts = _split_thoughts(reply)
    if len(thoughts) != 1 or reply.count("<think>") != 1:
        return False
    before, thought, after = thoughts[0]
    return bool(not before.strip() and thought.strip() and after.strip())


def _split_thoughts(reply: str) -> list[tuple[str, str, str]]:
    """Each thought between its tags, with the text before and after it; of many the first two."""
    thoughts: list[tuple[str, str, str]] = []
    end = 0
    while len(thoughts) < 2:
        start = reply.find("<think>", end)
        close = reply.find("</think>", start) if start >= 0 else -1
        if close < 0:
            break
        end = close + len("</think>")
        thoughts.append((reply[:start], reply[start + len("<think>") : close], reply[end:]))
    return thoughts
