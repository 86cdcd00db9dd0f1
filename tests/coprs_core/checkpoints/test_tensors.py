"""Damaged and hostile checkpoints: each loads and answers, or is refused in one sentence; none
hangs, takes the memory, runs its code or asks on the terminal."""

import json
import resource
import shutil
import struct
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from coprs_core import CoPRSError
from coprs_core.answer.engine import Engine
from coprs_core.checkpoints.doctor import run_checks
from coprs_core.checkpoints.folder_checks import check_config_values
from coprs_core.checkpoints.hugging_face import load_processor, read_config
from coprs_core.checkpoints.load import MINIATURE_FOLDER, load_checkpoint
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.model.coprs import CoPRSConfig
from coprs_core.random_weights import qwen2_5_config
from tests import tiny

PARTS = ("image_encoder.safetensors", "prior.safetensors", "decoder.safetensors")
WEIGHTS = (*PARTS, "mllm/model.safetensors")
NEEDED = ("coprs.json", "mllm/config.json", "mllm/tokenizer.json", *WEIGHTS)
MOST_BYTES = 500_000_000
pytestmark = pytest.mark.timeout(600)  # none hangs
PHOTO = draw_scene(1).image


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


DAMAGES = {
    "half": half,
    "empty": lambda _: b"",
    "garbage": lambda _: bytes(range(256)) * 40,
    "a directory": None,
    "null": lambda _: b"null",
    "list": lambda _: b"[]",
    "object": lambda _: b"{}",
    "text": lambda _: b'"x"',
    "number": lambda _: b"1" * 5000,
    "deep": lambda _: b"[" * 100_000,
    "deep objects": lambda _: b'{"a":' * 900 + b"1" + b"}" * 900,
    "list of null": lambda _: b"[null]",
    "header of 2^60 bytes": lambda c: struct.pack("<Q", 2**60) + c[8:],
    "header of null": lambda _: struct.pack("<Q", 4) + b"null",
    "header that is deep": lambda _: struct.pack("<Q", 100_000) + b"[" * 100_000,
    "no tensors": lambda _: struct.pack("<Q", 2) + b"{}",
    "tail cut off": lambda c: c[:-10],
}


def replace(folder, file, damage):
    path = folder / file
    content = path.read_bytes() if path.is_file() else b"{}"
    path.unlink(missing_ok=True)  # never through a link
    path.mkdir() if damage is None else path.write_bytes(damage(content))


def change(folder, file, edit):
    values = json.loads((MINIATURE_FOLDER / file).read_text())
    edit(values)
    replace(folder, file, lambda _: json.dumps(values).encode())


def change_tensors(folder, file, edit):
    state = load_file(MINIATURE_FOLDER / file)
    edit(state)
    (folder / file).unlink()
    save_file(state, folder / file, metadata={"format": "pt"})


REPLACED = {
    "coprs.json": ("empty", "garbage", "a directory", "number", "deep", "list of null"),
    "mllm/config.json": ("empty", "a directory", "list", "object", "number", "deep"),
    "mllm/generation_config.json": ("half", "text", "deep objects"),
    "mllm/tokenizer.json": ("garbage", "a directory", "object", "text"),
    "mllm/tokenizer_config.json": ("null",),
    "mllm/processor_config.json": ("empty", "a directory", "null"),
    "mllm/preprocessor_config.json": ("a directory",),
    "mllm/special_tokens_map.json": ("deep",),
    "mllm/added_tokens.json": ("deep",),
    "mllm/chat_template.jinja": ("deep",),
    "mllm/chat_template.json": ("a directory",),
    "mllm/model.safetensors.index.json": ("deep",),
    "image_encoder.safetensors": ("header of 2^60 bytes", "header of null"),
    "prior.safetensors": ("a directory",),
    "decoder.safetensors": ("tail cut off",),
    "mllm/model.safetensors": ("header that is deep", "no tensors"),
}
"""The damages of each file that end differently: of all pairs, those that between them run every
line that any of them runs, raise from every place, and meet every error of a library. The last
files of text are not in the miniature; libraries look for them all the same. As for `PLACES`."""


def put(*keys, value):
    """An edit that puts a value at a place."""

    def edit(values):
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return edit


_CONFIG, _PROCESSOR = "mllm/config.json", "mllm/processor_config.json"
_TOKENIZER, _GENERATION = "mllm/tokenizer_config.json", "mllm/generation_config.json"
LIMITS = {
    ("coprs.json", "vision", "depth"): (65536, 513, "x", None),
    ("coprs.json", "vision", "side"): (250, 0),
    ("coprs.json", "vision", "patch"): (3, 4096),
    ("coprs.json", "vision", "heads"): (3, 65536),
    ("coprs.json", "vision", "channels"): (97,),
    ("coprs.json", "vision", "mlp_ratio"): (65536.0, float("nan")),
    ("coprs.json", "vision", "global_layers"): (["x"], [0] * 10**6),
    ("coprs.json", "decoder", "depth"): (65536, 0),
    ("coprs.json", "decoder", "heads"): (7, 65536),
    ("coprs.json", "decoder", "iou_depth"): (65536,),
    ("coprs.json", "decoder", "mask_channels"): (1, 18),
    ("coprs.json", "prior_heads"): (5,),
    ("coprs.json", "focus_token"): ("", "<x\ny>", "x" * 10**6, "\ud800"),
    ("coprs.json", "prompt_template"): ("{image}{instruction}" + "x" * 10**6, "{image}{instruction}\ud800"),
    ("coprs.json", "note"): ("x" * 10**6,),
    ("coprs.json", "mllm_pixels"): ([2**27, 2**27], [5, 4]),
    (_CONFIG, "text_config", "num_hidden_layers"): (10**9, -1, 0),
    (_CONFIG, "text_config", "layer_types"): (["full_attention"] * 10**6,),
    (_CONFIG, "text_config", "hidden_size"): (10**9, -1, 0),
    (_CONFIG, "text_config", "num_attention_heads"): (0, 10**9),
    (_CONFIG, "text_config", "num_key_value_heads"): (0, 10**9),
    (_CONFIG, "text_config", "head_dim"): (10**9, 0),
    (_CONFIG, "text_config", "vocab_size"): (10**12, 0),
    (_CONFIG, "vision_config", "depth"): (10**6, -1),
    (_CONFIG, "vision_config", "hidden_size"): (10**9,),
    (_CONFIG, "vision_config", "num_heads"): (0, 10**9),
    (_CONFIG, "vision_config", "patch_size"): (10**9, 0),
    (_CONFIG, "vision_config", "spatial_merge_size"): (10**9, 0),
    (_CONFIG, "vision_config", "temporal_patch_size"): (10**9, 0),
    (_CONFIG, "vision_config", "window_size"): (10**9, 0),
    (_CONFIG, "attn_implementation"): ("x/y", {"text_config": "x/y:z"}),
    (_CONFIG, "_attn_implementation"): ("x/y",),
}  # fmt: skip
"""Places in the files, each with values that are refused where the file is read."""
PLACES = {
    ("coprs.json", "vision", "side"): (4096,),
    ("coprs.json", "vision", "patch"): (1,),
    ("coprs.json", "vision", "width"): (65536,),
    ("coprs.json", "vision", "channels"): (65536,),
    ("coprs.json", "vision", "window"): (65536,),
    ("coprs.json", "vision", "global_layers"): ([65536],),
    ("coprs.json", "decoder", "iou_depth"): (1,),
    ("coprs.json", "decoder", "mask_channels"): (65536,),
    ("coprs.json", "prior_width"): (65536,),
    ("coprs.json", "prior_heads"): (192,),
    ("coprs.json", "focus_token"): ("two words",),
    ("coprs.json", "prompt_template"): ("{image}<|image_pad|>{instruction}",),
    ("coprs.json", "mllm_pixels"): ([1, 1],),
    ("coprs.json", "format_version"): (None,),
    ("coprs.json", "x\n" * 10**4): (1,),
    (_CONFIG, "model_type"): (None, "os.system"),
    (_CONFIG, "text_config"): ([],),
    (_CONFIG, "vision_config"): ([],),
    (_CONFIG, "text_config", "num_hidden_layers"): (None,),
    (_CONFIG, "text_config", "layer_types"): ([],),
    (_CONFIG, "text_config", "hidden_size"): (None,),
    (_CONFIG, "text_config", "num_attention_heads"): (None,),
    (_CONFIG, "text_config", "num_key_value_heads"): (4,),
    (_CONFIG, "text_config", "head_dim"): (7,),
    (_CONFIG, "text_config", "vocab_size"): (10**7,),
    (_CONFIG, "text_config", "hidden_act"): ("x",),
    (_CONFIG, "text_config", "pad_token_id"): (10**9,),
    (_CONFIG, "text_config", "rope_parameters"): ("x",),
    (_CONFIG, "text_config", "rope_parameters", "mrope_section"): ([10**9] * 3, None),
    (_CONFIG, "text_config", "rope_parameters", "rope_type"): ("longrope", None),
    (_CONFIG, "text_config", "rope_parameters", "rope_theta"): ("x", float("inf")),
    (_CONFIG, "vision_config", "depth"): (None,),
    (_CONFIG, "vision_config", "hidden_size"): (65536,),
    (_CONFIG, "vision_config", "num_heads"): (3,),
    (_CONFIG, "vision_config", "patch_size"): (7,),
    (_CONFIG, "vision_config", "spatial_merge_size"): (1,),
    (_CONFIG, "vision_config", "temporal_patch_size"): (1,),
    (_CONFIG, "vision_config", "window_size"): (1,),
    (_CONFIG, "vision_config", "fullatt_block_indexes"): (None,),
    (_CONFIG, "vision_config", "rope_parameters"): ({"rope_type": "x"},),
    (_CONFIG, "image_token_id"): (-1,),
    (_CONFIG, "tie_word_embeddings"): (False,),
    (_CONFIG, "dtype"): ("x", "load", 7, "int8"),
    (_CONFIG, "attn_implementation"): ("x", 7),
    (_CONFIG, "quantization_config"): ({"quant_method": "gptq", "bits": 4}, "x"),
    (_GENERATION, "eos_token_id"): ([[1]],),
    (_GENERATION, "temperature"): (float("nan"),),
    (_GENERATION, "max_new_tokens"): (-1, "x"),
    (_TOKENIZER, "tokenizer_class"): ("AutoModel", "BertTokenizer", "os.system"),
    (_TOKENIZER, "eos_token"): (7,),
    (_TOKENIZER, "model_max_length"): ("x",),
    (_TOKENIZER, "chat_template"): ("x" * 10**6,),
    (_TOKENIZER, "added_tokens_decoder"): ({"x": 1},),
    (_PROCESSOR, "image_processor"): ([],),
    (_PROCESSOR, "image_processor", "image_processor_type"): ("x", "CLIPImageProcessor"),
    (_PROCESSOR, "image_processor", "size"): ({}, "x", {"shortest_edge": -1, "longest_edge": 0}, {"height": 10**6, "width": 10**6}),
    (_PROCESSOR, "image_processor", "min_pixels"): (10**12,),
    (_PROCESSOR, "image_processor", "patch_size"): ("x",),
    (_PROCESSOR, "image_processor", "merge_size"): (10**6,),
    (_PROCESSOR, "image_processor", "temporal_patch_size"): (0,),
    (_PROCESSOR, "image_processor", "image_mean"): ("x", None, [float("nan")] * 3),
}  # fmt: skip
"""Places, each with values that only a later step or a library finds wrong, or that do no harm."""


def put_sharded_index(values):
    return lambda folder: replace(
        folder, "mllm/model.safetensors.index.json", lambda _: json.dumps(values).encode()
    )


OTHERS = {
    f"{file}: {' '.join(keys)[:60]!r} = {str(value)[:40]!r}": (
        lambda folder, file=file, keys=keys, value=value: change(
            folder, file, put(*keys, value=value)
        )
    )
    for (file, *keys), values in PLACES.items()
    for value in values
} | {
    f"{file}: a number of 400 digits": lambda folder, file=file: replace(
        folder, file, lambda c: c.replace(b"192", b"9" * 400)
    )
    for file in ("coprs.json", _CONFIG)
}
OTHERS |= {
    f"{file}: {name}": lambda folder, file=file, edit=edit: change_tensors(folder, file, edit)
    for name, (edit, files) in {
        "not a number": (lambda s: s.update({k: torch.full_like(v, float("nan")) for k, v in s.items()}), WEIGHTS),
        "a long name": (lambda s: s.update({"x\n" * 1000: torch.zeros(1)}), PARTS[1:2]),
        "1,000 names": (lambda s: s.update({f"{i}": torch.zeros(1) for i in range(1000)}), PARTS[:1]),
        "other shapes": (lambda s: s.update({k: torch.zeros(3) for k in list(s)[:2]}), WEIGHTS),
    }.items()
    for file in files
}  # fmt: skip
OTHERS |= {
    f"index: {name}": put_sharded_index(values)
    for name, values in {
        "a number": {"weight_map": {"x": 7}},
        "not a table": {"weight_map": [1]},
        "outside": {"weight_map": {"x": "../../../x"}},
        "NUL": {"weight_map": {"x": "\0"}},
        "long": {"weight_map": {"x": "y\n" * 10**4}},
        "lists": {"weight_map": {"x": ["y"]}},
    }.items()
}


@pytest.fixture
def folder(tmp_path):
    """A copy of the miniature; the weights are links."""
    copy = tmp_path / "copy"
    (copy / "mllm").mkdir(parents=True)
    for path in [*MINIATURE_FOLDER.glob("*.json"), *(MINIATURE_FOLDER / "mllm").glob("*.json")]:
        shutil.copyfile(path, copy / path.relative_to(MINIATURE_FOLDER))
    for file in WEIGHTS:
        (copy / file).symlink_to(MINIATURE_FOLDER / file)
    return copy


def outcome(folder, **options) -> str:
    """ "answered", or the sentence with which the folder was refused; within bounded
    memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = psutil.Process().memory_info().rss
    try:
        checkpoint = load_checkpoint(str(folder), LoadOptions("cpu", **options))
        result = Engine(checkpoint).segment(PHOTO, "the largest thing")
        assert result.outcome in ("found", "nothing found", "unfinished")
        end = "answered"
    except CoPRSError as problem:
        end = str(problem).replace(str(folder), "FOLDER")
        assert "\n" not in end and 20 < len(end) < 600, end[:1000]
    assert psutil.Process().memory_info().rss - before < MOST_BYTES
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes
    assert (now - peak) * 1024 < MOST_BYTES
    return end


@pytest.mark.parametrize(
    "file, name", [(f, name) for f, names in REPLACED.items() for name in names]
)
def test_a_damaged_file_is_named_or_not_needed(folder, file, name):
    replace(folder, file, DAMAGES[name])
    end = outcome(folder)
    assert end != "answered" or file not in NEEDED
    assert all("\n" not in c.problem for c in run_checks(str(folder)))


def test_a_value_beyond_its_limits_is_named_where_its_file_is_read(folder):
    taken, untold = [], []
    for (file, *keys), values in LIMITS.items():
        for value in values:
            change(folder, file, put(*keys, value=value))
            case = f"{file} {keys} {str(value)[:40]!r}"
            try:
                CoPRSConfig.from_file(folder / file) if file == "coprs.json" else read_config(
                    folder / "mllm"
                )
                taken.append(case)
            except CoPRSError as problem:
                said = str(problem).replace(str(folder), "FOLDER")
                if keys[-1] not in said or "\n" in said or not 20 < len(said) < 600:
                    untold.append((case, said[:300]))
        replace(folder, file, lambda _, file=file: (MINIATURE_FOLDER / file).read_bytes())
    assert not taken and not untold


@pytest.mark.parametrize("case", OTHERS)
def test_a_hostile_value_is_refused_or_harmless(folder, case):
    OTHERS[case](folder)
    outcome(folder)


@pytest.mark.parametrize(
    "file, edit, words",
    [
        ("coprs.json", put("vision", "depth", value=65536), "vision.depth is '65536'"),
        ("coprs.json", put("vision", "side", value=250), "multiple of vision.patch 16"),
        ("coprs.json", put("focus_token", value=""), "focus_token is ''"),
        ("coprs.json", put("prompt_template", value="{image}{instruction}" * 10**5), "8,000"),
        (_CONFIG, put("text_config", "num_hidden_layers", value=10**9), "from 1 to 512"),
        (_CONFIG, put("text_config", "hidden_size", value=-1), "hidden_size is -1"),
        (_CONFIG, put("text_config", "vocab_size", value=10**7), "files hold"),
        (_CONFIG, put("vision_config", "depth", value=10**6), "depth is 1000000"),
        (_CONFIG, put("text_config", "num_hidden_layers", value="x"), "expected int, got str"),
        (_CONFIG, put("attn_implementation", value="x/y"), "code to download"),
        (_CONFIG, put("image_token_id", value=1399), "no special token"),
        (_CONFIG, put("vision_config", "num_heads", value=3), "do not work together"),
        (_GENERATION, put("eos_token_id", value=[[1]]), "do not work together"),
        (_PROCESSOR, put("image_processor", "patch_size", value=16), "its model 14"),
        (_PROCESSOR, put("image_processor", "size", value={"shortest_edge": 10**12, "longest_edge": 10**12}), "size.longest_edge 1000000000000"),
    ],
)  # fmt: skip
def test_the_sentence_says_what_is_wrong(folder, file, edit, words):
    change(folder, file, edit)
    assert words in outcome(folder)


_WORD = ("image_processor", "image_processor_type")
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


@pytest.mark.parametrize(
    "file, edit, words",
    [
        (_CONFIG, put("quantization_config", value={"quant_method": "awq", "bits": 4}), ("awq", "library gptqmodel", "unquantized weights")),
        (_CONFIG, put("quantization_config", value={"quant_method": "gptq", "bits": 4}), ("gptq", "library gptqmodel", "unquantized weights")),
        (_CONFIG, put("quantization_config", value={"quant_method": "aqlm"}), ("aqlm", "unquantized weights")),
        (_CONFIG, put("quantization_config", value={"quant_method": "compressed-tensors"}), ("compressed-tensors", "unquantized weights")),
        (_PROCESSOR, put(*_WORD, value="Qwen2_5_VLImageProcessor"), ("processor_config.json has image_processor_type Qwen2_5_VLImageProcessor", "write Qwen2VLImageProcessor")),
        (_CONFIG, lambda v: v.update(model_type="own", auto_map={"AutoConfig": "a.B"}), ("is of type 'own'", "code of its own (auto_map), which is never run", "qwen2_5_vl")),
        (_CONFIG, put("model_type", value="qwen9_vl"), ("is of type 'qwen9_vl'", "qwen3_vl")),
        (_PROCESSOR, lambda v: v["image_processor"].update(image_processor_type="Own", auto_map={"AutoImageProcessor": "a.B"}), ("code of its own (auto_map), which is never run",)),
    ],
)  # fmt: skip
def test_what_copying_does_not_mend_says_what_does(folder, file, edit, words):
    change(folder, file, edit)
    said = outcome(folder)
    assert all(word in said for word in words), said
    assert "copy it again" not in said


def test_the_old_file_of_an_image_processor_is_named_too(folder):
    own = json.loads((folder / _PROCESSOR).read_text())["image_processor"]
    (folder / _PROCESSOR).unlink()
    path = folder / "mllm" / "preprocessor_config.json"
    path.write_text(json.dumps(own))
    assert outcome(folder) == "answered"
    path.write_text(json.dumps(own | {_WORD[1]: "Qwen2_5_VLImageProcessor"}))
    said = outcome(folder)
    assert "preprocessor_config.json has image_processor_type Qwen2_5_VL" in said, said
    assert "write Qwen2VLImageProcessor" in said


_TOKENS = "mllm/tokenizer.json"


@pytest.mark.parametrize("file", [*WEIGHTS, _TOKENS, _CONFIG, "coprs.json"])
def test_a_pointer_of_git_lfs_is_named(folder, file):
    replace(folder, file, lambda _: _LFS)
    assert "pointer of Git LFS; run `git lfs pull`" in outcome(folder)


@pytest.mark.parametrize("file", [_TOKENS, _CONFIG, _PROCESSOR])
def test_a_mark_that_an_editor_wrote_before_json_is_named(folder, file):
    replace(folder, file, lambda stored: b"\xef\xbb\xbf" + stored)
    said = outcome(folder)
    assert f"save {file.partition('/')[2]} as UTF-8 without the mark (BOM)" in said, said
    assert "copy it again" not in said


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model-q4.gguf"])
def test_weights_in_another_form_are_named(folder, name):
    (folder / "mllm" / "model.safetensors").rename(folder / "mllm" / name)
    said = outcome(folder)
    assert f"holds {name}: take the model's weights as safetensors" in said


def test_what_is_cut_short_is_copied_again(folder):
    replace(folder, _CONFIG, half)
    assert "copy it again from its source" in outcome(folder)
    replace(folder, "coprs.json", half)
    assert "copy it again from its source" in outcome(folder)


@pytest.mark.parametrize("file", [_CONFIG, _TOKENIZER, _PROCESSOR])
@pytest.mark.parametrize("kind", ["its own type", "an unknown type"])
def test_code_in_the_folder_is_never_run_and_nobody_is_asked(folder, monkeypatch, file, kind):
    def asked(*_):
        raise AssertionError("somebody was asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    marker = folder.parent / "was_run"
    names = ("Config", "ForImageTextToText", "Tokenizer", "Processor", "ImageProcessor")
    code = "".join(f"class {n}:\n    pass\n" for n in names)
    (folder / "mllm" / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n{code}")
    auto_map = {
        "AutoConfig": "evil.Config",
        "AutoModelForImageTextToText": "evil.ForImageTextToText",
        "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
        "AutoProcessor": "evil.Processor",
        "AutoImageProcessor": "evil.ImageProcessor",
    }

    def edit(values):
        values["auto_map"] = auto_map
        if "image_processor" in values:
            values["image_processor"]["auto_map"] = auto_map
        if kind == "an unknown type":
            values |= {"model_type": "evil", "tokenizer_class": "Evil", "processor_class": "Evil"}
            values |= {"image_processor_type": "Evil"}
            if "image_processor" in values:
                values["image_processor"]["image_processor_type"] = "Evil"

    change(folder, file, edit)
    outcome(folder)
    run_checks(str(folder))
    with suppress(CoPRSError):
        load_processor(folder / "mllm")
    assert not marker.exists() and not any("evil" in name for name in sys.modules)


def test_weights_that_are_a_pickle_are_never_read(folder):
    class Evil:
        def __reduce__(self):
            return open, (str(folder.parent / "was_run"), "w")

    torch.save({"x": Evil()}, folder / "mllm" / "pytorch_model.bin")
    (folder / "mllm" / "model.safetensors").rename(folder / "mllm" / "other.safetensors")
    assert "cannot be loaded" in outcome(folder)
    assert not (folder.parent / "was_run").exists()


@pytest.mark.parametrize(
    "file, edit, words",
    [
        ("config.json", put("text_config", "num_hidden_layers", value=10**9), "from 1 to 512"),
        ("config.json", put("text_config", "vocab_size", value=10**7), "files hold"),
        ("config.json", put("vision_config", "num_heads", value=3), "do not work together"),
        ("generation_config.json", put("eos_token_id", value={}), "do not work together"),
        ("processor_config.json", put("image_processor", "patch_size", value=16), "its model 14"),
        ("tokenizer_config.json", put("model_max_length", value="x"), "do not work together"),
    ],
)
def test_a_model_that_writes_coordinates_is_checked_the_same(folder, sam, file, edit, words):
    change(folder, f"mllm/{file}", edit)
    assert words in outcome(folder / "mllm", sam=str(sam))


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    return tiny.save_sam(tmp_path_factory.mktemp("sam") / "sam.pth", tiny.coprs(tiny.qwen()))


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_published_sizes_are_within_the_limits(size):
    check_config_values(json.loads(qwen2_5_config(size).to_json_string()), Path("config.json"))
    assert CoPRSConfig.from_dict(CoPRSConfig(2048).to_dict()) == CoPRSConfig(2048)
