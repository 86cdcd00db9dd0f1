"""How good a thought is, from 0 to 10 (paper: R of it with the prior's and the mask's IoU).

Where the truth of a picture is known, as on our scenes, it is counted (see
`datasets.scenes.grade_thought`). Elsewhere a model is asked, by any server that speaks OpenAI's
protocol.
"""

import io
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError
from coprs_core.evaluation.rows import Measurement
from coprs_core.example import Example
from coprs_core.masks import data_url

if TYPE_CHECKING:
    from coprs_core.model.backends.remote.chat import ChatEndpoint

RULE = "rule"
RUBRIC = """\
The picture was shown to a model with this request: "{instruction}"
It thought aloud: "{thought}"
Rate the thought from 0 to 10:
4 points: what it says about the picture is true (things, colours, places);
2 points: it leaves out nothing that is needed to answer;
4 points: it ends at the right thing, or rightly at none, for the reason that it gives.
Rate the thought alone, not its style. Answer with one line: Score: <number>"""
MAX_SIDE, MAX_TOKENS = 768, 400
_SCORE = re.compile(
    r"score\b.*?(?<![\d.])(\d{1,2}(?:\.\d+)?)\s*(?:(?:/|out of)\s*10)?\W*$",
    re.IGNORECASE | re.MULTILINE,
)


class Judge(Protocol):
    """Scores thoughts."""

    def score_thought(self, row: Measurement, example: Example, result: Result) -> Measurement:
        """The row with its thought scored; as it is where that cannot be told."""
        ...


@dataclass(frozen=True)
class RuleJudge:
    """Counts by what the data set knows."""

    def score_thought(self, row: Measurement, example: Example, result: Result) -> Measurement:
        return row if example.grade is None else replace(row, thought=example.grade(result))


@dataclass(frozen=True)
class ModelJudge:
    """Asks a model on a server, with `RUBRIC`."""

    server: "ChatEndpoint"

    def score_thought(self, row: Measurement, example: Example, result: Result) -> Measurement:
        image = example.load_photo().image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=90)
        question = RUBRIC.format(instruction=example.instruction, thought=result.reasoning)
        try:
            steps = self.server.stream_reply(data_url("jpeg", jpeg), question, MAX_TOKENS)
            reply = "".join(step.text for step in steps)
        except CoPRSError:  # the answer counts, its thought is not judged
            return row
        return replace(row, thought=parse_score(reply))


def parse_score(reply: str) -> float | None:
    """The score in a judge's reply, in [0, 10]; None where there is none."""
    # the last one counts: a judge may weigh several scores before it settles on one
    scores = _SCORE.findall(reply.rpartition("</think>")[2])
    score = float(scores[-1]) if scores else -1.0
    return score if 0 <= score <= 10 else None


def open_judge(name: str | None, knows_truth: bool) -> tuple[str, Judge | None]:
    """A judge by name: "rule", a model as `openai:NAME@URL`, "none"; without a name "rule" where
    the data set knows the truth of its pictures."""
    from coprs_core.checkpoints import remote
    from coprs_core.checkpoints.options import REMOTE_NAME_FORMAT, is_remote_name

    name = name or (RULE if knows_truth else "none")
    if name == "none":
        return name, None
    if name == RULE:
        if not knows_truth:
            raise CoPRSError("The rule-based judge knows our scenes alone: give --judge a model.")
        return name, RuleJudge()
    if not is_remote_name(name):
        raise CoPRSError(
            f"There is no judge {name!r}: choose {RULE}, none, or a model as {REMOTE_NAME_FORMAT}."
        )
    return name, ModelJudge(remote.parse_remote_name(name).server())
