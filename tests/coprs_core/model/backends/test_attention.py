"""Where the model's own words look: observed while it writes, and by which heads it is told."""

import dataclasses
import json
import threading

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from coprs_core import CoPRSError, load
from coprs_core.calibrate import calibrate, covered_cells, select_heads
from coprs_core.mini.world.questions import draw_examples
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.model.backends.attention import (
    AttentionTrace,
    attention_to_prior,
    install_recorder,
    record_attention,
)
from coprs_core.model.backends.language import LanguageModel
from coprs_core.photos.photo import open_photo
from coprs_core.probes import attention
from coprs_core.probes.reply_attention import compute_reply_attention
from coprs_core.prompts import IMAGE_SLOT, INSTRUCTION_SLOT
from tests import tiny

TEMPLATE = f"<|im_start|>user\n<|vision_start|>{IMAGE_SLOT}<|vision_end|>{INSTRUCTION_SLOT}<|im_end|>\n<|im_start|>assistant\n"
MODELS = [tiny.qwen, tiny.qwen3, tiny.llava, tiny.qwen3_5, tiny.lfm2, tiny.internvl]
WORDS = [40, 41, 42, 300, 301, 302]


def language_of(make, tmp_path) -> LanguageModel:
    from coprs_core.checkpoints.hugging_face import load_image_processor

    mllm = make()
    folder = tiny.save_mllm(tmp_path / "mllm", mllm, weights=False)
    return LanguageModel(mllm, tiny.TOKENIZER, load_image_processor(folder))


def session_of(language: LanguageModel, seed: int = 1):
    photo = open_photo(draw_scene(seed).image).image.resize((112, 84))
    visual = language.encode_image(photo)
    return language.start_session(
        TEMPLATE, "the umbrella", visual, language.prefill_prefix(TEMPLATE, visual)
    )


@pytest.mark.parametrize("make", MODELS)
def test_observed_the_model_computes_the_same(make, tmp_path):
    language = language_of(make, tmp_path)
    plain, seen = session_of(language), session_of(language)
    trace = AttentionTrace(grid_of(language))
    for word in WORDS:
        expected, got = plain.feed([word]), trace.feed(seen, [word])
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert len(trace) == len(WORDS)


def grid_of(language: LanguageModel) -> tuple[int, int]:
    photo = open_photo(draw_scene(1).image).image.resize((112, 84))
    return language.encode_image(photo).grid_size(language.mllm)


@pytest.mark.parametrize("make", MODELS)
def test_what_is_observed_is_the_attention_itself(make, tmp_path):
    """The weights of transformers' own eager attention, layer by layer, head by head."""
    language = language_of(make, tmp_path)
    text = language.mllm.model.language_model
    session = session_of(language)
    with record_attention([session.image_span]) as seen:
        session.feed(WORDS[:1])
    eager = session_of(language)
    text.config._attn_implementation = "eager"
    weights = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _m, _i, out: weights.append(out[1]))
        for layer in text.layers
        if hasattr(layer, "self_attn")
    ]
    eager.feed(WORDS[:1])
    for hook in hooks:
        hook.remove()
    install_recorder(language.mllm)
    expected = torch.cat([w[0, :, 0, eager.image_span] for w in weights])
    got = seen.weights()[0].float()
    assert got.shape == expected.shape and got.shape[1] > 4
    torch.testing.assert_close(got, expected.float(), atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("make", MODELS)
def test_words_read_together_look_as_words_read_one_by_one(make, tmp_path):
    language = language_of(make, tmp_path)
    one, together = session_of(language), session_of(language)
    apart, at_once = AttentionTrace(grid_of(language)), AttentionTrace(grid_of(language))
    hidden = torch.cat([apart.feed(one, [word]) for word in WORDS])
    torch.testing.assert_close(at_once.feed(together, WORDS), hidden, atol=1e-4, rtol=1e-4)
    for i in range(len(WORDS)):
        np.testing.assert_allclose(
            at_once.attention_map([i], [0, 3]), apart.attention_map([i], [0, 3]), atol=2e-3
        )


def test_two_visitors_do_not_see_each_others_attention(tmp_path):
    language = language_of(tiny.qwen3, tmp_path)
    seen = {}

    def visit(seed: int) -> None:
        trace, session = AttentionTrace(grid_of(language)), session_of(language, seed)
        for word in WORDS * 3:
            trace.feed(session, [word])
        seen[seed] = (len(trace), trace.attention_map([5], [1]))

    alone = {}
    for seed in (1, 2):
        visit(seed)
        alone[seed] = seen[seed][1]
    threads = [threading.Thread(target=visit, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        assert seen[seed][0] == 3 * len(WORDS)
        np.testing.assert_array_equal(seen[seed][1], alone[seed])


def test_a_long_reply_keeps_its_last_words(monkeypatch):
    monkeypatch.setattr("coprs_core.model.backends.attention.MAX_BYTES", 5 * 4 * 6 * 2)
    trace = AttentionTrace((2, 3))
    for i in range(9):
        trace.add(torch.full((1, 4, 6), float(i)).half())
    assert len(trace) == 9
    assert trace.attention_map([8], [0]).max() == 8 and trace.attention_map([4], [0]).max() == 4
    assert trace.attention_map([3], [0]).max() == 0  # gone
    assert trace.attention_map([], [0]).shape == (2, 3)


def test_a_long_reply_is_read_once_more_by_the_chosen_heads(tmp_path, monkeypatch):
    """So that a probe never tells of a word that was not kept that it looked nowhere."""
    sam = str(tiny.save_sam2(tmp_path / "sam2"))
    engine = load(str(tiny.save_mllm(tmp_path / "mllm", tiny.qwen3())), device="cpu", sam=sam)
    photo = draw_scene(1).image
    result = engine.segment(photo, "it", 40)
    whole = compute_reply_attention(engine, photo, result, "words")
    one_word = whole.trace._weights[-1].nbytes
    monkeypatch.setattr("coprs_core.model.backends.attention.MAX_BYTES", 30 * one_word)
    cut = compute_reply_attention(engine, photo, result, "words")
    assert len(cut.trace) == len(result.reply_ids) > 30 and not cut.trace.is_truncated
    assert cut.trace.num_heads == whole.trace.num_heads
    for word in (0, len(result.reply_ids) - 1):
        seen = whole.trace.attention_map([word], cut.heads)
        assert seen.max() > 0
        np.testing.assert_allclose(cut.attention_map([word]), seen, atol=1e-4)


def test_heads_that_look_everywhere_or_at_one_spot_tell_no_place():
    generator = torch.Generator().manual_seed(0)
    words, cells = 30, 12
    weights = torch.zeros(words, 4, cells)
    weights[:, 0] = 0.9 / cells  # everywhere
    weights[:, 1, 7] = 0.9  # a sink
    places = torch.randint(cells, (words,), generator=generator)
    weights[torch.arange(words), 2, places] = 0.8  # where the word is
    weights[torch.arange(words), 3, places] = 0.01  # the same, and nearly nothing of it
    trace = AttentionTrace((3, 4))
    trace.add(weights.half())
    assert trace.localization_heads(1) == [2]
    assert trace.localization_heads(9)[-1] == 3 and len(trace.localization_heads(9)) == 4
    prior = attention_to_prior(trace.attention_map([3], [2]), (30, 40))
    assert prior.shape == (30, 40) and prior.max() == pytest.approx(1) and prior.min() == 0
    row, column = divmod(int(places[3]), 4)
    assert prior[row * 10 + 5, column * 10 + 5] > 0.9


# --- on the miniature: attention alone, no label, heads chosen from each answer itself


def localized(mini, count: int) -> tuple[list[bool], list[bool]]:
    """Of validation scenes answered with a focus token: whether the brightest cell lies on the
    target at the focus token, and on the named thing at the word of its kind."""
    focus, language = mini.segmenter, mini.segmenter.language
    at_token, at_word = [], []
    for scene, question in draw_examples("validation", 0, count):
        if not question.targets:
            continue
        features = mini.read(open_photo(scene.image))
        session = focus.start_session(question.instruction, features)
        trace = language.new_attention_trace(features.visual)
        ids = [s.token for s in language.generate(session, focus.focus_id, 160, trace)]
        if ids[-1] != focus.focus_id:
            continue
        heads, mask = trace.localization_heads(), scene.mask(*question.targets)
        at_token.append(brightest_is_on(trace.attention_map([len(ids) - 1], heads), mask))
        for i, piece in enumerate(language.token_texts(ids)):
            named = [j for j, thing in enumerate(scene.objects) if thing.kind == piece.strip()]
            if len(named) == 1:
                at_word.append(
                    brightest_is_on(trace.attention_map([i], heads), scene.mask(named[0]))
                )
    return at_token, at_word


def brightest_is_on(seen: np.ndarray, mask: np.ndarray) -> bool:
    rows, columns = seen.shape
    row, column = divmod(int(seen.argmax()), columns)
    height, width = mask.shape
    return bool(
        mask[
            row * height // rows : (row + 1) * height // rows,
            column * width // columns : (column + 1) * width // columns,
        ].any()
    )


def test_attention_alone_tells_the_place(mini):
    at_token, at_word = localized(mini, 50)
    assert np.mean(at_token) >= 0.88 and np.mean(at_word) >= 0.66 and len(at_word) > 100


@pytest.mark.slow
def test_attention_alone_tells_the_place_on_500_scenes(mini):
    at_token, at_word = localized(mini, 500)
    print(
        f"focus token {np.mean(at_token):.3f} of {len(at_token)}, words {np.mean(at_word):.3f} of {len(at_word)}"
    )
    assert np.mean(at_token) >= 0.90 and np.mean(at_word) >= 0.70


# --- calibrated: heads chosen by drawn scenes whose truth is known


@pytest.fixture
def calibrated(mini, tmp_path, monkeypatch, request):
    """(the miniature, what calibrating it found); its heads are its own choice again afterwards."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    *numbers, found = calibrate(mini, request.param)
    assert numbers == list(range(1, request.param + 1))
    yield mini, found
    mini.focus.language.localization_heads = ()


@pytest.mark.parametrize("calibrated", [24], indirect=True)
def test_calibrated_it_tells_the_place_no_worse(calibrated):
    mini, found = calibrated
    assert mini.focus.language.localization_heads == found.heads and len(set(found.heads)) == 8
    assert found.answers > 15 and found.hits >= found.own_hits >= 0.8
    at_token, at_word = localized(mini, 20)
    mini.focus.language.localization_heads = ()
    without, word_without = localized(mini, 20)
    assert np.mean(at_token) >= np.mean(without)
    if np.mean(at_word) <= np.mean(word_without):
        pytest.xfail("no better at words in the miniature's third edition: see its card")


@pytest.mark.slow
@pytest.mark.parametrize("calibrated", [60], indirect=True)
def test_calibrated_it_tells_the_place_no_worse_on_500_scenes(calibrated):
    mini, found = calibrated
    at_token, at_word = localized(mini, 500)
    mini.focus.language.localization_heads = ()
    without, word_without = localized(mini, 500)
    print(f"{found.heads}: focus token {np.mean(at_token):.3f}, without {np.mean(without):.3f}")
    print(f"words {np.mean(at_word):.3f}, without {np.mean(word_without):.3f}")
    assert np.mean(at_token) >= np.mean(without) - 0.005  # two scenes
    if np.mean(at_word) <= np.mean(word_without) + 0.05:
        pytest.xfail("no better at words in the miniature's third edition: see its card")


def test_it_is_kept_for_the_next_time_and_goes_on_where_it_stopped(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    engine = load("mini", device="cpu")
    steps = calibrate(engine, 20)
    for step in steps:
        if step == 13:
            steps.close()  # as Ctrl+C does: the last five scenes' answers were saved at 10
    asked, segment = [], type(engine).segment
    monkeypatch.setattr(
        type(engine),
        "segment",
        lambda self, *a: asked.append(1) or segment(self, *a),
    )
    *numbers, found = calibrate(engine, 20)
    assert numbers == list(range(11, 21)) and len(asked) <= 10
    assert load("mini", device="cpu").focus.language.localization_heads == found.heads
    again = list(calibrate(engine, 20))
    assert again == [found]  # nothing is asked once more
    kept = json.loads(found.path.read_text())
    assert kept["heads"] == list(found.heads) and kept["scenes"] == 20
    for broken in ("{", '{"heads": ["x"]}', '{"heads": 3}', "[]", '{"heads": [-1]}'):
        found.path.write_text(broken)
        assert load("mini", device="cpu").focus.language.localization_heads == ()
    saved = found.path.with_suffix(".npz")
    saved.write_bytes(saved.read_bytes()[:1000])  # cut off
    assert next(calibrate(engine, 20)) == 1
    found.path.write_text('{"heads": [4000]}')  # of another model
    finding = attention.run(load("mini", device="cpu"), *asked_once(mini))
    assert len(finding.heads) == 8


def asked_once(mini):
    scene, question = next(draw_examples("test", 0, 1))
    return scene.image, mini.segment(scene.image, question.instruction)


def test_a_model_that_never_points_keeps_its_own_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    engine = load(str(tiny.save_checkpoint_by_hand(folder, tiny.coprs(tiny.qwen()))), device="cpu")
    with pytest.raises(CoPRSError, match="pointed at something in 0 of 5 scenes and at least 10"):
        list(calibrate(engine, 5))
    assert engine.focus.language.localization_heads == ()


def test_the_best_heads_are_found_and_sinks_are_not():
    generator = np.random.default_rng(0)
    scenes, heads, cells = 30, 12, 25
    maps = generator.random((scenes, heads, cells)).astype(np.float32)
    targets = np.zeros((scenes, cells), bool)
    targets[np.arange(scenes), generator.integers(cells, size=scenes)] = True
    maps[:, 5] += 3 * targets  # it looks at the target
    maps[:15, 7] += 2 * targets[:15]  # it does half of the time
    maps[:, 2, 4] += 90  # a sink
    chosen = select_heads(maps, targets)
    assert chosen[0] == 5 and len(chosen) == 8 and 2 not in chosen
    mask = np.zeros((40, 100), bool)
    mask[12, 99] = True
    assert np.argwhere(covered_cells(mask, (4, 10))).tolist() == [[1, 9]]


# --- the probe


def test_each_sentence_has_a_look_at_the_picture(mini, found, tmp_path):
    scene, question, result = found
    finding = attention.run(mini, scene.image, result)
    assert len(finding.sentences) >= 3 and finding.num_heads == 36 and len(finding.heads) == 8
    assert "".join(look.text for look in finding.sentences).replace(" ", "") in (
        result.reply.replace("<think>", "").replace("</think>", "").replace(" ", "")
    )
    last = finding.sentences[-1].attention_map
    assert last.shape == result.photo_size and 0.9 < last.max() <= 1 and last.min() >= 0
    assert all(0 < look.share < 1 for look in finding.sentences)
    written = finding.save(tmp_path, open_photo(scene.image))
    assert [p.name for p in written] == ["attention.json", "attention.npy", "attention.png"]
    assert np.load(written[1]).shape == (len(finding.sentences), *result.photo_size)
    payloads = list(finding.payloads())
    assert len(payloads) == len(finding.sentences) and payloads[0]["map"].startswith(
        "data:image/png"
    )
    assert mini.segment(scene.image, question.instruction).reply == result.reply


@pytest.mark.xfail(reason="weaker in the miniature's third edition: see its card", strict=True)
def test_the_conclusion_looks_at_the_thing(mini, found):
    scene, _, result = found
    last = attention.run(mini, scene.image, result).sentences[-1].attention_map
    assert result.mask[np.unravel_index(last.argmax(), last.shape)]


def test_what_is_asked_of_the_wrong_model_is_a_sentence(mini, found):
    scene, _, result = found
    other = dataclasses.replace(result, model="another")
    with pytest.raises(CoPRSError, match="load that model"):
        attention.run(mini, scene.image, other)
    with pytest.raises(CoPRSError, match="same photo"):
        attention.run(mini, scene.image[:100], result)


def test_a_reply_that_is_far_too_long_is_not_read_at_all(mini, found, monkeypatch):
    scene, _, result = found
    monkeypatch.setattr(mini.segmenter, "start_session", lambda *_: pytest.fail("it was read"))
    for ids in (result.reply_ids * 40, mini.segmenter.language.encode_text("So. " * 99)):
        long = dataclasses.replace(result, reply_ids=tuple(ids))
        with pytest.raises(CoPRSError, match="are looked into: ask for a shorter one"):
            attention.run(mini, scene.image, long)


def test_the_looks_seen_while_writing_are_those_read_again(mini, found):
    scene, question, result = found
    focus, language = mini.segmenter, mini.segmenter.language
    features = mini.read(open_photo(scene.image))
    trace = AttentionTrace(features.visual.grid_size(language.mllm))
    session = focus.start_session(question.instruction, features)
    ids = [s.token for s in language.generate(session, focus.focus_id, 160, trace)]
    assert tuple(ids) == result.reply_ids
    finding = attention.run(mini, scene.image, result)
    assert set(trace.localization_heads()) == set(finding.heads)
