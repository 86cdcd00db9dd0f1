"""What the page says, in every language it speaks. `{name}` stands for a value; keys are the same
in all."""

import gradio as gr

from app.texts.chinese import CHINESE, OF_THE_CORE
from app.texts.english import ENGLISH

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}
I18N = gr.I18n(**LANGUAGES)
"""For components, whose texts Gradio translates in the browser."""


def language_of(accepted: str | None) -> str:
    """The page's language for a browser's Accept-Language header: the first wish, else English, as
    the browser chooses for what Gradio translates there."""
    code = (accepted or "").strip().lower()[:2]
    return code if code in LANGUAGES else "en"


def translated(language: str, sentence: str) -> str:
    """A sentence of the core in a language, where it is one of those that visitors meet most."""
    if language == "en":
        return sentence
    return CHINESE["gone"] if sentence == ENGLISH["gone"] else OF_THE_CORE.get(sentence, sentence)


def say(language: str, key: str, **values) -> str:
    """A text of the page."""
    return LANGUAGES[language][key].format(**values) if values else LANGUAGES[language][key]
