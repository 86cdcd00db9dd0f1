"""From a template to HTML. Values are escaped wherever they stand; only a template's own text is
not."""

from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from app.texts import say
from coprs_core.storage import format_bytes

TEMPLATES = Path(__file__).resolve().parent / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["in_words"] = format_bytes


def say_html(lang: str, key: str, **values) -> Markup:
    """A text of the page as HTML: the text is ours, the values in it are escaped."""
    return Markup(say(lang, key)).format(**values)


def render(lang: str, template: str, **values) -> Markup:
    """A template of `templates/` in a language of the page."""
    text = _ENVIRONMENT.get_template(f"{template}.html").render(
        say=partial(say_html, lang), **values
    )
    return Markup(text.strip("\n"))
