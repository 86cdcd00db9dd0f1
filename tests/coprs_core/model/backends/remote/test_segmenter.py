"""A model on another machine: a small server that answers from the picture it is sent, in every way
that servers answer, and in every way that they fail."""

import base64
import io
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from app.server.model import ModelServer
from app.ui import build, launch
from coprs_core import CoPRSError, load
from coprs_core.__main__ import main
from coprs_core.answer.flags import find_flags
from coprs_core.checkpoints import doctor, remote
from coprs_core.errors import Cancelled
from coprs_core.model.backends.remote import chat
from coprs_core.model.backends.remote import segmenter as remote_model
from coprs_core.photos.photo import open_photo
from coprs_core.probes import attention, zoom
from tests import free_port, tiny
from tests.conftest import PATIENCE, until

KEY = "sk-very-secret-0123456789"
PHOTO = np.full((900, 1500, 3), 255, np.uint8)
PHOTO[300:500, 900:1300] = (230, 10, 10)
BOX = (900, 300, 1300, 500)
FAILURES = {
    "key": (401, f"Incorrect API key provided: {KEY}", "refuses the key: set COPRS_API_KEY"),
    "blind": (400, f"image input is not supported {KEY}", "refused the question with its picture"),
    "unknown": (404, "no such model", "knows no model 'pointer' at this address"),
    "quota": (429, "slow down", "has no room now"),
    "broken": (500, "boom", r"failed \(status 500\)"),
}


class Pointer(BaseHTTPRequestHandler):
    """Finds the red area of the picture and writes its box, as `server.form` says."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        length = int(self.headers["Content-Length"])
        asked = json.loads(self.rfile.read(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.asked.append((headers, asked))
        failure = FAILURES.get(server.failure)
        if failure:
            return self._send(
                failure[0], "application/json", json.dumps({"error": {"message": failure[1]}})
            )
        if server.failure == "warm" and "temperature" in asked:
            return self._send(400, "application/json", '{"error": "temperature has to be 1"}')
        if server.failure == "html":
            return self._send(200, "text/html", "<html>Welcome</html>")
        if server.failure == "slow":
            server.goes_on.wait(PATIENCE)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for delta in self._deltas(asked):
                self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                time.sleep(server.pause)
                if server.failure == "cut" and len(server.sent) > 4:
                    return self.wfile.flush()
            if server.failure == "garbage":
                self.wfile.write(b"data: {not json\n\n")
            if server.failure == "event":
                self.wfile.write(b'data: {"error": {"message": "out of memory"}}\n\n')
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": server.finish}]})
            self._event({"choices": []})
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            server.left.set()

    def _send(self, status, kind, text):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def _event(self, values):
        values = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "x"} | values
        self.server.sent.append(values)
        self.wfile.write(f"data: {json.dumps(values)}\n\n".encode())
        self.wfile.flush()

    def _deltas(self, asked):
        server = self.server
        thought = ["I see ", "one red thing."]
        answer = [f'[{{"bbox_2d": {self._box(asked)}, ', '"label": "thing"}]']
        if server.failure == "echo":
            thought = [f"Bearer {KEY[:9]}", KEY[9:], *thought]
        if server.failure == "endless":
            answer = ["x" * 1000] * 10_000
        if server.form in ("reasoning", "reasoning_content"):
            yield from ({server.form: t} for t in thought)
        elif server.form == "inline":
            answer = ["<think>", *thought, "</think>", *answer]
        else:
            answer = [*thought, "</think>", *answer]
        yield from ({"content": a} for a in answer)

    def _box(self, asked):
        picture, _ = asked["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition("base64,")[2])
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        y, x = np.nonzero((pixels[..., 0] > 150) & (pixels[..., 1] < 90))
        if not len(x) or self.server.failure == "misplaced":
            return [1, 1, 90, 90]
        box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], float)
        if self.server.unit == "thousandths":
            box = 1000 * box / [*pixels.shape[1::-1], *pixels.shape[1::-1]]
        return [round(v) for v in box]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("COPRS_API_KEY", KEY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pointer)
    server.daemon_threads = True
    server.asked, server.sent, server.left = [], [], threading.Event()
    server.form, server.unit, server.failure = "inline", "thousandths", None
    server.pause, server.finish = 0.0, "stop"
    server.goes_on = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.name = f"openai:pointer@http://127.0.0.1:{server.server_port}/v1"
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def sam(tmp_path_factory) -> str:
    return str(tiny.save_sam2(tmp_path_factory.mktemp("sam2") / "sam"))


def near(box):
    return pytest.approx(box, abs=3)


@pytest.mark.parametrize("form", ["inline", "closing tag alone", "reasoning", "reasoning_content"])
@pytest.mark.parametrize("unit", ["thousandths", "pixels"])
def test_it_thinks_there_and_is_drawn_here(server, sam, form, unit):
    server.form, server.unit = form, unit
    lines = []
    engine = load(server.name, device="cpu", sam=sam, report=lines.append)
    assert lines == [f"asking 127.0.0.1:{server.server_port} where a drawn square is"]
    updates = list(engine.stream(PHOTO, "the red thing"))
    result = updates[-1].result
    assert result.outcome == "found" and result.reasoning == "I see one red thing."
    assert result.regions[0].box == near(BOX) and result.regions[0].label == "thing"
    assert len([u for u in updates if u.stage == "thinking"]) >= 4
    prior = result.prior
    y, x = np.unravel_index(prior.argmax(), prior.shape)
    assert 390 < y < 410 and 1090 < x < 1110 and prior[:290].max() == 0
    assert result.prior_kind == "coordinates" and result.mask.shape == PHOTO.shape[:2]
    assert result.model == "openai:pointer" and not engine.has_focus_token
    assert "unproven" not in find_flags(result)


def test_the_picture_is_small_stands_first_and_is_said(server, sam):
    engine = load(server.name, device="cpu", sam=sam, report=lambda line: None)
    result = engine.segment(PHOTO, "the red thing")
    headers, asked = server.asked[-1]
    picture, text = asked["messages"][0]["content"]
    assert picture["type"] == "image_url" and text["type"] == "text"
    assert text["text"].endswith("Instruction: the red thing")
    data = base64.b64decode(picture["image_url"]["url"].partition("base64,")[2])
    width, height = Image.open(io.BytesIO(data)).size
    assert (height, width) == result.seen_size == (608, 1024)
    assert not width % 32 and not height % 32
    assert headers["authorization"] == f"Bearer {KEY}" and asked["temperature"] == 0
    assert asked["stream"] and asked["model"] == "pointer"


@pytest.mark.parametrize("size", [(5, 3000), (3000, 5), (20, 20), (1024, 1024), (1030, 1020)])
@pytest.mark.parametrize("unit", [28, 32])
def test_every_photo_becomes_a_picture_that_servers_leave_as_it_is(size, unit):
    sent = remote_model.resize_for_server(Image.new("RGB", size), unit)
    assert max(sent.size) <= 1024 and not any(side % unit for side in sent.size)


def test_a_server_that_misplaces_the_square_is_used_with_a_warning(server, sam):
    server.failure, lines = "misplaced", []
    engine = load(server.name, device="cpu", sam=sam, report=lines.append)
    assert "its boxes may be wrong" in lines[-1]
    result = engine.segment(PHOTO, "the red thing")
    assert "unproven" in find_flags(result) and result.settings["is_proven"] is False


@pytest.mark.parametrize("failure", FAILURES)
def test_what_a_server_refuses_is_one_sentence_without_the_key(server, sam, failure, caplog):
    caplog.set_level(logging.DEBUG)
    server.failure = failure
    with pytest.raises(CoPRSError, match=FAILURES[failure][2]) as problem:
        load(server.name, device="cpu", sam=sam, report=lambda line: None)
    assert KEY not in str(problem.value) and KEY not in caplog.text
    assert problem.value.__cause__ is None


@pytest.mark.parametrize(
    "failure, sentence",
    [
        ("cut", "broke off in mid-answer: ask again"),
        ("event", "broke off in mid-answer: ask again"),
        ("garbage", "sent something that is no answer"),
        ("html", "sent something that is no answer: check that the address ends in /v1"),
        ("slow", "sent nothing for 120 s"),
    ],
)
def test_what_goes_wrong_in_mid_answer_is_one_sentence(server, sam, failure, sentence, monkeypatch):
    engine = load(server.name, device="cpu", sam=sam, report=lambda line: None)
    server.failure = failure
    server.sent.clear()
    with pytest.raises(CoPRSError, match=sentence), monkeypatch.context() as patch:
        if failure == "slow":  # each look at the clock takes a minute
            clock = itertools.count(step=60.0)
            patch.setattr(chat, "time", SimpleNamespace(monotonic=clock.__next__))
        engine.segment(PHOTO, "the red thing")
    server.goes_on.set()
    server.failure = None  # nothing is lost: the next question is answered
    assert engine.segment(PHOTO, "the red thing").outcome == "found"


def test_nobody_there_is_one_sentence(sam):
    port = free_port()
    with pytest.raises(CoPRSError, match=f"127.0.0.1:{port} cannot be reached: check that it runs"):
        load(f"openai:x@http://127.0.0.1:{port}/v1", device="cpu", sam=sam)


def test_a_reply_without_end_is_cut_off(server, sam):
    engine = load(server.name, device="cpu", sam=sam, report=lambda line: None)
    server.failure = "endless"
    result = engine.segment(PHOTO, "the red thing", 10)
    assert result.outcome == "unfinished" and len(result.reply) < 5000
    server.failure, server.finish = None, "length"
    assert engine.segment(PHOTO, "the red thing").outcome == "found"  # its box was written


def test_stop_ends_the_request(server, sam):
    engine = load(server.name, device="cpu", sam=sam, report=lambda line: None)
    server.pause, server.failure = 0.02, "endless"
    stream = engine.stream(PHOTO, "the red thing")
    next(u for u in stream if u.text)
    stream.close()
    assert server.left.wait(PATIENCE)


def silent(server):
    """It sends pings for ever."""

    def act(self):
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b": ping\n\n")
                time.sleep(0.02)
        server.left.set()

    return act


@pytest.mark.parametrize("way", ["closed", "unwanted"])
def test_stop_works_while_a_server_sends_no_answer(server, sam, monkeypatch, way):
    engine = load(server.name, device="cpu", sam=sam, report=lambda line: None)
    monkeypatch.setattr(Pointer, "do_POST", silent(server))
    models, photo, is_wanted = ModelServer(engine, at_once=1), open_photo(PHOTO), [True]
    stream = models.stream(photo, "the red thing", lambda: is_wanted[0])
    assert next(u for u in stream if u.stage == "thinking").text == ""
    if way == "closed":
        stream.close()
    else:
        is_wanted[0] = False
        with pytest.raises(Cancelled):
            list(stream)
    assert server.left.wait(PATIENCE) and not models.semaphore.total_size


def test_a_client_that_goes_frees_its_place_though_no_answer_comes(server, sam, monkeypatch):
    engine = load(server.name, device="cpu", sam=sam, report=lambda line: None)
    models = ModelServer(engine, at_once=1)
    demo = build(models)
    _, url, _ = launch(demo, quiet=True)
    answering = Pointer.do_POST
    monkeypatch.setattr(Pointer, "do_POST", silent(server))
    client, photo = Client(url, verbose=False), handle_file("assets/examples/rain.png")
    try:
        job = client.submit(photo, "the red thing", api_name="/segment")
        until(lambda: any(o["stage"] == "thinking" for o in job.outputs()))
        job.cancel()
        assert server.left.wait(PATIENCE)
        monkeypatch.setattr(Pointer, "do_POST", answering)
        told = client.predict(photo, "the red thing", api_name="/segment")["result"]
        assert told["model"] == "openai:pointer" and told["settings"]["decoding"] == "greedy"
    finally:
        demo.close()


def test_a_server_that_refuses_a_temperature_decodes_its_own_way(server, sam):
    server.failure = "warm"
    engine = load(server.name, device="cpu", sam=sam, report=lambda line: None)
    result = engine.segment(PHOTO, "the red thing")
    assert result.settings["decoding"] == "the server's"


def test_zooming_in_asks_the_server_again(server, sam):
    engine = load(server.name, device="cpu", sam=sam, report=lambda line: None)
    photo = np.full((900, 1500, 3), 255, np.uint8)
    photo[300:320, 900:930] = (230, 10, 10)
    result = engine.segment(photo, "the red thing")
    mask = np.zeros((900, 1500), bool)
    mask[300:320, 900:930] = True
    region = type(result.regions[0])(result.prior, mask, result.regions[0].box)
    result = type(result)(**(vars(result) | {"regions": (region,)}))
    zoomed = zoom.run(engine, photo, result)
    assert zoomed.result.regions[0].box == pytest.approx((900, 300, 930, 320), abs=1)
    with pytest.raises(CoPRSError, match="runs elsewhere and its attention is not seen"):
        attention.run(engine, photo, result)


@pytest.mark.parametrize(
    "name",
    [
        *("openai:", "openai:x", "openai:@http://a/v1", "openai:x@ftp://a/v1", "openai:x@a/v1"),
        *("openai:x@http://", "openai:x@http://a:b/v1", "openai:x@http://user:pass@a/v1"),
        *("openai:x@http://a/v1?key=secret", "openai:x@http://[a/v1"),
    ],
)
def test_an_address_that_is_none_is_one_sentence(name):
    with pytest.raises(CoPRSError, match="is given as openai:NAME@http://host:port/v1"):
        load(name, device="cpu")


def test_a_name_may_hold_slashes_and_ats():
    source = remote.parse_remote_name("openai:Qwen/Qwen3@q4@https://example.org/v1")
    assert (source.model, source.url) == ("Qwen/Qwen3@q4", "https://example.org/v1")
    assert source.name == "openai:Qwen/Qwen3@q4" and source.host == "example.org"


def test_visitors_can_never_set_an_address(server, mini):
    models = ModelServer(mini)
    for name in (server.name, "openai:x"):
        with pytest.raises(CoPRSError, match="can only be named when the app is started"):
            list(models.switch_model(name))
    assert models.engine is mini and not server.asked


def test_the_command_line_answers_and_the_key_stands_nowhere(server, sam, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(photo)
    options = ["--model", server.name, "--sam", sam, "--device", "cpu"]
    code = main(["segment", str(photo), "the red thing", "--out", str(tmp_path / "out"), *options])
    printed = capsys.readouterr()
    assert code == 0 and "found." in printed.out and KEY not in printed.out + printed.err
    assert "asking 127.0.0.1" in printed.err and "asking" not in printed.out
    written = (tmp_path / "out" / "result.json").read_text()
    assert KEY not in written and "127.0.0.1" not in written and "openai:pointer" in written
    server.failure = "echo"
    assert main(["segment", str(photo), "a thing", "--out", str(tmp_path / "out"), *options]) == 0
    told = [f for f in (tmp_path / "out").rglob("*") if f.is_file() and KEY.encode() in f.read_bytes()]  # fmt: skip
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert not told and written["reasoning"].startswith("Bearer …")
    server.failure = "key"
    assert main(["segment", str(photo), "the red thing", *options]) != 0
    printed = capsys.readouterr()
    assert "refuses the key" in printed.err and KEY not in printed.out + printed.err


def test_the_doctor_tells_the_server_and_whether_there_is_a_key(monkeypatch):
    monkeypatch.setenv("COPRS_API_KEY", KEY)
    screen = doctor.format_checks(doctor.run_checks("openai:x@http://host:1/v1"))
    assert "x on host:1" in screen and "COPRS_API_KEY is set" in screen and KEY not in screen
    assert "is given as openai:NAME" in doctor.format_checks(doctor.run_checks("openai:x"))


# --- transformers' own server


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`transformers serve` with a tiny Qwen3-VL of ours: (its address, the model's folder)."""
    folder = tiny.save_mllm(tmp_path_factory.mktemp("served") / "model", tiny.qwen3())
    (folder / "chat_template.jinja").write_text(tiny.CHAT)
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    log = tmp_path_factory.mktemp("log") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        until(lambda: process.poll() is not None or listens(port))
        if process.poll() is not None:
            pytest.fail(log.read_text()[-2000:])
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.kill()
        process.wait()


def test_transformers_serve_is_such_a_server(served, sam):
    url, folder = served
    lines = []
    engine = load(f"openai:{folder}@{url}", device="cpu", sam=sam, report=lines.append)
    assert "did not tell where a drawn red square is" in lines[-1]  # its weights are random
    updates = list(engine.stream(PHOTO, "the red thing", 24))
    result = updates[-1].result
    assert len([u for u in updates if u.stage == "thinking"]) > 5 and len(result.reply) > 20
    assert result.outcome == "unfinished" and "unproven" in find_flags(result)


def test_it_reads_the_picture_and_the_words_that_are_sent(served, sam):
    """Greedy decoding of the same weights here, of the picture and the question as they were
    sent."""
    url, folder = served
    far = load(f"openai:{folder}@{url}", device="cpu", sam=sam, report=lambda line: None)
    photo = open_photo(PHOTO)
    features = far.segmenter.encode_photo(photo)
    theirs = "".join(w.text for w in far.segmenter.generate("the red thing", features, 12))
    sent = Image.open(io.BytesIO(base64.b64decode(features.data_url.partition("base64,")[2])))
    here = load(str(folder), device="cpu", sam=sam).segmenter
    visual = here.language.encode_image(sent)  # as many tokens as its image processor makes
    prefix = here.language.prefill_prefix(here.template, visual)
    session = here.language.start_session(here.template, "the red thing", visual, prefix)
    steps = here.language.generate(session, None, 12)
    thought = theirs.removeprefix("<think>").removesuffix("</think>")
    assert thought.strip() == "".join(w.text for w in steps).strip() != ""
