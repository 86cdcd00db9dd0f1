"""What is said of an answer: never that it is right, and the first broken link with what to do."""

import dataclasses
import re

import numpy as np
import pytest

from coprs_core.answer.flags import find_flags
from coprs_core.answer.results import Region
from coprs_core.answer.verdict import (
    LINK_TEXTS,
    MAX_QUOTE_CHARACTERS,
    diagnose,
    first_broken_link,
    restated_question,
)
from coprs_core.mini.world.questions import draw_examples
from coprs_core.mini.world.scenes import draw_scene

RAIN = "assets/examples/rain.png"


def said(result) -> dict[str, str]:
    return {link.name: link.state for link in diagnose(result)}


def words(result, name: str) -> str:
    return str(next(link for link in diagnose(result) if link.name == name))


def blob(*places, size=(100, 100)) -> np.ndarray:
    prior = np.zeros(size, np.float32)
    for top, left in places:
        prior[top : top + 10, left : left + 10] = 0.9
    return prior


@pytest.fixture
def answer(found):
    """An answer whose prior, mask and texts can be replaced."""

    def make(prior=None, mask=None, **changes):
        prior = blob((20, 20)) if prior is None else prior
        mask = prior > 0.5 if mask is None else mask
        regions = (Region(prior, mask),)
        size = {"regions": regions, "photo_size": prior.shape}
        return dataclasses.replace(found[2], **(size | changes))

    return make


def test_a_good_answer_is_never_called_right(found):
    links = diagnose(found[2])
    assert [link.name for link in links] == ["familiar", "looked", "drawn", "true"]
    assert said(found[2])["true"] == "open" and first_broken_link(links) is None
    assert "not known: paint the truth" in words(found[2], "true")


@pytest.mark.parametrize(
    ("instruction", "quote"),
    [
        ("the thing that keeps the rain off", "You ask for something by its use: the umbrella."),
        ("THE UMBRELLAS!!", "You ask for all the umbrellas."),
        ("the blue submarine", "You ask for something that I do not know: submarine."),
    ],
)
def test_how_the_miniature_understood_the_question_is_quoted(mini, instruction, quote):
    assert restated_question(mini.segment(RAIN, instruction)) == quote


@pytest.mark.parametrize(
    "sentence",
    [
        "You ask for the orange fish.",
        "Okay, so the user wants me to segment the umbrella.",
        "The question is asking for the animal that barks.",
        "The user's question asks which cup is hot.",
        "To answer this, I need to find the tool that cuts wood.",
        "My task is to locate the exit.",
        "We are asked to identify the person on the left.",
        "用户想找能挡雨的东西。",
        "好的，用户的问题是找出左边的狗。",
        "我需要在图中找到最大的车。",
        "题目要求分割红色的花。",
    ],
)
def test_a_sentence_that_plainly_restates_the_question_is_quoted(answer, sentence):
    thought = f"I see a red cup and a blue fish. {sentence} It is the one on the left."
    assert restated_question(answer(reasoning=thought)) == sentence


@pytest.mark.parametrize(
    "thought",
    [
        "",
        "The image shows two men. The one on the left holds an umbrella.",
        "This is not what the user wants. You can see a dog, and I find it funny.",
        "The question mark on the sign is red. I need to think about the task.",
        "图中有两个人。左边的人拿着伞。问题是图中没有狗。",
    ],
)
def test_where_no_sentence_restates_the_question_nothing_is_quoted(answer, thought):
    assert restated_question(answer(reasoning=thought)) == ""


def test_a_quote_is_short_and_the_models_own(answer):
    quote = restated_question(answer(reasoning="You ask for " + "the red cup and " * 500))
    assert len(quote) <= MAX_QUOTE_CHARACTERS and quote.endswith("…")
    assert not restated_question(answer(reasoning="You ask for a cup.", is_thought_given=True))


def test_the_truth_that_was_given_is_told(answer):
    links = {link.name: link for link in diagnose(answer(), true_iou=0.83)}
    assert links["true"].state == "holds" and "IoU 0.83" in str(links["true"])
    assert first_broken_link(diagnose(answer(), true_iou=0.1)).name == "true"


def test_a_strange_picture_is_the_first_broken_link(mini, answer):
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    result = mini.segment(noise, "the umbrella")
    assert first_broken_link(diagnose(result)).name == "familiar"
    assert "Load a model for photos" in words(result, "familiar")
    cannot_tell = answer(distance=None)
    assert "familiar" not in said(cannot_tell)


def test_an_empty_prior_and_several_places_are_told(answer):
    nowhere = answer(prior=blob() + 0.2)
    assert said(nowhere)["looked"] == "broken" and "at most 0.20" in words(nowhere, "looked")
    two = answer(prior=blob((10, 10), (60, 60)))
    assert "at 2 places" in words(two, "looked")
    specks = blob((10, 10))
    specks[80, 80] = 0.9
    assert said(answer(prior=specks))["looked"] == "holds"
    regions = tuple(Region(blob(at), blob(at) > 0.5) for at in ((10, 10), (60, 60)))
    assert said(answer(regions=regions))["looked"] == "holds"  # one place for each answer


def test_a_mask_elsewhere_is_told_whatever_the_prior_is_made_of(answer):
    for kind in ("focus token", "attention"):
        moved = answer(mask=blob((80, 80)) > 0.5, prior_kind=kind)
        assert said(moved)["drawn"] == "broken", kind
        empty = answer(mask=np.zeros((100, 100), bool), prior_kind=kind)
        assert said(empty)["drawn"] == "broken", kind
    assert said(answer(prior_kind="attention"))["drawn"] == "holds"


def test_what_a_model_wrote_is_not_told_as_where_it_looked(answer):
    """A prior of coordinates is drawn from them: a thin thing within its box is no other thing."""
    moved = answer(mask=blob((80, 80)) > 0.5, prior_kind="coordinates")
    assert not {"looked", "drawn"} & said(moved).keys()
    assert "disagree" not in find_flags(moved)


def test_the_first_broken_link_comes_before_what_stands_on_it(answer):
    result = answer(prior=blob((10, 10), (60, 60)), mask=blob((80, 10)) > 0.5, distance=3.0)
    assert first_broken_link(diagnose(result)).name == "familiar"
    result = dataclasses.replace(result, distance=0.5)
    assert first_broken_link(diagnose(result)).name == "looked"


def test_nothing_found_and_unfinished_have_their_own_chains(mini, nothing_found):
    assert set(said(nothing_found[2])) <= {"familiar"}
    unfinished = mini.segment(draw_scene(3).image, "the largest thing", max_new_tokens=5)
    assert said(unfinished)["finished"] == "broken" and "looked" not in said(unfinished)
    assert "ask again" in words(unfinished, "finished")


def test_on_scenes_the_links_mostly_hold(mini):
    """A warning that is always there is none."""
    broken = [
        link.name
        for scene, question in draw_examples("test", 0, 12)
        for link in diagnose(mini.segment(scene.image, question.instruction))
        if link.state == "broken"
    ]
    assert len(broken) <= 2


def test_every_broken_link_says_what_to_do():
    hold = ("holds", "open", "several", "each")
    broken = [words for says, words in LINK_TEXTS.items() if not says.endswith(hold)]
    assert len(broken) == 8 and all(re.search(r"(: |\. )[A-Za-z ,]+\.$", w) for w in broken)


def test_every_link_has_words_without_a_claim():
    assert not any(
        "correct" in text or "right" in text.replace("is right", "") for text in LINK_TEXTS.values()
    )


@pytest.mark.parametrize(
    ("priors", "says"),
    [
        ([blob((20, 20)), blob((30, 20))], "looked_each"),  # they touch: one place of the union
        ([blob((20, 20)), blob((20, 20))], "looked_twice"),
        ([blob((20, 20)), blob()], "looked_partly"),
        ([blob(), blob()], "looked_nowhere"),
        ([blob((20, 20), (60, 60)), blob((80, 20))], "looked_broken"),
    ],
)
def test_of_several_things_each_is_looked_at_by_itself(answer, priors, says):
    result = answer(regions=tuple(Region(prior, prior > 0.5) for prior in priors))
    assert next(link for link in diagnose(result) if link.name == "looked").text_key == says
