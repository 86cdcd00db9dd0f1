"""How much memory a model needs while it answers; the only formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coprs_core.errors import CoPRSError, Phrase
from coprs_core.machine import DeviceName, free_memory, total_memory
from coprs_core.sizes import in_words

if TYPE_CHECKING:
    import torch

BYTES_PER_LINEAR_WEIGHT = {"nf4": 0.5625, "int8": 1.01}
"""NF4 keeps 4 bits a weight and one float32 scale for 64 of them; int8 one scale a row."""


BESIDE_QUANTIZED = 400_000_000
"""What a quantized model keeps beside its weights: on a CPU its output layer once more, in 8 bits;
elsewhere a layer at a time as it is brought back to 16."""
SMALL = 100_000_000
"""Linear weights of a model whose quantization takes no room worth counting."""
LIBRARIES = 700_000_000
"""What the libraries hold, and the language model's cache, of a model for photos."""


def memory_needed(
    linear: int, other: int, quantization: str, bytes_per_weight: int, room: int
) -> int:
    """Bytes on the device while answering: the weights, and room for one answer.

    Args:
        linear: weights of the language model's linear layers, which can be quantized.
        other: all other weights, SAM's included.
        quantization: "none", "nf4" or "int8".
        bytes_per_weight: of weights that are not quantized.
        room: what SAM and the libraries take while they work.
    """
    per_linear = BYTES_PER_LINEAR_WEIGHT.get(quantization, bytes_per_weight)
    if per_linear != bytes_per_weight and linear > SMALL:
        room += BESIDE_QUANTIZED
    return int(per_linear * linear + bytes_per_weight * other) + room


MAX_KEPT_PHOTOS = 8
KEPT_SHARE = 0.05
"""Of all memory of a device: what the features of read photos may take."""


def room_for_photos(device: torch.device) -> int:
    """Bytes that the features of photos may take together on a device; the last photo's are kept
    whatever they take."""
    return int(KEPT_SHARE * total_memory(device))


ANSWERS_SHARE = 0.01
"""Of the machine's memory: what the answers that visitors' pages hold may take. Of 16 GB, reckoned
at 5 MB each, some 30 packed answers about photos of 12 megapixels."""


def room_for_answers() -> int:
    """Bytes that the answers of all visitors of a page may take together."""
    return int(ANSWERS_SHARE * total_memory(DeviceName("cpu")))


def room_for_encoding(grid: int, width: int) -> int:
    """Bytes that the image encoder of SAM takes while it works, for a grid of so many cells a side:
    40 maps of cells × width in float32, as measured of ViT-B and ViT-H on a CPU; and the libraries,
    where it is not tiny."""
    return 40 * 4 * width * grid**2 + (LIBRARIES if grid >= 64 else 0)


def check_memory(
    name: str,
    weights: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    quantization: str,
    room: int,
) -> None:
    """Refuse a model that cannot fit, before it is loaded.

    A CPU that runs out of memory kills the process without a word.

    Args:
        name: of the model, for the message.
        weights: numbers of (linear, other) weights, as for `memory_needed`.
        device, dtype, quantization: as chosen.
        room: as for `memory_needed`.

    Raises:
        CoPRSError: what is needed, what is free, and the first smaller choice that would fit.
    """

    def needed(quantization: str, bytes_per_weight: int) -> int:
        return memory_needed(*weights, quantization, bytes_per_weight, room)

    required, free = needed(quantization, dtype.itemsize), free_memory(device)
    if required <= free:
        return
    choices = []
    if str(dtype) == "torch.float32":
        also = "" if quantization == "none" else f" --quantize {quantization}"
        half = needed(quantization, 2)
        choices.append((f"--dtype bf16{also}", half))
    if device.type in ("cpu", "cuda"):
        smallest = needed("nf4", 2)
        choices.append(("--quantize nf4 --dtype bf16", smallest))
    fitting = smaller_choice(quantization)
    if fits := [choice for choice in choices if choice[1] <= free]:
        choice, size = fits[0]
        fitting = Phrase("{choice} needs {size}", choice=choice, size=in_words(size))
    precision = str(dtype).removeprefix("torch.")
    raise CoPRSError(
        "{name} in {precision} needs about {needed} and {device} has {free} free: {hint}.",
        name=name,
        precision=precision,
        needed=in_words(required),
        device=device,
        free=in_words(free),
        hint=fitting,
    )


def smaller_choice(quantization: str) -> Phrase:
    """What to try where a model does not fit."""
    quantize = "" if quantization == "nf4" else "--quantize nf4, "
    return Phrase(
        "try {quantize}--sam sam2.1-tiny, --model auto, which takes what fits, or mini",
        quantize=quantize,
    )
