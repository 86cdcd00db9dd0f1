"""Texts of others' files that Python's own readers end badly with: each is one sentence."""

import pytest
from PIL import Image

from coprs_core import CoPRSError
from coprs_core.answer.compare import read_truth
from coprs_core.batch import find_examples
from coprs_core.checkpoints import adapters
from coprs_core.checkpoints.downloads import missing_shards
from coprs_core.checkpoints.hugging_face import read_config
from coprs_core.checkpoints.localization_heads import heads_path, load_heads
from coprs_core.datasets import open_dataset
from coprs_core.evaluation.run import ROWS_FILE, RUN_FILE, read_rows, read_run
from coprs_core.export.archive import open_answer
from coprs_core.mini.ablation.run import Budget, _open_folder
from coprs_core.mini.train.recipe import read_mini_recipe
from coprs_core.model.coprs import CoPRSConfig
from coprs_core.parsing import parse_json, parse_toml
from coprs_core.training.recipe import parse_change, read_recipe
from coprs_core.training.run_folder import LOG_FILE, RECIPE_FILE, check_recipe, truncate_log

DEEP = {"lists": "[" * 5000, "objects": '{"a":' * 5000, "whole": "[" * 5000 + "]" * 5000}
LONG = "9" * 5000
BAD = DEEP | {"digits": LONG, "half": '{"a": ', "empty": ""}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_whatever_is_wrong_is_a_value_error(text):
    for reader in (parse_json, lambda text: parse_toml(f"a = {text}")):
        with pytest.raises(ValueError):
            reader(text)


def written(folder, name: str, text: str):
    (folder / name).write_text(text)
    return folder


def data_set(name: str, file: str):
    def read(folder, text):
        Image.new("RGB", (8, 8)).save(folder / "a.jpg")
        (folder / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save((folder / file).with_name("a.jpg"))
        (folder / file).write_text(text)
        return list(open_dataset(name, folder).examples(0, 1))

    return read


READERS = {
    "recipe": lambda f, t: read_recipe(str(written(f, "own.toml", f"steps = {t}") / "own.toml")),
    "a change of a recipe": lambda f, t: read_recipe("mini-joint", [f"steps={t}"]),
    "a change of mini": lambda f, t: read_mini_recipe([f"seed={t}"]),
    "a run that goes on": lambda f, t: check_recipe({}, written(f, RECIPE_FILE, t)),
    "its log": lambda f, t: truncate_log(3, written(f, LOG_FILE, f"{t}\n")),
    "evaluated": lambda f, t: read_run(written(f, RUN_FILE, t)),
    "its rows": lambda f, t: read_rows(written(f, ROWS_FILE.format(0, 1), f"{t}\n")),
    "ablated": lambda f, t: _open_folder(began(written(f, "ablation.json", t)), Budget()),
    "many photos": lambda f, t: find_examples(
        str(written(f, "a.jsonl", t or "x") / "a.jsonl"), "x"
    ),
    "an answer": lambda f, t: open_answer(written(f, "result.json", t)),
    "a true mask": lambda f, t: read_truth(written(f, "a.json", t) / "a.json", (8, 8)),
    "coprs.json": lambda f, t: CoPRSConfig.from_file(written(f, "coprs.json", t) / "coprs.json"),
    "config.json": lambda f, t: read_config(written(f, "config.json", t)),
    "adapters": lambda f, t: adapters.base_model_name(
        "x", written(f, adapters.CONFIG_FILE, t), False
    ),
    "a folder of photos": data_set("folder", "items.jsonl"),
    "ReasonSeg": data_set("reasonseg", "val/a.json"),
}


def began(folder):
    (folder / "arm").mkdir()
    (folder / "arm" / "weights").touch()
    return folder


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_none_is_one_sentence(tmp_path, reader, text):
    with pytest.raises(CoPRSError) as raised:
        READERS[reader](tmp_path, text)
    said = str(raised.value)
    assert said.endswith(".") and "\n" not in said and len(said) < 500


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_what_can_be_done_without_is_passed_over(tmp_path, text, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    (tmp_path / "config.json").write_text("{}")
    heads_path(tmp_path).parent.mkdir(parents=True)
    heads_path(tmp_path).write_text(text)
    assert load_heads(tmp_path) == ()
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert missing_shards(tmp_path)


def test_a_change_of_a_recipe_that_is_no_toml_is_text():
    assert parse_change(f"model={DEEP['lists']}") == ("model", DEEP["lists"])
