"""The answers that visitors' pages hold: one budget, small forms, and what had to go says so."""

import gc
import io
import threading
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from app.actions import AnswerActions
from app.saved_answers import load_recorded_answer
from app.server import answers
from app.server.answers import AnswerStore, StoredAnswer, no_answer_error
from app.texts import translate
from app.visitors import downscale_trace
from coprs_core import CoPRSError
from coprs_core.photos.photo import open_photo
from coprs_core.probes import heads, sentences, thought
from tests.app.test_handlers import handlers_for


@pytest.fixture
def photo_file(found, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(found[0].image).save(path)
    return path


def an_answer(found, file=None, **more) -> StoredAnswer:
    return StoredAnswer(open_photo(file or found[0].image), found[2], file=file, **more)


def sizes_of(answered: StoredAnswer) -> dict[int, int]:
    return answered.unpacked_sizes() | answered.packed_sizes()


def test_one_that_is_not_used_becomes_small_and_comes_back(mini, found, photo_file):
    answered = an_answer(found, photo_file)
    result = answered.result
    answered.add_trace(downscale_trace(sentences.run(mini, answered.photo, result)))
    answered.add_finding("heads", heads.run(mini, answered.photo, result))
    other = thought.run(mini, answered.photo, result, "It is the first one.")
    answered.add_finding("thought", other)
    whole = answered.trace, answered.findings["heads"], answered.photo
    before = sum(sizes_of(answered).values())
    answered.pack()
    assert sum(sizes_of(answered).values()) < before / 3
    again = answered.result
    now, was = again.to_dict(), result.to_dict()
    for values in (now, was):
        del values["regions"][0]["prior_max"]  # to 1/200, as in the app's endpoints
    assert again is not result and now == was
    np.testing.assert_array_equal(again.mask, result.mask)
    assert again.prior.dtype == np.float32
    np.testing.assert_allclose(again.prior, result.prior, atol=1 / 200)
    np.testing.assert_array_equal(again.prior >= 0.5, result.prior >= 0.5)
    assert answered.photo.key == whole[2].key and answered.photo.size == whole[2].size
    for now, was in zip(answered.trace.views, whole[0].views, strict=True):
        assert (now.text, now.iou, now.spread) == (was.text, was.iou, was.spread)
        np.testing.assert_array_equal(now.mask, was.mask)
    assert answered.findings["heads"].maps.shape == whole[1].maps.shape
    other_now = answered.findings["thought"].result
    np.testing.assert_array_equal(other_now.mask, other.result.mask)


def test_a_photo_whose_file_is_gone_or_another_by_now_stays_the_same(found, photo_file):
    pixels = found[0].image
    for changed in (photo_file.unlink, lambda: Image.new("RGB", (9, 9)).save(photo_file)):
        answered = an_answer(found, photo_file)
        answers._encoded_photos.clear()
        changed()
        answered.pack()
        np.testing.assert_array_equal(np.asarray(answered.photo.image), pixels)
        Image.fromarray(pixels).save(photo_file)


def test_the_budget_holds_over_all_visitors_and_the_newest_stay(found, photo_file):
    one = an_answer(found, photo_file)
    whole = sum(sizes_of(one).values())
    one.pack()
    photo, rest = sizes_of(one).values()
    budget = photo + 10 * rest + rest // 2  # beside the one that is used last
    kept = AnswerStore(budget)
    visitors = [an_answer(found, photo_file) for _ in range(30)]
    for answered in visitors:
        kept.add(answered)
        assert kept.nbytes <= whole + budget
    gone = [answered.is_dropped for answered in visitors]
    assert not any(gone[-10:]) and all(gone[:15])
    assert visitors[-10].result.mask.any()  # used again: it is among the last to go
    kept.add(an_answer(found, photo_file))
    assert not visitors[-10].is_dropped and kept.nbytes <= whole + budget
    with pytest.raises(CoPRSError, match="no longer kept"):
        _ = visitors[0].result
    with pytest.raises(CoPRSError, match="no longer kept"):
        visitors[0].add_finding("heads", None)


def test_visitors_at_once_do_not_wait_for_each_other_for_ever(found, photo_file):
    """Each keeps a finding with an answer that was packed, while others pack answers."""
    one = an_answer(found, photo_file)
    one.pack()
    kept = AnswerStore(8 * sum(sizes_of(one).values()))  # all fit, and none but the last whole
    visitors = [an_answer(found, photo_file) for _ in range(4)]
    for answered in visitors:
        kept.add(answered)
    wrong = []

    def find(number: int) -> None:
        for i in range(50):
            answered = visitors[(number + i) % 4]
            answered.add_finding("heads", None)
            if answered.is_dropped or not answered.result.mask.any():
                wrong.append(number)

    threads = [threading.Thread(target=find, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and not wrong


def test_the_one_at_hand_is_kept_whatever_it_takes(found):
    kept, answered = AnswerStore(budget=1), an_answer(found)
    kept.add(answered)
    assert answered.result.regions
    other = an_answer(found)
    kept.add(other)
    assert answered.is_dropped and other.result.regions


def test_a_very_large_answer_costs_no_other_visitors(found, photo_file):
    one = an_answer(found, photo_file)
    one.pack()
    kept = AnswerStore(budget=3 * sum(sizes_of(one).values()))
    others = [an_answer(found, photo_file) for _ in range(3)]
    large = StoredAnswer(open_photo(np.zeros((3000, 4000, 3), np.uint8)), found[2])
    for answered in (*others, large):
        kept.add(answered)
    assert not any(answered.is_dropped for answered in (*others, large))


def test_what_no_page_holds_any_more_takes_nothing(found):
    kept, answered = AnswerStore(10**9), an_answer(found)
    kept.add(answered)
    assert kept.nbytes > 0
    del answered
    gc.collect()
    assert kept.nbytes == 0


def test_a_photo_that_several_answers_are_about_is_counted_once(found, photo_file):
    kept, photo = AnswerStore(10**9), open_photo(photo_file)
    one, two = (StoredAnswer(photo, found[2], file=photo_file) for _ in range(2))
    kept.add(one)
    alone = kept.nbytes
    kept.add(two)
    assert kept.nbytes == 2 * alone - np.asarray(photo.image).nbytes
    one.pack()
    two.pack()
    sizes = sizes_of(one) | sizes_of(two)
    assert len(sizes) == 3


def test_every_button_says_that_an_answer_had_to_go(mini, found):
    handlers = handlers_for(mini)
    actions = AnswerActions(handlers.server, handlers.gate)
    gone, here = an_answer(found), an_answer(found)
    gone.pack()
    gone.drop()
    event = type("Event", (), {"index": 0, "value": "x", "said": "x"})()
    for work in (
        lambda: actions.run_probe("heads", gone),
        lambda: actions.compare(here, 0, (gone,)),
        lambda: actions.compare_with_truth(gone, [], None),
        lambda: list(actions.export_zip(gone)),
        lambda: list(actions.export_page(gone)),
        lambda: list(actions.export_replay(gone)),
        lambda: actions.create_link(gone),
        lambda: handlers.thought_actions.show_words(gone),
        lambda: handlers.thought_actions.edit_sentence(gone, (), event),
        lambda: handlers.opening.restore((gone,), event),
    ):
        with pytest.raises(gr.Error, match="no longer kept"):
            work()
    assert handlers.thought_actions.show_trace(gone) == handlers.thought_actions.show_trace(None)
    assert handlers.thought_actions.refresh(gone) == gr.skip()


def test_an_answer_that_goes_while_it_is_used_says_so_in_the_visitors_language(mini, found):
    handlers = handlers_for(mini)
    request = SimpleNamespace(headers={"accept-language": "zh"}, session_hash="s")
    gone = an_answer(found)
    gone.pack()
    gone.drop()
    gone.is_dropped = False  # as it was when it was looked at
    event = SimpleNamespace(index=0, value="x", said="x")
    actions = AnswerActions(handlers.server, handlers.gate)
    sentence = translate("zh", no_answer_error())
    for work in (
        lambda: handlers.thought_actions.refresh(gone, request),
        lambda: handlers.thought_actions.show_words(gone, request),
        lambda: handlers.thought_actions.edit_sentence(gone, (), event, request),
        lambda: handlers.opening.restore((gone,), event, request),
        lambda: actions.run_probe("heads", gone, request),
        lambda: list(actions.export_replay(gone, request)),
    ):
        with pytest.raises(gr.Error) as problem:
            work()
        assert problem.value.message == sentence
    assert sentence in handlers.thought_actions.show_trace(gone, request)


def test_the_recorded_answer_is_everybodys_and_never_goes(mini):
    handlers = handlers_for(mini)
    handlers.server.answer_store = AnswerStore(budget=1)
    first, second = (handlers.opening.open_page()["answer"] for _ in range(2))
    assert (
        first is not second and first.is_recorded and first.result is load_recorded_answer().result
    )
    first.add_finding("heads", 1)
    assert not second.findings and not load_recorded_answer().findings


def test_a_photo_is_its_own_file_not_a_copy_of_its_pixels(found, tmp_path):
    path = tmp_path / "large.jpg"
    Image.fromarray(found[0].image).resize((4000, 3000)).save(path, quality=88)
    photo = open_photo(path)
    size = answers._encode_photo(photo, path)
    assert size.data == path.read_bytes() and len(size.data) < photo.size[0] * photo.size[1] / 4
    file = io.BytesIO(size.data)
    assert open_photo(file.getvalue()).key == photo.key
