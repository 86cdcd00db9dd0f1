"""The help pages in the docs are what the commands say."""

from tests.record_help import PATH, WIDTH, pages


def test_the_help_pages_in_the_docs_are_current(monkeypatch):
    monkeypatch.setenv("COLUMNS", WIDTH)  # and what it was comes back
    # versions of Python break the lines at other words
    recorded, today = PATH.read_text(encoding="utf-8").split(), pages().split()
    assert recorded == today, "run python -m tests.record_help"
