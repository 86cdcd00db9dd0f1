"""Replies written together: the same words as alone, whoever joins, leaves or fails meanwhile."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from coprs_core.answer.concurrent import answer_many
from coprs_core.answer.engine import Engine
from coprs_core.datasets import open_dataset
from coprs_core.errors import CoPRSError
from coprs_core.example import Example
from coprs_core.metrics import iou
from coprs_core.model.backends import decoding
from coprs_core.model.backends.attention import AttentionTrace
from coprs_core.model.backends.decoding import (
    MAX_FOCUS_TOKENS,
    MAX_TOKENS_AFTER_FOCUS,
    ContinuousBatch,
)
from coprs_core.model.backends.language import LanguageModel
from coprs_core.model.backends.mllm import Prefix, PromptSession
from tests import tiny
from tests.conftest import PATIENCE

MAKE = [tiny.qwen, tiny.qwen3, tiny.llava, tiny.qwen3_5, tiny.lfm2, tiny.internvl]
WORDS = ["the cat", "the largest thing on the left of the two birds", "x", "the second one"]
FOCUS, STOP = 7, 3


@pytest.fixture(params=MAKE, ids=["qwen2.5", "qwen3", "llava", "qwen3.5", "lfm2", "internvl"])
def language(request, tmp_path):
    from coprs_core.checkpoints.hugging_face import load_image_processor, load_tokenizer

    folder = tiny.save_mllm(tmp_path / "mllm", request.param())
    return LanguageModel(request.param(), load_tokenizer(folder), load_image_processor(folder))


TEMPLATE = "<|vision_start|>{image}<|vision_end|>{instruction}"


def photo_of(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 255, (56 + 28 * (number % 3), 84, 3), np.uint8))


def read(language, number: int) -> PromptSession:
    """A question about a photo of its own, of a length of its own."""
    visual = language.encode_image(photo_of(number))
    return language.start_session(TEMPLATE, WORDS[number % len(WORDS)], visual, Prefix())


def plain(language, number: int, count: int) -> list[int]:
    """Greedy decoding without any batch: the loop of a textbook."""
    session, written = read(language, number), []
    for _ in range(count):
        written.append(session.next_token())
        session.feed(written[-1:])
    return written


def tokens(steps) -> list[int]:
    return [step.token for step in steps]


def test_greedy_decoding_is_the_librarys_own_token_by_token(language):
    """Each alone; then all together, joining one by one, and read on from what is kept of the
    photo."""
    mllm, batch, theirs, ours = language.mllm, ContinuousBatch(language.mllm), {}, {}
    prefixes = {
        n: (v := language.encode_image(photo_of(n)), language.prefill_prefix(TEMPLATE, v))
        for n in range(2)
    }
    asked = [(n, words) for words in WORDS for n in prefixes]

    def reply(n, words):
        visual, prefix = prefixes[n]
        return batch.generate(
            language.start_session(TEMPLATE, words, visual, prefix), None, language.stop_ids, 16
        )

    for n, words in asked:
        ids = torch.tensor([language.encode_prompt(TEMPLATE, words, prefixes[n][0])])
        inputs = tiny.as_seen(language.image_processor, photo_of(n))
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == mllm.config.image_token_id).int()
        written = mllm.generate(input_ids=ids, **inputs, max_new_tokens=16, do_sample=False)
        theirs[n, words] = written[0, ids.shape[1] :].tolist()
        assert tokens(reply(n, words)) == theirs[n, words]
    replies = {}
    while replies or len(ours) < len(asked):
        for key in asked[len(ours) : len(ours) + 1]:
            replies[key], ours[key] = reply(*key), []
        for key, steps in list(replies.items()):
            step = next(steps, None)
            ours[key].append(step.token) if step else replies.pop(key)
    assert ours == theirs and len({tuple(words) for words in theirs.values()}) > 2
    assert len(batch) == 0


def test_one_alone_is_bit_for_bit_what_it_was(language):
    batch, session, plain_session = (
        ContinuousBatch(language.mllm),
        read(language, 1),
        read(language, 1),
    )
    states = []
    for step in batch.generate(session, None, set(), 12):
        assert step.token == plain_session.next_token()
        states.append(plain_session.feed([step.token]))
    (last,) = tokens(batch.generate(session, None, set(), 1))  # the reading is as it was
    assert last == read(language, 1).next_token()
    focus = plain(language, 1, 3)[2]
    found = next(step for step in batch.generate(session, focus, set(), 12) if step.token == focus)
    assert torch.equal(found.focus_embedding, states[2]) or focus in plain(language, 1, 2)


def test_together_each_writes_what_it_writes_alone(language):
    batch, count = ContinuousBatch(language.mllm), 14
    alone = [plain(language, n, count) for n in range(6)]
    rows = [batch.generate(read(language, n), None, set(), count) for n in range(6)]
    written: list[list[int]] = [[] for _ in rows]
    for _ in range(count):
        for n, row in enumerate(rows):
            written[n].append(next(row).token)
    assert written == alone and len({read(language, n).length for n in range(6)}) > 1
    assert [next(row, None) for row in rows] == [None] * 6 and len(batch) == 0


def test_one_joins_between_two_steps_and_another_leaves(language):
    batch = ContinuousBatch(language.mllm)
    alone = [plain(language, n, 10) for n in range(3)]
    first, second = (batch.generate(read(language, n), None, set(), 10) for n in (0, 1))
    got = [next(first).token for _ in range(4)]
    others = [next(second).token for _ in range(2)]
    assert len(batch) == 2
    third = batch.generate(read(language, 2), None, set(), 10)
    more = [next(third).token]
    assert len(batch) == 3 and more == alone[2][:1]
    first.close()
    assert len(batch) == 2  # at once
    others += tokens(second)
    more += tokens(third)
    assert got == alone[0][:4] and others == alone[1] and more == alone[2]
    assert len(batch) == 0 and batch._slots == []  # nothing is kept


def test_a_reply_without_memory_to_join_disturbs_no_other(language, monkeypatch):
    """Whichever piece of memory it was that could not be had, up to some in the step itself."""
    batch, alone = ContinuousBatch(language.mllm), [plain(language, n, 10) for n in range(2)]
    session = read(language, 1)

    @contextmanager
    def memory_for(pieces):
        with monkeypatch.context() as patch:
            for owner, name in ((torch.Tensor, "new_zeros"), (torch, "cat")):
                patch.setattr(owner, name, lacking(getattr(owner, name), iter(range(pieces))))
            yield

    def lacking(allocate, pieces):
        def fails(*args, **kwargs):
            if next(pieces, None) is None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return allocate(*args, **kwargs)

        return fails

    for pieces in range(8):
        first = batch.generate(read(language, 0), None, set(), 10)
        got = [next(first).token]
        with memory_for(pieces), pytest.raises(torch.OutOfMemoryError):
            tokens(batch.generate(session, None, set(), 10))
        assert len(batch) == 1 and got + tokens(first) == alone[0]
        with memory_for(pieces), pytest.raises(torch.OutOfMemoryError):  # it would be the only one
            tokens(batch.generate(session, None, set(), 10))
        assert batch._slots == [] and tokens(batch.generate(session, None, set(), 10)) == alone[1]


def test_a_step_that_fails_behind_the_model_is_taken_again(language, monkeypatch):
    batch, alone = ContinuousBatch(language.mllm), [plain(language, n, 10) for n in range(2)]
    first, second = (batch.generate(read(language, n), None, set(), 10) for n in range(2))
    got = [[next(first).token], [next(second).token]]
    with monkeypatch.context() as patch:

        def fails(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        patch.setattr(decoding, "argmax_tokens", fails)
        with pytest.raises(torch.OutOfMemoryError):
            next(first)
    assert len(batch) == 1 and got[1] + tokens(second) == alone[1]


def test_who_finds_no_room_stops_nobody(language, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BATCH_SIZE", 1)
    batch, alone = ContinuousBatch(language.mllm), [plain(language, n, 12) for n in range(2)]
    first = batch.generate(read(language, 0), None, set(), 12)
    got, second = [next(first).token], []
    waits = threading.Thread(
        target=lambda: second.extend(tokens(batch.generate(read(language, 1), None, set(), 12)))
    )
    waits.start()
    got += tokens(first)  # the other takes steps for it meanwhile
    waits.join(PATIENCE)
    assert got == alone[0] and second == alone[1]


def test_many_threads_each_get_their_own(language):
    batch, results = ContinuousBatch(language.mllm), {}
    alone = {n: plain(language, n, 12) for n in range(4)}

    def visit(number: int) -> None:
        for again in range(3):
            steps = batch.generate(read(language, number % 4), None, set(), 12 if again else 5)
            results[number, again] = tokens(steps)

    threads = [threading.Thread(target=visit, args=(n,)) for n in range(8)]
    [thread.start() for thread in threads]
    [thread.join(PATIENCE) for thread in threads]
    assert len(results) == 24 and len(batch) == 0
    for (number, again), written in results.items():
        assert written == alone[number % 4][: 12 if again else 5]


def test_what_is_attended_to_is_each_ones_own(language):
    batch, trace = ContinuousBatch(language.mllm), []
    grid = (1, 1)
    for number in range(3):
        alone = AttentionTrace(grid)
        list(batch.generate(read(language, number), None, set(), 6, alone))
        trace.append(alone)
    together = [AttentionTrace(grid) for _ in range(3)]
    rows = [batch.generate(read(language, n), None, set(), 6, together[n]) for n in range(3)]
    for _ in range(6):
        for row in rows:
            next(row)
    for one, other in zip(trace, together, strict=True):
        assert len(one) == len(other) == 5
        for a, b in zip(one._weights, other._weights, strict=True):
            torch.testing.assert_close(a.float(), b.float(), atol=2e-3, rtol=2e-2)


def scripted(monkeypatch, script: list[int]) -> ContinuousBatch:
    """A batch whose model finds the tokens of a script likeliest, one after the other."""
    language = LanguageModel(tiny.qwen(), tiny.TOKENIZER, None)
    said = iter(script)
    monkeypatch.setattr(decoding, "argmax_tokens", lambda _, hidden: [next(said) for _ in hidden])
    monkeypatch.setattr(PromptSession, "next_token", lambda self: next(said))
    return ContinuousBatch(language.mllm)


def begun(batch) -> PromptSession:
    session = PromptSession(batch._mllm, Prefix(position_axes=(3, 1)))
    session.feed([5, 6, 8])
    return session


@pytest.mark.parametrize(
    "script, limit, expected",
    [
        ([9, FOCUS, STOP], 20, [9, FOCUS]),
        ([9, FOCUS, 11, 12, FOCUS, STOP], 20, [9, FOCUS, 11, 12, FOCUS]),
        ([9, FOCUS, *[11] * (MAX_TOKENS_AFTER_FOCUS + 1)], 90, [9, FOCUS]),  # it goes on and on
        ([FOCUS] * (MAX_FOCUS_TOKENS + 1), 90, [FOCUS] * MAX_FOCUS_TOKENS),
        ([9, FOCUS, 11], 3, [9, FOCUS]),
        ([9, FOCUS], 2, [9, FOCUS]),
        ([9, 11, 12], 3, [9, 11, 12]),
        ([9, STOP], 20, [9, STOP]),
    ],
)
def test_focus_tokens_and_ends(monkeypatch, script, limit, expected):
    batch = scripted(monkeypatch, script)
    steps = list(batch.generate(begun(batch), FOCUS, {STOP}, limit))
    assert tokens(steps) == expected and len(batch) == 0
    for step in steps:
        assert (step.focus_embedding is not None) == (step.token == FOCUS)


def test_no_more_are_written_together_than_there_is_room_for(language, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BATCH_SIZE", 2)
    batch, most = ContinuousBatch(language.mllm), 0
    alone = [plain(language, n, 8) for n in range(5)]
    rows = [batch.generate(read(language, n), None, set(), 8) for n in range(5)]
    written: list[list[int]] = [[] for _ in rows]
    for _ in range(8):
        for n, row in enumerate(rows):
            written[n].append(next(row).token)
            most = max(most, len(batch))
    assert written == alone and most == 2
    monkeypatch.setattr(decoding, "MAX_BATCH_SIZE", 64)
    monkeypatch.setattr(decoding, "free_memory", lambda device: 0)
    first, second = (batch.generate(read(language, n), None, set(), 8) for n in (0, 1))
    next(first)
    next(second)  # waits until the first has ended
    assert len(batch) == 1 and tokens(first) == alone[0][1:] and tokens(second) == alone[1][1:]


def test_a_step_that_fails_is_told_to_one_and_the_others_go_on(language):
    batch, calls = ContinuousBatch(language.mllm), []
    alone = [plain(language, n, 9) for n in range(3)]
    rows = [batch.generate(read(language, n), None, set(), 9) for n in range(3)]
    written = [[next(row).token] for row in rows]

    def fail(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory, as a GPU may say between two layers")

    layer = language.mllm.model.language_model.layers[-1]
    handle = layer.register_forward_pre_hook(fail)
    failed = []
    for _ in range(8):
        for n, row in enumerate(rows):
            try:
                if n not in failed:
                    written[n].append(next(row).token)
            except RuntimeError:
                failed.append(n)
    handle.remove()
    assert len(failed) == 1 and len(batch) == 0
    for n in {0, 1, 2} - set(failed):
        assert written[n] == alone[n]


# --- whole answers


def test_answers_together_are_those_of_one_by_one(mini):
    examples = list(open_dataset("scenes").examples(300, 40))
    asked = list(examples)
    asked.insert(3, Example(np.zeros((0, 3, 3), np.uint8), "no photo", index=-1))
    asked.insert(9, Example(examples[0].photo, " ", index=-2))
    engine, calls = Engine(mini.checkpoint), []
    hook = engine.model.mllm.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    answers = {e.index: answer for e, answer in answer_many(engine, asked, 16)}
    hook.remove()
    assert isinstance(answers.pop(-1), CoPRSError) and isinstance(answers.pop(-2), CoPRSError)
    different = 0
    for example in examples:
        one, answer = mini.segment(example.photo, example.instruction), answers.pop(example.index)
        if (one.outcome, one.reply) == (answer.outcome, answer.reply):
            assert iou(one.mask, answer.mask) > 0.99
        else:
            different += 1
    assert not answers and different <= 1
    assert len(calls) < 40 * 20  # far fewer steps than tokens


def test_a_reply_of_several_focus_tokens_has_a_region_for_each(fresh, monkeypatch):
    """As the world asks for several things; the bundled model is not trained for it yet."""
    language = fresh.focus.language
    reply = "<think>Those are two.</think>They are here: top left <REF_POS> bottom right <REF_POS>"
    ids = iter([*language.encode_text(reply), *[language.tokenizer.eos_token_id] * 2])
    monkeypatch.setattr(decoding, "argmax_tokens", lambda _, hidden: [next(ids) for _ in hidden])
    monkeypatch.setattr(PromptSession, "next_token", lambda self: next(ids))
    example = next(open_dataset("scenes").examples(0, 1))
    result = fresh.segment(example.photo, "the two birds")
    assert result.outcome == "found" and len(result.regions) == 2 and result.reply == reply
    assert "2 focus tokens" in result.reason
    assert np.array_equal(result.mask, result.regions[0].mask | result.regions[1].mask)


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (3, 2)])
def test_a_small_step_is_taken_in_one_thread(language, monkeypatch, rows, expected):
    before, counted = torch.get_num_threads(), set()
    head = language.mllm.lm_head.register_forward_hook(
        lambda *_: counted.add(torch.get_num_threads())
    )
    weights = sum(p.numel() for p in language.mllm.model.language_model.parameters())
    monkeypatch.setattr(decoding, "MIN_MULTITHREADED_PRODUCTS", 2 * weights)
    torch.set_num_threads(2)
    try:
        batch, session = ContinuousBatch(language.mllm), read(language, 1)
        running = [batch.generate(session, None, set(), 8) for _ in range(rows)]
        for steps in running:
            next(steps)
        counted.clear()
        for _ in range(3):
            next(running[0])
        assert counted == {expected} and torch.get_num_threads() == 2
    finally:
        head.remove()
        torch.set_num_threads(before)
