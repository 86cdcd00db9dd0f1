"""What CONTRIBUTING promises, done: a new probe, a new data set, a new kind of model."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.handlers import Frame, Handlers
from app.server.model import ModelServer
from coprs_core import CoPRSError
from coprs_core.answer.engine import Engine
from coprs_core.checkpoints.sources import Checkpoint
from coprs_core.datasets import open_dataset
from coprs_core.evaluation.report import compute_scores
from coprs_core.evaluation.rows import evaluate
from coprs_core.export.archive import open_answer, save_zip
from coprs_core.mini.world.questions import draw_examples
from coprs_core.model.backends.mllm import VisualTokens
from coprs_core.model.segmenter import Localization, PhotoFeatures, RegionProposal, Segmenter, Step
from coprs_core.photos.photo import open_photo
from coprs_core.probes import PROBES, load_probe
from tests import ROOT


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The code in a folder of its own, to be added to."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("app", "coprs_core"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "app.py", folder)
    (folder / "assets").symlink_to(ROOT / "assets")
    return folder


def run(folder: Path, code: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def edit(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert text.count(old) >= count, f"{path.name} has no {old!r}"
    path.write_text(text.replace(old, new))


# --- a probe: its own file, one word, its texts

ASK_THE_NEW_PROBE = """
import dataclasses, json, shutil, sys, zipfile
import numpy as np
from pathlib import Path
from PIL import Image
from gradio_client import Client, handle_file
from app.handlers import Frame, Handlers
from app.actions import AnswerActions
from app.server.model import ModelServer
from app.ui import build, launch
from coprs_core import load
from coprs_core.__main__ import main

photo, words = "assets/examples/rain.png", "the thing that keeps the rain off"
out = Path("answer")
assert main(["segment", photo, words, "--out", str(out), "--probe", "brightness"]) == 0
told = json.loads((out / "brightness.json").read_text())
mask = np.asarray(Image.open(out / "mask.png"))
grey = np.asarray(Image.open(photo).convert("L")) / 255
assert abs(told["inside"] - grey[mask].mean()) < 1e-9, told
assert Image.open(out / "brightness.png").width > 100

engine = load("mini", device="cpu")
server = ModelServer(engine)
frame = Frame(**{f.name: f.name for f in dataclasses.fields(Frame)})
handlers = Handlers(server, frame)
*_, last = handlers.answer(photo, words, None)
answered = last["answer"]
actions = AnswerActions(server, handlers.gate)
html = actions.run_probe("brightness", answered)
assert "bright inside: 0." in html and html.count("<img") == 1
exporting = actions.export_zip(answered)
names = zipfile.ZipFile(next(exporting)).namelist()
assert {"brightness.json", "brightness.png", "sentences.json"} <= set(names)
exporting.close()

demo = build(server)
_, url, _ = launch(demo, quiet=True)
config = json.dumps(demo.get_config_file(), default=str)
assert "ask-brightness" in config and "brightness-view" in config
client = Client(url, verbose=False)
upload = handle_file(photo)
result = client.predict(upload, words, api_name="/segment")["result"]
answer = client.predict(upload, result, api_name="/brightness")
assert abs(answer["inside"] - told["inside"]) < 1e-9
described = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
assert described["/brightness"]["description"].startswith("Mean brightness")
demo.close()
print("fine")
"""


def test_a_new_probe_needs_its_file_one_word_and_its_texts(copied):
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(r"```python\n(.*?)```", contributing, re.DOTALL)
    assert block, "CONTRIBUTING shows no probe"
    code = "\n".join(line.removeprefix("   ") for line in block[1].splitlines())
    (copied / "coprs_core/probes/brightness.py").write_text(code + "\n")
    edit(copied / "coprs_core/probes/__init__.py", '"zoom")', '"zoom", "brightness")')
    texts = (
        '"brightness": "Brightness", "brightness_about": "How bright?", "brightness_go": "Measure", '
        '"brightness_caption": "bright inside: {inside:.2f}",\n    "title":'
    )
    for language in ("english", "chinese"):
        edit(copied / f"app/texts/{language}.py", '"title":', texts)
    assert run(copied, ASK_THE_NEW_PROBE).endswith("fine\n")


# --- a data set: its reader and one word

READER = '''
"""Photos with texts beside them, one mask each."""

import numpy as np
from PIL import Image

from coprs_core.datasets.dataset import Dataset
from coprs_core.example import Example


def list_splits(name):
    return ("test",)


def read_split(split):
    found = sorted(split.folder.glob("*.txt"))

    def item(i):
        path = found[i]
        mask = np.asarray(Image.open(path.with_name(f"{path.stem}_mask.png"))) > 0
        words = path.read_text()
        tags = {"long": len(words) > 20}
        masks = (mask,) if mask.any() else ()
        return Example(path.with_suffix(".png"), words, masks, mask.shape, index=i, tags=tags)

    return Dataset(f"{len(found)} texts", len(found), item, {"long": ("long", True)})
'''


def test_a_new_data_set_needs_its_reader_and_one_word(copied, mini, tmp_path):
    expected = []
    for i, (scene, question) in enumerate(draw_examples("validation", 0, 3)):
        Image.fromarray(scene.image).save(tmp_path / f"{i}.png")
        Image.fromarray(scene.mask(*question.targets)).save(tmp_path / f"{i}_mask.png")
        (tmp_path / f"{i}.txt").write_text(question.instruction)
        result = mini.segment(scene.image, question.instruction)
        truth = scene.mask(*question.targets)
        union = np.logical_or(result.mask, truth).sum()
        expected.append((result.mask & truth).sum() / union if union else 1.0)
    (copied / "coprs_core/datasets/texts.py").write_text(READER)
    edit(
        copied / "coprs_core/datasets/__init__.py",
        '    "scenes": "scenes",',
        '    "scenes": "scenes",\n    "texts": "texts",',
    )
    arguments = ["evaluate", "--data", "texts", "--root", str(tmp_path), "--json"]
    out = run(copied, f"from coprs_core.__main__ import main; main({arguments!r})")
    scores = json.loads(out)
    assert [row["mask_iou"] for row in scores["rows"]] == pytest.approx(expected, abs=0.01)
    assert scores["groups"]["long"]["count"] == sum(r["tags"]["long"] for r in scores["rows"])


def test_a_split_that_a_data_set_does_not_have_is_one_sentence():
    with pytest.raises(CoPRSError, match="no split 'val': choose test, validation, train"):
        open_dataset("scenes", split="val")


# --- a kind of model: one protocol


class Middle:
    """A model without weights: it always finds the middle of the photo."""

    prior_kind = "coordinates"
    note = ""
    max_new_tokens = 10
    device = torch.device("cpu")
    dtype = torch.float32

    def encode_photo(self, photo, detail=None):
        return PhotoFeatures(photo.size, VisualTokens(torch.empty(0, 0), photo.size))

    def ood_distance(self, features):
        return None

    def generate(self, instruction, features, max_new_tokens):
        for word in ("<think>", f"It says {instruction}.", "</think>", "In the middle."):
            yield Step(text=word)
        yield Step(is_end=True)

    def locate(self, transcript, features):
        assert transcript.is_finished and transcript.text.endswith("In the middle.")
        height, width = features.photo_size
        prior = np.zeros((height, width), np.float32)
        prior[height // 4 : -height // 4, width // 4 : -width // 4] = 0.9
        return Localization("found", "It is always in the middle.", (RegionProposal(prior),))

    def predict_mask(self, place, features):
        return place.prior > 0.5


@pytest.fixture
def middle() -> Engine:
    segmenter: Segmenter = Middle()
    return Engine(Checkpoint("middle", segmenter))


def test_a_new_kind_of_model_answers_streams_and_is_measured(middle, tmp_path):
    scene, question = next(draw_examples("test", 0, 1))
    updates = list(middle.stream(scene.image, question.instruction))
    assert [u.stage for u in updates] == [
        *["reading"] * 2,
        *["thinking"] * 4,
        *["focus", "done"],
    ]
    result = updates[-1].result
    assert result.outcome == "found" and result.mask.mean() == 0.25 and result.prior_iou == 1
    assert result.reasoning == f"It says {question.instruction}." and result.model == "middle"
    saved = open_answer(save_zip(tmp_path / "a.zip", open_photo(scene.image), result))
    assert np.array_equal(saved.result.mask, result.mask)
    dataset = open_dataset("scenes")
    scores = compute_scores(list(evaluate(middle, dataset.examples(0, 3))), dataset.groups)
    assert scores["all"]["count"] == 3 and 0 <= scores["all"]["mask_giou"] < 1


def test_a_new_kind_of_model_stands_on_the_page(middle, tmp_path):
    scene, question = next(draw_examples("test", 0, 1))
    Image.fromarray(scene.image).save(tmp_path / "p.png")
    frame = Frame(**{f.name: f.name for f in dataclasses.fields(Frame)})
    handlers = Handlers(ModelServer(middle), frame)
    *_, values = handlers.models.show_model()
    assert "middle" in values["header"] and not values["notice"]
    *_, last = handlers.answer(str(tmp_path / "p.png"), question.instruction, None)
    assert "<coprs-view" in last["view"] and "It says" in last["thought"]
    assert "data-edit" not in last["thought"]  # no focus token to ask about


@pytest.mark.parametrize("name", [name for name in PROBES if name != "zoom"])
def test_probes_of_a_focus_token_say_that_there_is_none(middle, name):
    scene, question = next(draw_examples("test", 0, 1))
    result = middle.segment(scene.image, question.instruction)
    with pytest.raises(CoPRSError, match="load"):
        load_probe(name).run(middle, scene.image, result)
