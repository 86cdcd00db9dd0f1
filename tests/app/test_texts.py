"""What the page says of errors, in Chinese: every sentence of the code that can reach it."""

import ast
import importlib
import io
import json
import pickle
import re
from pathlib import Path
from string import Formatter
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from PIL import Image

from app.handlers import Handlers
from app.server.model import ModelServer
from app.texts import translate
from app.texts.chinese_errors import CHINESE_ERRORS
from app.ui import build, launch
from coprs_core.answer.engine import Engine
from coprs_core.errors import CoPRSError, Phrase
from coprs_core.model.backends.remote.chat import ChatEndpoint
from coprs_core.probes.finding import NotApplicable
from tests import ROOT
from tests.app.test_handlers import CPU, NAMES

SAID_BY = {
    **dict.fromkeys(("CoPRSError", "Cancelled", "NotApplicable", "Phrase"), 0),
    "_as_gr_error": 0,
    "_error_response": 2,
}
"""Calls that make a sentence, and which argument is its template."""
ELSEWHERE = re.compile(
    "app/(ui|texts)|coprs_core/(commands|batch|benchmark|calibrate|cluster|datasets|evaluation"
    "|example|mini|parsing|random_weights|run_settings|training|__main__"
    "|checkpoints/(convert|save|fsdp_shards|doctor))"
)
"""Modules whose sentences the command line, training or evaluation alone can give."""
MADE_BEFORE = ("problem", "template", "self.why_replay_unavailable(lang, answer)")


def sentences():
    """(where, template or None, names of its values) of all that can reach the page."""
    for top in ("app", "coprs_core"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not ELSEWHERE.match(name):
                yield from _sentences_in(path, name)


def _sentences_in(path: Path, name: str):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        maker = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
        if maker not in SAID_BY or ast.unparse(node.args[SAID_BY[maker]]) in MADE_BEFORE:
            continue
        said = node.args[SAID_BY[maker]]
        template = said.value if isinstance(said, ast.Constant) else None
        if isinstance(said, ast.Name):  # a constant of the module
            module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
            template = getattr(module, said.id, None)
        yield f"{name}:{node.lineno}", template, {k.arg for k in node.keywords}


def places(template: str) -> set:
    return {place[1:] for place in Formatter().parse(template) if place[1] is not None}


def test_every_sentence_that_can_reach_the_page_has_a_chinese_one_with_the_same_places():
    said = [(where, template, names) for where, template, names in sentences() if template != ""]
    assert len(said) > 200
    assert not [where for where, template, _ in said if not isinstance(template, str)]
    missing = {template: where for where, template, _ in said if template not in CHINESE_ERRORS}
    assert not missing
    for where, template, names in said:
        if names:
            assert {name for name, *_ in places(template)} == names, where
            assert places(CHINESE_ERRORS[template]) == places(template), where


def test_the_chinese_table_holds_nothing_that_nobody_says(mini):
    said = {template for _, template, _ in sentences()} | {mini.segmenter.note}
    assert not CHINESE_ERRORS.keys() - said


def test_chinese_sentences_are_chinese():
    """But for names of formats and the like, which are the same in both."""
    latin = {english for english, chinese in CHINESE_ERRORS.items() if chinese.isascii()}
    assert latin <= {"JPEG XL", "OpenEXR", "auto: {choice}", "{fault} ({detail})"}


# --- real ones, through the real app


ZH = SimpleNamespace(headers={"accept-language": "zh-CN,en;q=0.5"}, session_hash="zh")


def is_chinese(text: str) -> bool:
    """Whether each of its sentences, and what stands after a colon, holds Chinese."""
    return all(re.search("[\u4e00-\u9fff]", part) for part in re.split("[：。；]", text) if part)


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def page(mini):
    return Handlers(ModelServer(Engine(mini.checkpoint), CPU), NAMES)


def says(work) -> str:
    """What the page says of a mistake, all of it in Chinese."""
    with pytest.raises(gr.Error) as told:
        work()
    assert is_chinese(told.value.message), told.value.message
    return told.value.message


FILES = {
    "empty.png": (b"", "它是空的，0 字节"),
    "cut.png": (png(64, 48)[:50], "PNG 文件"),
    "wide.png": (png(9000, 3), "9,000×3"),
    "page.png": (b"<!doctype html><p>x", "HTML 网页"),
    "thin.png": (png(3000, 3), "100 倍"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_photo_that_cannot_be_read_is_refused_in_chinese(page, tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name][0])
    assert FILES[name][1] in says(lambda: list(page.answer(str(tmp_path / name), "it", (), ZH)))


def test_what_is_wrong_with_a_question_or_a_zip_is_said_in_chinese(page, tmp_path):
    photo = str(ROOT / "assets/examples/hats.png")
    (tmp_path / "{a}.zip").write_bytes(b"PK")
    assert "2,001" in says(lambda: list(page.answer(photo, "a" * 2001, (), ZH)))
    assert "指令为空" in says(lambda: list(page.answer(photo, " ", (), ZH)))
    assert "指令" in says(lambda: list(page.answer(photo, "a\ud800", (), ZH)))
    assert "{a}.zip" in says(lambda: page.opening.open_file(str(tmp_path / "{a}.zip"), (), ZH))
    assert "当前没有回答" in says(lambda: page.thought_actions.show_words(None, ZH))


def test_a_model_that_cannot_be_loaded_is_told_in_chinese(page):
    shown = [html for html, _ in page.models.switch("miny", ZH)]
    words = shown[-1].striptags()
    assert "没有检查点 'miny'（您是指 mini 吗？）" in words and is_chinese(words)


@pytest.mark.parametrize(
    "status, said", [(401, "拒绝了密钥"), (500, "状态 500"), (404, "没有模型")]
)
def test_what_another_server_refuses_is_said_in_chinese(chat, status, said):
    chat.act = lambda handler, _: handler.begin(status)
    server = ChatEndpoint(chat.url, "m", "none", None, 5.0)
    with pytest.raises(CoPRSError) as refused:
        list(server.stream_reply("data:,", "where?", 20))
    sentence = translate("zh", refused.value)
    assert said in sentence and is_chinese(sentence) and "127.0.0.1" in sentence


def test_the_server_itself_refuses_in_chinese(mini):
    """What is refused before a question comes to us: at the doors, and of broken inputs."""
    demo = build(ModelServer(Engine(mini.checkpoint), CPU))
    _, url, _ = launch(demo, quiet=True)
    with httpx.Client(headers=ZH.headers) as visitor:
        nothing = visitor.get(f"{url}nothing").json()["detail"]
        page_events = visitor.get(f"{url}config").json()["dependencies"]
        event = next(d for d in page_events if d["api_visibility"] == "private" and d["inputs"])
        data = [{"path": "/etc/passwd"}] * len(event["inputs"])
        body = {"fn_index": event["id"], "session_hash": "zh", "data": data, "trigger_id": None}
        visitor.post(f"{url}gradio_api/queue/join", json=body)
        with visitor.stream("GET", f"{url}gradio_api/queue/data?session_hash=zh") as stream:
            told = next(line for line in stream.iter_lines() if "process_completed" in line)
    demo.close()
    error = json.loads(told.removeprefix("data:"))["output"]["error"]
    assert is_chinese(nothing) and is_chinese(error), (nothing, error)


def test_an_error_keeps_its_template_on_the_way_to_another_process():
    inner = CoPRSError("no {what}", what="a{b}")
    error = CoPRSError("{n:,} of {path!r}: {reason}", n=1234, path="x{y", reason=inner)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "1,234 of 'x{y': no a{b}"
    assert again.phrase.template == error.phrase.template
    assert again.phrase.values["reason"].template == "no {what}"
    probe = pickle.loads(pickle.dumps(NotApplicable("{count} words", "words", count=2)))
    assert (str(probe), probe.stem, probe.phrase.template) == ("2 words", "words", "{count} words")


def test_braces_are_braces_where_no_values_are_filled_in():
    assert str(CoPRSError("write {a} and {")) == "write {a} and {"
    assert translate("zh", CoPRSError("write {a} and {")) == "write {a} and {"
    assert translate("zh", Phrase("it is {kind}", kind=Phrase("a PNG"))) == "它是PNG 文件"
