"""How a model is loaded: choices that travel together."""

from dataclasses import dataclass

AUTO_MODEL = "auto"
"""The name for whichever listed model fits."""
QUANTIZATIONS = ("none", "nf4", "int8")
DETAIL_LEVELS = ("low", "normal", "high")
SAM_NAMES = (
    *("sam2.1-tiny", "sam2.1-small", "sam2.1-base-plus", "sam2.1-large"),
    *("vit_b", "vit_l", "vit_h"),
)


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
        device: "auto" (CUDA, then Apple's MPS, then the CPU) or a torch device.
        dtype: "auto" (bfloat16; on a CPU float32 below 1 GB of weights) or float32 / bfloat16 /
            float16 (fp32 / bf16 / fp16).
        quantization: "none", or "nf4" / "int8" for the language model's linear layers; "auto" is
            nf4 on a CPU from 1 GB of weights on (int8 on one without bfloat16 instructions), and
            none elsewhere.
        sam: the SAM that a model which writes coordinates prompts: one of `SAM_NAMES`, or a path;
            "auto" is SAM 2.1 tiny on a CPU and large on a GPU.
        detail: how closely such a model sees a photo: "low" (at most 300 visual tokens), "normal"
            (1,280) or "high" (2,560); "auto" is low on a CPU and normal on a GPU.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "auto"
    sam: str = "auto"
    detail: str = "auto"


REMOTE_SCHEME = "openai:"
"""Begins the name of a model on another machine (see `remote`)."""
API_KEY_VARIABLE = "COPRS_API_KEY"
"""The environment variable with the server's key."""
REMOTE_NAME_FORMAT = f"{REMOTE_SCHEME}NAME@http://host:port/v1"


def is_remote_name(name: object) -> bool:
    """Whether a name is of a model on another machine."""
    return isinstance(name, str) and name.startswith(REMOTE_SCHEME)
