"""How a model is loaded: four choices that travel together."""

from dataclasses import dataclass

QUANTIZATIONS = ("none", "nf4", "int8")
SAM_NAMES = ("vit_b", "vit_l", "vit_h")


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
        device: "auto" (CUDA, then Apple's MPS, then the CPU) or a torch device.
        dtype: "auto" (bfloat16; on a CPU float32 below 1 GB of weights) or float32 / bfloat16 /
            float16 (fp32 / bf16 / fp16).
        quantization: "none", or "nf4" / "int8" for the language model's linear layers.
        sam: vit_b, vit_l, vit_h or a .pth file: the SAM that a model which writes coordinates
            prompts.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    sam: str = "vit_h"
