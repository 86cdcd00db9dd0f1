"""Other language models behind the same seam, told apart by their config alone."""

import numpy as np
import pytest
import torch

from coprs_core import load
from coprs_core.geometry import to_mllm_frame
from coprs_core.model.mllm import generate
from coprs_core.photos import open_photo
from coprs_core.world.scenes import draw_scene
from tests import tiny

MAKERS = {"qwen2_5_vl": tiny.qwen, "qwen3_vl": tiny.qwen3, "llava": tiny.llava}


@pytest.fixture(scope="module", params=MAKERS)
def engine(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
    folder.mkdir()
    model = tiny.coprs(MAKERS[request.param]())
    return load(str(tiny.save_checkpoint_by_hand(folder, model)), device="cpu")


def read(engine, words="the largest thing"):
    photo = open_photo(draw_scene(1).image)
    features = engine.read(photo)
    ids = engine.focus.prompt(words, features)
    return photo, features, ids, engine.focus.reading(words, features)


def test_from_prompt_to_focus_embedding_to_mask(engine):
    photo, features, _, reading = read(engine)
    embedding = reading.feed([engine.focus.focus_id])[-1:]
    prior, mask = engine.focus.look(embedding, features)
    assert embedding.shape == (1, tiny.WIDTH) and prior.shape == mask.shape == photo.size
    assert prior.std() > 0 and mask.dtype == bool
    other = read(engine, "the smallest thing of all")[3].feed([engine.focus.focus_id])[-1:]
    assert not np.allclose(engine.focus.look(other, features)[0], prior)


@torch.no_grad()
def test_one_pass_equals_the_models_own_forward(engine):
    """Hugging Face's own forward over prompt and reply, photo included, is the second opinion."""
    photo, _, ids, reading = read(engine)
    written = [s.token for s in generate(reading, None, set(), 5)]
    embedding = reading.feed([engine.focus.focus_id])[-1:]
    mllm = engine.model.mllm
    tokens = torch.tensor([[*ids, *written, engine.focus.focus_id]])
    inputs = dict(
        engine.focus.language.image_processor(
            images=[to_mllm_frame(photo.image, engine.model.config.mllm_pixels)],
            return_tensors="pt",
        )
    )
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (tokens == mllm.config.image_token_id).int()
    full = mllm.model(input_ids=tokens, **inputs).last_hidden_state[:, -1]
    torch.testing.assert_close(embedding, full, rtol=0, atol=1e-4)


def test_the_picture_matters(engine):
    states = []
    for seed in (1, 2):
        features = engine.read(open_photo(draw_scene(seed).image))
        states.append(engine.focus.reading("the largest thing", features).last)
    assert not torch.allclose(*states, atol=1e-4)


def test_streaming_works_too(engine):
    result = engine.segment(draw_scene(1).image, "the largest thing", 8)
    assert result.tokens <= 8 and result.prior_kind == "focus token"
