"""Which model fits which machine, and what the catalogue says of their sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Qwen3VLForConditionalGeneration,
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
)

from coprs_core import CoPRSError
from coprs_core.checkpoints import catalogue, doctor, load, plan
from coprs_core.checkpoints import sam_models as sams
from coprs_core.checkpoints.catalogue import CATALOGUE, choose_model, find_in_catalogue, list_models
from coprs_core.checkpoints.options import SAM_NAMES, LoadOptions
from coprs_core.checkpoints.plan import LoadPlan, Machine, choose_quantization
from coprs_core.checkpoints.sam_models import PUBLISHED_SAMS
from coprs_core.checkpoints.sources import CoordinateSource, CoPRSSource
from coprs_core.checkpoints.tensors import _LLM_LINEAR_WEIGHT
from coprs_core.random_weights import (
    HIERA_SIZES,
    QWEN3_SIZES,
    qwen2_5_config,
    qwen3_config,
    sam2_vision_config,
)
from coprs_core.storage import format_bytes

GB = 1_000_000_000
DISK = 100 * GB
MACHINES = [  # free memory of a machine with that much: the system and the screen take their share
    ("no GPU, 8 GB", "cpu", 5.0, "qwen3-vl-2b", "sam2.1-tiny", "nf4"),
    ("no GPU, 16 GB", "cpu", 12.0, "qwen3-vl-2b", "sam2.1-tiny", "nf4"),
    ("no GPU, 24 GB", "cpu", 20.0, "qwen3-vl-2b", "sam2.1-tiny", "nf4"),
    ("a card of 6 GB", "cuda", 5.6, "qwen3-vl-4b", "sam2.1-large", "nf4"),
    ("a card of 8 GB", "cuda", 7.5, "qwen3-vl-4b", "sam2.1-large", "nf4"),
    ("a card of 12 GB", "cuda", 11.4, "qwen3-vl-8b", "sam2.1-large", "nf4"),
    ("a card of 16 GB", "cuda", 15.4, "qwen3-vl-8b", "sam2.1-large", "nf4"),
    ("a card of 24 GB", "cuda", 23.2, "qwen3-vl-8b", "sam2.1-large", "none"),
    ("a card of 48 GB", "cuda", 47.0, "qwen3-vl-8b", "sam2.1-large", "none"),
    ("a card of 80 GB", "cuda", 79.0, "qwen3-vl-8b", "sam2.1-large", "none"),
    ("Apple, 16 GB", "mps", 11.0, "qwen3-vl-4b", "sam2.1-large", "none"),
    ("Apple, 8 GB", "mps", 5.9, "qwen3-vl-2b", "sam2.1-large", "none"),
]


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch):
    for module in (catalogue, sams):
        monkeypatch.setattr(module, "cached_snapshot", lambda repo: None)


@pytest.mark.parametrize("row", MACHINES, ids=[row[0] for row in MACHINES])
def test_what_is_chosen_fits_and_is_free_for_everyone(row):
    _, device, memory, model, sam, quantization = row
    choice = choose_model(Machine(device, int(memory * GB), DISK))
    assert (choice.model, choice.sam, choice.quantization) == (model, sam, quantization)
    assert choice.memory <= memory * GB and choice.licence == "Apache-2.0"
    assert f"{model} with {sam}" in choice.describe() and "GB to download" in choice.describe()


def test_a_precision_that_is_named_counts():
    card = Machine("cuda", 23 * GB, DISK)
    whole = choose_model(card, LoadOptions(dtype="float32"))
    assert choose_model(card).model == "qwen3-vl-8b" and choose_model(card).quantization == "none"
    assert (whole.model, whole.quantization) != ("qwen3-vl-8b", "none")
    assert whole.memory <= card.memory


def test_a_cpu_that_is_slow_in_4_bits_takes_8_where_they_fit():
    wide, narrow = (choose_model(Machine("cpu", int(m * GB), DISK, False)) for m in (5, 3.95))
    assert (wide.quantization, narrow.quantization) == ("int8", "nf4")
    assert wide.model == narrow.model == "qwen3-vl-2b"


@pytest.mark.parametrize("is_quick, chosen", [(True, "nf4"), (False, "int8")])
def test_large_models_are_quantized_on_a_cpu_as_it_is_quicker(is_quick, chosen):
    cpu = Machine("cpu", 20 * GB, DISK, is_quick)
    assert choose_quantization("auto", cpu, 4 * GB) == chosen
    assert choose_quantization("auto", cpu, GB // 2) == "none"
    assert choose_quantization("none", cpu, 4 * GB) == "none"


def test_what_is_named_is_kept():
    named = LoadOptions(sam="vit_b", quantization="int8")
    choice = choose_model(Machine("cuda", 30 * GB, DISK), named)
    assert (choice.sam, choice.quantization) == ("vit_b", "int8")
    own = choose_model(Machine("cuda", 30 * GB, DISK), LoadOptions(sam="/my/sam.pth"))
    assert own.sam == "/my/sam.pth" and own.device == "cuda"
    assert (
        choose_model(Machine("cpu", 20 * GB, DISK), LoadOptions(quantization="none")).quantization
        == "none"
    )


@pytest.mark.parametrize("memory, disk", [(2, 100), (20, 3)])
def test_where_nothing_fits_the_sentence_says_what_is_missing(memory, disk):
    with pytest.raises(
        CoPRSError, match="No listed model for photos fits: qwen3-vl-2b needs .*or stay with mini"
    ):
        choose_model(Machine("cpu", memory * GB, disk * GB))


def test_what_is_downloaded_already_needs_no_disk(monkeypatch):
    for module in (catalogue, sams):
        monkeypatch.setattr(module, "cached_snapshot", lambda repo: repo)
    choice = choose_model(Machine("cpu", 20 * GB, 0))
    assert choice.download == 0 and ": downloaded, about" in choice.describe()


def test_auto_says_its_choice_in_one_line_and_loads_it(monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda device: 20 * GB)
    monkeypatch.setattr(plan, "has_native_bfloat16", lambda device: True)
    monkeypatch.setattr(load, "find_source", lambda name, report: Found(name))
    lines = []
    found = load.load_checkpoint("auto", LoadOptions("cpu"), lines.append)
    assert found == ("qwen3-vl-2b", "sam2.1-tiny", "nf4")
    [line] = lines
    assert line.startswith("auto: qwen3-vl-2b with sam2.1-tiny, nf4: 4.4 GB to download, about ")


class Found:
    """In place of a source, which would download."""

    def __init__(self, name):
        self.name = name

    def plan(self, options, machine):
        return find_in_catalogue(self.name).plan(options, machine)

    def load(self, plan, report):
        return self.name, plan.sam, plan.quantization


# --- one plan: what `models` and `doctor` print, "auto" chooses from and the loader carries out

LOADABLE = [m for m in CATALOGUE if m.repo or m.name == "mini"]


def write_empty_model(folder: Path, size: str) -> Path:
    """A folder of a published model: its config, and its tensors' names and shapes over a file
    without content."""
    make = qwen3_config if size in QWEN3_SIZES else qwen2_5_config
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(make(size))
    model.config.save_pretrained(folder)
    header, end = {}, 0
    for name, tensor in model.named_parameters():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Listed name → folder of such a model."""
    sizes = {size: tmp_path_factory.mktemp(size) for size in (*QWEN3_SIZES, "3b", "7b")}
    for size, folder in sizes.items():
        write_empty_model(folder, size)
    return {m.name: sizes[m.name[-2:]] for m in LOADABLE if m.repo} | {
        "mini": load.MINIATURE_FOLDER
    }


@pytest.mark.parametrize("memory", [5, 12, 60])
@pytest.mark.parametrize("quantization, has_bfloat16", [("auto", 1), ("auto", 0), ("none", 1)])
@pytest.mark.parametrize("model", LOADABLE, ids=lambda m: m.name)
def test_models_doctor_auto_and_the_loader_say_the_same(
    folders, monkeypatch, model, memory, quantization, has_bfloat16
):
    monkeypatch.setattr(plan, "free_memory", lambda device: memory * GB)
    monkeypatch.setattr(plan, "free_disk", lambda folder: DISK)
    monkeypatch.setattr(plan, "has_native_bfloat16", lambda device: bool(has_bfloat16))
    for module in (load, doctor):
        monkeypatch.setattr(
            module, "find_source", lambda *_: model.to_source(folders[model.name]), raising=True
        )
    monkeypatch.setattr(doctor, "cached_snapshot", lambda repo: folders[model.name])
    carried_out = []
    for kind in (CoordinateSource, CoPRSSource):
        monkeypatch.setattr(kind, "load", lambda self, plan, report: carried_out.append(plan))
    options = LoadOptions("cpu", quantization=quantization)

    [row] = [r for r in list_models(options) if r.name == model.name]
    checks = {c.name: c for c in doctor.run_checks(model.name, options)}
    chosen = [p for p in [_chosen(options)] if p and p.model == model.name]
    if row.fits:
        load.load_checkpoint(model.name, options)
        [done] = carried_out
        assert replace(row.plan, licence="", download=0) == replace(done, download=0)
    else:
        with pytest.raises(CoPRSError) as refused:
            load.load_checkpoint(model.name, options)
        assert str(refused.value) == f"{model.name} {row.reason}." and not carried_out
    assert checks["plan"].found == row.plan.summary
    assert checks["memory"].problem == (f"{model.name} {row.reason}" if row.reason else "")
    assert format_bytes(row.plan.memory) in checks["memory"].found
    for choice in chosen:
        again = replace(options, sam=choice.sam, quantization=choice.quantization)
        [row] = [r for r in list_models(again) if r.name == model.name]
        assert row.plan == choice and row.fits


def _chosen(options: LoadOptions) -> LoadPlan | None:
    try:
        return choose_model(plan.inspect_machine("cpu"), options)
    except CoPRSError:
        return None


def test_what_does_not_fit_is_refused_before_it_is_downloaded(monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda device: GB)
    monkeypatch.setattr(load, "find_source", lambda *_: pytest.fail("it was downloaded"))
    with pytest.raises(CoPRSError, match="qwen3-vl-8b in bfloat16 needs about .* cpu has 1.0 GB"):
        load.load_checkpoint("qwen3-vl-8b", LoadOptions("cpu"))


# --- the sizes follow from the published configs


@pytest.mark.parametrize("size", QWEN3_SIZES)
def test_the_catalogue_counts_as_the_published_config_does(size):
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(qwen3_config(size))
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    linear = sum(n for k, n in sizes.items() if _LLM_LINEAR_WEIGHT.search(k) and "visual" not in k)
    known = find_in_catalogue(f"qwen3-vl-{size}")
    assert (known.size.linear, known.size.other) == (linear, sum(sizes.values()) - linear)
    assert known.download == pytest.approx(2 * sum(sizes.values()), rel=0.005)
    assert find_in_catalogue("egm-4b").size == find_in_catalogue("qwen3-vl-4b").size


@pytest.mark.parametrize("size", HIERA_SIZES)
def test_sam2_counts_as_the_published_config_does(size):
    vision = sam2_vision_config(size)
    with torch.device("meta"):
        used = Sam2Model(Sam2Config(vision_config=vision))
        published = Sam2VideoModel(Sam2VideoConfig(vision_config=vision))
    known = PUBLISHED_SAMS[f"sam2.1-{size}"]
    assert known.size.other == sum(p.numel() for p in used.parameters())
    assert known.download == 4 * sum(p.numel() for p in published.parameters())


def test_names_are_the_same_everywhere():
    assert tuple(PUBLISHED_SAMS) == SAM_NAMES
    assert set(catalogue.GPU_CANDIDATES) <= {m.name for m in CATALOGUE}
    assert all(find_in_catalogue(name).licence == "Apache-2.0" for name in catalogue.GPU_CANDIDATES)
