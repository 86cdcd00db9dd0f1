"""Other language models behind the same seam, told apart by their config alone."""

import numpy as np
import pytest
import torch

from coprs_core import load
from coprs_core.geometry import to_mllm_frame
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.photos.photo import open_photo
from tests import tiny

MAKERS = {
    "qwen2_5_vl": tiny.qwen,
    "qwen3_vl": tiny.qwen3,
    "qwen3_5": tiny.qwen3_5,
    "llava": tiny.llava,
    "llava with lfm2": tiny.lfm2,
    "internvl": tiny.internvl,
}


@pytest.fixture(scope="module", params=MAKERS)
def engine(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
    folder.mkdir()
    model = tiny.coprs(MAKERS[request.param]())
    return load(str(tiny.save_checkpoint_by_hand(folder, model)), device="cpu")


def read(engine, words="the largest thing"):
    photo = open_photo(draw_scene(1).image)
    features = engine.read(photo)
    ids = engine.focus.encode_prompt(words, features)
    return photo, features, ids, engine.focus.start_session(words, features)


def test_from_prompt_to_focus_embedding_to_mask(engine):
    photo, features, _, session = read(engine)
    embedding = session.feed([engine.focus.focus_id])[-1:]
    prior, mask = engine.focus.prior_and_mask(embedding, features)
    assert embedding.shape == (1, tiny.WIDTH) and prior.shape == mask.shape == photo.size
    assert prior.std() > 0 and mask.dtype == bool
    other = read(engine, "the smallest thing of all")[3].feed([engine.focus.focus_id])[-1:]
    assert not np.allclose(engine.focus.prior_and_mask(other, features)[0], prior)


@torch.no_grad()
def test_one_pass_equals_the_models_own_forward(engine):
    """Hugging Face's own forward over prompt and reply, photo included, is the second opinion."""
    photo, _, ids, session = read(engine)
    written = [s.token for s in engine.focus.language.batch.generate(session, None, set(), 5)]
    embedding = session.feed([*written, engine.focus.focus_id])[-1:]
    mllm = engine.model.mllm
    tokens = torch.tensor([[*ids, *written, engine.focus.focus_id]])
    seen = to_mllm_frame(photo.image, engine.model.config.mllm_pixels)
    inputs = tiny.as_seen(engine.focus.language.image_processor, seen)
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (tokens == mllm.config.image_token_id).int()
    full = mllm.model(input_ids=tokens, **inputs).last_hidden_state[:, -1]
    torch.testing.assert_close(embedding, full, rtol=0, atol=1e-4)


@torch.no_grad()
def test_what_a_photo_begins_with_is_read_once_and_changes_no_bit(engine):
    photo, features, ids, _ = read(engine, "the smallest thing")
    prefix, count = features.prefix, len(features.prefix.ids)
    assert list(prefix.ids) == ids[:count] and len(features.visual.features) < count < len(ids)
    fed = []
    text = engine.model.mllm.model.language_model
    handle = text.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    for words in ("the smallest thing", "the largest thing of all", "the smallest thing"):
        before = [t.clone() for state in prefix.states for t in state]
        kept = engine.focus.start_session(words, features)
        assert fed == [len(engine.focus.encode_prompt(words, features)) - count]
        anew = engine.focus.start_session(words, engine.focus.encode_photo(photo))
        for session in (kept, anew):  # what is read on does not reach into what is kept
            session.feed([40, 41])
        assert torch.equal(kept.last_hidden, anew.last_hidden)
        assert all(torch.equal(a, b) for a, b in zip(before, prefix.tensors, strict=True))
        fed.clear()
    handle.remove()


def test_what_is_read_on_aside_leaves_what_was_read_as_it_was(engine):
    session = read(engine)[3]
    for word in range(40, 44):
        aside = session.fork()
        hidden = aside.feed([word, 300, 301])
        session.fork().feed([302])
        assert torch.equal(session.fork().feed([word, 300, 301]), hidden)
        assert (
            aside.length == session.length + 3 and aside.next_position == session.next_position + 3
        )
        session.feed([word])
    anew = read(engine)[3]
    states = torch.cat([anew.feed([word]) for word in range(40, 44)])
    assert torch.equal(session.last_hidden, states[-1:])


@torch.no_grad()
def test_a_prompt_that_asks_before_it_shows_is_read_whole(engine):
    language, visual = engine.focus.language, read(engine)[1].visual
    template = "<|im_start|>user\n{instruction}\n{image}<|im_end|>\n"
    prefix = language.prefill_prefix(template, visual)
    assert prefix.ids == () and not prefix.tensors
    one, other = (language.start_session(template, words, visual, prefix) for words in ("a", "b c"))
    assert not torch.equal(one.last_hidden, other.last_hidden)
    picture = language.encode_prompt(template, "a", visual)[one.image_span]
    assert picture == [language.mllm.config.image_token_id] * len(visual.features)


def test_the_picture_matters(engine):
    states = []
    for seed in (1, 2):
        features = engine.read(open_photo(draw_scene(seed).image))
        states.append(engine.focus.start_session("the largest thing", features).last_hidden)
    assert not torch.allclose(*states, atol=1e-4)


def test_streaming_works_too(engine):
    result = engine.segment(draw_scene(1).image, "the largest thing", 8)
    assert result.tokens <= 8 and result.prior_kind == "focus token"
