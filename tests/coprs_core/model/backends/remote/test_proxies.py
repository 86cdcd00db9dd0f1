"""Proxies that the environment names: used for other machines, named where they fail, and never
for this one."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from coprs_core import CoPRSError
from coprs_core.checkpoints import doctor, remote
from coprs_core.checkpoints.downloads import download_snapshot
from coprs_core.model.backends.remote import proxies
from tests.chat_server import ChatHandler

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
ELSEWHERE = "http://model.invalid:8000/v1"
PICTURE = "data:image/jpeg;base64,AAAA"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Without proxies of the machine that runs the tests."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("COPRS_API_KEY", "sk-very-secret-0123456789")
    return monkeypatch


class Proxy(ThreadingHTTPServer):
    """A proxy that counts what comes, and answers questions itself."""

    daemon_threads = True

    def __init__(self, status: int = 200):
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.came, self.status = [], status
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"


class ProxyHandler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _any(self):
        self.server.came.append((self.command, self.path))
        if self.command == "CONNECT":
            self.send_error(403)
        elif self.server.status != 200:
            self.send_error(self.server.status)
        else:
            self.rfile.read(int(self.headers["Content-Length"]))
            ChatHandler.begin(self)
            self.wfile.write(b'data: {"choices": [{"delta": {"content": "A hat."}}]}\n\n')
            self.wfile.write(b"data: [DONE]\n\n")

    do_GET = do_HEAD = do_POST = do_CONNECT = _any


@pytest.fixture
def proxy():
    server = Proxy()
    yield server
    server.shutdown()
    server.server_close()


def told(url: str) -> str:
    server = remote.parse_remote_name(f"openai:pointer@{url}").server()
    return "".join(step.text for step in server.stream_reply(PICTURE, "Where?", 50))


@pytest.mark.parametrize("names", [
    ("HTTP_PROXY", "HTTPS_PROXY"), ("http_proxy",), ("ALL_PROXY",), ("all_proxy", "HTTP_PROXY"),
])  # fmt: skip
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433"])
@pytest.mark.parametrize("bypassed", [None, "", "example.org"])
def test_this_machine_is_never_asked_through_a_proxy(
    chat, proxy, environment, names, host, bypassed
):
    for name in names:
        environment.setenv(name, proxy.url)
    if bypassed is not None:
        environment.setenv("NO_PROXY", bypassed)
    assert told(chat.url.replace("127.0.0.1", host)) == "A hat."
    assert chat.asked and not proxy.came


@pytest.mark.parametrize("host", [
    "localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.255.0.9", "127.1", "0x7f.1", "::1",
    "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "0.0.0.0", "::",
])  # fmt: skip
def test_names_of_this_machine(host):
    assert proxies.is_localhost(host)


@pytest.mark.parametrize("host", [
    "", "localhost.example.org", "127.0.0.1.example.org", "128.0.0.1", "10.0.0.1", "::2", "a", "12a",
])  # fmt: skip
def test_names_of_other_machines(host):
    assert not proxies.is_localhost(host)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_another_machine_is_asked_through_the_proxy(proxy, environment, name):
    environment.setenv(name, proxy.url.removeprefix("http://"))
    assert told(ELSEWHERE) == "A hat."
    assert proxy.came == [("POST", f"{ELSEWHERE}/chat/completions")]


@pytest.mark.parametrize("bypassed, host", [
    ("model.invalid", "model.invalid"), (".invalid", "model.invalid"), ("*", "model.invalid"),
    ("a, INVALID ,b", "model.invalid"), ("10.0.0.0/8", "10.1.2.3"), ("10.1.2.3", "10.1.2.3"),
    ("fd00::/8, x", "[fd00::1]"), ("model.invalid:8000", "model.invalid"),
])  # fmt: skip
def test_what_no_proxy_names_is_asked_without(environment, bypassed, host):
    environment.setenv("HTTP_PROXY", "http://proxy:3128")
    url = f"http://{host}:8000/v1"
    assert proxies.proxy_for(url) == "http://proxy:3128"
    environment.setenv("NO_PROXY", bypassed)
    assert proxies.proxy_for(url) is None


@pytest.mark.parametrize("status", [403, 407, 502, 504])
def test_a_proxy_that_fails_is_named_without_its_password(environment, status):
    proxy = Proxy(status)
    environment.setenv("ALL_PROXY", proxy.url.replace("://", "://me:geheim@"))
    try:
        for url in (ELSEWHERE, ELSEWHERE.replace("http:", "https:")):
            with pytest.raises(CoPRSError, match=f"through the proxy {proxy.url}") as problem:
                told(url)
            assert "geheim" not in str(problem.value)
        assert [command for command, _ in proxy.came] == ["POST", "CONNECT"]
        assert "proxy refused" in str(problem.value)
    finally:
        proxy.shutdown()
        proxy.server_close()


def test_a_proxy_that_is_not_there_is_named(environment):
    environment.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(
        CoPRSError, match=r"\(through the proxy http://127.0.0.1:9\) cannot be reac"
    ):
        told(ELSEWHERE)


@pytest.mark.parametrize("proxy, sentence", [
    ("socks5://me:geheim@host:1080", "socks5://host:1080, for which the package socksio is missing"),
    ("socks5h://host:1080", "socks5h://host:1080, for which the package socksio is missing"),
    ("socks://host:1080", "socks://host:1080, and only addresses such as"),
    ("socks4://host:1080", "socks4://host:1080, and only"),
    ("http://host:port", "http://host:port, and only"),
    ("http://", "http://, and only"),
    ("http://[host", r"http://\[host, and only"),
])  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_one_sentence(environment, proxy, sentence):
    environment.setattr(proxies, "find_spec", lambda name: None)
    environment.setattr(constants, "HF_HUB_OFFLINE", False)
    environment.setenv("ALL_PROXY", proxy)
    for way in (lambda: told(ELSEWHERE), lambda: download_snapshot("somebody/no-such-model-here")):
        with pytest.raises(CoPRSError, match=sentence) as problem:
            way()
        assert "geheim" not in str(problem.value)
    assert "name model.invalid in NO_PROXY" in doctor.format_checks(
        doctor.run_checks(f"openai:x@{ELSEWHERE}")
    )


def test_the_doctor_names_the_proxy(environment):
    environment.setenv("HTTP_PROXY", "http://me:geheim@proxy:3128")
    screen = doctor.format_checks(doctor.run_checks(f"openai:x@{ELSEWHERE}"))
    assert "asked when it is loaded through the proxy http://proxy:3128" in screen
    assert "geheim" not in screen
    assert "proxy" not in doctor.format_checks(doctor.run_checks("openai:x@http://localhost:1/v1"))


def test_past_proxies_the_environment_is_as_before(environment):
    environment.setenv("HTTP_PROXY", "http://proxy:3128")
    for before in (None, "", "a,b"):
        if before is not None:
            environment.setenv("no_proxy", before)
        with pytest.raises(ZeroDivisionError), proxies.bypass_proxies():
            assert proxies.proxy_for(ELSEWHERE) is None
            _ = 1 / 0
        assert proxies.proxy_for(ELSEWHERE) == "http://proxy:3128"


def test_a_key_that_can_be_none_is_one_sentence(environment):
    for key in ("schlüssel-0123456789", "sk-0123\n456789"):
        environment.setenv("COPRS_API_KEY", key)
        with pytest.raises(CoPRSError, match="COPRS_API_KEY holds signs that no key has"):
            told(ELSEWHERE)
    environment.setenv("COPRS_API_KEY", " sk-0123456789\r\n")
    assert remote.parse_remote_name(f"openai:x@{ELSEWHERE}").server().api_key == "sk-0123456789"
