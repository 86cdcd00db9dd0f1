"""The app on a real Gradio server, asked by real clients."""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app import handlers, panels
from app.ui import EXAMPLES, build, examples, launch
from coprs_core import catalogue
from coprs_core.checkpoints import MINIATURE
from coprs_core.engine import Engine, Update
from coprs_core.scenes import draw_scene
from coprs_core.shelf import Shelf
from tests import tiny
from tests.conftest import slowed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def server(mini):
    engine = Engine(mini.checkpoint)
    demo = build(Shelf(engine, device="cpu"), may_choose=True)
    _, url, _ = launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", server_port=None)
    yield url, engine
    demo.close()


@pytest.fixture
def client(server):
    return Client(server[0], verbose=False)


@pytest.fixture(scope="module")
def photo(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(found[0].image).save(path)
    return str(path)


def test_segment_streams_and_ends_in_the_engines_own_result(client, server, photo, found):
    _, question, result = found
    job = client.submit(handle_file(photo), question.instruction, api_name="/segment")
    job.result()
    told = job.outputs()
    assert [t["stage"] for t in told[:1]] == ["reading"] and told[-1]["stage"] == "done"
    assert "".join(t["new"] for t in told) == told[-1]["text"] == result.reply
    final = told[-1]["result"]
    assert final["outcome"] == "found" and final["regions"][0]["mask"] == result.to_dict()["regions"][0]["mask"]


def test_only_the_documented_endpoint_is_offered(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/segment"]
    assert [p["parameter_name"] for p in endpoints["/segment"]["parameters"]] == ["photo", "instruction"]


@pytest.mark.parametrize("instruction, words", [("", "empty"), ("x" * 2001, "2,001 characters")])
def test_a_mistake_comes_back_as_one_sentence(client, photo, instruction, words):
    with pytest.raises(AppError, match=words) as error:
        client.predict(handle_file(photo), instruction, api_name="/segment")
    assert "Traceback" not in str(error.value)


def test_a_file_that_is_no_picture_comes_back_as_one_sentence(client, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"not a picture")
    with pytest.raises(AppError, match="cannot be read as a picture"):
        client.predict(handle_file(str(path)), "x", api_name="/segment")


@pytest.mark.parametrize("meta", [{}, {"meta": None}, {"meta": {"_type": "gradio.FileData"}}])
def test_a_picture_on_the_server_that_nobody_uploaded_is_not_read(server, meta):
    url = f"{server[0]}gradio_api/call/segment"
    data = [{"path": str(EXAMPLES / "rain.png")} | meta, "the umbrella"]
    event = httpx.post(url, json={"data": data}).json()["event_id"]
    told = httpx.get(f"{url}/{event}", timeout=30).text
    assert "event: error" in told and "umbrella at" not in told and "done" not in told


def test_cancelling_closes_the_engines_generator(client, server, photo):
    steps, undo = slowed(server[1], 0.05)
    job = client.submit(handle_file(photo), "the largest thing", api_name="/segment")
    deadline = time.monotonic() + 20
    while len(steps) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    job.cancel()
    time.sleep(0.6)
    at_rest = len(steps)
    time.sleep(1)
    undo()
    assert 5 <= at_rest == len(steps) < 40
    assert client.predict(handle_file(photo), "the largest thing", api_name="/segment")["stage"] == "done"


def test_two_visitors_at_once_get_their_own_answers(server, tmp_path):
    paths, answers = [], {}
    for i in (21, 22):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(draw_scene(i).image).save(paths[-1])

    def visit(i):
        answers[i] = Client(server[0], verbose=False).predict(
            handle_file(paths[i]), f"the largest thing {i}", api_name="/segment"
        )

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for i, seed in enumerate((21, 22)):
        alone = Engine(server[1].checkpoint).segment(draw_scene(seed).image, f"the largest thing {i}")
        assert answers[i]["result"]["instruction"] == f"the largest thing {i}"
        assert answers[i]["result"]["reply"] == alone.reply


def test_examples_are_drawn_by_our_code_and_answered(mini):
    shown = examples()
    assert len(shown) >= 8
    outcomes = []
    for entry in json.loads((EXAMPLES / "examples.json").read_text()):
        picture = np.asarray(Image.open(EXAMPLES / entry["file"]))
        assert np.array_equal(picture, draw_scene(entry["seed"], "validation").image)
        outcomes.append(mini.segment(picture, entry["instruction"]).outcome)
    assert "nothing found" in outcomes and outcomes.count("found") >= 7


def test_the_handler_streams_thought_then_prior_then_mask(mini, photo, found):
    views = list(handlers.answer(Shelf(Engine(mini.checkpoint)), photo, found[1].instruction))
    thoughts = [v[1] for v in views if isinstance(v[1], str)]
    assert len(thoughts) > 20 and "<details>" in thoughts[-1]
    priors, masks = ([i for i, v in enumerate(views) if isinstance(v[k], np.ndarray)] for k in (2, 3))
    assert priors == [len(views) - 2] and masks == [len(views) - 1]
    assert "IoU" in views[-1][4] and f"{found[2].prior_iou:.2f}" in views[-1][4]


def test_what_people_and_models_write_is_escaped():
    for update in (
        Update("thinking", "<think><script>alert(1)</script>"),
        Update("thinking", "<think>a</think><img onerror=x>"),
    ):
        assert "<script" not in panels.thought(update) and "<img" not in panels.thought(update)
    assert "<b>" not in panels.header(
        "<b>x</b>", {"device": "<i>", "dtype": "f", "quantization": "none"}, "focus token"
    ).replace("<b>&lt;", "")


def test_opening_the_page_is_light(server):
    """The page, its style and its pictures from our side stay under 1.5 MB."""
    own = (
        sum(f.stat().st_size for f in EXAMPLES.glob("*.png"))
        + (EXAMPLES.parent.parent / "app" / "style.css").stat().st_size
    )
    assert own < 1.5e6


@pytest.mark.parametrize(
    "options, words",
    [
        (["--port", "many"], "no number from 1 to 65535"),
        (["--model", "nowhere"], "no checkpoint"),
        (["--device", "abacus"], "not known"),
    ],
)
def test_a_wrong_option_of_the_app_is_one_sentence(options, words):
    run = subprocess.run(
        [sys.executable, "app.py", *options], cwd=EXAMPLES.parent.parent, capture_output=True, text=True, timeout=90
    )
    assert run.returncode == 1 and words in run.stderr and "Traceback" not in run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith("error: ")


# --- models


def test_the_page_lists_every_model_and_why_one_does_not_fit(mini, monkeypatch):
    monkeypatch.setattr(catalogue, "free_memory", lambda device: 9_000_000_000)
    rows = Shelf(mini, device="cpu").rows()
    table, choices = panels.models(rows), dict((n, label) for label, n in panels.choices(rows))
    assert all(name in table for name in catalogue.NAMES)
    assert "mini" in choices and "does not fit: needs 11.1 GB of memory on cpu, 9.0 GB free" in choices["qwen2.5-vl-3b"]
    assert "--quantize nf4 needs 7.1 GB" in choices["qwen2.5-vl-3b"]


def test_a_model_can_be_exchanged_and_a_failure_leaves_the_old_one(mini, tmp_path, found):
    other = tmp_path / "other"
    shutil.copytree(MINIATURE, other)
    shelf = Shelf(Engine(mini.checkpoint), device="cpu")
    *progress, last = handlers.choose(shelf, str(other))
    assert shelf.engine.name == str(other) and "Loading" in progress[0][0]
    assert str(other) in last[1] and last[3]["label"] == panels.PRIOR_LABELS["focus token"]
    (tmp_path / "empty").mkdir()
    *_, last = handlers.choose(shelf, str(tmp_path / "empty"))
    assert "holds no coprs.json" in last[0] and "failed" in last[0] and shelf.engine.name == str(other)
    assert shelf.engine.segment(found[0].image, found[1].instruction).outcome == "found"


def test_a_picture_of_a_coordinates_model_is_called_so(mini, tmp_path):
    model = tiny.coprs(tiny.qwen())
    folder, sam = tiny.save_mllm(tmp_path / "qwen", model.mllm), tiny.save_sam(tmp_path / "sam.pth", model)
    shelf = Shelf(Engine(mini.checkpoint), device="cpu", sam=str(sam))
    *_, last = handlers.choose(shelf, str(folder))
    assert "coordinates" in last[1] and "focus token" not in last[1]
    assert last[3]["label"] == panels.PRIOR_LABELS["coordinates"] and not last[2]


def test_the_table_is_there_with_a_sam_file_of_ones_own(mini):
    assert len(Shelf(mini, device="cpu", sam="vit_of_mine.pth").rows()) == len(catalogue.NAMES)


def test_without_leave_nobody_can_exchange_the_model(mini):
    named = {d.fn.func for d in build(Shelf(mini)).fns.values() if isinstance(d.fn, functools.partial)}
    assert handlers.choose not in named
    named = {d.fn.func for d in build(Shelf(mini), may_choose=True).fns.values() if isinstance(d.fn, functools.partial)}
    assert handlers.choose in named


# --- why


def test_the_trace_shows_every_sentence_and_where_the_focus_settles(mini, photo, found):
    shelf = Shelf(Engine(mini.checkpoint))
    *_, last = handlers.answer(shelf, photo, found[1].instruction)
    answered = last[-1]
    assert answered.result.outcome == "found" and answered.photo_path == photo
    pictures, words = handlers.trace(shelf, answered)
    assert len(pictures) >= 2 and all(p.dtype == np.uint8 and "IoU" in caption for p, caption in pictures)
    assert "The focus settles after sentence" in words
    with pytest.raises(gr.Error, match="no answer to look into yet"):
        handlers.trace(shelf, None)


@pytest.mark.parametrize("set_by, host", [({}, "127.0.0.1"), ({"GRADIO_SERVER_NAME": "0.0.0.0"}, "0.0.0.0"), ({"GRADIO_SERVER_NAME": "0.0.0.0", "COPRS_HOST": "::1"}, "::1")])  # fmt: skip
def test_a_space_is_listened_to_from_outside(set_by, host):
    """Spaces say where to listen through Gradio's own variable; ours wins."""
    environment = {k: v for k, v in os.environ.items() if k not in ("GRADIO_SERVER_NAME", "COPRS_HOST")} | set_by
    told = subprocess.run(
        [sys.executable, "app.py", "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert f"(now {host})" in told.stdout
