"""What is said of an answer: never that it is right, and the first broken link with what to do."""

import dataclasses

import numpy as np
import pytest

from coprs_core.answer.diagnosis import LINK_TEXTS, diagnose, first_broken_link
from coprs_core.answer.flags import find_flags
from coprs_core.answer.results import Region
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
    assert [link.name for link in links] == [
        *("familiar", "understood", "named", "looked", "drawn", "true")
    ]
    assert said(found[2])["true"] == "open" and first_broken_link(links) is None
    assert "not known: paint the truth" in words(found[2], "true")


@pytest.mark.parametrize(
    "instruction",
    ["asdf qwerty", "the submarine", "le parapluie", "蓝色的雨伞", "the blue submarine"],
)
def test_what_is_not_known_is_said_to_be_so(mini, instruction):
    """Nonsense, other languages, and words from outside of its world: no focus token, and the link
    is broken whatever the thought repeats of them."""
    result = mini.segment(RAIN, instruction)
    assert result.outcome == "nothing found" and said(result)["understood"] == "broken"
    understood = words(result, "understood")
    assert "does not know what is meant: “You ask for" in understood


def test_words_that_the_thought_does_not_take_up_are_named_and_what_it_understood(mini):
    """A question that only reasoning answers is not called understood."""
    result = mini.segment(RAIN, "the thing that keeps the rain off")
    assert said(result)["understood"] == "open"
    understood = words(result, "understood")
    assert "none of your words (keeps, rain, off)" in understood and "You ask for" in understood


def test_half_of_the_words_is_not_understood(answer):
    result = answer(
        instruction="the blue submarine", reasoning="You ask for the blue fish. It is on the left."
    )
    assert said(result)["understood"] == "open"
    assert "took up blue, not submarine" in words(result, "understood")


def test_words_in_another_writing_than_the_thoughts_are_not_compared(answer):
    thought = "You ask for what one uses in the rain. It is the umbrella."
    assert "understood" not in said(answer(instruction="会下雨时用的东西", reasoning=thought))
    assert "understood" in said(answer(instruction="it rains: 用伞", reasoning=thought))


def test_what_is_seen_is_not_what_was_understood(answer):
    """The umbrella stands among the things seen; the question was taken to be about the fish."""
    result = answer(
        instruction="the blue umbrella and the orange fish",
        reasoning="I see a blue umbrella and an orange fish. You ask for the orange fish.",
    )
    assert "took up orange, fish, not blue, umbrella" in words(result, "understood")


def test_the_truth_that_was_given_is_told(answer):
    links = {link.name: link for link in diagnose(answer(), true_iou=0.83)}
    assert links["true"].state == "holds" and "IoU 0.83" in str(links["true"])
    assert first_broken_link(diagnose(answer(), true_iou=0.1)).name == "true"


def test_words_are_found_again_whatever_their_case_and_ending(mini):
    result = mini.segment(RAIN, "THE UMBRELLAS!!")
    assert said(result)["understood"] == "holds"


def test_a_strange_picture_is_the_first_broken_link(mini, answer):
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    result = mini.segment(noise, "the umbrella")
    assert first_broken_link(diagnose(result)).name == "familiar"
    assert "Load a model for photos" in words(result, "familiar")
    cannot_tell = answer(distance=None)
    assert "familiar" not in said(cannot_tell)


def test_a_thing_that_the_thought_never_saw_is_told(answer):
    result = answer(
        reasoning="I see a red cup and a blue fish. That is the green boat on the left."
    )
    assert said(result)["named"] == "broken"
    assert "did not say it saw (green, boat, left)" in words(result, "named")
    assert "named" not in said(answer(reasoning="It is the red cup."))  # nothing to compare with


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


def test_a_last_sentence_that_names_nothing_is_no_link(answer):
    assert "named" not in said(answer(reasoning="I see a red cup. That is the one."))


def test_advice_is_what_the_model_can_do(answer):
    thought = "I see a red cup. That is the green boat."
    for kind, advice in (("focus token", "change that sentence"), ("attention", "use other words")):
        assert advice in words(answer(reasoning=thought, prior_kind=kind), "named")


def test_the_first_broken_link_comes_before_what_stands_on_it(answer):
    result = answer(prior=blob((10, 10), (60, 60)), mask=blob((80, 10)) > 0.5, distance=3.0)
    assert first_broken_link(diagnose(result)).name == "familiar"
    result = dataclasses.replace(result, distance=0.5)
    assert first_broken_link(diagnose(result)).name == "looked"


def test_nothing_found_and_unfinished_have_their_own_chains(mini, nothing_found):
    assert set(said(nothing_found[2])) <= {"familiar", "understood"}
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


def test_words_of_asking_are_no_words_that_were_missed(answer):
    result = answer(instruction="Hi, could you please outline the two fruits for me?")
    result = dataclasses.replace(result, reasoning="You ask for the fruits. It is the apple.")
    assert next(link for link in diagnose(result) if link.name == "understood").text_key == (
        "understood_holds"
    )
