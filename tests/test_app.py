"""The app on a real Gradio server, asked by real clients."""

import json
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app import handlers, panels
from app.ui import EXAMPLES, build, examples, launch
from coprs_core.engine import Engine, Update
from coprs_core.scenes import draw_scene
from tests.conftest import slowed


@pytest.fixture(scope="module")
def server(mini):
    engine = Engine(mini.checkpoint)
    demo = build(engine)
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
    views = list(handlers.answer(Engine(mini.checkpoint), photo, found[1].instruction))
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
    assert "<b>" not in panels.header("<b>x</b>", {"device": "<i>", "dtype": "f", "quantization": "none"}).replace(
        "<b>&lt;", ""
    )


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
