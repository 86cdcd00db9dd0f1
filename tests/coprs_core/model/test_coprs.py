"""The paper's figure: shapes, the authors' recorded numbers, one pass of the language model."""

import copy

import numpy as np
import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from coprs_core.geometry import unpadded_prior_size
from coprs_core.model.backends.cpu.fused_attention import FusedAttention, fuse_attention
from coprs_core.model.backends.mllm import embed_prompt
from coprs_core.model.decoder import DecoderConfig, PriorDecoder
from coprs_core.model.prior import PADDING_LOGIT, PositionalPrior, mask_padding
from coprs_core.model.vision import SAM_SIZES, VisionConfig, build_image_encoder
from coprs_core.photos.photo import open_photo
from tests import GOLDEN

OFFICIAL = GOLDEN / "official_small.npz"
SMALL = VisionConfig(side=256, patch=16, channels=32)


@pytest.fixture(scope="module")
def golden():
    return {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(OFFICIAL).items()}


def weights(golden, *prefixes):
    """The recorded weights under a prefix; the prefix is cut off if it is the only one."""
    named = {k.removeprefix("weights/"): v for k, v in golden.items() if k.startswith("weights/")}
    chosen = {k: v for k, v in named.items() if k.split(".")[0] in prefixes}
    return (
        {k.removeprefix(prefixes[0] + "."): v for k, v in chosen.items()}
        if len(prefixes) == 1
        else chosen
    )


@pytest.fixture(scope="module")
def parts(golden):
    prior = PositionalPrior(48, 32, heads=4, width=32)
    prior.load_state_dict(weights(golden, "heatmap_head"))
    decoder = PriorDecoder(
        DecoderConfig(mask_channels=8, heads=4, mlp_width=64, iou_width=32), SMALL
    )
    decoder.load_state_dict(weights(golden, "prompt_encoder", "mask_decoder"))
    return prior.eval(), decoder.eval()


def last_focus_embedding(golden):
    ids, hidden = golden["input/ids"], golden["input/hidden_states"]
    at = [(row == golden["input/focus_token_id"]).nonzero()[-1].item() for row in ids]
    return hidden[torch.arange(len(at)), at]


def test_the_last_focus_token_counts(golden):
    torch.testing.assert_close(
        last_focus_embedding(golden), golden["output/focus_embedding"], rtol=0, atol=0
    )


@torch.no_grad()
def test_prior_logits_equal_the_authors(golden, parts):
    prior_logits = parts[0](golden["output/focus_embedding"], golden["input/image_embedding"])
    torch.testing.assert_close(
        prior_logits, golden["output/prior_logits_before_padding"], rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_mask_logits_equal_the_authors_padding_included(golden, parts):
    prior, decoder = parts
    valid = unpadded_prior_size(golden["input/unpadded_hw"], SMALL.side, SMALL.prior_side)
    prior_logits = prior(golden["output/focus_embedding"], golden["input/image_embedding"], valid)
    mask_logits = decoder(prior_logits, golden["input/image_embedding"])
    torch.testing.assert_close(mask_logits, golden["output/mask_logits"], rtol=0, atol=1e-5)


def test_padding_is_minus_fifty_outside_the_photo_and_untouched_inside():
    logits = torch.randn(2, 1, 64, 64)
    padded = mask_padding(logits, torch.tensor([[64, 64], [1, 40]]))
    assert torch.equal(padded[0], logits[0])
    assert torch.equal(padded[1, 0, :1, :40], logits[1, 0, :1, :40])
    assert (padded[1, 0, 1:] == PADDING_LOGIT).all() and (
        padded[1, 0, :, 40:] == PADDING_LOGIT
    ).all()


def test_valid_size_is_rounded_up():
    assert unpadded_prior_size(torch.tensor([[1024, 681], [1, 5]]), 1024, 256).tolist() == [
        [256, 171],
        [1, 2],
    ]


@torch.no_grad()
def test_shapes_of_the_boxes_at_the_published_size():
    prior = PositionalPrior(2048, 256, heads=4, width=256)
    decoder = PriorDecoder(DecoderConfig(), VisionConfig())
    embedding, focus = torch.randn(2, 256, 64, 64), torch.randn(2, 2048)
    assert prior.head_maps(focus, embedding).shape == (2, 4, 64, 64)
    logits = prior(focus, embedding, torch.tensor([[256, 256], [171, 256]]))
    assert logits.shape == decoder(logits, embedding).shape == (2, 1, 256, 256)
    heads = sum(p.numel() for m in (prior, decoder) for p in m.parameters())
    assert heads == pytest.approx(4.7e6, rel=0.02)  # METHOD: 4.7 M with the 3B heads


@pytest.mark.parametrize("name, millions", [("vit_b", 89.7), ("vit_l", 308.3), ("vit_h", 637.0)])
def test_image_encoders_have_the_published_sizes(name, millions):
    with torch.device("meta"):
        encoder = build_image_encoder(SAM_SIZES[name])
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("rows, columns", [(6, 6), (5, 8)])
def test_fused_attention_equals_segment_anythings(rows, columns):
    size = dict(use_rel_pos=True, input_size=(rows, columns))
    theirs, ours = Attention(24, 3, **size), FusedAttention(24, 3, **size)
    for name in ("rel_pos_h", "rel_pos_w"):
        torch.nn.init.normal_(getattr(theirs, name))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, rows, columns, 24)
    expected, mixed = theirs(x), ours(x)
    torch.testing.assert_close(mixed, expected)
    expected.square().sum().backward()
    mixed.square().sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        half = ours.bfloat16()(x.bfloat16()).float()
        error, theirs_error = (
            (h - expected).abs().mean() for h in (half, theirs.bfloat16()(x.bfloat16()).float())
        )
    assert error < 2 * theirs_error


@torch.no_grad()
def test_the_image_encoder_equals_segment_anythings():
    vision = VisionConfig(side=112, width=24, depth=3, heads=3, window=3, global_layers=(1,))
    theirs = build_image_encoder(vision)
    for name, p in theirs.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(p)
    ours = copy.deepcopy(theirs)
    fuse_attention(ours)
    assert {type(block.attn) for block in ours.blocks} == {FusedAttention}
    pixels = torch.randn(2, 3, 112, 112)
    torch.testing.assert_close(ours(pixels), theirs(pixels))


@torch.no_grad()
def test_one_pass_focus_embedding_equals_a_second_full_forward(mini, found):
    scene, question, _ = found
    features = mini.read(open_photo(scene.image))
    ids = mini.focus.encode_prompt(question.instruction, features)
    mllm, focus_id = (
        mini.model.mllm,
        mini.focus.language.tokenizer.convert_tokens_to_ids("<REF_POS>"),
    )
    session = mini.focus.start_session(question.instruction, features)
    steps = list(mini.focus.language.batch.generate(session, focus_id, set(), 200))
    steps = steps[: [s.token for s in steps].index(focus_id) + 1]
    assert steps[-1].token == focus_id and all(s.focus_embedding is None for s in steps[:-1])
    whole = ids + [s.token for s in steps]
    tokens = torch.tensor([whole])
    inputs = mini.focus.language.image_processor(
        images=[open_photo(scene.image).image], return_tensors="pt"
    )
    full = mllm.model(
        input_ids=tokens,
        mm_token_type_ids=(tokens == mllm.config.image_token_id).int(),
        pixel_values=inputs["pixel_values"],
        image_grid_thw=inputs["image_grid_thw"],
    ).last_hidden_state[:, -1]
    torch.testing.assert_close(steps[-1].focus_embedding, full, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_stage_in_the_middle_gives_the_same_prior_and_mask(mini, found):
    scene, question, result = found
    features = mini.read(open_photo(scene.image))
    ids = mini.focus.encode_prompt(question.instruction, features)
    embeddings, positions = embed_prompt(mini.model.mllm, ids, features.visual)
    assert embeddings.shape == (1, len(ids), mini.model.config.llm_width) and positions.shape == (
        3,
        1,
        len(ids),
    )
    focus_id = mini.focus.language.tokenizer.convert_tokens_to_ids("<REF_POS>")
    session = mini.focus.start_session(question.instruction, features)
    written = mini.focus.language.batch.generate(session, focus_id, set(), 200)
    last = next(step for step in written if step.token == focus_id)
    side = mini.model.config.vision.side
    prior_logits, mask_logits = mini.model.focus(
        last.focus_embedding, features.image_embedding[0], torch.tensor([[side, side]])
    )
    assert prior_logits.shape == mask_logits.shape == (1, 1, side // 4, side // 4)
    up = prior_logits
    for size in (side, 256):
        up = torch.nn.functional.interpolate(up, (size, size), mode="bilinear")
    np.testing.assert_allclose(up[0, 0].sigmoid().numpy(), result.regions[0].prior, atol=1e-6)
