"""The app on a real Gradio server, asked by real clients."""

import base64
import dataclasses
import io
import json
import os
import shutil
import string
import subprocess
import sys
import threading
import time
import zipfile
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app import handlers, texts
from app.views import canvas as canvases
from app.views import page as panels
from app.views import probes as why
from app.handlers import Page
from app.ui import EXAMPLES, build, examples, launch
from coprs_core import Region, Result, probes
from coprs_core.checkpoints import catalogue
from coprs_core.answer import compare
from coprs_core.checkpoints.load import MINIATURE
from coprs_core.answer.engine import Engine, Update
from coprs_core.photos import Photo
from coprs_core.answer.results import decode_prior, decode_rle
from coprs_core.world.scenes import draw_scene
from app.serving import Shelf
from tests import tiny
from tests.conftest import slowed
from tests.test_zoom import tiny_targets

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def server(mini):
    engine = Engine(mini.checkpoint)
    demo = build(Shelf(engine, device="cpu"), may_choose=True)
    _, url, _ = launch(demo, quiet=True)
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


ENDPOINTS = {
    "/segment": ["photo", "instruction"],
    "/sentences": ["photo", "result"],
    "/word": ["photo", "result", "word"],
    "/heads": ["photo", "result"],
    "/focus_again": ["photo", "instruction", "thought"],
    "/compare": ["first", "second"],
    "/truth": ["result", "truth"],
    "/zoom": ["photo", "result"],
    "/download": ["photo", "result"],
    "/open": ["archive"],
    "/models": [],
    "/use_model": ["name"],
}


def test_every_button_is_a_named_typed_and_documented_endpoint_and_nothing_else_is(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name: [p["parameter_name"] for p in e["parameters"]] for name, e in endpoints.items()} == ENDPOINTS
    assert all(e["description"] for e in endpoints.values())
    assert all(p["python_type"]["type"] != "Any" for e in endpoints.values() for p in e["parameters"])


def test_every_probe_answers_a_program(client, server, photo, found, tmp_path):
    _, question, result = found
    upload = handle_file(photo)
    told = client.predict(upload, question.instruction, api_name="/segment")["result"]
    assert np.abs(Result.from_dict(told).prior - result.prior).max() <= 1 / 200 + 1e-6
    job = client.submit(upload, told, api_name="/sentences")
    job.result()
    sentences = job.outputs()
    assert len(sentences) >= 2 and sum(x["settled"] for x in sentences) == 1
    assert sentences[-1]["iou"] == pytest.approx(result.prior_iou, abs=0.02)
    word = client.predict(upload, told, "see", api_name="/word")
    assert word["text"].strip() == "see" and word["trained"] is False and decode_rle(word["mask"]).shape == (256, 256)
    heads = client.predict(upload, told, api_name="/heads")
    assert len(heads) == 4 and all(h["low"] < h["high"] and decode_prior(h["map"]).max() == 1 for h in heads)
    again = client.predict(upload, question.instruction, result.reasoning, api_name="/focus_again")
    assert client.predict(told, again, api_name="/compare")["mask_iou"] > 0.99
    Image.fromarray(result.mask).save(tmp_path / "truth.png")
    truth = client.predict(told, handle_file(str(tmp_path / "truth.png")), api_name="/truth")
    assert truth["mask_iou"] == 1 and len(truth["prior_curve"]) == 101
    archive = client.predict(upload, told, api_name="/download")
    assert {"result.json", "sentences.json", "chain.pdf", "prior.npy"} <= set(zipfile.ZipFile(archive).namelist())
    reopened = Result.from_dict(client.predict(handle_file(archive), api_name="/open"))
    assert np.array_equal(reopened.mask, result.mask) and reopened.reply == result.reply
    assert [row["name"] for row in client.predict(api_name="/models")][0] == "mini"
    assert client.submit("mini", api_name="/use_model").result() == "mini is in use."


def test_a_small_thing_is_zoomed_into_for_a_program(client, tmp_path):
    scene, question = next(tiny_targets("test", 300))
    Image.fromarray(scene.image).save(tmp_path / "p.png")
    upload = handle_file(str(tmp_path / "p.png"))
    told = client.predict(upload, question.instruction, api_name="/segment")["result"]
    zoomed = client.predict(upload, told, api_name="/zoom")
    assert zoomed["crop"]["side"] < 256 and zoomed["result"]["reply"] == told["reply"]


BAD_RESULTS = [({}, "schema version"), ({"schema_version": 1}, "broken"), ({"regions": [{"mask": {}}]}, "broken"),
               ({"reply_ids": [10**9]}, "token ids"), ({"model": "other"}, "load that model"),
               ({"photo_size": [8, 8]}, "broken")]  # fmt: skip


@pytest.mark.parametrize("change, words", BAD_RESULTS)
def test_a_result_that_a_stranger_made_is_one_sentence(client, photo, found, change, words):
    told = (
        found[2].to_dict(with_priors=True) | change if len(change) == 1 and "schema_version" not in change else change
    )
    with pytest.raises(AppError, match=words) as error:
        client.predict(handle_file(photo), told, api_name="/sentences")
    assert "Traceback" not in str(error.value)


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
    views = list(Page(Shelf(Engine(mini.checkpoint))).answer(photo, found[1].instruction, None))
    thoughts = [v[1] for v in views if isinstance(v[1], str)]
    assert len(thoughts) > 20 and "<details>" in thoughts[-1]
    canvases = [i for i, v in enumerate(views) if isinstance(v[2], str) and "<canvas" in v[2]]
    assert canvases == [len(views) - 2, len(views) - 1]
    assert 'class="mask"' not in views[-2][2] and 'class="mask"' in views[-1][2]
    assert f'<b class="iou">{found[2].prior_iou:.2f}</b>' in views[-1][2]


def test_the_stages_say_how_long_they_take_and_how_fast_the_thought_is(mini, photo, found):
    engine = Engine(mini.checkpoint)
    for reused in (False, True):
        views = list(Page(Shelf(engine)).answer(photo, found[1].instruction, None))
        assert "tokens/s" in views[10][0] and 'class="active"' in views[10][0]
        assert views[-1][0].count('class="done"') == 4 and ("photo already read" in views[-1][0]) == reused


def test_recent_answers_are_few_and_not_too_large(found):
    def answered(height, width):
        return handlers.Answered(Photo(Image.new("RGB", (width, height)), "key"), found[2])

    recent = ()
    for _ in range(12):
        recent = handlers.remembered(answered(10, 10), recent)
    assert len(recent) == handlers.MOST_RECENT
    recent = handlers.remembered(answered(5000, 4000), recent)
    assert len(recent) == handlers.MOST_RECENT
    assert len(handlers.remembered(answered(5000, 4000), recent)) == 1
    assert len(handlers.remembered(answered(8000, 8000), recent)) == 1  # one is always kept


def test_what_people_and_models_write_is_escaped():
    for update in (
        Update("thinking", "<think><script>alert(1)</script>"),
        Update("thinking", "<think>a</think><img onerror=x>"),
    ):
        assert "<script" not in panels.thought("en", update) and "<img" not in panels.thought("en", update)


def test_every_panel_escapes_what_it_is_given(found):
    bad = '<img src=x onerror="alert(1)">'
    scene, _, result = found
    result = dataclasses.replace(result, instruction=bad, reasoning=f"{bad}. {bad}", reply=f"<think>{bad}</think>{bad}",
                                 reason=bad, model=bad)  # fmt: skip
    look = probes.Look(bad, result.prior, result.mask, 0.5, 0.5)
    engine = SimpleNamespace(name=bad, settings={"device": bad, "dtype": bad, "quantization": bad}, prior_kind=bad)
    nothing = dataclasses.replace(result, regions=(), outcome="nothing found")
    region = dataclasses.replace(result.regions[0], label=bad)
    several = dataclasses.replace(result, regions=(region, region))
    both = compare.against_answer(result, result)
    for html in (
        panels.header("en", engine), panels.answered_thought("en", result), canvases.answer_view("en", scene.image, result),
        canvases.answer_view("en", scene.image, nothing), canvases.answer_view("en", scene.image, several),
        why.trace("en", scene.image, result, (look, look), 0), panels.words("en", [bad]), panels.loading(bad),
        why.one_look("en", scene.image, look, bad), panels.notice("en", bad),
        why.pair("en", scene.image, (result, result), (bad, bad), both),
        why.differences("en", scene.image, result.mask, result.mask, (bad, bad), "x", bad),
    ):  # fmt: skip
        assert "<img src=x" not in html and "&lt;img" in html or "<img src=x" not in html


def test_an_empty_mask_is_never_called_agreement(found):
    scene, _, result = found
    nothing = np.zeros(result.photo_size, bool)
    empty = dataclasses.replace(result, regions=(Region(nothing.astype(np.float32), nothing),))
    html = canvases.answer_view("en", scene.image, empty)
    assert texts.ENGLISH["flag_empty"] in html and texts.ENGLISH["agree"] not in html and '<b class="iou">–</b>' in html


def test_both_languages_say_the_same_things():
    assert texts.ENGLISH.keys() == texts.CHINESE.keys()
    fields = lambda text: sorted(f for _, f, _, _ in string.Formatter().parse(text) if f)  # noqa: E731
    assert all(fields(texts.ENGLISH[k]) == fields(texts.CHINESE[k]) for k in texts.ENGLISH)


@pytest.mark.parametrize(
    "accepted, language",
    [(None, "en"), ("", "en"), ("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("de,en;q=0.5", "en"), ("fr, ZH-TW", "zh")],
)
def test_the_page_speaks_the_browsers_language(accepted, language):
    assert texts.language_of(accepted) == language


def test_opening_the_page_is_light(server):
    """The page, its style and its pictures from our side stay under 1.5 MB."""
    own = [*EXAMPLES.glob("*.png"), ROOT / "app" / "static" / "style.css", ROOT / "app" / "static" / "view.js"]
    assert len(own) > 8 and sum(f.stat().st_size for f in own) < 1.5e6


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
    table, choices = panels.models("en", rows), dict((n, label) for label, n in panels.choices(rows))
    assert all(name in table for name in catalogue.NAMES)
    assert "mini" in choices and "does not fit: needs 11.1 GB of memory on cpu, 9.0 GB free" in choices["qwen2.5-vl-3b"]
    assert "--quantize nf4 needs 7.1 GB" in choices["qwen2.5-vl-3b"]


def test_a_model_can_be_exchanged_and_a_failure_leaves_the_old_one(mini, tmp_path, found):
    other = tmp_path / "other"
    shutil.copytree(MINIATURE, other)
    shelf = Shelf(Engine(mini.checkpoint), device="cpu")
    *progress, last = Page(shelf).choose(str(other))
    assert shelf.engine.name == str(other) and "Loading" in progress[0][0] and str(other) in last[1]
    (tmp_path / "empty").mkdir()
    *_, last = Page(shelf).choose(str(tmp_path / "empty"))
    assert "holds no coprs.json" in last[0] and "failed" in last[0] and shelf.engine.name == str(other)
    assert shelf.engine.segment(found[0].image, found[1].instruction).outcome == "found"


def test_a_picture_of_a_coordinates_model_is_called_so(mini, tmp_path):
    model = tiny.coprs(tiny.qwen())
    folder, sam = tiny.save_mllm(tmp_path / "qwen", model.mllm), tiny.save_sam(tmp_path / "sam.pth", model)
    shelf = Shelf(Engine(mini.checkpoint), device="cpu", sam=str(sam))
    page = Page(shelf)
    *_, last = page.choose(str(folder))
    assert "coordinates" in last[1] and "focus token" not in last[1] and not last[2]
    *_, opened = page.opened()
    assert texts.ENGLISH["prior_coordinates"] in opened[4]


def test_several_regions_are_numbered_coloured_and_selectable(found):
    scene, _, result = found
    here, there = result.regions[0].mask, np.roll(result.regions[0].mask, 60, 0)
    regions = tuple(Region(m.astype(np.float32), m, label=f"thing {i}") for i, m in enumerate((here, there)))
    html = canvases.answer_view(
        "en", scene.image, dataclasses.replace(result, regions=regions, prior_kind="coordinates")
    )
    assert html.count('class="badge"') == 2 and html.count("data-look=") == 3
    looks = json.loads(unescape(html.split('data-view="')[1].split('"')[0]))["looks"]
    masks = [np.asarray(Image.open(io.BytesIO(base64.b64decode(x["mask"].split(",")[1])))) for x in looks]
    assert np.array_equal(masks[0] > 0, here | there) and set(np.unique(masks[0])) == {0, 1, 2}
    assert np.array_equal(masks[1] == 1, here) and np.array_equal(masks[2] == 2, there)
    assert [x["label"] for x in looks] == ["all", "1 thing 0", "2 thing 1"]


def test_the_table_is_there_with_a_sam_file_of_ones_own(mini):
    assert len(Shelf(mini, device="cpu", sam="vit_of_mine.pth").rows()) == len(catalogue.NAMES)


def test_without_leave_nobody_can_exchange_the_model(mini):
    def named(**options):
        return {getattr(d.fn, "__name__", "") for d in build(Shelf(mini), **options).fns.values()}

    assert not {"choose", "use_model"} & named() and {"choose", "use_model"} <= named(may_choose=True)


# --- why


@pytest.fixture
def asked(mini, photo, found):
    """(page, the visitor's answer)"""
    page = Page(Shelf(Engine(mini.checkpoint)))
    *_, last = page.answer(photo, found[1].instruction, None)
    return page, last[3]


def test_every_probe_has_its_panel_and_changes_nothing(asked, found, tmp_path):
    page, answered = asked
    before = answered.result.to_json(), answered.result.prior.copy(), answered.result.mask.copy()
    traced, with_looks = page.trace(answered)
    assert traced.count("<li>") == len(with_looks.looks) >= 2 and "the focus settles here" in traced
    assert "not trained for this" in page.word(answered, SimpleNamespace(index=5))
    assert page.heads(answered).count("<img") == 5
    assert page.focus_again(answered, "That is the other one.").count("<coprs-view") == 2
    *_, (compared, recent, _) = page.ask_again(answered, "the largest thing", ())
    assert "IoU of the two masks" in compared and recent[0].result.instruction == "the largest thing"
    assert "IoU of the two masks" in page.compare(answered, 0, recent)
    Image.fromarray(answered.result.mask).save(tmp_path / "truth.png")
    assert "Mask: IoU 1.00" in page.truth(answered, None, str(tmp_path / "truth.png"))
    painted = np.zeros((256, 256, 4), np.uint8)
    painted[answered.result.mask] = 255
    assert "Mask: IoU 1.00" in page.truth(answered, {"layers": [Image.fromarray(painted)]}, None)
    assert (answered.result.to_json(), True, True) == (before[0], (answered.result.prior == before[1]).all(), (answered.result.mask == before[2]).all())  # fmt: skip
    again = page.shelf.engine.segment(found[0].image, found[1].instruction)
    assert np.array_equal(again.prior, before[1]) and np.array_equal(again.mask, before[2])


def test_a_new_question_or_photo_lets_go_of_the_answer_before(asked, photo):
    page, answered = asked
    first = next(iter(page.answer(photo, "the largest thing", (answered,))))
    assert first[3] is None and page.begin()[3] is None  # what the probes would have looked into


def test_a_word_that_looks_nowhere_says_so(mini, asked):
    page, answered = asked
    numbers = range(len(answered.result.reply_ids))
    said = [page.word(answered, SimpleNamespace(index=i)) for i in numbers]
    highest = [probes.focus_at_word(mini, answered.photo, answered.result, i).prior.max() for i in numbers]
    assert [("it looks nowhere" in s) for s in said] == [bool(h < handlers.NOWHERE) for h in highest]
    assert 0 < sum(h < handlers.NOWHERE for h in highest) < len(highest)


def test_a_saved_answer_comes_back_to_the_page(asked, tmp_path):
    page, answered = asked
    downloading = page.download(answered)
    path = shutil.copy(next(downloading), tmp_path / "a.zip")
    downloading.close()
    other = Page(Shelf(page.shelf.engine))
    photo, instruction, *values = other.open_file(str(path), ())
    assert instruction == answered.result.instruction and np.array_equal(np.asarray(photo), answered.pixels)
    assert np.array_equal(values[3].result.prior, answered.result.prior) and len(values[4]) == 1
    assert values[2] == canvases.answer_view("en", answered.pixels, answered.result)


def test_mistakes_of_the_page_are_sentences(asked, tmp_path):
    page, answered = asked
    (tmp_path / "a.zip").write_text("x")
    for work, words in (
        (lambda: page.trace(None), "no answer to look into yet"),
        (lambda: page.word(None, SimpleNamespace(index=0)), "no answer"),
        (lambda: page.word(answered, SimpleNamespace(index=10**6)), "count from 0"),
        (lambda: page.focus_again(answered, " "), "thought is empty"),
        (lambda: list(page.ask_again(answered, "", ())), "instruction is empty"),
        (lambda: page.compare(answered, None, ()), "earlier answer"),
        (lambda: page.truth(answered, None, None), "Nothing is painted"),
        (lambda: list(page.download(None)), "no answer"),
        (lambda: page.open_file(str(tmp_path / "a.zip"), ()), "saved answer"),
        (lambda: page.restore(None, SimpleNamespace(index=0)), "no longer kept"),
    ):
        with pytest.raises(gr.Error, match=words):
            work()


# --- opening


@pytest.mark.parametrize("set_by, host", [({}, "127.0.0.1"), ({"GRADIO_SERVER_NAME": "0.0.0.0"}, "0.0.0.0"), ({"GRADIO_SERVER_NAME": "0.0.0.0", "COPRS_HOST": "::1"}, "::1")])  # fmt: skip
def test_a_space_is_listened_to_from_outside(set_by, host):
    """Spaces say where to listen through Gradio's own variable; ours wins."""
    environment = {k: v for k, v in os.environ.items() if k not in ("GRADIO_SERVER_NAME", "COPRS_HOST")} | set_by
    told = subprocess.run(
        [sys.executable, "app.py", "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert f"(now {host})" in told.stdout


def test_the_readmes_example_for_programs_runs(server, capsys, monkeypatch):
    text = (ROOT / "README.md").read_text()
    example = next(b.split("```")[0] for b in text.split("```python\n")[1:] if "gradio_client" in b)
    monkeypatch.chdir(ROOT)
    exec(example.replace("http://127.0.0.1:7860", server[0]).replace("Client(", "Client(verbose=False, src="), {})
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("reading") and any("(the focus settles here)" in line for line in told)
    assert zipfile.is_zipfile(told[-1])


def test_the_readmes_example_in_python_runs(capsys, monkeypatch):
    text = (ROOT / "README.md").read_text()
    example = next(b.split("```")[0] for b in text.split("```python\n")[1:] if "from coprs_core import load" in b)
    monkeypatch.chdir(ROOT)
    exec(example, {})
    assert "umbrella" in capsys.readouterr().out
