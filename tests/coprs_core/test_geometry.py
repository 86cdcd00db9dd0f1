"""Frames: the same pixels as segment_anything's predictor, and back to the photo as METHOD has
it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.transforms import ResizeLongestSide

from coprs_core.geometry import to_mllm_frame, to_photo_frame, to_sam_frame, unpadded_size

SIZES = [(300, 400), (400, 300), (37, 1850), (1, 1), (1024, 1024), (1500, 2000)]


@pytest.mark.parametrize("size", SIZES)
def test_preprocessing_equals_sam_predictor(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)

    class Catch(torch.nn.Module):
        """Stands where SAM's encoder stands, to see what the predictor hands it."""

        def forward(self, x):
            self.seen = x
            return x

    encoder = Catch()
    encoder.img_size = 1024
    decoder = MaskDecoder(transformer_dim=32, transformer=TwoWayTransformer(1, 32, 4, 32))
    model = Sam(encoder, PromptEncoder(32, (64, 64), (1024, 1024), 8), decoder)
    SamPredictor(model).set_image(pixels)
    torch.testing.assert_close(
        to_sam_frame(Image.fromarray(pixels), 1024), encoder.seen, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("size", SIZES)
def test_unpadded_size_is_sams_own(size):
    theirs = ResizeLongestSide.get_preprocess_shape(*size, 1024)
    assert unpadded_size(size, 1024) == tuple(max(1, v) for v in theirs)
    assert max(unpadded_size(size, 1024)) == 1024


@pytest.mark.parametrize("size", SIZES)
def test_logits_go_to_pixels_up_crop_resize(size):
    logits = torch.randn(1, 1, 256, 256)
    h, w = unpadded_size(size, 1024)
    expected = F.interpolate(logits, (1024, 1024), mode="bilinear", align_corners=False)[
        ..., :h, :w
    ]
    expected = F.interpolate(expected, size, mode="bilinear", align_corners=False)
    assert torch.equal(to_photo_frame(logits, size, 1024), expected)


@pytest.mark.parametrize("size", [(4000, 3000), (10, 10), (640, 480), (8192, 164)])
def test_mllm_frame_keeps_area_and_shape(size):
    seen = to_mllm_frame(Image.new("RGB", size), (3136, 705600))
    assert 3136 <= seen.width * seen.height <= 705600
    assert seen.width / seen.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_mllm_frame_leaves_a_photo_of_the_right_size_alone():
    photo = Image.new("RGB", (640, 480))
    assert to_mllm_frame(photo, (3136, 705600)) is photo
