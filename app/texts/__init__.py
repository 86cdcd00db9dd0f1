"""What the page says, in every language it speaks. `{name}` stands for a value; keys are the same
in all."""

from collections.abc import Mapping

import gradio as gr

from app.texts.chinese import CHINESE
from app.texts.chinese_errors import CHINESE_ERRORS
from app.texts.english import ENGLISH
from coprs_core.errors import CoPRSError, Phrase

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}
I18N = gr.I18n(**LANGUAGES)
"""For components, whose texts Gradio translates in the browser."""
ERRORS: dict[str, Mapping[str, str]] = {"en": {}, "zh": CHINESE_ERRORS}
"""Of each language, what it says in place of the core's English; a key is the English template
(see `Phrase`)."""


def parse_language(accepted: str | None) -> str:
    """The page's language for a browser's Accept-Language header: the first wish, else English, as
    the browser chooses for what Gradio translates there."""
    code = (accepted or "").strip().lower()[:2]
    return code if code in LANGUAGES else "en"


def translate(language: str, said: str | CoPRSError) -> str:
    """What the core or the server says, in a language: its template there, filled with the same
    values, those that are phrases translated, too. What has no translation stays as it is."""
    words = said.phrase if isinstance(said, CoPRSError) else said
    if not isinstance(words, Phrase):
        return ERRORS[language].get(words, words)
    values = {
        name: translate(language, value) if isinstance(value, Phrase) else value
        for name, value in words.values.items()
    }
    return str(Phrase(ERRORS[language].get(words.template, words.template), **values))


def say(language: str, key: str, **values) -> str:
    """A text of the page."""
    return LANGUAGES[language][key].format(**values) if values else LANGUAGES[language][key]
