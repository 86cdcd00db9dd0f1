"""The doors of the running app: paths, bypasses, other pages, passwords, headers, uploads."""

import asyncio
import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from app.options import ServerOptions
from app.server.guard import (
    MAX_WRONG_PASSWORDS,
    NO_ENDPOINT,
    NO_SUCH_PAGE,
    QUEUE_FULL,
    UPLOAD_TOO_LARGE,
)
from app.server.model import ModelServer
from app.server.uploads import (
    BAD_INPUTS,
    NOT_UPLOADED,
    UNEXPECTED_ERROR,
    UPLOADS_FULL,
    set_max_bytes,
    use_private_folder,
)
from app.ui import build, launch
from coprs_core.answer.engine import Engine
from coprs_core.photos.photo import open_photo
from tests import ROOT, free_port
from tests.conftest import PATIENCE, held_steps, nobody_reads, until


@pytest.fixture(scope="module")
def engine(mini):
    return Engine(mini.checkpoint)


@pytest.fixture(scope="module")
def url(engine):
    demo = build(ModelServer(engine), may_switch=True)
    _, url, _ = launch(demo, quiet=True)
    yield url
    demo.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture of the server's that nobody uploaded."""
    path = tmp_path_factory.mktemp("private") / "secret.png"
    Image.new("RGB", (64, 48), "red").save(path)
    return str(path)


HTTP = httpx.Client()  # one for all: each would load certificates first


def asked(url: str, number: int, data: list, session: str = "s") -> dict:
    """What the page's event of a number answers: its last message."""
    body = {"fn_index": number, "session_hash": session, "data": data, "trigger_id": None}
    joined = HTTP.post(f"{url}gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    return last_message(url, session)


def last_message(url: str, session: str) -> dict:
    """The last message of what a session has just asked."""
    with HTTP.stream(
        "GET", f"{url}gradio_api/queue/data", params={"session_hash": session}, timeout=PATIENCE
    ) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return message
    raise AssertionError("no answer came")


def events(url: str) -> list[dict]:
    config = httpx.get(f"{url}config").json()
    kinds = {c["id"]: c for c in config["components"]}
    return [
        {
            "id": d["id"],
            "inputs": [kinds[i] for i in d["inputs"]],
            "api": d["api_name"],
            "is_public": d["api_visibility"] == "public",
        }
        for d in config["dependencies"]
        if d["backend_fn"]
    ]


# --- which doors there are


OPEN = {
    *("GET /", "HEAD /", "POST /login", "GET /logout", "GET /config", "GET /svelte/x"),
    *("GET /static/x", "GET /assets/x", "GET /favicon.ico", "GET /theme.css", "GET /robots.txt"),
    *(f"GET /gradio_api/{name}" for name in ("user", "login_check", "token", "app_id", "info")),
    *(f"GET /gradio_api/{name}" for name in ("openapi.json", "startup-events", "theme.css")),
    *(f"GET /gradio_api/{name}" for name in ("queue/status", "queue/data", "heartbeat/x")),
    *("GET /gradio_api/upload_progress", "GET /gradio_api/call/x/x", "GET /gradio_api/call/v2/x/x"),
    *(f"POST /gradio_api/{name}" for name in ("queue/join", "call/x", "call/v2/x", "cancel")),
    *(f"POST /gradio_api/{name}" for name in ("reset", "component_server", "upload")),
}
"""What answers, of all that the app has; files, whose names are checked, aside, and `run/predict`,
by which the page asks what does not wait in the queue."""


def routes_of(router, prefix: str = "") -> set[str]:
    """Every route of an app and the routers inside it: method and path, "x" for what varies."""
    found = set()
    for route in router.routes:
        if inner := getattr(route, "original_router", None):
            found |= routes_of(inner, prefix + (route.include_context.prefix or ""))
        elif path := getattr(route, "path", ""):
            filled = re.sub(r"\{[^}]*\}", "x", prefix + path)
            filled = filled.rstrip("/") or "/"
            found |= {f"{method} {filled}" for method in route.methods or ()}
    return found


def test_no_door_is_open_that_the_page_does_not_use(mini):
    demo = build(ModelServer(Engine(mini.checkpoint)), may_switch=True)
    _, url, _ = launch(demo, quiet=True)
    try:
        routes = routes_of(demo.app)
        assert {"GET /gradio_api/proxy=x", "GET /gradio_api/deep_link"} <= routes  # all are seen
        assert len(routes) > 50
        answering = set()
        for route in routes:
            method, path = route.split(" ")
            with HTTP.stream(method, f"{url}{path[1:]}", timeout=PATIENCE) as answer:
                text = answer.read().decode() if answer.status_code == 404 else ""
                is_door = NO_SUCH_PAGE not in text and (method, answer.status_code) != ("HEAD", 404)
            if is_door and answer.status_code != 403:
                answering.add(route)
        assert answering == OPEN
    finally:
        demo.close()


@pytest.mark.parametrize("way", ["", "/", "?session_hash=s"])
def test_no_page_is_written_for_a_link_of_gradios(url, way):
    before = sorted(use_private_folder().rglob("*"))
    answer = HTTP.get(f"{url}gradio_api/deep_link{way}")
    assert answer.status_code == 404 and answer.json()["detail"] == NO_SUCH_PAGE
    assert sorted(use_private_folder().rglob("*")) == before


def test_the_app_fetches_nothing_for_a_stranger(url):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"http://127.0.0.1:{other.getsockname()[1]}/x"
        for path in (
            *(f"gradio_api/{way}={address}" for way in ("file", "proxy")),
            *(f"gradio_api/{way}=https://example.org/x" for way in ("file", "proxy")),
            *(f"gradio_api/file={way}" for way in ("HTTP://example.org/x", "//example.org/x")),
            f"gradio_api/file={address}{'%2F..' * 40}{use_private_folder()}/x",
            f"gradio_api/file=https:/{'/%2e%2e' * 40}{use_private_folder()}/x",
            "gradio_api/file=http%3A%2F%2Fexample.org/x",
            "gradio_api/file/http://example.org/x",
        ):
            for method in ("GET", "HEAD"):
                answer = HTTP.request(method, f"{url}{path}", timeout=PATIENCE)
                assert answer.status_code in (403, 404), (method, path)
                sentence = answer.json()["detail"] if method == "GET" else NOT_UPLOADED
                assert sentence in (NOT_UPLOADED, NO_SUCH_PAGE)
        other.settimeout(0.2)
        with pytest.raises(TimeoutError):
            other.accept()


# --- no file of the server's


def test_no_event_reads_a_file_that_nobody_uploaded(url, picture):
    there, missing = picture, picture.replace("secret", "nothing")
    takers = [e for e in events(url) if any(_takes_files(c) for c in e["inputs"])]
    assert len(takers) >= 4  # ask (twice), ground truth, open; and the endpoints
    sentences = set()
    for event in takers:
        for path in (there, missing, "/etc/passwd", "../" * 20 + there, f"file://{there}"):
            for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
                data = [_payload(c, {"path": path, **meta}) for c in event["inputs"]]
                message = asked(url, event["id"], data, f"s{event['id']}")
                assert not message["success"], (event, path)
                sentences.add(message["output"]["error"])
    assert sentences == {NOT_UPLOADED}


def _takes_files(component: dict) -> bool:
    return component["type"] in ("image", "imageeditor", "file") or (
        component["type"] == "api" and "path" in json.dumps(component.get("api_info", {}))
    )


def _payload(component: dict, file: dict):
    if component["type"] == "imageeditor":
        return {"background": file, "layers": [file], "composite": None}
    return file if _takes_files(component) else None


def test_what_was_uploaded_is_taken_and_kept_privately(url, picture):
    client = Client(url, verbose=False)
    result = client.predict(handle_file(picture), "the red thing", api_name="/segment")["result"]
    assert result["photo_size"] == [48, 64]
    folder = use_private_folder()
    assert any(folder.rglob("secret.png")) and folder.stat().st_mode & 0o077 == 0


def test_wrong_kinds_are_one_sentence_each(url):
    """Every event with every wrong kind of value: never a null, never a traceback's text."""
    values = [None, 3, "x", [], {}, [[1]], {"path": 3}, {"a": {"b": []}}]

    def tried(event: dict) -> int:
        for value in values:
            inputs = [value for _ in event["inputs"]]
            output = asked(url, event["id"], inputs, f"w{event['id']}")
            if not output["success"]:
                sentence = output["output"]["error"]
                assert sentence and re.search(r"[.:]", sentence) and "Traceback" not in sentence
                assert len(sentence) < 600 and "\n" not in sentence
                assert sentence != UNEXPECTED_ERROR, event
        return len(values)

    spared = ("models", "use_model", "use_model_1")
    with ThreadPoolExecutor(8) as pool:
        count = sum(pool.map(tried, (e for e in events(url) if e["api"] not in spared)))
    assert count >= 200


def test_no_statistics_are_made_that_nobody_reads(engine):
    """Gradio sums up all past events after each one, for a dashboard that is off."""
    demo = build(ModelServer(engine))
    _, url, _ = launch(demo, quiet=True)
    number = next(e["id"] for e in events(url) if e["api"] == "show_model")
    assert asked(url, number, [], "statistics")["success"]
    assert asked(url, number, [], "statistics")["success"]  # they would be made after the first
    assert demo._queue.event_analytics
    assert demo._queue.cached_event_analytics_summary == {"functions": {}}
    demo.close()


# --- the queue


def test_broken_requests_are_refused_without_a_traceback(url, capfd):
    join = f"{url}gradio_api/queue/join"
    body = {"session_hash": "s", "fn_index": 99_999, "data": []}
    for address, values in ((join, body), (f"{url}gradio_api/call/nothing", {"data": []})):
        answer = httpx.post(address, json=values)
        assert (answer.status_code, answer.json()["detail"]) == (404, NO_ENDPOINT)
    for origin in ("http://[", "http://x@127.0.0.1", "//", ""):
        assert httpx.post(join, json={}, headers={"Origin": origin}).status_code == 403, origin
    for way in ("queue/join", "cancel", "call/segment"):
        too_long = (b" " * 1_000_000 for _ in range(12))  # without a stated length
        try:
            answer = httpx.post(f"{url}gradio_api/{way}", content=too_long)
            assert answer.status_code == 400
        except httpx.TransportError:  # the server has stopped reading
            pass
    assert "Traceback" not in capfd.readouterr().err


def test_a_session_has_a_short_name(url):
    long, fine = "s" * 5000, "s" * 36
    component = HTTP.get(f"{url}config").json()["components"][0]["id"]
    for way, more in (
        ("queue/join", {"fn_index": 0, "data": []}),
        ("call/models", {"data": []}),
        ("cancel", {"fn_index": 0, "event_id": "x"}),
        ("component_server", {"component_id": component, "fn_name": "x", "data": None}),
    ):
        address = f"{url}gradio_api/{way}"
        answer = HTTP.post(address, json=more | {"session_hash": long})
        assert (answer.status_code, answer.json()["detail"]) == (400, BAD_INPUTS), way
        assert HTTP.post(address, json=more | {"session_hash": fine}).text != answer.text, way
    address = f"{url}gradio_api/component_server"
    for length in (5000, 2_000_000):
        form = {"session_hash": "s" * length, "component_id": str(component), "fn_name": "x"}
        answer = HTTP.post(address, data=form, files={"file": ("f", b"x")})
        assert (answer.status_code, answer.json()["detail"]) == (400, BAD_INPUTS)


def test_a_session_of_no_letters_is_none(url, capfd):
    for name in ("%0a", "%00", "a%20b", "..", "%2e"):
        assert HTTP.get(f"{url}gradio_api/heartbeat/{name}").status_code == 404, name
    assert "Traceback" not in capfd.readouterr().err


def test_the_door_beside_the_queue_is_closed(url):
    for name in ("segment", "sentences", "download", "compare"):
        for way in ("run", "api", "predict"):
            answer = httpx.post(f"{url}gradio_api/{way}/{name}", json={"data": []})
            assert answer.status_code in (404, 405), (way, name)
    numbers = [e["id"] for e in events(url) if e["api"] == "segment"]
    body = {"fn_index": numbers[0], "data": [None, "x"], "session_hash": "s"}
    assert httpx.post(f"{url}gradio_api/run/predict", json=body).status_code in (404, 405)


def test_work_is_bounded_whatever_the_door(mini):
    server, most, running = ModelServer(Engine(mini.checkpoint), at_once=2), [], []
    together = threading.Barrier(2, timeout=PATIENCE)
    photo = open_photo(np.zeros((9, 9, 3), np.uint8))

    def work(engine, photo):
        running.append(1)
        most.append(len(running))
        together.wait()  # the two that are let in work at the same time
        running.pop()

    threads = [threading.Thread(target=server.call, args=(work, photo)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 8 and max(most) <= 2


def test_a_full_queue_is_said_in_our_words_and_an_unread_question_is_given_up(
    mini, picture, monkeypatch
):
    is_time = threading.Event()  # to give up what is unread

    async def waits(seconds) -> None:
        while not is_time.is_set():
            await asyncio.sleep(0.01)

    own = SimpleNamespace(**vars(asyncio) | {"sleep": waits})
    monkeypatch.setattr("app.server.guard.asyncio", own)
    engine = Engine(mini.checkpoint)
    server = ModelServer(engine)
    demo = build(server)
    _, url, _ = launch(demo, ServerOptions(queue=1, at_once=1), quiet=True)
    client = Client(url, verbose=False)
    uploaded = client.predict(handle_file(picture), "x", api_name="/segment")["result"]
    assert uploaded
    with open(picture, "rb") as file:
        [path] = httpx.post(f"{url}gradio_api/upload", files={"files": file}).json()
    segment = next(e["id"] for e in events(url) if e["api"] == "segment")
    photo = {"path": path, "meta": {"_type": "gradio.FileData"}}

    def join(session, headers=None):
        body = {"fn_index": segment, "data": [photo, "the red thing"], "session_hash": session}
        return httpx.post(f"{url}gradio_api/queue/join", json=body, headers=headers or {})

    with held_steps(engine, 3) as (steps, let_go):
        assert join("a").status_code == 200
        until(lambda: len(steps) == 3)  # it runs
        assert join("b").status_code == 200  # it waits
        program, page = join("c"), join("d", {"Sec-Fetch-Site": "same-origin"})
        assert program.status_code == 503 and page.status_code == 429
        assert program.json() == page.json() == {"detail": QUEUE_FULL}
        is_time.set()
        until(lambda: nobody_reads(demo))
        let_go()
        until(lambda: server.is_idle)
        assert len(steps) <= 4, "what nobody reads goes on"
    demo.close()


# --- other pages, other names


def test_another_name_or_page_changes_nothing(url):
    port = url.rsplit(":", 1)[1].strip("/")
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "evil@localhost",
    ):
        assert httpx.get(url, headers={"Host": host}).status_code == 400, host
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert httpx.get(url, headers={"Host": host}).status_code == 200, host
    join = f"{url}gradio_api/queue/join"
    foreign = (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    )
    for headers in foreign:
        for way in ("queue/join", "upload", "call/use_model", "cancel", "reset"):
            answer = httpx.post(f"{url}gradio_api/{way}", json={}, headers=headers)
            assert answer.status_code == 403 and "another page" in answer.json()["detail"]
    own = {"Origin": url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert httpx.post(join, json={}, headers=own).status_code not in (400, 401, 403)


def test_a_further_name_is_known_when_it_is_given(mini):
    demo = build(ModelServer(mini))
    _, url, _ = launch(demo, ServerOptions(names=("coprs.example.org",)), quiet=True)
    headers = {"Host": "coprs.example.org", "Origin": "https://coprs.example.org"}
    assert httpx.get(url, headers=headers).status_code == 200
    answer = httpx.post(f"{url}gradio_api/queue/join", json={}, headers=headers)
    assert answer.status_code not in (400, 403)
    assert not ServerOptions(names=("coprs.example.org",)).may_switch and ServerOptions().may_switch
    demo.close()


def test_headers_keep_the_page_to_itself(url):
    headers = httpx.get(url).headers
    policy = headers["content-security-policy"]
    assert "frame-ancestors 'self'" in policy and "object-src 'none'" in policy
    assert "http" not in policy  # no other server at all
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


# --- passwords


def test_nothing_is_seen_before_the_password_and_it_cannot_be_guessed_fast(mini):
    demo = build(ModelServer(mini))
    app, url, _ = launch(demo, ServerOptions(password="me:secret"), quiet=True)
    free = {"/", "/login", "/theme.css", "/favicon.ico"}
    for route in {getattr(r, "path", "") for r in app.routes}:
        path = re.sub(r"\{[^}]*\}", "x", route)
        if path.rstrip("/") in {p.rstrip("/") for p in free} or path.startswith(
            ("/login", "/assets", "/static", "/svelte", "/gradio_api/startup-events")
        ):
            continue
        assert httpx.get(f"{url}{path[1:]}").status_code == 401, path
    with httpx.Client() as visitor:
        told = visitor.post(f"{url}login", data={"username": "me", "password": "secret"})
        assert told.status_code == 200 and visitor.get(f"{url}config").status_code == 200
        for i in range(MAX_WRONG_PASSWORDS):
            wrong = {"username": "me", "password": str(i)}
            assert httpx.post(f"{url}login", data=wrong).status_code == 400
        right = {"username": "me", "password": "secret"}
        refused = httpx.post(f"{url}login", data=right)
        assert refused.status_code == 429 and "wrong passwords" in refused.json()["detail"]
        assert visitor.get(f"{url}config").status_code == 200  # who is in stays in
    demo.close()


def test_many_passwords_at_once_are_no_way_around_the_bound(mini):
    """Half of each request is sent before the first is counted."""
    demo = build(ModelServer(mini))
    _, url, _ = launch(demo, ServerOptions(password="me:secret"), quiet=True)
    host, port = re.fullmatch(r"http://([^:]+):(\d+)/", url).groups()
    body = b"username=me&password=wrong"
    head = (
        f"POST /login HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    waiting = [socket.create_connection((host, int(port))) for _ in range(60)]
    for connection in waiting:
        connection.sendall(head + body[:-1])
    time.sleep(1)
    for connection in waiting:
        connection.sendall(body[-1:])
    answers = [connection.recv(100) for connection in waiting]
    tried = sum(b" 400 " in answer for answer in answers)
    assert tried <= MAX_WRONG_PASSWORDS and sum(b" 429 " in a for a in answers) == 60 - tried
    demo.close()


# --- other pages


@pytest.mark.parametrize(
    "way", ["config", "gradio_api/info", "gradio_api/token", "gradio_api/file=x", "logout"]
)
def test_no_other_page_reads_an_answer(url, way):
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    ):
        assert httpx.get(f"{url}{way}", headers=headers).status_code == 403, headers
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert httpx.get(url, headers=link).status_code == 200  # a link opens the page
    assert httpx.get(f"{url}logout", headers=link).status_code == 403


def test_no_origin_is_told_that_it_may_read(url):
    own = url.rstrip("/")
    for origin in (own, "https://evil.example", "http://localhost:1"):
        preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        for answer in (
            httpx.get(url, headers={"Origin": origin, "Sec-Fetch-Mode": "navigate"}),
            httpx.options(f"{url}gradio_api/queue/join", headers=preflight),
        ):
            assert not [h for h in answer.headers if h.startswith("access-control")], origin


def test_a_stranger_does_not_say_where_the_page_lies(url):
    for header in ("X-Forwarded-Host", "X-Gradio-Server"):
        told = httpx.get(f"{url}config", headers={header: "http://evil.example/"})
        assert "evil" not in told.text
    for host in ("127.0.0.1:1,evil.example", "127.0.0.1#", "localhost/evil"):
        assert httpx.get(url, headers={"Host": host}).status_code == 400


# --- beside the queue


def test_paintings_are_few_and_small(running):
    url, process = running
    [number] = [
        c["id"]
        for c in httpx.get(f"{url}config").json()["components"]
        if c["type"] == "imageeditor"
    ]

    def paint(content: bytes, **values) -> int:
        form = {"session_hash": "s", "component_id": number, "fn_name": "accept_blobs"} | values
        return httpx.post(
            f"{url}gradio_api/component_server",
            data=form,
            files={"files": ("blob", content)},
            timeout=PATIENCE,
        ).status_code

    before = process.memory_info().rss
    paint(b"x", index="100000000", id="a", type="layer")
    for i in range(40):
        paint(b"x" * 6_000_000, index="null", id=f"b{i}", type="background")
    assert process.memory_info().rss - before < 200e6
    for broken in ({"index": "x"}, {}, {"index": "-1", "id": "c", "type": "layer"}):
        assert paint(b"x", **broken) in (200, 400)
    assert paint(b"x" * 100, index="0", id="d", type="layer") == 200


def test_a_broken_request_beside_the_queue_is_one_sentence(running):
    url, _ = running
    for path, body in (
        ("gradio_api/component_server", '"text"'),
        ("gradio_api/component_server", "[1]"),
    ):
        answer = httpx.post(
            f"{url}{path}", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 404, 422) and answer.text
    answer = httpx.get(f"{url}gradio_api/custom_component/x/client/component/a.js")
    assert answer.status_code in (400, 404)


def test_an_event_names_no_path_either(url):
    """What a browser says of the picture that was clicked goes through the same gate."""
    config = httpx.get(f"{url}config").json()
    galleries = {c["id"] for c in config["components"] if c["type"] == "gallery"}
    picks = [
        d
        for d in config["dependencies"]
        if d["backend_fn"] and any(t[0] in galleries for t in d["targets"])
    ]
    assert picks
    said = set()
    for pick in picks:
        for path in ("/etc/passwd", "/nowhere", "/proc/1/root/x", "x" * 5000, "\0"):
            body = {
                "fn_index": pick["id"],
                "session_hash": "e",
                "data": [None] * len(pick["inputs"]),
                "trigger_id": pick["targets"][0][0],
                "event_data": {"index": 99, "value": {"image": {"path": path}}},
            }
            joined = HTTP.post(f"{url}gradio_api/queue/join", json=body)
            assert joined.status_code == 200
            said.add(last_message(url, "e")["output"]["error"])
    assert said == {NOT_UPLOADED}


def test_what_only_a_browser_does_is_refused_in_a_sentence(url):
    config = httpx.get(f"{url}config").json()
    alone = [d for d in config["dependencies"] if not d["backend_fn"]]
    assert alone
    for event in alone:
        said = asked(url, event["id"], [None] * len(event["inputs"]), f"b{event['id']}")
        assert not said["success"] and said["output"]["error"] == BAD_INPUTS


def test_which_folders_there_are_is_not_told(url):
    client = Client(url, verbose=False)
    said = set()
    for folder in ("/etc", "/nowhere/at/all", "/root"):
        with pytest.raises(Exception, match="There is no checkpoint") as problem:
            client.predict(folder, api_name="/use_model")
        said.add(str(problem.value).replace(folder, "…"))
    assert len(said) == 1


# --- large photos


def test_a_large_photo_costs_bounded_memory_however_many_ask(running, tmp_path):
    url, process = running
    path = tmp_path / "flat.png"
    Image.new("RGB", (8192, 8192), "red").save(path)
    client = Client(url, verbose=False)
    thought = "It is there."
    result = client.predict(handle_file(path), "the red thing", thought, api_name="/focus_again")
    height, width = result["photo_size"]
    assert height * width <= 12_000_000 and height == width
    before, peak, done = process.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    jobs = [
        Client(url, verbose=False).submit(handle_file(path), result, api_name="/download")
        for _ in range(3)
    ]
    for job in jobs:
        assert job.result(180).endswith(".zip")
    done.set()
    watcher.join()
    print(f"three zips of a large photo at once: +{(peak - before) / 1e9:.2f} GB")
    assert peak - before < 1.5e9


# --- uploads


def test_files_have_an_end(url, picture):
    client = Client(url, verbose=False)
    photo = client.submit(handle_file(picture), "the red thing", api_name="/segment")
    result = photo.result()["result"]
    photo = {"path": str(next(use_private_folder().rglob("secret.png")))}
    set_max_bytes(0)
    try:
        with open(picture, "rb") as file:
            answer = httpx.post(f"{url}gradio_api/upload", files={"files": file})
        assert answer.status_code == 507 and answer.json()["detail"] == UPLOADS_FULL
        with pytest.raises(Exception, match=UPLOADS_FULL):
            client.predict(photo, result, api_name="/download")
    finally:
        set_max_bytes(ServerOptions.uploads)
    assert client.predict(photo, result, api_name="/download").endswith(".zip")


def test_an_upload_that_breaks_off_leaves_nothing(url, capfd):
    before = set(use_private_folder().iterdir())
    host, port = re.fullmatch(r"http://([^:]+):(\d+)/", url).groups()
    start = (
        '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + "x" * 1_000_000
    ).encode()
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 2000000\r\n\r\n"
    )
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + start)
            until(lambda: set(use_private_folder().iterdir()) != before)
    until(lambda: set(use_private_folder().iterdir()) == before)
    assert "Traceback" not in capfd.readouterr().err


def test_one_upload_is_bounded_whatever_its_parts(url):
    before = set(use_private_folder().iterdir())
    files = [("files", (f"{i}.png", b"x" * 8_000_000)) for i in range(6)]
    answer = httpx.post(f"{url}gradio_api/upload", files=files)
    assert answer.status_code == 413 and answer.json()["detail"] == UPLOAD_TOO_LARGE

    def unstated():
        for i in range(6):
            yield f'--x\r\nContent-Disposition: form-data; name="f"; filename="{i}"\r\n\r\n'.encode()
            for _ in range(8):
                yield b"x" * 1_000_000
            yield b"\r\n"
        yield b"--x--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{url}gradio_api/upload", content=unstated(), headers=kind)
    assert answer.status_code == 413 and answer.json()["detail"] == UPLOAD_TOO_LARGE
    until(lambda: set(use_private_folder().iterdir()) == before)


def test_nothing_of_visitors_outlives_the_server(tmp_path, picture):
    dead = tmp_path / "coprs-uploads-999999999-x"
    dead.mkdir()
    process, url = started(tmp_path)
    try:
        client = Client(url, verbose=False)
        job = client.submit(handle_file(picture), "the red thing", api_name="/segment")
        next(iter(job))
        [folder] = tmp_path.glob("coprs-*")  # that of a killed server is gone
        assert folder != dead and any(folder.rglob("secret.png"))
        process.terminate()  # in mid-answer
        assert process.wait(PATIENCE) == 0
        assert not any(tmp_path.glob("coprs-*"))
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()


def started(folder: Path, **more: str) -> tuple[subprocess.Popen, str]:
    """The app in a process of its own, once it answers, and its address; its temporary files are in
    a folder, and `more` in its environment."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)],
        cwd=ROOT,
        env=os.environ | {"GRADIO_TEMP_DIR": str(folder), "COPRS_DEVICE": "cpu"} | more,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}/"
    while process.poll() is None:
        try:
            httpx.get(url)
            return process, url
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError(f"the app does not start: {process.communicate()[1]}")


# --- small things that cost much


def bomb(side: int) -> str:
    """A black picture of side × side as the data URL of a prior."""
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def bombs(result: dict) -> dict[str, dict]:
    region = result["regions"][0]
    huge = region | {"prior": bomb(8192), "mask": {"size": [8192, 8192], "counts": [8192**2]}}
    return {
        "a huge prior": result | {"regions": [region | {"prior": huge["prior"]}]},
        "a huge photo": result | {"photo_size": [8192, 8192], "regions": [huge]},
        "many": result | {"photo_size": [8192, 8192], "regions": [huge] * 30},
        "tokens": result | {"reply_ids": [5] * 16_000},
        "an instruction": result | {"instruction": "x" * 100_000},
        "a mask of nothings": result
        | {"regions": [region | {"mask": {"size": [48, 64], "counts": [0] * 1_000_000}}]},
        "a text": result | {"reasoning": "x" * 1_000_000},
        "a table": result | {"settings": {str(i): i for i in range(100_000)}},
    }


@pytest.fixture(scope="module")
def running(tmp_path_factory, picture):
    """The app in a process of its own, its model loaded: (its address, the process)."""
    folder = tmp_path_factory.mktemp("temporary")
    process, url = started(folder)
    _found(Client(url, verbose=False), handle_file(picture))
    yield url, psutil.Process(process.pid)
    process.kill()


def test_nothing_small_costs_much(running, picture):
    url, process = running
    client = Client(url, verbose=False)
    photo = handle_file(picture)
    result = _found(client, photo)
    for name, hostile in bombs(result).items():
        before, worked = process.memory_info().rss, sum(process.cpu_times()[:2])
        for endpoint, values in (
            ("/sentences", (photo, hostile)),
            ("/download", (photo, hostile)),
            ("/compare", (hostile, hostile)),
        ):
            with pytest.raises(Exception, match="answer") as error:
                client.predict(*values, api_name=endpoint)
            print(name, endpoint, (process.memory_info().rss - before) / 1e6)
            assert len(str(error.value)) < 400
        assert process.memory_info().rss - before < 300e6, name
        assert sum(process.cpu_times()[:2]) - worked < 60, name  # of work, not of a clock


def _found(client, photo) -> dict:
    """An answer with a region about the photo, whatever the model says."""
    thought = "It is there."
    result = client.predict(photo, "the red thing", thought, api_name="/focus_again")
    assert np.prod(result["photo_size"]) == 64 * 48 and len(result["regions"]) == 1
    return result


def test_a_long_thought_is_refused(url, picture):
    client = Client(url, verbose=False)
    with pytest.raises(Exception, match="at most 8,000"):
        client.predict(handle_file(picture), "x", "word " * 20_000, api_name="/focus_again")
