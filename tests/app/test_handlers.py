"""The app on a real Gradio server, asked by real clients."""

import base64
import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import string
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from markupsafe import escape
from PIL import Image

from app import handlers, saved_answers, texts, visitors
from app.actions import AnswerActions
from app.examples import EXAMPLES, examples
from app.handlers import Frame, Handlers
from app.options import ServerOptions
from app.server import uploads
from app.server.answers import StoredAnswer
from app.server.model import MAX_PIXELS_AT_ONCE, ModelServer
from app.ui import build, launch
from app.views import canvas, findings, page
from app.views.render import TEMPLATES
from app.views.standalone import standalone
from coprs_core import CoPRSError, Region, Result, load
from coprs_core import calibrate as calibrating
from coprs_core.answer.compare import compare_with_truth
from coprs_core.answer.engine import Engine, Update
from coprs_core.answer.verdict import restated_question
from coprs_core.checkpoints import catalogue, plan
from coprs_core.checkpoints.load import MINIATURE_FOLDER
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.errors import Cancelled
from coprs_core.masks import decode_prior, decode_rle
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.model.backends import boxes
from coprs_core.photos.photo import Photo, open_photo
from coprs_core.probes import sentences
from coprs_core.probes.finding import Finding, Picture
from coprs_core.probes.trace import FocusView, SentenceTrace
from coprs_core.probes.words import WordMaps
from coprs_core.prompts import FOCUS_TOKEN_PRIOR, PRIOR_KINDS
from coprs_core.prompts import split_sentences as sentences_of
from tests import ROOT, tiny
from tests.conftest import PATIENCE, until
from tests.record import tiny_targets

SUPERSEDED = [{"steps": gr.skip()}]
"""What a handler ends with that another took the page from: Gradio sends its last value once more."""
CPU = LoadOptions(device="cpu")
CHEETAH = Path(gr.__file__).parent / "media_assets" / "images" / "cheetah1.jpg"
NAMES = Frame(**{f.name: f.name for f in dataclasses.fields(Frame)})
"""In place of components: handlers give new values by these names."""


def handlers_for(model, options=CPU) -> Handlers:
    return Handlers(ModelServer(model, options), NAMES)


@pytest.fixture(scope="module")
def server(mini):
    engine = Engine(mini.checkpoint)
    demo = build(ModelServer(engine, CPU), may_switch=True)
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
    assert (
        final["outcome"] == "found"
        and final["regions"][0]["mask"] == result.to_dict()["regions"][0]["mask"]
    )


ENDPOINTS = {
    "/segment": ["photo", "instruction"],
    "/sentences": ["photo", "result"],
    "/words": ["photo", "result"],
    "/word": ["photo", "result", "word"],
    "/attention": ["photo", "result"],
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
    assert {
        name: [p["parameter_name"] for p in e["parameters"]] for name, e in endpoints.items()
    } == ENDPOINTS
    assert all(e["description"] for e in endpoints.values())
    assert all(
        p["python_type"]["type"] != "Any" for e in endpoints.values() for p in e["parameters"]
    )


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
    assert (
        word["text"].strip() == "see"
        and word["trained"] is False
        and decode_rle(word["mask"]).shape == (256, 256)
    )
    heads = client.predict(upload, told, api_name="/heads")
    assert len(heads) == 4 and all(
        h["low"] < h["high"] and decode_prior(h["map"], result.photo_size).max() == 1 for h in heads
    )
    again = client.predict(upload, question.instruction, result.reasoning, api_name="/focus_again")
    assert client.predict(told, again, api_name="/compare")["mask_iou"] > 0.99
    Image.fromarray(result.mask).save(tmp_path / "truth.png")
    truth = client.predict(told, handle_file(str(tmp_path / "truth.png")), api_name="/truth")
    assert truth["mask_iou"] == 1 and len(truth["prior_curve"]) == 101
    archive = client.predict(upload, told, api_name="/download")
    assert {"result.json", "sentences.json", "chain.pdf", "prior.npy"} <= set(
        zipfile.ZipFile(archive).namelist()
    )
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
               ({"photo_size": [8, 8]}, "not the one that the answer is about")]  # fmt: skip


@pytest.mark.parametrize("change, words", BAD_RESULTS)
def test_a_result_that_a_stranger_made_is_one_sentence(client, photo, found, change, words):
    told = (
        found[2].to_dict(with_priors=True) | change
        if len(change) == 1 and "schema_version" not in change
        else change
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
    told = httpx.get(f"{url}/{event}", timeout=PATIENCE).text
    assert "event: error" in told and "umbrella at" not in told and "done" not in told


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
        alone = Engine(server[1].checkpoint).segment(
            draw_scene(seed).image, f"the largest thing {i}"
        )
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


def test_the_handler_streams_thought_then_prior_then_mask(mini, photo, found, monkeypatch):
    monkeypatch.setattr(handlers, "UPDATE_INTERVAL", 0)
    updates = list(handlers_for(Engine(mini.checkpoint)).answer(photo, found[1].instruction, None))
    thoughts = [u["thought"] for u in updates if "thought" in u]
    assert len(thoughts) > 20 and 'class="sentence last"' in thoughts[-1]
    drawn = [i for i, u in enumerate(updates) if "<canvas" in u.get("view", "")]
    assert drawn == [len(updates) - 2, len(updates) - 1]
    before, after = updates[-2]["view"], updates[-1]["view"]
    assert 'class="mask"' not in before and 'class="mask"' in after
    assert f'<b class="iou">{found[2].prior_iou:.2f}</b>' in after


def test_a_thought_faster_than_a_page_shows_is_told_in_larger_steps(
    mini, photo, found, monkeypatch
):
    def told(seconds: float) -> list[str]:
        """The states of the thought, where so many seconds pass between two looks at the clock."""
        clock = itertools.count(step=seconds)
        monkeypatch.setattr(handlers, "time", SimpleNamespace(monotonic=clock.__next__))
        answering = handlers_for(Engine(mini.checkpoint)).answer
        updates = list(answering(photo, found[1].instruction, None))
        return [u["thought"] for u in updates if "thought" in u]

    quick = told(handlers.UPDATE_INTERVAL / 10)
    assert len(quick) < found[2].tokens / 8 + 4
    assert 'class="sentence last"' in quick[-1]  # nothing is lost
    assert len(told(1.2 * handlers.UPDATE_INTERVAL)) > found[2].tokens  # token by token


def test_the_stages_say_how_long_they_take_and_how_fast_the_thought_is(
    mini, photo, found, monkeypatch
):
    monkeypatch.setattr(handlers, "UPDATE_INTERVAL", 0)
    engine = Engine(mini.checkpoint)
    for reused in (False, True):
        updates = list(handlers_for(engine).answer(photo, found[1].instruction, None))
        assert "tokens/s" in updates[10]["steps"] and 'class="active"' in updates[10]["steps"]
        last = updates[-1]["steps"]
        assert last.count('class="done"') == 4 and ("read before" in last) == reused


def test_recent_answers_are_few(found):
    photo, recent = Photo(Image.new("RGB", (10, 10)), "key"), ()
    for _ in range(12):
        recent = visitors.add_recent(StoredAnswer(photo, found[2]), recent)
    assert len(recent) == visitors.MAX_RECENT


# --- hostile text


HOSTILE = [
    '<img src=x onerror="alert(1)">',
    "<script>alert(1)</script>",
    "\"'><b onmouseover='alert(1)'>&amp;</b>",
    "</coprs-view></div>{{ 7 * 7 }}{% raw %}",
]


def every_view(bad: str, found, server) -> dict[str, str]:
    """Everything that the page renders, with the same text wherever a stranger or a model has a
    say."""
    scene, _, result = found
    photo, pixels = open_photo(scene.image), scene.image
    result = dataclasses.replace(
        result,
        instruction=bad,
        reasoning=f"{bad}. {bad}",
        reply=f"<think>{bad}</think>{bad}",
        reason=bad,
        model=bad,
    )
    view = FocusView(bad, result.prior, result.mask, 0.5, 0.5)
    settings = {"device": bad, "dtype": bad, "quantization": bad}
    engine = SimpleNamespace(name=bad, settings=settings, prior_kind=bad)
    nothing = dataclasses.replace(result, regions=(), outcome="nothing found")
    unfinished = dataclasses.replace(result, regions=(), outcome="unfinished")
    region = dataclasses.replace(result.regions[0], label=bad)
    several = dataclasses.replace(result, regions=(region, region))
    scores = findings.compare_answers(result, result)
    rows = [dataclasses.replace(r, name=bad, about=bad, files=bad, licence=bad, reason=bad, fits=False)
            for r in server.model_rows()]  # fmt: skip
    difference = findings.Difference(result.mask, result.mask, bad, bad)
    line = findings.ChartLine("#000", bad, [0.0, 1.0])

    class Found(Finding):
        def pictures(self, photo):
            return [Picture("probe_word", {"word": bad, "highest": bad}, pixels)]

    answered = StoredAnswer(photo, result)
    compared = AnswerActions(server, visitors.RequestGate()).compare(answered, 0, (answered,))
    looks = WordMaps([bad, bad], np.zeros((2, 4, 4), np.float32), [0.0, 1.0], [False, True])
    offers = page.AllowedActions(edit=True, words=True)
    repair = page.Repair(bad, bad)
    trace = SentenceTrace((view, view))
    return {
        "masthead": page.header("en", engine),
        "notice": page.notice("en", bad) + page.notice("en", bad, may_switch=True),
        "explanation": page.explanation("en", bad, repair),
        "unfamiliar": page.unfamiliar("en", bad, None, bad),
        "steps": page.stages("en", Update("thinking", bad, rate=3.0)),
        "thought": page.thought("en", Update("thinking", f"<think>{bad}</think>{bad}")),
        "thought_empty": page.thought("en"),
        "thought_done": page.finished_thought(
            "en", result, offers, findings.word_views("en", looks), recorded=True
        ),
        "thought_stopped": page.stopped_thought("en", page.thought("en")),
        "stopped_mark": page.stopped_thought("en", page.thought("en", Update("thinking", f"<think>{bad}"))),
        "strip": findings.strip_view("en", photo, SentenceTrace((view, view))),
        "strip_empty": findings.empty_strip("en"),
        "verdict_found": page.verdict("en", result),
        "verdict_none": page.verdict("en", nothing) + page.verdict("en", unfinished),
        "verdict_empty": page.empty_verdict("en"),
        "agreement": canvas.empty_view("en"),
        "changed": canvas.changed_view("en", pixels, result, result),
        "help": page.help_text("en"),
        "reason": page.disabled_reason("en", bad),
        "taken": page.link_note("en", bad),
        "standalone": re.sub(
            r"<style>.*?</style>|<script.*?</script>",
            "",
            standalone("en", photo, result, trace),
            flags=re.DOTALL,
        ),
        "models": page.models_table("en", rows),
        "loading": page.loading_progress("en", bad, failed=True),
        "empty_view": canvas.answer_view("en", pixels, nothing),
        "empty_figure": canvas.empty_view("en"),
        "view": canvas.answer_view("en", pixels, several),
        "controls": canvas.answer_view("en", pixels, result),
        "prior_figure": canvas.Canvas("en", pixels).prior_figure("focus token", bad),
        "mask_figure": canvas.Canvas("en", pixels).mask_figure(bad),
        "numbers": findings.numbers_view("en", photo, result, trace),
        "chart": findings.chart("en", [line], 1),
        "pictures": findings.pictures_view("en", photo, result, Found()),
        "pair": findings.side_by_side("en", photo, (result, nothing), (bad, bad)),
        "pair_caption": findings.side_by_side("en", photo, (result, result), (bad, bad)),
        "legend": findings.difference_view("en", photo, difference, bad),
        "facts": findings.truth_view("en", photo, result, result.mask,
                                        compare_with_truth(result, result.mask)),
        "compared": compared,
        "agreement_words": findings.agreement_sentence("en", scores),
    }  # fmt: skip


TAG = re.compile(r"<(/?[a-z][a-z0-9-]*)((?:[^<>\"']|\"[^\"]*\"|'[^']*')*)>", re.IGNORECASE)


def skeleton(html: str) -> list[str]:
    """The tags of a text in order, each with the names of its attributes: what a browser would make
    of it."""
    names = re.compile(r"([\w-]+)(?:=(?:\"[^\"]*\"|'[^']*'|[^\s\"'>]+))?")
    return [m[1] + " " + " ".join(n[1] for n in names.finditer(m[2])) for m in TAG.finditer(html)]


@pytest.fixture(scope="module")
def harmless(found, mini):
    return every_view("harmless", found, ModelServer(mini, CPU))


@pytest.mark.parametrize("bad", HOSTILE)
def test_hostile_text_is_shown_as_text_in_every_template(found, mini, harmless, bad):
    """With hostile text the page has the very same tags and attributes as with harmless text, and
    the text is there."""
    views = every_view(bad, found, ModelServer(mini, CPU))
    assert {t.stem for t in TEMPLATES.glob("*.html")} <= views.keys()
    for name, html in views.items():
        assert skeleton(html) == skeleton(harmless[name]), name
        assert bad not in html, name
        if "harmless" in harmless[name]:
            in_data = json.dumps(str(escape(bad)))[1:-1]
            assert (
                str(escape(bad)) in html
                or in_data in html
                or str(escape(json.dumps(bad)[1:-1])) in html
            ), name


def test_the_check_of_hostile_text_would_see_an_unescaped_one():
    for bad in HOSTILE[:3]:
        assert skeleton(f"<p>{bad}</p>") != skeleton("<p>harmless</p>")


def test_how_the_question_was_understood_is_quoted_on_the_page_and_in_a_saved_one(found):
    photo = open_photo(found[0].image)
    for result in (found[2], saved_answers.load_recorded_answer().result):
        quote = str(escape(restated_question(result)))
        assert quote.startswith("You ask for ")
        assert f"It understood: “{quote}”" in page.verdict("en", result)
        assert f"它的理解：“{quote}”" in page.verdict("zh", result, recorded=True)
    assert f"“{restated_question(found[2])}”" in standalone("en", photo, found[2], None)
    hostile = dataclasses.replace(found[2], reasoning=f"You ask for {HOSTILE[0]}.")
    assert str(escape(HOSTILE[0])) in page.verdict("en", hostile)
    silent = dataclasses.replace(found[2], reasoning="It is the one on the left.")
    assert "understood" not in page.verdict("en", silent)


def test_an_empty_mask_is_never_called_agreement(found):
    scene, _, result = found
    nothing = np.zeros(result.photo_size, bool)
    empty = dataclasses.replace(result, regions=(Region(nothing.astype(np.float32), nothing),))
    html = canvas.answer_view("en", scene.image, empty) + page.verdict("en", empty)
    assert texts.ENGLISH["flag_empty"] in html and '<b class="iou">–</b>' in html
    assert 'data-link="looked" data-state="broken"' in html and 'data-link="drawn"' not in html


@pytest.mark.parametrize("other", texts.LANGUAGES.values(), ids=texts.LANGUAGES)
def test_all_languages_say_the_same_things(other):
    assert texts.ENGLISH.keys() == other.keys()
    fields = lambda text: sorted(f for _, f, _, _ in string.Formatter().parse(text) if f)  # noqa: E731
    assert all(fields(texts.ENGLISH[k]) == fields(other[k]) for k in texts.ENGLISH)


@pytest.mark.parametrize(
    "accepted, language",
    [
        (None, "en"),
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("de,en;q=0.5", "en"),
        ("ZH-TW", "zh"),
        ("fr, zh-TW", "en"),  # as Gradio's own labels, so that the page speaks one language
    ],
)
def test_the_page_speaks_the_browsers_language(accepted, language):
    assert texts.parse_language(accepted) == language


def test_opening_the_page_is_light(server):
    """The page, its style and its pictures from our side stay under 1.5 MB."""
    own = [
        *EXAMPLES.glob("*.png"),
        *(ROOT / "app" / "static").iterdir(),
    ]
    assert len(own) > 8 and sum(f.stat().st_size for f in own) < 1.5e6


@pytest.mark.parametrize(
    "options, words",
    [
        (["--model", "nowhere"], "no checkpoint"),
        (["--device", "abacus"], "not known"),
    ],
)
def test_a_wrong_option_of_the_app_is_one_sentence(options, words):
    run = subprocess.run(
        [sys.executable, "app.py", *options],
        cwd=EXAMPLES.parent.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 1 and words in run.stderr and "Traceback" not in run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith("error: ")


def test_a_port_that_is_none_is_one_sentence(mini):
    with pytest.raises(CoPRSError, match="'many' is not a number from 1 to 65535"):
        launch(build(ModelServer(mini)), ServerOptions(port="many"), quiet=True)


# --- models


def test_the_page_lists_every_model_and_why_one_does_not_fit(mini, monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda device: 9_000_000_000)
    unquantized = LoadOptions("cpu", quantization="none", sam="vit_h")
    rows = ModelServer(mini, unquantized).model_rows()
    table, choices = (
        page.models_table("en", rows),
        {n: label for label, n in page.model_choices(rows)},
    )
    assert all(name in table for name in catalogue.MODEL_NAMES)
    needs = "does not fit: in bfloat16 needs about 10.3 GB and cpu has 9.0 GB free"
    assert "mini" in choices and needs in choices["qwen2.5-vl-3b"]
    assert "--quantize nf4 needs 6.7 GB" in choices["qwen2.5-vl-3b"]


def test_a_model_can_be_switched_and_a_failure_leaves_the_old_one(mini, tmp_path, found):
    other = tmp_path / "other"
    shutil.copytree(MINIATURE_FOLDER, other)
    page_handlers = handlers_for(Engine(mini.checkpoint))
    server = page_handlers.server
    *progress, (_, values) = page_handlers.models.switch(str(other))
    assert server.engine.name == str(other) and "Loading" in progress[0][0]
    assert str(other) in values["header"] and not values["ways"]["visible"]
    (tmp_path / "empty").mkdir()
    *_, (html, kept) = page_handlers.models.switch(str(tmp_path / "empty"))
    assert "a folder that holds coprs.json" in html and "failed" in html and "ways" not in kept
    assert server.engine.name == str(other)
    assert server.engine.segment(found[0].image, found[1].instruction).outcome == "found"


def test_a_picture_of_a_coordinates_model_is_called_so(mini, tmp_path):
    model = tiny.coprs(tiny.qwen())
    folder = tiny.save_mllm(tmp_path / "qwen", model.mllm)
    sam = tiny.save_sam(tmp_path / "sam.pth", model)
    page_handlers = handlers_for(Engine(mini.checkpoint), LoadOptions(device="cpu", sam=str(sam)))
    *_, (_, values) = page_handlers.models.switch(str(folder))
    assert "attention" in values["header"] and "focus token" not in values["header"]
    assert not values["notice"]
    begun = page_handlers.reset()
    assert texts.ENGLISH["prior_attention"] in begun["view"]


def test_several_regions_are_numbered_coloured_and_selectable(found):
    scene, _, result = found
    here, there = result.regions[0].mask, np.roll(result.regions[0].mask, 60, 0)
    regions = tuple(
        Region(m.astype(np.float32), m, label=f"thing {i}") for i, m in enumerate((here, there))
    )
    html = canvas.answer_view(
        "en", scene.image, dataclasses.replace(result, regions=regions, prior_kind="coordinates")
    )
    assert html.count('class="badge"') == 2 and html.count("data-look=") == 3
    looks = json.loads(unescape(html.split('data-view="')[1].split('"')[0]))["looks"]
    masks = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(x["mask"].split(",")[1])))) for x in looks
    ]
    assert np.array_equal(masks[0] > 0, here | there) and set(np.unique(masks[0])) == {0, 1, 2}
    assert np.array_equal(masks[1] == 1, here) and np.array_equal(masks[2] == 2, there)
    assert [x["label"] for x in looks] == ["all", "1 thing 0", "2 thing 1"]


def test_the_table_is_there_with_a_sam_file_of_ones_own(mini):
    rows = ModelServer(mini, LoadOptions(device="cpu", sam="vit_of_mine.pth")).model_rows()
    assert len(rows) == len(catalogue.MODEL_NAMES)


def test_without_leave_nobody_can_switch_the_model(mini):
    def named(**options):
        demo = build(ModelServer(mini), **options)
        return {getattr(d.fn, "__name__", "") for d in demo.fns.values()}

    assert "use_model" not in named() and "use_model" in named(may_switch=True)


# --- reading ahead


def ahead(page_handlers, photo):
    """What is shown while a photo is read ahead."""
    skipped, *shown = page_handlers.read_ahead(photo)
    assert skipped == {"steps": gr.skip()}
    return shown


def test_a_photo_is_read_while_its_question_is_typed(mini, photo, found):
    page_handlers = handlers_for(Engine(mini.checkpoint))
    page_handlers.reset()
    before, after = ahead(page_handlers, photo)
    assert "active" in before["steps"] and "active" not in after["steps"]
    assert "steps ahead" in before["steps"]  # no button to stop it
    assert "done" in after["steps"] and not after["ways"]["visible"]
    *_, last = page_handlers.answer(photo, found[1].instruction, None)
    result = last["answer"].result
    assert result.photo_reused and result.reply == found[2].reply
    assert np.array_equal(result.regions[0].mask, found[2].regions[0].mask)
    assert np.array_equal(result.prior, found[2].prior)
    # the answer has the page: what is read ahead says nothing over it
    assert ahead(page_handlers, photo) == []


def test_who_waits_for_room_is_told_and_may_give_up(mini, photo):
    page_handlers = handlers_for(Engine(mini.checkpoint))
    page_handlers.reset()
    server, said = page_handlers.server, []
    line = server.semaphore
    with ThreadPoolExecutor() as pool, server.reserved(4000 * 3000):
        answer = page_handlers.answer(photo, "the cat", None)
        first = next(answer)  # what an answer begins with, though nothing is done
        assert "active" in first["steps"] and line.waiting_keys == []
        waits = pool.submit(lambda: said.extend(answer))
        until(lambda: line.waiting_keys)
        page_handlers.gate.begin(None)  # as Stop does
        waits.result(PATIENCE)
    assert said == SUPERSEDED and line.waiting_keys == [] and not line.total_size


def test_nothing_is_read_ahead_where_somebody_waits_or_seconds_are_counted(mini, photo):
    page_handlers = handlers_for(Engine(mini.checkpoint))
    page_handlers.reset()
    assert ahead(page_handlers, None) == []
    with page_handlers.server.reserved(open_photo(photo).pixels):
        assert ahead(page_handlers, photo) == []
    borrowed = Handlers(ModelServer(Engine(mini.checkpoint), CPU, worker=lambda w: w), NAMES)
    borrowed.reset()
    assert ahead(borrowed, photo) == []


def test_what_a_visitor_asked_meanwhile_comes_before_what_is_read_ahead(mini, photo):
    page_handlers = handlers_for(Engine(mini.checkpoint))
    page_handlers.reset()
    read = page_handlers.read_ahead(photo)
    assert next(read) and "active" in next(read)["steps"]
    page_handlers.gate.begin(None)
    assert list(read) == SUPERSEDED


@pytest.mark.parametrize("ends", ["another photo", "stop"])
def test_reading_ends_where_nobody_waits_for_it(mini, photo, ends):
    page_handlers, passes = handlers_for(Engine(mini.checkpoint)), []

    def block(*_):
        passes.append(1)
        if ends == "another photo":
            page_handlers.gate.begin(None, is_idle=True)
        else:
            page_handlers.gate.begin(None)

    page_handlers.reset()
    hooked = mini.model.image_encoder.blocks[1].register_forward_hook(block)
    try:
        if ends == "another photo":
            read = page_handlers.read_ahead(photo)
            assert next(read) and next(read)
        else:
            read = page_handlers.answer(photo, "the car", None)
            assert next(read)
        assert list(read) == SUPERSEDED and len(passes) == 1  # and no sentence about it
    finally:
        hooked.remove()
    assert not page_handlers.server.engine.cached_features(open_photo(photo))
    *_, last = page_handlers.answer(photo, "the car", None)
    assert last["answer"]


def test_what_is_read_ahead_is_taken_over_by_a_question_about_it(mini, photo):
    page_handlers = handlers_for(Engine(mini.checkpoint))
    page_handlers.reset()
    hooked = mini.model.image_encoder.blocks[1].register_forward_hook(
        lambda *_: page_handlers.gate.begin(None) and None
    )
    try:
        assert len(list(page_handlers.read_ahead(photo))) == 3  # says no more, and reads on
    finally:
        hooked.remove()
    assert page_handlers.server.engine.cached_features(open_photo(photo))


def test_what_is_read_ahead_gives_way_before_there_is_room(mini):
    """Two large photos are not worked on at once: who asks about the other waits outside."""
    server, passes, waits = ModelServer(Engine(mini.checkpoint)), [], []
    own, other = (open_photo(np.full((3, n, 3), 9, np.uint8)) for n in (3, 4))

    def block(*_):
        passes.append(1)
        waits.append(pool.submit(wait_for, other))
        until(lambda: other.key in server.semaphore.waiting_keys)

    def wait_for(photo):
        with server.reserved(MAX_PIXELS_AT_ONCE, photo.key):
            pass

    hooked = mini.model.image_encoder.blocks[1].register_forward_hook(block)
    with ThreadPoolExecutor() as pool:
        try:
            with pytest.raises(Cancelled):
                list(server.read_ahead(own, lambda: True))
        finally:
            hooked.remove()
        assert len(passes) == 1 and waits[0].result(timeout=60) is None
        read = server.read_ahead(own, lambda: True)
        next(read)
        for photo in (other, own):  # who waits for the same photo waits for this
            waits.append(pool.submit(wait_for, photo))
        until(lambda: len(server.semaphore.waiting_keys) >= 2)
        assert len(list(read)) == 1
        assert not any(wait.result(timeout=60) for wait in waits)


def test_a_refused_question_leaves_what_is_under_way(mini, photo, asked):
    page_handlers, answered = asked
    page_handlers.reset()
    read = page_handlers.read_ahead(photo)
    assert next(read) and next(read)
    for refused in (
        lambda: list(page_handlers.answer(photo, " ", None)),
        lambda: page_handlers.opening.restore((), event(index=3)),
        lambda: page_handlers.opening.open_file(None, None),
        lambda: change(page_handlers, answered, (), 0, ["x"]),
    ):
        with pytest.raises(gr.Error):
            refused()
    assert "done" in next(read)["steps"]


def test_what_breaks_off_is_under_way_no_more(mini, photo, monkeypatch):
    page_handlers = handlers_for(Engine(mini.checkpoint))
    whole = list(page_handlers.server.stream(open_photo(photo), "the car"))

    def broken(*_):
        yield from whole[:8]
        raise CoPRSError("The server broke off: ask again.")

    monkeypatch.setattr(page_handlers.server, "stream", broken)
    monkeypatch.setattr(page_handlers.server, "read_ahead", broken)

    def last_of(shown):
        told = []
        with pytest.raises(gr.Error, match="broke off"):
            for values in shown:
                told.append(values)  # noqa: PERF402
        return told[-1]

    last = last_of(page_handlers.answer(photo, "the car", None))
    assert "active" not in last["steps"] and "caret" not in last["thought"]
    assert whole[7].text[-5:] in last["thought"] and "stopped" in last["thought"]
    page_handlers.reset()
    assert "active" not in last_of(page_handlers.read_ahead(photo))["steps"]


def test_what_took_its_time_says_nothing_about_another_answer(asked, monkeypatch):
    page_handlers, answered = asked
    actions = AnswerActions(page_handlers.server, page_handlers.gate)
    ask = page_handlers.server.call

    def meanwhile(*args):
        page_handlers.gate.begin(None)
        return ask(*args)

    monkeypatch.setattr(page_handlers.server, "call", meanwhile)
    assert page_handlers.thought_actions.show_words(answered) == gr.skip()
    assert actions.run_probe("heads", answered) == gr.skip()
    assert next(actions.export_page(answered)) == gr.skip()
    assert {"words", "heads"} <= set(answered.findings)  # they are kept with their own answer


def test_a_thought_that_cannot_be_traced_says_why(asked):
    page_handlers, answered = asked
    silent = dataclasses.replace(answered.result, reasoning="", reply="<REF_POS>")
    strip = page_handlers.thought_actions.show_trace(StoredAnswer(answered.photo, silent))
    assert "another model gave it" not in strip and "sentence" in strip


def test_a_model_whose_page_is_closed_is_loaded_to_its_end(mini, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(MINIATURE_FOLDER, other)
    server = ModelServer(Engine(mini.checkpoint), CPU)
    loading = server.switch_model(str(other))
    assert next(loading) == f"Loading {other}"
    loading.close()
    assert list(server.switch_model(str(other))) == []  # waits until that is done
    assert server.engine.name == server.name == str(other)


def test_the_ways_on_about_a_photograph_come_before_the_question(mini):
    page_handlers = Handlers(ModelServer(Engine(mini.checkpoint), CPU), NAMES, may_switch=True)
    page_handlers.reset()
    *_, last = page_handlers.answer_or_read_ahead(str(CHEETAH), " ", None)  # nothing is asked yet
    assert last["ways"]["visible"] and "unlike nearly all" in last["unfamiliar"]
    assert not last["photo_model"]["value"].endswith("answer")
    *_, last = page_handlers.answer_or_read_ahead(str(CHEETAH), "the cat", None)
    assert last["ways"]["visible"] and last["photo_model"]["value"].endswith("answer")


# --- why


@pytest.fixture
def asked(mini, photo, found):
    """(handlers, the visitor's answer)"""
    page_handlers = handlers_for(Engine(mini.checkpoint))
    *_, last = page_handlers.answer(photo, found[1].instruction, None)
    return page_handlers, last["answer"]


def event(**data):
    return SimpleNamespace(**data)


def change(page_handlers, answered, recent, index, value):
    """A sentence of an answer's thought is written otherwise, as the page asks for it."""
    said = sentences_of(answered.result.reasoning)[index] if answered else ""
    asked = event(index=index, value=value, said=said)
    return page_handlers.thought_actions.edit_sentence(answered, recent, asked)


def test_every_probe_has_its_view_and_changes_nothing(asked, found, tmp_path):
    page_handlers, answered = asked
    actions = AnswerActions(page_handlers.server, page_handlers.gate)
    before = answered.result.to_json(), answered.result.prior.copy(), answered.result.mask.copy()
    traced = actions.run_probe("sentences", answered)
    views = answered.findings["sentences"].views
    assert traced.count("<tr>") == len(views) + 1 >= 3 and "the focus settles here" in traced
    assert actions.run_probe("heads", answered).count("<img") == 5
    edited = change(page_handlers, answered, (answered,), 0, "I see nothing.")
    recent = edited["recent"]
    assert len(recent) == 2 and recent[0].result.is_thought_given
    assert recent[0].result.reasoning.startswith("I see nothing. ")
    compared = actions.compare(recent[0], 1, recent)
    assert compared.count("<coprs-view") == 3 and "thought changed" in compared
    Image.fromarray(answered.result.mask).save(tmp_path / "truth.png")
    truth, verdict = actions.compare_with_truth(answered, [], str(tmp_path / "truth.png"))
    assert "Mask: IoU 1.00" in truth and "true mask that you gave: IoU 1.00" in verdict
    painted = np.zeros((256, 256, 4), np.uint8)
    painted[answered.result.mask] = 255
    layers = [str(tmp_path / "layer.png")]
    Image.fromarray(painted).save(layers[0])
    assert "Mask: IoU 1.00" in actions.compare_with_truth(answered, layers, None)[0]
    assert answered.result.to_json() == before[0]
    assert np.array_equal(answered.result.prior, before[1])
    assert np.array_equal(answered.result.mask, before[2])
    again = page_handlers.server.engine.segment(found[0].image, found[1].instruction)
    assert np.array_equal(again.prior, before[1]) and np.array_equal(again.mask, before[2])


def test_a_changed_sentence_is_an_answer_drawn_over_the_one_before(mini):
    """The bundled example that fails is repaired by one sentence."""
    shown = next(example for example in examples() if example.repair)
    page_handlers = handlers_for(Engine(mini.checkpoint))
    *_, last = page_handlers.answer(shown.file, shown.instruction, None)
    answered, repair = last["answer"], shown.repair
    said = sentences_of(answered.result.reasoning)
    assert said[-1] == repair.said
    values = change(page_handlers, answered, last["recent"], len(said) - 1, repair.instead)
    after = values["answer"]
    assert "It moved from the right to the top right (IoU of the two masks 0.00)" in values["view"]
    assert after.changed_sentence == len(said) - 1 and 'class="changed"' in values["thought"]
    assert values["recent"] == (after, answered)  # the old one is kept
    looks = json.loads(unescape(values["view"].split('data-view="')[1].split('"')[0]))["looks"]
    assert [x["label"] for x in looks] == ["both", "now", "before"]
    gone = change(page_handlers, after, (), 0, "  ")["answer"]
    assert sentences_of(gone.result.reasoning) == sentences_of(after.result.reasoning)[1:]


def test_a_changed_sentence_is_read_no_further_once_something_else_has_the_page(asked):
    page_handlers, answered = asked
    layer = page_handlers.server.engine.model.mllm.model.language_model.layers[0]
    passes = []

    def overtaken(*_) -> None:
        passes.append(page_handlers.gate.begin(None))

    hook = layer.register_forward_hook(overtaken)
    try:
        values = change(page_handlers, answered, (answered,), 0, "I see a hat. " * 300)
    finally:
        hook.remove()
    assert values == {"steps": gr.skip()} and len(passes) == 1
    again = change(page_handlers, answered, (answered,), 0, "I see nothing.")
    assert again["answer"].result.is_thought_given


def test_the_words_come_all_at_once_and_small(asked):
    page_handlers, answered = asked
    html = page_handlers.thought_actions.show_words(answered)
    looks = json.loads(unescape(re.search(r'data-words="(.*?)"', html)[1]))
    assert len(looks) == len(answered.result.reply_ids) == html.count("data-word=")
    assert sum(len(look["prior"]) for look in looks) < 3000 * len(looks)
    highest = answered.findings["words"].highest
    nowhere = [bool(h < findings.MIN_WORD_PRIOR) for h in highest]
    assert ["it looks nowhere" in look["label"] for look in looks] == nowhere
    assert 0 < sum(nowhere) < len(nowhere)
    assert looks[-1]["label"] == "The focus token itself"
    assert all("not trained for this" in look["label"] for look in looks[:-1])


def test_what_cannot_be_asked_says_why(asked):
    page_handlers, answered = asked
    actions = AnswerActions(page_handlers.server, page_handlers.gate)
    assert actions.why_probe_unavailable("en", "heads", None) == "Ask for something first."
    assert actions.why_probe_unavailable("en", "heads", answered) == ""
    other = StoredAnswer(answered.photo, dataclasses.replace(answered.result, model="another"))
    assert "“another” gave this answer" in actions.why_probe_unavailable("en", "attention", other)
    nothing = dataclasses.replace(answered.result, regions=(), outcome="nothing found")
    nothing = StoredAnswer(answered.photo, nothing)
    assert "Nothing was found" in actions.why_probe_unavailable("en", "zoom", nothing)
    assert actions.why_probe_unavailable("en", "sentences", nothing) == ""


def test_an_answer_is_taken_away_as_one_page_a_moving_picture_and_a_link(asked, tmp_path):
    page_handlers, answered = asked
    actions = AnswerActions(page_handlers.server, page_handlers.gate)
    taking = actions.export_page(answered)
    text = Path(next(taking)).read_text()
    taking.close()
    assert "http:" not in text and "https:" not in text  # nothing comes from elsewhere
    assert 'data-looks="' in text and answered.result.instruction in text
    taking = actions.export_replay(answered)
    with Image.open(next(taking)) as picture:
        assert picture.is_animated
    taking.close()
    (token,) = re.findall(r"\?answer=([\w-]+)", actions.create_link(answered))[:1]
    back = saved_answers.open_answer_file(saved_answers.find_linked_file(token))
    assert back.result.to_json() == answered.result.to_json() and back.trace
    for wrong in ("", "x" * 22, "../" * 7 + "x", token[:-1], token + "x"):
        with pytest.raises(CoPRSError, match="no longer kept"):
            saved_answers.find_linked_file(wrong)
    request = SimpleNamespace(query_params={"answer": token}, headers={}, session_hash="theirs")
    values = page_handlers.opening.open_page(request)
    assert values["instruction"] == answered.result.instruction
    assert values["answer"].result.to_json() == answered.result.to_json()


def test_links_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_answers, "MAX_LINKS", 2)
    monkeypatch.setattr(saved_answers, "_links_folder", lambda: tmp_path)
    tokens = []
    for i in range(3):
        tokens.append(saved_answers.save_under_link(saved_answers.RECORDED_ZIP))
        os.utime(tmp_path / f"{tokens[-1]}.zip", (i, i))
    assert saved_answers.find_linked_file(tokens[2]) and saved_answers.find_linked_file(tokens[1])
    with pytest.raises(CoPRSError, match="no longer kept"):
        saved_answers.find_linked_file(tokens[0])


def test_links_make_room_for_themselves_and_leave_the_uploads_theirs(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "use_private_folder", lambda: tmp_path)
    links = tmp_path / f"{uploads.LINKS_PREFIX}x"
    links.mkdir()
    monkeypatch.setattr(saved_answers, "_links_folder", lambda: links)
    size = saved_answers.RECORDED_ZIP.stat().st_size
    monkeypatch.setattr(uploads, "_max_bytes", 4 * (2 * size + 1))  # a quarter is two answers
    tokens = []
    for i in range(3):
        tokens.append(saved_answers.save_under_link(saved_answers.RECORDED_ZIP))
        os.utime(links / f"{tokens[-1]}.zip", (i, i))
    assert len(list(links.iterdir())) == 2 and saved_answers.find_linked_file(tokens[2])
    monkeypatch.setattr(uploads, "_max_bytes", 4 * (size - 1))
    with pytest.raises(CoPRSError, match="no room"):
        saved_answers.save_under_link(saved_answers.RECORDED_ZIP)
    assert len(list(links.iterdir())) == 2  # those there are not lost for it
    monkeypatch.setattr(uploads, "_max_bytes", size)
    assert uploads.has_room()  # the links are no uploads
    monkeypatch.setattr(uploads, "MAX_UPLOAD_ENTRIES", 3)
    for i in range(4):
        (tmp_path / f"{i}").mkdir()
    assert not uploads.has_room()  # each of many small files takes its time, too
    uploads.remove_partial_uploads()
    assert len(list(tmp_path.iterdir())) == 5  # they may be about to be filled
    for i in range(4):
        os.utime(tmp_path / f"{i}", (1, 1))
    uploads.remove_partial_uploads()
    assert [path.name for path in tmp_path.iterdir()] == [links.name]


def test_a_page_of_a_megapixel_photo_is_small(mini, tmp_path):
    photo = open_photo(Image.open(CHEETAH).convert("RGB").resize((1152, 864)))
    result = mini.segment(photo.image, "the cat")
    trace = visitors.downscale_trace(sentences.run(mini, photo.image, result))
    assert len(standalone("en", photo, result, trace).encode()) < 2_000_000


def test_the_first_screen_shows_a_recorded_answer_at_once(mini):
    page_handlers = handlers_for(Engine(mini.checkpoint))
    values = page_handlers.opening.open_page()
    assert 'data-autoplay="true"' in values["thought"] and "recorded" in values["verdict"]
    assert values["trace"].count("data-sentence") == len(
        saved_answers.load_recorded_answer().trace.views
    )
    assert "photo" not in values and "instruction" not in values  # what is asked is the visitor's
    recorded, again = saved_answers.load_recorded_answer(), None
    again = mini.segment(recorded.photo.image, recorded.result.instruction)
    assert again.reply == recorded.result.reply  # none is made up
    np.testing.assert_allclose(again.prior, recorded.result.prior, atol=1e-4)


def test_an_expired_link_opens_the_page_all_the_same(mini):
    page_handlers = handlers_for(Engine(mini.checkpoint))
    request = SimpleNamespace(query_params={"answer": "x" * 22}, headers={}, session_hash="one")
    assert (
        page_handlers.opening.open_page(request)["answer"].result
        is saved_answers.load_recorded_answer().result
    )


def test_no_other_visitor_takes_a_turn_away(monkeypatch):
    gate = visitors.RequestGate()
    one, other = (SimpleNamespace(session_hash=name) for name in ("one", "other"))
    monkeypatch.setattr(visitors, "MAX_SESSIONS", 2)
    ticket = gate.begin(one)
    for i in range(5):
        gate.begin(SimpleNamespace(session_hash=str(i)))
        assert gate.is_current(one, ticket)  # what is under way asks all the time
    for i in range(5):
        gate.begin(SimpleNamespace(session_hash=str(i)))
    assert not gate.is_current(one, ticket) and gate.begin(other) != gate.begin(one) != ticket


def test_a_page_that_opens_late_leaves_alone_what_its_visitor_has_asked(mini):
    page_handlers = handlers_for(Engine(mini.checkpoint))
    assert page_handlers.opening.open_page()["answer"] is not None
    page_handlers.gate.begin(None)
    assert list(page_handlers.opening.open_page()) == ["steps"]
    assert "answer" not in page_handlers.opening.open_page()


def test_a_new_question_or_photo_lets_go_of_the_answer_before(asked, photo):
    page_handlers, answered = asked
    first = next(iter(page_handlers.answer(photo, "the largest thing", (answered,))))
    assert first["answer"] is None  # what the probes would have looked into
    assert page_handlers.reset()["answer"] is None


def test_what_began_before_something_else_took_the_page_says_no_more(asked, photo):
    page_handlers, answered = asked
    visitor, other = (SimpleNamespace(session_hash=name, headers={}) for name in ("a", "b"))
    running = page_handlers.answer(photo, "the largest thing", (), visitor)
    undisturbed = page_handlers.answer(photo, "the largest thing", (), other)
    next(running), next(undisturbed)
    event = SimpleNamespace(index=0)
    page_handlers.opening.restore((answered,), event, visitor)
    assert list(running) == SUPERSEDED
    assert list(undisturbed)[-1]["answer"].result.instruction == "the largest thing"
    running = page_handlers.answer(photo, "the largest thing", (), visitor)
    next(running)
    page_handlers.supersede(visitor)
    assert list(running) == SUPERSEDED


def test_a_trace_of_an_answer_that_is_gone_does_not_come(asked, monkeypatch):
    page_handlers, answered = asked
    visitor = SimpleNamespace(session_hash="c", headers={})
    fresh = StoredAnswer(answered.photo, answered.result)
    whole = page_handlers.thought_actions.show_trace(fresh, visitor)
    assert "data-sentence" in whole
    drawn = findings.strip_view

    def late(*given):
        page_handlers.supersede(visitor)
        return drawn(*given)

    monkeypatch.setattr(findings, "strip_view", late)
    assert page_handlers.thought_actions.show_trace(fresh, visitor) == gr.skip()


def test_stop_leaves_a_finished_answer_and_marks_an_unfinished_one(asked):
    page_handlers, answered = asked
    values = page_handlers.stop("<p>an older thought</p>", answered)
    assert set(values) == {"steps"}
    values = page_handlers.stop('<div class="thought"><p>thought</p><p>It is here:</p></div>', None)
    assert values["thought"].count("stopped") == 1 and "It is here: …" not in values["steps"]
    assert values["thought"].index("It is here") < values["thought"].index("stopped")


def test_answers_of_the_same_name_are_numbered_where_one_is_chosen(asked, mini):
    page_handlers, answered = asked
    same = [StoredAnswer(answered.photo, dataclasses.replace(answered.result)) for _ in "ab"]
    demo = build(ModelServer(Engine(mini.checkpoint)), may_switch=True)
    (prepare,) = {f.fn for f in demo.fns.values() if getattr(f.fn, "__name__", "") == "prepare"}
    values = prepare(answered, (answered, *same), None, SimpleNamespace(headers={}))
    (choices,) = [v["choices"] for v in values.values() if isinstance(v, dict) and v.get("choices")]
    named = [name for name, _ in choices]
    assert [name[-4:] for name in named] == [" · 2", " · 1"] and len(set(named)) == 2


def test_the_truth_of_a_photo_stays_until_another_photo(asked, mini):
    """Painted or brought, also while a sentence is changed; never that of the photo before."""
    _, answered = asked
    demo = build(ModelServer(Engine(mini.checkpoint)))
    fns = {getattr(f.fn, "__name__", ""): f.fn for f in demo.fns.values()}
    other = StoredAnswer(open_photo(np.zeros((9, 9, 3), np.uint8)), answered.result)
    again = StoredAnswer(answered.photo, answered.result)
    visitor = SimpleNamespace(headers={})

    def truth(now, before):
        values = fns["prepare"](now, (), before, visitor)
        return {c.elem_id: v for c, v in values.items() if c.elem_id in ("paint", "truth-file")}

    assert truth(again, answered) == {}
    for now, before in ((other, answered), (answered, None), (None, answered)):
        assert set(truth(now, before)) == {"paint", "truth-file"}
        assert truth(now, before)["truth-file"] is None
    assert len(fns["prepare_again"](answered, (), answered, visitor)) == 1  # what was refused
    assert len(fns["prepare_again"](None, (), answered, visitor)) > 9  # what broke off


def test_what_was_found_is_shown_again_without_the_model(asked):
    page_handlers, answered = asked
    actions = AnswerActions(page_handlers.server, page_handlers.gate)
    first = actions.run_probe("heads", answered)
    other = dataclasses.replace(answered.result, model="x")
    stranger = StoredAnswer(answered.photo, other, findings=answered.findings)
    assert actions.why_probe_unavailable("en", "heads", stranger) == ""
    assert actions.run_probe("heads", stranger) == first


def test_a_moving_picture_is_offered_where_there_is_one(asked):
    page_handlers, answered = asked
    actions = AnswerActions(page_handlers.server, page_handlers.gate)
    fresh = StoredAnswer(answered.photo, answered.result)
    assert actions.why_replay_unavailable("en", fresh) == ""
    elsewhere = dataclasses.replace(answered.result, model="x")
    stranger = StoredAnswer(answered.photo, elsewhere)
    assert "gave this answer" in actions.why_replay_unavailable("en", stranger)
    nothing = StoredAnswer(answered.photo, dataclasses.replace(answered.result, regions=()))
    assert "Nothing was found" in actions.why_replay_unavailable("en", nothing)


def test_a_name_that_means_nothing_leaves_the_model_in_use(mini, monkeypatch):
    server = ModelServer(Engine(mini.checkpoint))
    monkeypatch.setattr(server, "_load", None)
    for name in ("", "qwen9", "../somewhere"):
        with pytest.raises(CoPRSError):
            list(server.switch_model(name))
    assert server.name == "mini"


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_the_prior_is_explained_by_its_kind(kind):
    html = str(canvas.Canvas("en", np.zeros((4, 4, 3), np.uint8)).prior_figure(kind))
    assert ("the mask is drawn from it" in html) is (kind == FOCUS_TOKEN_PRIOR)
    assert ("drawn from the box" in html) is (kind != FOCUS_TOKEN_PRIOR)


def test_what_a_visitor_finds_in_the_recorded_answer_stays_there(mini):
    page_handlers = handlers_for(Engine(mini.checkpoint))
    first, second = (page_handlers.opening.open_page()["answer"] for _ in range(2))
    first.add_finding("heads", 1)
    assert not second.findings and not page_handlers.opening.open_page()["answer"].findings


def test_sessions_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(visitors, "MAX_SESSIONS", 3)
    gate = visitors.RequestGate()
    for i in range(5):
        gate.begin(SimpleNamespace(session_hash=str(i)))
    assert gate.current(SimpleNamespace(session_hash="0")) == 0
    assert gate.current(SimpleNamespace(session_hash="4")) == 5 < gate.begin(None)


def exported(page_handlers, answered, path):
    """The zip that the page gives, copied before its folder goes."""
    exporting = AnswerActions(page_handlers.server, page_handlers.gate).export_zip(answered)
    shutil.copy(next(exporting), path)
    exporting.close()
    return path


def test_a_saved_answer_comes_back_to_the_page(asked, tmp_path):
    page_handlers, answered = asked
    path = exported(page_handlers, answered, tmp_path / "a.zip")
    values = handlers_for(page_handlers.server.engine).opening.open_file(str(path), ())
    pixels = np.asarray(answered.photo.image)
    assert values["instruction"] == answered.result.instruction
    assert np.array_equal(np.asarray(values["photo"]), pixels)
    assert np.array_equal(values["answer"].result.prior, answered.result.prior)
    assert len(values["recent"]) == 1
    assert values["view"] == canvas.answer_view("en", pixels, answered.result)
    assert "data-sentence" in values["trace"]  # without a model


@pytest.mark.parametrize("change", [{"model": "another"}, {"reply": "of another vocabulary"}])
def test_another_models_answer_keeps_its_trace_when_it_is_taken_away(asked, tmp_path, change):
    """Also one of an earlier version of the model in use, whose tokens meant something else."""
    page_handlers, answered = asked
    view = visitors.ensure_trace(page_handlers.server, answered)
    result = dataclasses.replace(answered.result, **change)
    other = StoredAnswer(answered.photo, result, trace=view)
    back = saved_answers.open_answer_file(exported(page_handlers, other, tmp_path / "other.zip"))
    assert [v.text for v in back.trace.views] == [v.text for v in view.views]
    assert all((a.mask == b.mask).all() for a, b in zip(back.trace.views, view.views, strict=True))


def test_a_photo_that_was_brought_down_is_told_and_measured_by_a_truth_of_its_full_size(
    asked, tmp_path
):
    page_handlers, answered = asked
    assert "brought down" not in page.verdict("en", answered.result)
    large = dataclasses.replace(answered.photo, full_size=(512, 512))
    told = page.verdict("en", answered.result, full_size=large.full_size)
    assert "Photo brought down from 512×512 to 256×256." in told
    shown = dataclasses.replace(answered.result, seen_size=(128, 128))
    assert "shown 25 % of" in page.verdict("en", shown)
    assert "shown 6 % of" in page.verdict("en", shown, full_size=(512, 512))
    mask = Image.fromarray(answered.result.mask)
    mask.resize((512, 512), Image.Resampling.NEAREST).save(tmp_path / "truth.png")
    actions = AnswerActions(page_handlers.server, page_handlers.gate)
    view, _ = actions.compare_with_truth(
        StoredAnswer(large, answered.result), [], str(tmp_path / "truth.png")
    )
    assert "Mask: IoU 1.00" in view
    with pytest.raises(gr.Error, match="512×512 pixels and the photo 256×256"):
        actions.compare_with_truth(answered, [], str(tmp_path / "truth.png"))
    told = dataclasses.replace(answered.result, full_size=(512, 512))
    saved = exported(page_handlers, visitors.StoredAnswer(large, told), tmp_path / "large.zip")
    assert saved_answers.open_answer_file(saved).photo.full_size == (512, 512)


@pytest.mark.parametrize("language, words", [("en", "were stretched"), ("zh", "拉伸")])
def test_a_photo_that_was_stretched_is_told_whatever_was_found(asked, language, words):
    result = dataclasses.replace(asked[1].result, stretched=(0, 4095))
    nothing = dataclasses.replace(result, outcome="nothing found", regions=())
    for answer in (result, nothing):
        told = page.verdict(language, answer)
        assert told.count('data-flag="stretched"') == 1 and words in told
    assert "stretched" not in page.verdict("en", dataclasses.replace(nothing, stretched=None))


def test_an_answer_of_more_regions_than_are_made_is_not_opened(asked, tmp_path, monkeypatch):
    page_handlers, answered = asked
    result = dataclasses.replace(answered.result, regions=answered.result.regions * 5)
    many = StoredAnswer(answered.photo, result)
    path = exported(page_handlers, many, tmp_path / "many.zip")
    assert len(saved_answers.open_answer_file(path).result.regions) == 5
    height, width = answered.photo.size
    monkeypatch.setattr(boxes, "MAX_OBJECT_PIXELS", 4 * height * width)
    with pytest.raises(CoPRSError, match="5 regions of 256×256 pixels and at most 4 are opened"):
        saved_answers.open_answer_file(path)


def test_a_look_at_nothing_agrees_with_no_empty_mask(asked):
    _, answered = asked
    trace = saved_answers.load_recorded_answer().trace
    nowhere = dataclasses.replace(trace.views[0], prior=trace.views[0].prior * 0, iou=1.0)
    markup = findings.strip_view("en", answered.photo, SentenceTrace((nowhere, trace.views[-1])))
    assert "IoU –" in markup and "IoU 1.00" not in markup


def test_what_probes_found_goes_into_the_zip(asked, tmp_path):
    page_handlers, answered = asked
    alone = zipfile.ZipFile(exported(page_handlers, answered, tmp_path / "alone.zip")).namelist()
    assert "sentences.json" in alone and "heads.npy" not in alone
    AnswerActions(page_handlers.server, page_handlers.gate).run_probe("heads", answered)
    more = zipfile.ZipFile(exported(page_handlers, answered, tmp_path / "more.zip")).namelist()
    assert {"heads.json", "heads.npy", "heads.png", "sentences.npy"} <= set(more)


def test_mistakes_of_the_page_are_sentences(asked, tmp_path):
    page_handlers, answered = asked
    actions = AnswerActions(page_handlers.server, page_handlers.gate)
    one = StoredAnswer(
        answered.photo, dataclasses.replace(answered.result, reasoning="One sentence.")
    )
    (tmp_path / "a.zip").write_text("x")
    for work, sentence in (
        (lambda: actions.run_probe("sentences", None), "no longer kept"),
        (lambda: page_handlers.thought_actions.show_words(None), "no longer kept"),
        (lambda: change(page_handlers, None, (), 0, "x"), "no longer kept"),
        (
            lambda: page_handlers.thought_actions.edit_sentence(
                answered, (), event(index=99, value="x")
            ),
            "no longer kept",
        ),
        (lambda: change(page_handlers, answered, (), 0, ["x"]), "changed meanwhile"),
        (
            lambda: page_handlers.thought_actions.edit_sentence(
                answered, (), event(index=0, value="x", said="y")
            ),
            "meanwhile",
        ),
        (lambda: change(page_handlers, one, (), 0, " "), "thought is empty"),
        (lambda: change(page_handlers, answered, (), 0, "x" * 9000), "shorten it"),
        (lambda: actions.compare(answered, None, ()), "no longer kept"),
        (lambda: actions.compare_with_truth(answered, [], None), "Nothing is painted"),
        (lambda: list(actions.export_zip(None)), "no longer kept"),
        (lambda: actions.create_link(None), "no longer kept"),
        (lambda: page_handlers.opening.open_file(str(tmp_path / "a.zip"), ()), "saved answer"),
        (lambda: page_handlers.opening.restore(None, SimpleNamespace(index=0)), "no longer kept"),
    ):
        with pytest.raises(gr.Error, match=sentence):
            work()


# --- opening


@pytest.mark.parametrize("set_by, host", [({}, "127.0.0.1"), ({"GRADIO_SERVER_NAME": "0.0.0.0"}, "0.0.0.0"), ({"GRADIO_SERVER_NAME": "0.0.0.0", "COPRS_HOST": "::1"}, "::1")])  # fmt: skip
def test_a_space_is_listened_to_from_outside(set_by, host):
    """Spaces say where to listen through Gradio's own variable; ours wins."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("GRADIO_SERVER_NAME", "COPRS_HOST")
    } | set_by
    told = subprocess.run(
        [sys.executable, "app.py", "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert f"(now {host})" in told.stdout


def python_blocks(page_name: str) -> list[str]:
    """The Python examples of a page of the documentation."""
    text = (ROOT / "assets" / "docs" / page_name).read_text()
    return [block.split("```")[0] for block in text.split("```python\n")[1:]]


RAIN = "the thing that keeps the rain off"


def run_example(server, instruction: str = RAIN) -> dict:
    """What the first example for programs leaves behind, asked about something else."""
    example = python_blocks("api.md")[0].replace("http://127.0.0.1:7860", server[0])
    assert RAIN in example
    example, left = example.replace(RAIN, instruction), {}
    exec(example.replace("Client(", "Client(verbose=False, src="), left)
    return left


def test_the_example_for_programs_runs(server, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    run_example(server)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("reading")
    assert any("(the focus settles here)" in line for line in lines)
    assert zipfile.is_zipfile(lines[-1])


@pytest.mark.parametrize(
    "instruction, most_tokens, said",
    [
        ("the aeroplane", None, "nothing found - "),
        (RAIN, 3, "unfinished - The model used up its 3 tokens"),
        (" ", None, "The instruction is empty: type what to look for"),
    ],
)
def test_the_example_for_programs_ends_well_whatever_the_answer(
    server, capsys, monkeypatch, instruction, most_tokens, said
):
    monkeypatch.chdir(ROOT)
    if most_tokens:
        monkeypatch.setattr(server[1].segmenter, "max_new_tokens", most_tokens)
    left = run_example(server, instruction)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(said) for line in lines)
    if "result" in left:
        assert not left["result"]["regions"] and zipfile.is_zipfile(lines[-1])
        exec(python_blocks("api.md")[1], left)  # masks of none
        assert not capsys.readouterr().out


def test_the_example_for_pycocotools_gives_the_mask(found, capsys):
    coco = pytest.importorskip("pycocotools.mask")
    result = found[2]
    left = {"result": json.loads(result.to_json())}
    exec(python_blocks("api.md")[1], left)
    assert np.array_equal(left["mask"] > 0, result.regions[-1].mask)
    with pytest.raises(TypeError):  # without that line
        coco.decode(left["result"]["regions"][0]["mask"])


@pytest.mark.parametrize("number, words", [(0, "umbrella"), (1, "umbrella"), (2, "mask gIoU")])
def test_the_examples_in_python_run(capsys, monkeypatch, number, words):
    blocks = python_blocks("python.md")
    assert len(blocks) == 3
    monkeypatch.chdir(ROOT)
    exec(blocks[number], {})
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    "instruction, words",
    [('"the aeroplane"', "found"), (f'"{RAIN}", 1', "no thought to trace"), ('" "', "is empty")],
)
def test_the_examples_in_python_end_well_whatever_the_answer(
    capsys, monkeypatch, instruction, words
):
    monkeypatch.chdir(ROOT)
    for block in python_blocks("python.md")[:2]:
        assert f'"{RAIN}"' in block
        if "is empty" in words and "except" not in block:
            continue
        exec(block.replace(f'"{RAIN}"', instruction), {})
    assert words in capsys.readouterr().out


def test_the_endpoints_on_the_page_about_them_are_those_that_there_are():
    text = (ROOT / "assets" / "docs" / "api.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| `")]
    named = {f"/{name}" for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == set(ENDPOINTS)


def test_links_of_the_documentation_lead_somewhere():
    for file in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "assets/docs").glob("*.md"),
    ):
        links = re.findall(r"\]\(([^)#]+)\)", file.read_text())
        links += re.findall(r'(?:src|srcset)="([^"]+)"', file.read_text())
        for link in links:
            assert link.startswith("http") or (file.parent / link).exists(), f"{file.name}: {link}"


# --- on a GPU the heads that tell a place are found between the visitors' questions


def test_a_gpu_calibrates_between_questions_and_stops_with_the_model(mini, tmp_path, monkeypatch):
    folder = tiny.save_mllm(tmp_path / "photos", tiny.qwen3())
    engine = load(str(folder), device="cpu", sam=str(tiny.save_sam2(tmp_path / "sam2")))
    started, asked = threading.Event(), []

    def steps(of):
        while True:
            asked.append(of)
            started.set()
            yield 1

    monkeypatch.setattr(calibrating, "calibrate", steps)
    server = ModelServer(engine)
    server._calibrate_in_background()
    assert not [t for t in threading.enumerate() if "(work)" in t.name]  # a CPU has others to do
    monkeypatch.setattr(type(engine.segmenter), "device", torch.device("cuda"))
    server._calibrate_in_background()
    assert started.wait(PATIENCE) and asked[0] is engine
    [behind] = [t for t in threading.enumerate() if "(work)" in t.name]
    server.engine = mini  # another model is in use
    behind.join(PATIENCE)
    assert not behind.is_alive()


# --- the thought is traced by itself


def test_the_strip_comes_with_the_answer_where_it_can(mini, photo, found, monkeypatch):
    page_handlers = handlers_for(Engine(mini.checkpoint))
    *_, last = page_handlers.answer(photo, found[1].instruction, None)
    answered = last["answer"]
    strip = page_handlers.thought_actions.show_trace(answered)
    finding = sentences.run(mini, answered.photo, answered.result)
    assert strip.count("data-sentence") == len(finding.views) >= 2
    assert not answered.findings  # full-size priors are not kept by the way
    looks = json.loads(unescape(re.search(r'data-looks="(.*?)"', strip)[1]))
    assert all(look["prior"].startswith("data:image/png") and look["mask"] for look in looks)
    assert [look["moved"] for look in looks] == list(finding.has_moved)
    monkeypatch.setattr(page_handlers.server, "call", lambda *_: pytest.fail("asked once more"))
    assert page_handlers.thought_actions.show_trace(answered) == strip  # its small pictures are
    assert page_handlers.thought_actions.show_trace(None) == findings.empty_strip("en")
    elsewhere = StoredAnswer(answered.photo, dataclasses.replace(answered.result, model="another"))
    nothing = StoredAnswer(
        answered.photo, dataclasses.replace(answered.result, regions=(), outcome="nothing found")
    )
    none = findings.empty_strip("en", "strip_none")
    assert page_handlers.thought_actions.show_trace(elsewhere) == none
    assert "Nothing was found" in page_handlers.thought_actions.show_trace(nothing)
    large = StoredAnswer(Photo(Image.new("RGB", (4000, 1001)), "large"), answered.result)
    assert "This photo is large" in page_handlers.thought_actions.show_trace(large)
    monkeypatch.setattr(ModelServer, "is_gpu_borrowed", True)  # its seconds are the visitor's
    borrowed = StoredAnswer(answered.photo, answered.result)
    assert "borrowed GPU" in page_handlers.thought_actions.show_trace(borrowed)
    borrowed.add_finding("sentences", finding)  # asked for
    assert page_handlers.thought_actions.show_trace(borrowed) == strip


def test_a_thought_that_cannot_be_traced_can_be_taken_away_all_the_same(asked, tmp_path):
    page_handlers, answered = asked
    actions = AnswerActions(page_handlers.server, page_handlers.gate)
    long = change(page_handlers, answered, (), 0, "A b. " * 70)["answer"]
    assert "at most 64 are traced" in actions.run_probe("sentences", long)  # no error
    names = zipfile.ZipFile(exported(page_handlers, long, tmp_path / "long.zip")).namelist()
    assert "result.json" in names and "sentences.npy" not in names
    assert "?answer=" in actions.create_link(long)
