"""Apply all optimizations for this machine to a loaded model, and undo them."""

from torch import nn

from coprs_core.model.backends.cpu.float32 import compute_in_float32, compute_in_own_dtype
from coprs_core.model.backends.cpu.fused_attention import fuse_attention, unfuse_attention
from coprs_core.model.backends.cpu.int8 import quantize_linears
from coprs_core.model.backends.cpu.output_layer import install_shortlist, remove_shortlist


def apply(model: nn.Module, int8: bool = False, shortlist: bool = False) -> None:
    """Optimize a model, or a part of one, whose weights are in their place and precision.

    Each optimization looks for the layers that it is for, and leaves all where the device has no
    need of it. Names in the state dict stay what they were, but for those of 8 bits and shortlist.

    Args:
        model: on its device.
        int8: keep all its linear layers in 8 bits (see `int8`); `undo` leaves them so.
        shortlist: read a large output layer in part (see `output_layer`): the order in which its
            sums are rounded is another, so that only models that are quantized anyway have it.
    """
    if int8:
        quantize_linears(model)
    if shortlist:
        install_shortlist(model)
    compute_in_float32(model)
    fuse_attention(model)


def undo(model: nn.Module) -> None:
    """Give a model its plain layers back, as they were before `apply`, for what knows only those
    (adapters, losses). What was rounded to 8 bits stays so: its weights are gone."""
    remove_shortlist(model)
    compute_in_own_dtype(model)
    unfuse_attention(model)
