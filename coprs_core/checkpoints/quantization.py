"""Which quantization a model is loaded with."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

from coprs_core.checkpoints.options import QUANTIZATIONS
from coprs_core.errors import CoPRSError, first_line
from coprs_core.machine import DeviceName, computes_in_bfloat16
from coprs_core.sizes import GB

if TYPE_CHECKING:
    import torch


def choose_quantization(
    quantization: str, device: torch.device | DeviceName, weight_bytes: int
) -> str:
    """The quantization of a name.

    "auto" on a CPU from 1 GB of weights (16 bits each) on is nf4, which reads a word three times as
    fast there; on a CPU without bfloat16 instructions, where a layer takes twelve times as long for
    a word in nf4 as in bfloat16, and half as long in int8, it is int8. Elsewhere it is none.
    """
    if quantization != "auto":
        return quantization
    if device.type != "cpu" or weight_bytes < GB:
        return "none"
    if not computes_in_bfloat16(device):
        return "int8"
    if isinstance(device, DeviceName):  # to try bitsandbytes is to load torch
        return "nf4" if find_spec("bitsandbytes") else "none"
    try:
        check_quantization("nf4", device)
    except CoPRSError:  # bitsandbytes does not work here
        return "none"
    return "nf4"


def is_packed(quantization: str, device: torch.device) -> bool:
    """Whether layers are quantized by `cpu.optimize`, not by bitsandbytes: its int8 is slow on a
    CPU without bfloat16 instructions."""
    return quantization == "int8" and not computes_in_bfloat16(device)


def check_quantization(quantization: str, device: torch.device) -> None:
    """Raises `CoPRSError` where a quantization is not known or cannot work on a device."""
    if quantization not in ("auto", *QUANTIZATIONS):
        raise CoPRSError(
            "Quantization {quantization!r} is not known: choose auto, {names}.",
            quantization=quantization,
            names=", ".join(QUANTIZATIONS),
        )
    if quantization in ("auto", "none") or is_packed(quantization, device):
        return
    if device.type not in ("cuda", "cpu"):
        raise CoPRSError(
            "Quantization {quantization} works on CUDA and on the CPU, not on {device}: "
            "choose --quantize none.",
            quantization=quantization,
            device=device,
        )
    # it warns of a faster kernel that is not published
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes  # noqa: F401  (its native part may be missing)
    except Exception as problem:  # a broken install raises anything at all
        raise CoPRSError(
            "bitsandbytes, which quantizes, does not work here ({reason}): choose --quantize none.",
            reason=first_line(problem),
        ) from problem
