"""The one generator: its stages, what it keeps, how it stops, and what it calls an answer without a
focus token."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from coprs_core import CoPRSError
from coprs_core.answer.engine import Engine
from coprs_core.checkpoints.plan import MAX_CACHED_PHOTOS
from coprs_core.errors import Cancelled
from coprs_core.masks import decode_rle
from coprs_core.metrics import iou
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.model.backends.decoding import ContinuousBatch
from coprs_core.model.segmenter import Step
from coprs_core.photos.photo import open_photo
from tests.conftest import PATIENCE, until


def same(a, b):
    assert (a.outcome, a.reason, a.reply, a.reasoning, a.tokens) == (
        b.outcome,
        b.reason,
        b.reply,
        b.reasoning,
        b.tokens,
    )
    assert len(a.regions) == len(b.regions)
    for x, y in zip(a.regions, b.regions):
        assert np.array_equal(x.prior, y.prior) and np.array_equal(x.mask, y.mask)


def test_stream_tells_the_stages_in_order_and_equals_segment(fresh, found):
    scene, question, result = found
    updates = list(fresh.stream(scene.image, question.instruction))
    stages = [u.stage for u in updates]
    assert (
        stages[:2] == ["reading", "reading"]
        and stages[-2:] == ["focus", "done"]
        and set(stages[2:-2]) == {"thinking"}
    )
    assert "".join(u.new for u in updates) == updates[-1].text == result.reply
    assert all(b.text.startswith(a.text) for a, b in zip(updates, updates[1:]))
    assert [u.seconds for u in updates] == sorted(u.seconds for u in updates)
    assert np.array_equal(updates[-2].prior, updates[-1].result.regions[0].prior)
    same(updates[-1].result, fresh.segment(scene.image, question.instruction))
    same(updates[-1].result, result)


def test_a_region_has_the_photos_size_and_range(found):
    scene, _, result = found
    (region,) = result.regions
    assert region.prior.dtype == np.float32 and region.prior.shape == scene.image.shape[:2]
    assert region.prior.min() >= 0 and region.prior.max() <= 1
    assert region.mask.dtype == bool and region.mask.shape == scene.image.shape[:2]
    assert set(result.seconds) == {"reading", "thinking", "focusing", "drawing"}


@pytest.mark.parametrize("size", [(1, 1), (7, 350), (350, 7), (90, 160), (1200, 800)])
def test_every_shape_of_photo_gets_an_answer_of_its_size(fresh, size):
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    result = fresh.segment(pixels, "the thing that keeps the rain off")
    assert result.photo_size == size and result.mask.shape == size
    assert all(r.prior.shape == size and np.isfinite(r.prior).all() for r in result.regions)


def test_result_goes_to_json_with_coco_rle(found):
    _, _, result = found
    told = json.loads(result.to_json())
    assert told["outcome"] == "found" and told["schema_version"] == 1
    assert np.array_equal(decode_rle(told["regions"][0]["mask"]), result.regions[0].mask)
    assert told["prior_iou"] == pytest.approx(result.prior_iou)
    assert {"model", "settings", "seconds", "reasoning", "instruction"} <= told.keys()


def test_second_answer_runs_no_vision_encoder(fresh, monkeypatch):
    calls = []
    for name, module in (
        ("tower", fresh.model.mllm.model.visual),
        ("encoder", fresh.model.image_encoder),
    ):
        handle = module.register_forward_hook(lambda *_, name=name: calls.append(name))
        monkeypatch.setattr(fresh, f"_{name}_hook", handle, raising=False)
    image = draw_scene(1).image
    first = fresh.segment(image, "the largest thing")
    assert sorted(calls) == ["encoder", "tower"] and not first.photo_reused
    second = fresh.segment(image.copy(), "the smallest thing")
    assert sorted(calls) == ["encoder", "tower"] and second.photo_reused
    same(second, Engine(fresh.checkpoint).segment(image, "the smallest thing"))
    fresh._tower_hook.remove()
    fresh._encoder_hook.remove()


def test_cache_is_bounded_and_drops_the_oldest(fresh):
    images = [np.full((8, 8, 3), v, np.uint8) for v in range(MAX_CACHED_PHOTOS + 1)]
    for image in images:
        for _ in fresh.stream(image, "x", max_new_tokens=1):
            pass
    assert len(fresh._features) == MAX_CACHED_PHOTOS
    assert fresh.segment(images[-1], "x", max_new_tokens=1).photo_reused
    assert not fresh.segment(images[0], "x", max_new_tokens=1).photo_reused


def test_a_photo_that_is_only_read_ahead_is_the_first_to_go(fresh):
    images = [np.full((8, 8, 3), v, np.uint8) for v in range(MAX_CACHED_PHOTOS + 1)]
    for image in images[:-1]:
        fresh.segment(image, "x", max_new_tokens=1)
    first, *_, ahead, later = map(open_photo, [*images, np.full((8, 8, 3), 99, np.uint8)])
    before, after = fresh.prefetch(ahead)
    assert not before.stage_seconds and "reading" in after.stage_seconds
    assert fresh.cached_features(ahead) is not None and not fresh.cached_features(first)
    fresh._features.move_to_end(ahead.key, last=False)  # looking at it was no question
    assert len(list(fresh.prefetch(later))) == 2
    assert fresh.cached_features(later) and not fresh.cached_features(ahead)
    assert all(fresh.cached_features(open_photo(image)) for image in images[1:-1])


def test_a_photo_that_nobody_waits_for_is_given_up_between_two_layers(fresh):
    photo, passes = open_photo(draw_scene(2).image), []
    for block in fresh.model.image_encoder.blocks:
        block.register_forward_hook(lambda *_: passes.append(1))
    stream = fresh.stream(photo, "the car", is_wanted=lambda: len(passes) < 2)
    with pytest.raises(Cancelled):
        list(stream)
    assert len(passes) == 2 and not fresh.cached_features(photo)
    assert fresh.segment(photo, "the car").tokens  # and nothing is left of it


def test_what_is_read_ahead_gives_way_to_another_photo_and_not_to_its_own(fresh):
    """A question about the same photo takes over what is being read; one about another photo waits
    no longer than for a layer."""
    ahead, other = (open_photo(draw_scene(seed).image) for seed in (2, 3))
    for asked, is_kept in ((ahead, True), (other, False)):
        fresh._features.clear()
        begun, waits = threading.Event(), threading.Event()

        def hold(*_, begun=begun, waits=waits):
            begun.set()
            assert waits.wait(PATIENCE)

        held = fresh.model.image_encoder.blocks[0].register_forward_hook(hold)
        with ThreadPoolExecutor(2) as pool:
            read = pool.submit(lambda: list(fresh.prefetch(ahead)))
            assert begun.wait(PATIENCE)
            held.remove()
            answer = pool.submit(fresh.segment, asked, "the car", 1)
            until(lambda: fresh._num_waiting.total() == 2)
            waits.set()
            assert answer.result(PATIENCE).photo_size == asked.size
            if is_kept:
                assert len(read.result(PATIENCE)) == 2
            else:
                with pytest.raises(Cancelled):
                    read.result(PATIENCE)
        assert (fresh.cached_features(ahead) is not None) is is_kept and not fresh._num_waiting


def test_a_model_of_several_engines_is_asked_once_a_layer(fresh):
    Engine(fresh.checkpoint)
    assert all(len(b._forward_pre_hooks) == 1 for b in fresh.model.image_encoder.blocks)


def test_closing_stops_the_work_within_one_step(fresh):
    steps = []
    handle = fresh.model.mllm.lm_head.register_forward_hook(lambda *_: steps.append(1))
    stream = fresh.stream(draw_scene(2).image, "the largest thing")
    next(u for u in stream if len(u.text) > 30)
    before = len(steps)
    stream.close()
    assert len(steps) == before
    handle.remove()
    assert fresh.segment(draw_scene(2).image, "the largest thing").reply  # the next question works


def test_nothing_is_generated_after_the_focus_token(fresh, found):
    scene, question, _ = found
    steps = []
    handle = fresh.model.mllm.model.language_model.register_forward_hook(lambda *_: steps.append(1))
    first = fresh.segment(scene.image, question.instruction)
    assert first.reply.endswith("<REF_POS>")
    # the photo and the question are one step each, and so is a token, the focus token fed in last
    assert len(steps) == first.tokens + 2
    again = fresh.segment(scene.image, question.instruction)
    assert len(steps) == first.tokens + 2 + again.tokens + 1  # the photo is not read again
    handle.remove()


def test_the_features_that_are_kept_are_bounded_by_memory(fresh):
    images = [np.full((8, 8, 3), v, np.uint8) for v in range(3)]
    fresh.segment(images[0], "x", max_new_tokens=1)
    one = next(iter(fresh._features.values())).nbytes
    assert one > 100_000
    for room, kept in ((2.5 * one, 2), (0.5 * one, 1)):
        fresh._max_bytes = room
        for image in images:
            fresh.segment(image, "x", max_new_tokens=1)
        assert len(fresh._features) == kept and fresh.cached_features(open_photo(images[-1]))


def test_nothing_found_is_said_by_the_model_and_has_no_mask(nothing_found):
    _, _, result = nothing_found
    assert not result.regions and result.prior_iou is None and not result.mask.any()
    assert "Nothing in this picture fits" in result.reason and "<REF_POS>" not in result.reply


def test_running_out_of_tokens_is_unfinished_and_never_a_mask(fresh):
    result = fresh.segment(draw_scene(3).image, "the largest thing", max_new_tokens=5)
    assert result.outcome == "unfinished" and not result.regions and "5 tokens" in result.reason
    assert result.reasoning.startswith("I see")


@pytest.mark.parametrize(
    "reply, outcome",
    [
        ("<think>hm</think>Nothing fits.", "nothing found"),
        ("<think>hm</think>", "unfinished"),
        ("<think>hm", "unfinished"),
        ("", "unfinished"),
    ],
)
def test_replies_that_end_without_a_focus_token(fresh, monkeypatch, reply, outcome):
    tokens = fresh.focus.language.tokenizer(reply, add_special_tokens=False).input_ids + [
        fresh.focus.language.tokenizer.eos_token_id
    ]
    monkeypatch.setattr(ContinuousBatch, "generate", lambda *a, **k: (Step(t) for t in tokens))
    result = fresh.segment(draw_scene(4).image, "x")
    assert (result.outcome, result.regions, result.reply) == (outcome, (), reply)


def test_text_of_several_bytes_a_character_streams_whole(fresh, monkeypatch):
    words = "<think>雨伞 🌂 ok</think>没有"
    tokens = fresh.focus.language.tokenizer(words, add_special_tokens=False).input_ids + [
        fresh.focus.language.tokenizer.eos_token_id
    ]
    monkeypatch.setattr(ContinuousBatch, "generate", lambda *a, **k: (Step(t) for t in tokens))
    updates = list(fresh.stream(draw_scene(4).image, "x"))
    assert updates[-1].text == words and not any("�" in u.text for u in updates)


@pytest.mark.parametrize("bad", [0, -1, 5000, 1.5, "many"])
def test_a_bad_bound_is_refused_in_a_sentence(fresh, bad):
    with pytest.raises(CoPRSError, match="whole number from 1 to 4096"):
        fresh.segment(draw_scene(1).image, "x", max_new_tokens=bad)


def test_threads_do_not_disturb_each_other(fresh):
    asked = [
        (draw_scene(i).image, w)
        for i, w in (
            (11, "the largest thing"),
            (12, "the leftmost thing"),
            (13, "the smallest thing"),
        )
    ]
    alone = [Engine(fresh.checkpoint).segment(*a) for a in asked]
    together = [None] * len(asked)

    def work(i):
        together[i] = fresh.segment(*asked[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(asked))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for a, b in zip(alone, together):  # written in one batch, which rounds in another order
        assert (a.outcome, a.reply, a.reply_ids) == (b.outcome, b.reply, b.reply_ids)
        assert iou(a.mask, b.mask) > 0.99
