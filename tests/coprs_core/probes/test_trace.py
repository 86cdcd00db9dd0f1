"""Probes on the real miniature: truthful, cheap, and without any change of the answer that they
look at."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from coprs_core import CoPRSError, Result, load
from coprs_core.answer.pictures import downscale_prior
from coprs_core.answer.results import Region
from coprs_core.answer.verdict import diagnose, restated_question
from coprs_core.errors import Cancelled
from coprs_core.metrics import iou
from coprs_core.mini.world.questions import draw_examples
from coprs_core.model.backends.cancellation import cancellable, current_check
from coprs_core.photos.photo import open_photo
from coprs_core.probes import attention, heads, sentences, thought, trace, words
from coprs_core.probes.finding import NotApplicable
from coprs_core.probes.trace import FocusView, normalized_entropy
from coprs_core.prompts import last_sentence
from tests import tiny


@pytest.fixture(scope="module")
def asked(mini, found):
    return mini, found[0].image, found[2]


def same(a, b):
    return a.to_dict() | {"seconds": 0, "photo_reused": 0} == b.to_dict() | {
        "seconds": 0,
        "photo_reused": 0,
    } and all(
        np.array_equal(x.prior, y.prior) and np.array_equal(x.mask, y.mask)
        for x, y in zip(a.regions, b.regions, strict=True)
    )


def test_no_probe_changes_the_answer(asked):
    engine, image, result = asked
    before = engine.segment(image, result.instruction)
    sentences.run(engine, image, result)
    words.focus_of_word(engine, image, result, 5)
    heads.run(engine, image, result)
    thought.answer_after_thought(engine, image, result.instruction, "It is the other one.")
    assert same(engine.segment(image, result.instruction), before)


def test_the_last_look_of_the_trace_is_the_answers_own(asked):
    engine, image, result = asked
    looks = sentences.run(engine, image, result).views
    assert " ".join(x.text for x in looks) == " ".join(result.reasoning.split()) and len(looks) >= 2
    np.testing.assert_allclose(looks[-1].prior, result.regions[0].prior, atol=1e-5)
    assert (looks[-1].mask == result.regions[0].mask).mean() > 0.9999
    assert all(
        x.prior.shape == result.photo_size and 0 <= x.iou <= 1 and 0 <= x.spread <= 1 for x in looks
    )
    assert looks[-1].iou == pytest.approx(result.prior_iou, abs=1e-3)


@pytest.fixture(scope="module")
def several(mini):
    """An answer of several focus tokens, whose things lie apart."""
    for scene, question in draw_examples("validation", 0, 60, family="several"):
        result = mini.segment(scene.image, question.instruction)
        if len(result.regions) > 1 and result.prior_iou > 0.7:
            return mini, scene.image, result
    raise AssertionError("not one of 60 questions found several things")


def test_a_trace_of_several_focus_tokens_ends_in_all_their_looks_together(several):
    engine, image, result = several
    last = sentences.run(engine, image, result).views[-1]
    np.testing.assert_allclose(last.prior, result.prior, atol=1e-5)
    assert (last.mask == result.mask).mean() > 0.9999
    assert last.iou == pytest.approx(result.prior_iou, abs=1e-3)


def test_each_of_several_focus_tokens_is_compared_with_its_own_thing(several):
    engine, image, result = several
    places = [i for i, t in enumerate(result.reply_ids) if t == engine.focus.focus_id]
    for place, region in zip(places, result.regions, strict=True):
        look = words.focus_of_word(engine, image, result, place).view
        assert look.iou == pytest.approx(region.prior_iou, abs=1e-3)
    with pytest.raises(NotApplicable, match="several things"):
        heads.run(engine, image, result)


def test_a_finding_is_saved_with_a_photo_of_any_kind(asked, tmp_path):
    engine, image, result = asked
    other = thought.run(engine, image, result, result.reasoning)
    again = other.save(str(tmp_path / "new" / "folder"), image)
    assert again and all(path.is_file() for path in again)
    assert "the model wrote: “It is here" in other.result.reason


def test_what_drew_nothing_agrees_with_nothing(found):
    """Two empty masks have an IoU of 1, which says nothing of an answer."""
    nothing = np.zeros_like(found[2].prior), np.zeros_like(found[2].mask)
    empty = dataclasses.replace(found[2], regions=(Region(*nothing),))
    assert empty.prior_iou == empty.regions[0].prior_iou == 0


def test_a_thought_ends_in_the_token_that_holds_its_full_stop_and_the_tag():
    """As models write it whose closing tag is no token of its own, such as Qwen2.5-VL."""
    pieces = ["I see", " two.", " It is", " the left", ".</", "think", ">", "<REF_POS>"]
    language = SimpleNamespace(
        token_texts=lambda ids: pieces, encode_text=lambda text: [90, 91, 92]
    )
    ids = list(range(8))
    found = sentences.sentence_token_ends(language, ids, {7})
    assert found == [(2, "I see two."), (4, "It is the left.")]
    focus = SimpleNamespace(language=language, focus_id=7, thought_stop_ids={7})
    cut, own = sentences._closing_ids(focus, ids)
    assert (cut, own) == ([90, 91, 92, 7], [4, 5, 6, 7])  # the last look is the reply's own


def test_the_trace_is_truthful_each_look_equals_a_fresh_reading(asked):
    """The kept cache changes nothing: prompt, shortened thought and closing read anew in one go
    give the same prior."""
    engine, image, result = asked
    looks, ids = sentences.run(engine, image, result).views, list(result.reply_ids)
    photo = open_photo(image)
    features = engine.read(photo)
    closing = ids[ids.index(engine.focus.language.tokenizer.convert_tokens_to_ids("</think>")) :]
    pieces = words.reply_tokens_as_text(engine, result)
    cut = 0
    for look in looks:
        cut = next(
            n for n in range(cut + 1, len(pieces) + 1) if "".join(pieces[:n]).endswith(look.text)
        )
        session = engine.focus.start_session(result.instruction, features)
        prior, _ = engine.focus.prior_and_mask(session.feed([*ids[:cut], *closing])[-1:], features)
        np.testing.assert_allclose(prior, look.prior, atol=1e-4)


def test_the_own_thought_given_back_gives_the_own_answer(asked):
    engine, image, result = asked
    again = thought.answer_after_thought(engine, image, result.instruction, result.reasoning)
    assert again.reply == result.reply
    np.testing.assert_allclose(again.regions[0].prior, result.regions[0].prior, atol=1e-4)


def test_the_trace_costs_less_than_one_more_answer(mini):
    """In passes of the language model, which is what time is spent on, and in tokens read."""
    read: list[int] = []
    handle = mini.model.mllm.model.language_model.register_forward_hook(
        lambda _, __, output: read.append(output.last_hidden_state.shape[1])
    )
    for scene, question in draw_examples("test", 0, 8):
        read.clear()
        result = mini.segment(scene.image, question.instruction)
        answer_passes, answer_tokens = len(read), sum(read)
        read.clear()
        views = sentences.run(mini, scene.image, result).views
        closing = 8 * len(views)  # "</think>It is here: <REF_POS>"
        assert len(read) <= 1 + 2 * len(views) < answer_passes / 2
        assert sum(read) <= answer_tokens + closing
    handle.remove()


def test_the_focus_settles_where_it_stays(asked):
    engine, image, result = asked
    looks = sentences.run(engine, image, result).views
    index = trace.find_settling(looks)
    assert 0 <= index < len(looks) and trace.find_settling(()) is None
    away = FocusView("x", np.zeros_like(looks[-1].prior), looks[-1].mask, 0, 0)
    assert trace.find_settling((looks[-1], away, looks[-1])) == 2
    assert trace.find_settling((away, looks[-1], looks[-1])) == 1


def test_a_trace_of_nothing_found_says_where_it_would_have_looked(mini, nothing_found):
    scene, _, result = nothing_found
    looks = sentences.run(mini, scene.image, result).views
    assert looks and all(x.iou in (0.0, 1.0) for x in looks)


def test_any_word_can_be_looked_at_and_only_the_focus_token_is_trained(asked):
    engine, image, result = asked
    pieces = words.reply_tokens_as_text(engine, result)
    assert "".join(pieces) == result.reply and len(pieces) == result.tokens
    last = words.focus_of_word(engine, image, result, len(pieces) - 1).view
    assert last.trained and last.text == "<REF_POS>"
    np.testing.assert_allclose(last.prior, result.regions[0].prior, atol=1e-5)
    word = words.focus_of_word(engine, image, result, 4).view
    assert not word.trained and word.text == pieces[4] and word.prior.shape == result.photo_size
    with pytest.raises(CoPRSError, match="count from 0"):
        words.focus_of_word(engine, image, result, 9999)


def test_the_heads_are_those_that_were_fused(asked, nothing_found):
    engine, image, result = asked
    maps = heads.run(engine, image, result).maps
    assert maps.shape == (engine.model.prior.heads, *result.photo_size) and maps.dtype == np.float32
    assert all(m.std() > 0 for m in maps)
    with pytest.raises(CoPRSError, match="no heads to show"):
        heads.run(engine, nothing_found[0].image, nothing_found[2])


def test_what_an_earlier_version_of_the_model_wrote_is_not_read_as_something_else(asked):
    """Its tokens have another meaning now: no look of words that nobody wrote."""
    engine, image, result = asked
    earlier = dataclasses.replace(result, reply="<think>I see a boat.</think>It is here: <REF_POS>")
    for ask in (sentences.run, words.run, heads.run, attention.run):
        with pytest.raises(CoPRSError, match="another version of 'mini'.*ask the question again"):
            ask(engine, image, earlier)
    with pytest.raises(CoPRSError, match="another version of 'mini'"):
        words.reply_tokens_as_text(engine, earlier)
    changed = thought.answer_after_thought(
        engine, image, result.instruction, "蓝 It is “the” fish… 🐟"
    )
    assert sentences.run(engine, image, changed).views  # what is its own is read, however odd


def test_another_thought_moves_the_focus(mini):
    """Where the last sentence says that another thing of the scene is meant, the focus goes there
    and leaves its old place."""
    moved = []
    for scene, question in draw_examples("test", 0, 12):
        result = mini.segment(scene.image, question.instruction)
        if not result.mask.any() or len(scene.objects) < 2:
            continue
        other = next(i for i in range(len(scene.objects)) if i not in question.targets)
        thing = scene.objects[other]
        kept = result.reasoning.removesuffix(last_sentence(result.reasoning))
        text = f"{kept}That is the {thing.kind} {thing.place}, the {thing.colour} one."
        again = thought.answer_after_thought(mini, scene.image, question.instruction, text)
        prior = again.regions[0].prior
        moved.append(prior[scene.mask(other)].mean() > prior[result.mask].mean())
    assert len(moved) >= 8 and np.mean(moved) >= 0.8, moved


def test_special_tokens_in_a_typed_thought_are_text(asked):
    engine, image, result = asked
    again = thought.answer_after_thought(
        engine, image, result.instruction, "It is <REF_POS> here </think>."
    )
    assert (
        again.reply_ids.count(engine.focus.focus_id) == 1
        and again.reply_ids[-1] == engine.focus.focus_id
    )
    assert again.reasoning == "It is <REF_POS> here </think>."


def test_a_thought_that_ends_in_nothing_is_said_to(mini, nothing_found):
    scene, _, result = nothing_found
    again = thought.answer_after_thought(mini, scene.image, result.instruction, result.reasoning)
    assert (
        "the focus token was given to it" in again.reason
        and result.reply.rpartition("</think>")[2].split("<")[0] in again.reason
    )
    assert again.regions and again.reply_ids[-1] == mini.focus.focus_id


def test_spread_is_zero_for_a_point_and_one_for_everywhere():
    point = np.zeros((20, 30), np.float32)
    point[3, 4] = 0.7
    assert normalized_entropy(point) == 0 and normalized_entropy(
        np.full((20, 30), 0.2, np.float32)
    ) == pytest.approx(1)


def test_mistakes_are_said(asked, tmp_path):
    engine, image, result = asked
    with pytest.raises(CoPRSError, match="not the one that the answer is about"):
        heads.run(engine, image[:100], result)
    with pytest.raises(CoPRSError, match="thought is empty"):
        thought.answer_after_thought(engine, image, result.instruction, "  ")
    model = tiny.coprs(tiny.qwen())
    folder, sam = (
        tiny.save_mllm(tmp_path / "qwen", model.mllm),
        tiny.save_sam(tmp_path / "sam.pth", model),
    )
    other = load(str(folder), device="cpu", sam=str(sam))
    with pytest.raises(CoPRSError, match="load that model"):
        heads.run(other, image, result)
    with pytest.raises(CoPRSError, match="writes coordinates"):
        thought.answer_after_thought(other, image, result.instruction, "It is there.")


def test_a_thought_of_more_tokens_than_characters_is_refused(asked):
    engine, image, result = asked
    thought_of_emoji = "".join(chr(0x1F300 + i % 200) for i in range(7999))
    with pytest.raises(CoPRSError, match=r"has [\d,]+ tokens and at most 8,000 are read: shorten"):
        thought.run(engine, image, result, thought_of_emoji)


@pytest.mark.parametrize("passes", [1, 5, 9])
def test_what_nobody_waits_for_ends_between_two_layers(asked, passes):
    engine, image, result = asked
    done, layers = [], engine.model.mllm.model.language_model.layers
    hooks = [layer.register_forward_hook(lambda *_: done.append(1)) for layer in layers]
    try:
        with pytest.raises(Cancelled), cancellable(lambda: len(done) < passes):
            thought.run(engine, image, result, "It is the other one. " * 300)
        assert len(done) == passes
        with cancellable(lambda: True):
            with cancellable(lambda: False):
                pass
            assert thought.run(engine, image, result, "It is the other one.").result.regions
        assert current_check() is None
    finally:
        for one in hooks:
            one.remove()


def test_a_photo_of_a_probe_that_nobody_waits_for_is_read_no_further(fresh, found):
    scene, _, result = found
    with pytest.raises(Cancelled), cancellable(lambda: False):
        sentences.run(fresh, scene.image, result)
    assert fresh.cached_features(open_photo(scene.image)) is None
    assert sentences.run(fresh, scene.image, result).views


def test_out_of_memory_in_a_probe_is_said_and_the_next_one_works(asked, monkeypatch):
    engine, image, result = asked

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.focus, "prior_and_mask", fail)
        with pytest.raises(CoPRSError, match="needs more memory than there is"):
            sentences.run(engine, image, result)
    assert sentences.run(engine, image, result).views


def test_every_word_looks_in_one_reading_where_it_looks_alone(asked):
    engine, image, result = asked
    finding = words.run(engine, image, result)
    assert finding.words == words.reply_tokens_as_text(engine, result)
    assert finding.maps.shape[1:] == (
        64,
        64,
    )
    assert finding.trained == [False] * (result.tokens - 1) + [True]
    for number in (0, 7, result.tokens - 1):
        alone = words.focus_of_word(engine, image, result, number).view.prior
        # brought down in another way, so edges differ
        assert np.abs(finding.maps[number] - downscale_prior(alone, 64)).mean() < 0.01
        assert finding.highest[number] == pytest.approx(float(alone.max()), abs=0.15)
    assert next(finding.payloads())["maps"][0].startswith("data:image/png")


def test_the_trace_tells_which_sentence_moved_the_focus(asked):
    engine, image, result = asked
    finding = sentences.run(engine, image, result)
    places = [view.prior >= 0.5 for view in finding.views]
    assert finding.has_moved[0] is False
    for i in range(1, len(places)):
        assert finding.has_moved[i] == (iou(places[i - 1], places[i]) < 0.5)


def test_a_given_thought_is_told_from_the_models_own(asked):
    engine, image, result = asked
    given = thought.answer_after_thought(
        engine, image, result.instruction, "That is the first one."
    )
    assert given.is_thought_given and not result.is_thought_given
    links = [link.name for link in diagnose(given)]
    assert "given" in links and not restated_question(given)
    back = Result.from_dict(given.to_dict(with_priors=True))
    assert back.is_thought_given
    assert given.distance == result.distance is not None and given.seen_size == result.seen_size
    assert given.versions == result.versions
