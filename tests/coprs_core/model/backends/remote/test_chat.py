"""Servers of OpenAI's chat protocol that nobody can trust: without an end, without bounds, with a
protocol of their own; and what their refusals say."""

import gzip
import json
import time
import zlib
from dataclasses import replace
from threading import Event

import brotli
import pytest

from coprs_core import CoPRSError
from coprs_core.model.backends.remote import chat as chat_model
from coprs_core.model.backends.remote import event_stream
from coprs_core.model.backends.remote.chat import ChatEndpoint
from coprs_core.model.backends.remote.chat_reply import KeyRedactor
from tests.chat_server import ChatServer, answers
from tests.conftest import PATIENCE

KEY = "sk-very-secret-0123456789"
PICTURE = "data:image/jpeg;base64,AAAA"


@pytest.fixture
def asked(chat):
    """A server to ask, with more patience than a slow machine needs."""
    return ChatEndpoint(chat.url, "pointer", KEY, None, 600.0)


class OwnClock:
    """What patience is measured by here: it stands, or each look at it takes `step` seconds."""

    def __init__(self):
        self.now, self.step = 0.0, 0.0

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = OwnClock()
    monkeypatch.setattr(chat_model, "time", clock)
    return clock


def told(server: ChatEndpoint, tokens: int = 50) -> str:
    return "".join(step.text for step in server.stream_reply(PICTURE, "Where?", tokens))


def says(chat, *lines: str, status: int = 200, kind: str = "text/event-stream"):
    def act(handler, asked):
        handler.begin(status, kind)
        for line in lines:
            handler.write(f"{line}\n\n")

    chat.act = act


def piece(finish: str | None = None, index: object = 0, **delta: object) -> str:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}"


DONE = "data: [DONE]"

# --- no end


def for_ever(what: bytes, begins: bool = True):
    def act(handler, asked):
        if begins:
            handler.begin()
        while True:
            handler.write(what)
            time.sleep(0.01)

    return act


WITHOUT_END = {
    "comments": for_ever(b": ping\n\n"),
    "blank lines": for_ever(b"\n"),
    "single bytes": for_ever(b"x"),
    "empty pieces": for_ever(f"{piece(content='')}\n\n".encode()),
    "a role": for_ever(f"{piece(role='assistant')}\n\n".encode()),
    "usage": for_ever(b'data: {"choices": [], "usage": {"total_tokens": 1}}\n\n'),
    "other choices": for_ever(f"{piece(index=1, content='x')}\n\n".encode()),
    "headers": for_ever(b"HTTP/1.1 100 Continue\r\n\r\n", begins=False),
    "silence": lambda handler, asked: Event().wait(PATIENCE),
    "silence after a beginning": lambda handler, asked: handler.begin() or Event().wait(PATIENCE),
}


@pytest.mark.parametrize("way", WITHOUT_END)
def test_what_is_no_answer_is_waited_for_so_long_and_no_longer(chat, asked, clock, way):
    chat.act, clock.step = WITHOUT_END[way], 0.6
    with pytest.raises(CoPRSError, match="sent nothing for 1 s that belongs to an answer"):
        told(replace(asked, quiet_seconds=1.0))
    assert "silence" in way or chat.left.wait(PATIENCE)  # the request has ended


def test_after_the_first_piece_each_next_one_is_waited_for_as_long(chat, asked, clock):
    def act(handler, question):
        handler.begin()
        handler.delta(content="A ")
        for_ever(b": ping\n\n")(handler, question)

    chat.act = act
    steps = replace(asked, quiet_seconds=1.0).stream_reply(PICTURE, "Where?", 50)
    assert next(step.text for step in steps if step.text) == "A "
    clock.step = 0.6
    with pytest.raises(CoPRSError, match="sent nothing for 1 s that belongs to an answer"):
        list(steps)


def test_an_answer_that_drips_for_ever_has_an_end(chat, asked, clock, monkeypatch):
    monkeypatch.setattr(chat_model, "MAX_SECONDS_PER_TOKEN", 0.01)
    clock.step = 0.05

    def act(handler, question):
        handler.begin()
        while True:
            handler.delta(content="a")
            time.sleep(0.01)

    chat.act = act
    with pytest.raises(CoPRSError, match="has not ended its answer after"):
        told(replace(asked, quiet_seconds=1.0))
    assert chat.left.wait(PATIENCE)


@pytest.mark.parametrize("way", WITHOUT_END)
def test_whoever_waits_can_stop_and_the_request_ends(chat, asked, way):
    chat.act = WITHOUT_END[way]
    steps = asked.stream_reply(PICTURE, "Where?", 50)
    assert next(steps).text == ""
    steps.close()
    assert "silence" in way or chat.left.wait(PATIENCE)


def test_seconds_in_which_nobody_waits_are_not_counted(chat, asked, clock):
    chat.act = answers("A ", "hat.")
    steps = replace(asked, quiet_seconds=1.0).stream_reply(PICTURE, "Where?", 50)
    text = next(step.text for step in steps if step.text)
    clock.now += 1000
    assert text + "".join(step.text for step in steps) == "A hat."


# --- no bounds


def endless(begin: bytes, more: bytes, **how):
    def act(handler, asked):
        handler.begin(**how)
        handler.write(begin)
        for _ in range(500):
            handler.write(more * (1_000_000 // len(more)))

    return act


WITHOUT_BOUNDS = {
    "one line": endless(b'data: {"choices": [{"delta": {"content": "', b"a"),
    "a comment": endless(b": ", b"a"),
    "a body": endless(b'{"choices": [{"message": {"content": "', b"a", kind="application/json"),
    "a page": endless(b"<html>", b"a\n", kind="text/html"),
    "many lines of one event": endless(b"", b"data: a\n"),
    "many comments": endless(b"", b":\n"),
}


@pytest.mark.parametrize("way", WITHOUT_BOUNDS)
def test_500_mb_are_not_read(chat, asked, way):
    chat.act = WITHOUT_BOUNDS[way]
    with pytest.raises(CoPRSError, match=r"sent over 1,\d{3},\d{3} bytes.*more than"):
        told(asked)
    assert chat.left.wait(PATIENCE) and chat.written < 20_000_000  # what sockets hold on the way


@pytest.mark.parametrize("name", ["content", "reasoning", "refusal"])
def test_10_mb_in_one_piece_are_not_read(chat, asked, name):
    says(chat, piece(**{name: "a" * 10_000_000}), DONE)
    with pytest.raises(CoPRSError, match="bytes in one piece, more than a piece can be"):
        told(asked)


def test_a_piece_is_cut_where_the_reply_ends(chat, asked):
    says(chat, piece(content="a" * 900_000), piece("stop"), DONE)
    steps = list(asked.stream_reply(PICTURE, "Where?", 10))
    assert "".join(step.text for step in steps) == "a" * 400 and not steps[-1].is_end


@pytest.mark.parametrize("encoding, pack", [
    ("gzip", gzip.compress), ("deflate", zlib.compress), ("br", brotli.compress),
    ("zstd", zlib.compress), ("gzip, gzip", gzip.compress),
])  # fmt: skip
@pytest.mark.parametrize("status", [200, 400])
def test_what_is_compressed_is_not_read(chat, asked, encoding, pack, status):
    packed = pack(b"data: " + b"a" * 5_000_000)

    def act(handler, question):
        handler.begin(status, Content_Encoding=encoding)
        handler.write(packed)

    chat.act = act
    sentence = "compressed answer" if status == 200 else "refused the question"
    with pytest.raises(CoPRSError, match=sentence) as problem:
        told(asked)
    assert len(str(problem.value)) < 300
    assert chat.headers[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [301, 400, 401, 429, 500, 503])
def test_an_error_without_an_end_is_read_at_its_beginning(chat, asked, status):
    chat.act = endless(b"the reason ", b"a", status=status)
    with pytest.raises(CoPRSError) as problem:
        told(asked)
    assert len(str(problem.value)) < 500
    assert chat.left.wait(PATIENCE) and chat.written < 20_000_000


# --- the key


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_the_key_in_pieces_is_taken_out(size):
    text = f"a {KEY} b{KEY[:-1]} c{KEY}{KEY}sk-ver"
    redacted = KeyRedactor(KEY)
    pieces = (text[i : i + size] for i in range(0, len(text), size))
    got = "".join(map(redacted.feed, pieces)) + redacted.flush()
    assert got == f"a … b{KEY[:-1]} c……sk-ver"


def test_a_key_that_is_cut_off_with_the_reply_is_taken_out(chat, asked):
    says(chat, piece(content="a" * 390 + KEY), DONE)
    assert told(asked, 10) == "a" * 390 + "…"


@pytest.mark.parametrize("key", ["none", "EMPTY", "s"])
def test_what_is_no_key_stays_in_the_text(key):
    assert KeyRedactor(key).redact("none is EMPTY: so") == "none is EMPTY: so"


@pytest.mark.parametrize("name", ["content", "reasoning", "reasoning_content"])
@pytest.mark.parametrize("size", [3, 100])
def test_a_key_that_is_echoed_is_no_part_of_the_reply(chat, asked, name, size):
    text = f"I was given {KEY}."
    says(
        chat,
        *(piece(**{name: text[i : i + size]}) for i in range(0, len(text), size)),
        piece("stop", content="A hat."),
        DONE,
    )
    assert KEY not in told(asked) and "I was given …." in told(asked)


ECHOES = {
    "an error": ([f'data: {{"error": {{"message": "bad {KEY}"}}}}'], 200),
    "an error in mid-answer": ([piece(content="a"), f'data: {{"error": "bad {KEY}"}}'], 200),
    "a refusal": ([piece("stop", refusal=f"bad {KEY}"), DONE], 200),
    "a tool": ([piece("stop", tool_calls=[{"function": {"name": f"bad {KEY}"}}]), DONE], 200),
    "a page": ([f"<title>bad {KEY}</title>"], 502),
    "a text": ([f"bad {KEY}" + "a" * 400], 400),
    "a status": ([json.dumps({"detail": f"bad {KEY}"})], 401),
}


@pytest.mark.parametrize("way", ECHOES)
def test_a_key_that_is_echoed_is_in_no_sentence(chat, asked, way):
    lines, status = ECHOES[way]
    says(chat, *lines, status=status)
    with pytest.raises(CoPRSError, match="“bad …") as problem:
        told(asked)
    assert KEY not in str(problem.value) and KEY not in repr(asked)


# --- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(chat, asked, status):
    elsewhere = ChatServer()

    def act(handler, question):
        handler.begin(status, Location=f"{elsewhere.url}/chat?key={KEY}")

    chat.act = act
    with pytest.raises(CoPRSError, match=f"status {status}.*not followed.*{elsewhere.url}") as no:
        told(asked)
    assert not elsewhere.asked and KEY not in str(no.value)
    elsewhere.shutdown()
    elsewhere.server_close()


# --- odd streams

NOTHING = "sent something that is no answer"
BROKEN_OFF = "broke off in mid-answer: ask again"
READ = {
    "without an end of its own": ["A hat.", piece(content="A hat."), DONE],
    "without [DONE]": ["A hat.", piece(content="A hat."), piece("stop")],
    "choices are null": ["A hat.", 'data: {"choices": null}', piece("stop", content="A hat.")],
    "choices are none": ["A hat.", 'data: {"choices": []}', piece("stop", content="A hat.")],
    "choices are odd": ["A.", 'data: {"choices": [null, 5, {}]}', piece("stop", content="A.")],
    "choices are an object": ["A.", 'data: {"choices": {"a": 1}}', piece("stop", content="A.")],
    "two choices": [
        "A hat.",
        piece(content="A "),
        piece("stop", 1, content="B "),
        piece("stop", content="hat."),
    ],
    "no index": ["A.", 'data: {"choices": [{"delta": {"content": "A."}}]}', DONE],
    "delta is null": ["A.", 'data: {"choices": [{"delta": null}]}', piece("stop", content="A.")],
    "content is null": ["A.", piece(content=None), piece("stop", content="A.")],
    "content is a number": ["A.", piece(content=5), piece("stop", content="A.")],
    "content as parts": [
        "A hat.",
        piece(content=[{"type": "text", "text": "A "}, None, {"type": "x"}, "hat."]),
        DONE,
    ],
    "thoughts as parts": [
        "<think>So.</think>A hat.",
        piece(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "So."}]}]),
        piece("stop", content=[{"type": "text", "text": "A hat."}]),
    ],
    "a reason why it ended that is none": ["A.", piece(5, content="A."), DONE],  # type: ignore
    "usage": ["A.", piece("stop", content="A."), 'data: {"choices": [], "usage": {}}', DONE],
    "other fields": ["A.", ": hi\nevent: x\nid: 1\nretry: 5\n" + piece("stop", content="A.")],
    "one event on two lines": [
        "A.",
        'data: {"choices":\ndata: [{"delta": {"content": "A."}}]}',
        DONE,
    ],  # fmt: skip
    "no UTF-8": ["A \ufffd.", 'data: {"choices": [{"delta": {"content": "A \udcff."}}]}', DONE],
    "half a surrogate": ["A ?.", piece("stop", content="A \ud83d.")],
    "an error that is none": ["A.", 'data: {"error": null}', piece("stop", content="A.")],
    "a whole body": [
        "A hat.",
        '{"choices": [{"index": 0, "message": {"content": "A hat."}, "finish_reason": "stop"}]}',
    ],  # fmt: skip
    "an empty reply": ["", piece("stop", content="")],
    "no blank line before [DONE]": [
        "A hat.",
        piece(content="A "),
        f"{piece(content='hat.')}\n{DONE}",
    ],
    "a byte order mark": ["A hat.", "\ufeff" + piece(content="A "), piece("stop", content="hat.")],
}


@pytest.mark.parametrize("way", READ)
def test_an_odd_stream_is_read_right(chat, asked, way):
    text, *lines = READ[way]
    says(chat, *lines)
    steps = list(asked.stream_reply(PICTURE, "Where?", 50))
    assert "".join(step.text for step in steps) == text and steps[-1].is_end


@pytest.mark.parametrize("finish", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_a_reply_that_ran_out_of_tokens_has_not_ended(chat, asked, finish):
    says(chat, piece(content="A "), piece(finish, content="hat"), DONE)
    assert not list(asked.stream_reply(PICTURE, "Where?", 50))[-1].is_end


REFUSED = {
    "nothing": (NOTHING, []),
    "nothing but the end": (NOTHING, [DONE]),
    "another choice alone": (NOTHING, [piece("stop", 1, content="A."), DONE]),
    "an odd index": (NOTHING, [piece("stop", "x", content="A."), DONE]),
    "a number": (NOTHING, ["data: 5"]),
    "a list": (NOTHING, ["data: []"]),
    "null": (NOTHING, ["data: null"]),
    "no JSON": (NOTHING, ["data: {not json"]),
    "no JSON in mid-answer": (NOTHING, [piece(content="A."), "data: {not json"]),
    "depth": (NOTHING, ["data: " + "[" * 20_000]),
    "a long number": (NOTHING, ['data: {"choices": ' + "9" * 5000 + "}"]),
    "no UTF-8": (NOTHING, ["data: \udcff\udcfe"]),
    "an end in mid-answer": (BROKEN_OFF, [piece(content="A.")]),
    "half an event": (BROKEN_OFF, [f"{piece(content='A.')}\n\n", 'data: {"cho']),
    "aborted": (BROKEN_OFF, [piece("abort", content="A."), DONE]),
    "an error in mid-answer": (
        r"broke off in mid-answer: ask again \(it says “out of memory”\)",
        [piece(content="A."), 'data: {"error": {"message": "out of memory"}}'],
    ),
    "an error at once": (
        r"failed: look at its own messages \(it says “out of memory”\)",
        ['data: {"error": {"message": "out of memory"}}'],
    ),
    "an error of llama.cpp": (
        r"longer context.*\(it says “the context is full”\)",
        ['error: {"code": 400, "message": "the context is full", "type": "x"}'],
    ),
    "an error of llama.cpp in mid-answer": (
        r"broke off in mid-answer: ask again \(it says “out of slots”\)",
        [piece(content="A."), 'error: {"code": 500, "message": "out of slots"}'],
    ),
    "an error in a list": (r"failed.*\(it says “no”\)", ['data: {"error": ["no"]}']),
    "an error that does not say so": (
        rf"{NOTHING}.*\(it says “quota used up”\)",
        ['{"success": false, "message": "quota used up", "code": 20041}'],
    ),
    "an error of FastAPI that does not say so": (
        rf"{NOTHING}.*\(it says “not loaded”\)",
        ['data: {"detail": "not loaded"}', DONE],
    ),
    "errors that do not say so": (
        rf"{NOTHING}.*\(it says “no such model”\)",
        ['{"success": false, "errors": [{"message": "no such model"}], "result": null}'],
    ),
    "a page": (rf"{NOTHING}.*\(it says “Log in”\)", ["<html><title>Log in</title>"]),
    "an error with its status": (
        r"has no room now.*\(it says “slow down”\)",
        ['data: {"error": {"message": "slow down", "code": 429}}'],
    ),
    "an error with a deep status": (
        r"failed: look at its own messages \(it says “no”\)",
        ['data: {"error": {"message": "no", "code": ' + "[" * 900 + "]" * 900 + "}}"],
    ),
    "an error of vLLM": (
        r"refused the question.*\(it says “too many pictures”\)",
        ['data: {"object": "error", "message": "too many pictures", "code": 400}'],
    ),
    "a filter of Google's": ("by a filter", [piece("SAFETY", content="A."), DONE]),
    "a filter": ("by a filter of its own", [piece("content_filter", content="A."), DONE]),
    "declined": (
        r"declines to answer.*\(it says “I cannot.”\)",
        [piece(refusal="I "), piece("stop", refusal="cannot."), DONE],
    ),  # fmt: skip
    "a tool": (
        r"called a tool.*\(it says “look”\)",
        [piece("tool_calls", tool_calls=[{"index": 0, "function": {"name": "look"}}]), DONE],
    ),  # fmt: skip
    "a function": ("called a tool", [piece("function_call", function_call={"name": "look"}), DONE]),
    "an odd tool": ("called a tool", [piece("tool_calls", tool_calls=[5]), DONE]),
}


@pytest.mark.parametrize("way", REFUSED)
def test_an_odd_stream_ends_in_a_sentence(chat, asked, way):
    sentence, lines = REFUSED[way]

    def act(handler, question):
        handler.begin()
        for line in lines:
            handler.write(line if way == "half an event" else f"{line}\n\n")

    chat.act = act
    with pytest.raises(CoPRSError, match=sentence) as problem:
        told(asked)
    assert problem.value.__cause__ is None


# --- a server's own reason

IN_MIND = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."
REASONS = {
    "OpenAI": (400, {"error": {"message": "Bad picture.", "type": "x", "param": None}}, "Bad pict"),
    "vLLM": (400, {"object": "error", "message": "Bad picture.", "code": 400}, "Bad picture."),
    "Ollama": (404, {"error": 'model "x" not found'}, 'knows no model.*model "x" not found'),
    "FastAPI": (422, {"detail": [{"loc": ["body", "top"], "msg": "too big"}]}, "body.top: too big"),
    "Google": (400, [{"error": {"message": "Bad picture."}}], "Bad picture."),
    "a text": (400, "Bad\npicture.", "“Bad picture.”"),
    "a page": (413, "<html><title>413 Request Entity Too Large</title>", "too large.*“413 Request"),
    "an odd page": (500, "<html>x", r"failed \(status 500\): look at its own messages\.$"),
    "context": (400, {"error": {"message": IN_MIND}}, "longer context.*maximum context length"),
    "no picture": (400, {"error": {"message": "no images"}}, "choose a model that reads pictures"),
    "quota": (429, {"error": {"message": "10 a minute"}}, "has no room now.*“10 a minute”"),
    "overload": (503, {"error": {"message": "loading"}}, r"failed \(status 503\).*“loading”"),
    "key": (403, {"error": {"message": "not in your country"}}, "refuses the key.*“not in your"),
    "long": (400, {"error": {"message": "x" * 5000}}, "x…”"),
    "a deep place": (
        422,
        '{"detail": [{"loc": [' + "[" * 900 + "]" * 900 + '], "msg": "a"}]}',
        "“.*a”",
    ),  # fmt: skip
    "deep": (400, "[" * 20_000, "refused the question"),
    "odd": (400, {"error": {"message": {"a": [5]}, "param": 7}}, "refused the question"),
    "nothing": (400, "", "refused the question with its picture: choose a model"),
}


@pytest.mark.parametrize("way", REASONS)
def test_a_servers_own_reason_is_said(chat, asked, way):
    status, body, sentence = REASONS[way]
    text = body if isinstance(body, str) else json.dumps(body)
    says(chat, text, status=status, kind="application/json")
    with pytest.raises(CoPRSError, match=sentence) as problem:
        told(asked)
    assert len(str(problem.value)) < 450 and "\n" not in str(problem.value)


def picky(refusals, status: int = 400):
    """Refuses what `refusals` (a function of what is asked) says, else answers."""

    def act(handler, asked):
        if reason := refusals(asked):
            handler.begin(status, "application/json")
            handler.write(json.dumps({"error": reason}))
        else:
            answers("A hat.")(handler, asked)

    return act


def old_name(asked):
    if "max_tokens" in asked:
        return {
            "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "param": "max_tokens",
        }
    if "temperature" in asked:
        return {"message": "Unsupported value: 0 is not the default.", "param": "temperature"}
    return None


def test_parameters_that_a_server_refuses_are_named_otherwise_or_left_out(chat, asked):
    chat.act = picky(old_name)
    assert told(asked, 77) == "A hat."
    first, second, third = chat.asked
    assert first["max_tokens"] == second["max_completion_tokens"] == 77
    assert third.keys() == {"model", "messages", "stream", "max_completion_tokens"}
    assert told(asked, 78) == "A hat." and len(chat.asked) == 4  # it is remembered
    assert chat.asked[3]["max_completion_tokens"] == 78


WORDINGS = {
    "stream": [
        "Your organization must be verified to stream this model.",
        "Streaming is not supported with images.",
    ],
    "temperature": ["Temperature should be in (0, 2)", "`temperature` must be strictly positive"],
    "max_tokens": [
        "the supported range of maxOutputTokens is from 1 to 40",
        "`inputs` tokens + `max_new_tokens` must be <= 2048",
        "Max tokens must be at most 40",
    ],
}


@pytest.mark.parametrize("name", WORDINGS)
def test_refusals_are_understood_in_many_words(chat, asked, name):
    for words in WORDINGS[name]:
        chat.asked.clear()
        asked.unsupported_parameters.clear()
        chat.act = picky(lambda a, words=words: name in a and {"message": words})
        assert told(asked) == "A hat.", words
        first, second = chat.asked
        assert first.keys() - second.keys() == {name}


def test_a_reply_that_cannot_stream_comes_whole(chat, asked):
    def act(handler, question):
        if question.get("stream"):
            handler.begin(400, "application/json")
            handler.write('{"error": {"message": "no", "param": "stream"}}')
        else:
            handler.begin(200, "application/json")
            message = {"reasoning_content": "So.", "content": "A hat."}
            values = {"choices": [{"message": message, "finish_reason": "stop"}]}
            handler.write(json.dumps(values))

    chat.act = act
    assert told(asked) == told(asked) == "<think>So.</think>A hat."
    assert len(chat.asked) == 3


TOO_LARGE = (
    "'max_tokens' or 'max_completion_tokens' is too large: 50. This model's maximum context length "
    "is 40 tokens and your request has 30 input tokens."
)


@pytest.mark.parametrize("status", [200, 400, 422])
def test_a_bound_that_is_too_large_is_left_out_this_once(chat, asked, status):
    chat.act = picky(lambda a: a.get("max_tokens", 0) > 10 and TOO_LARGE, status=status)
    assert told(asked) == "A hat." and len(chat.asked) == 2
    assert "max_tokens" not in chat.asked[1] and "max_completion_tokens" not in chat.asked[1]
    told(asked, 9)
    assert chat.asked[2]["max_tokens"] == 9


def test_what_is_refused_again_ends_in_its_reason(chat, asked):
    chat.act = picky(lambda a: "max_tokens and temperature are bad")
    with pytest.raises(CoPRSError, match="“max_tokens and temperature are bad”"):
        told(asked)
    assert len(chat.asked) == 2
    chat.act = picky(lambda a: "the picture is bad")
    with pytest.raises(CoPRSError, match="“the picture is bad”"):
        told(asked)
    assert len(chat.asked) == 3


def test_nobody_is_asked_again_in_mid_answer(chat, asked):
    says(chat, piece(content="A "), 'data: {"error": {"message": "max_tokens is bad"}}')
    with pytest.raises(CoPRSError, match="broke off in mid-answer.*max_tokens is bad"):
        told(asked)
    assert len(chat.asked) == 1


SPEAKERS = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2 " + KEY.encode() + b"\r\n",
    "nothing": b"",
    "a header without an end": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
    "no body": b"HTTP/1.1 204 No Content\r\n\r\n",
}


@pytest.mark.parametrize("way", SPEAKERS)
def test_what_does_not_speak_the_protocol_is_one_sentence(chat, asked, way):
    chat.act = lambda handler, question: handler.write(SPEAKERS[way])
    with pytest.raises(CoPRSError, match="sent something that is no answer: check that") as problem:
        told(asked)
    assert KEY not in str(problem.value)


def test_a_name_that_no_host_can_have_is_one_sentence():
    for host in ("a..b", "xn--a", "*.x", "a" * 300):
        server = ChatEndpoint(f"http://{host}/v1", "x", KEY, None, 5.0)
        with pytest.raises(CoPRSError, match="cannot be reached: check that it runs"):
            told(server)


def test_a_bound_of_an_event_holds_any_reply_in_one_piece():
    longest = 8192 * chat_model.MAX_CHARACTERS_PER_TOKEN  # of ASCII
    assert longest < event_stream.MAX_EVENT_BYTES
