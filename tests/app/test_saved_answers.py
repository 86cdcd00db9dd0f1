"""A stranger's zip in a real browser: its words stay words, whatever field they stand in."""

import copy
import json
import zipfile

import pytest

from coprs_core.export.archive import save_zip
from coprs_core.photos.photo import open_photo
from tests.app.test_ui import at_rest, browser, open_tab, page, server  # noqa: F401  (fixtures)

HOSTILE = [
    "<img src=x onerror='window.hacked=1'>",
    "<script>window.hacked=1</script>",
    "</script><script>window.hacked=1</script>",
    "'\"><svg onload=window.hacked=1>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "[a](javascript:window.hacked=1) ![b](http://stranger.example/b.png)",
    "<a href='javascript:window.hacked=1' id=bait>click</a>",
    "<style>*{display:none}</style>",
    "{{constructor.constructor('window.hacked=1')()}} ${window.hacked=1}",
    "\u202egnp.exe\u0000\u2028<b id=bait>bold</b>",
]
ELEMENTS = "iframe, svg[onload], img[onerror], #bait, a[href^='javascript']"


def places_of_texts(values, path=()) -> list[tuple]:
    """Where texts stand in nested tables and lists."""
    if isinstance(values, str):
        return [path]
    if not isinstance(values, dict | list):
        return []
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return [place for key, value in items for place in places_of_texts(value, (*path, key))]


def with_text(values: dict, places: list[tuple], text: str) -> dict:
    changed = copy.deepcopy(values)
    for *way, last in places:
        inner = changed
        for key in way:
            inner = inner[key]
        inner[last] = text
    return changed


def answers(values: dict) -> list[dict]:
    """The answer with each hostile text wherever any text is taken, and with all of them in each
    place where one of a few words is."""
    values["regions"][0] |= {"label": "a thing", "box": [1, 1, 9, 9], "points": []}
    places = places_of_texts(values)
    strict = [p for p in places if p[-1] in ("outcome", "prior_kind", "frame", "size", "counts")]
    free = [p for p in places if p not in strict]
    everywhere = [
        with_text(values, free, text)
        | {"settings": {text: text}, "versions": {text: text}, "seconds": {text: 1.0}}
        for text in HOSTILE
    ]
    return everywhere + [with_text(values, [place], " ".join(HOSTILE)) for place in strict]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, found):
    """The zips."""
    folder, made = tmp_path_factory.mktemp("hostile"), []
    save_zip(folder / "whole.zip", open_photo(found[0].image), found[2])
    with zipfile.ZipFile(folder / "whole.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for answer in answers(json.loads(files["result.json"])):
        made.append(folder / f"{len(made)}.zip")
        with zipfile.ZipFile(made[-1], "w") as archive:
            for name, content in (files | {"result.json": json.dumps(answer)}).items():
                archive.writestr(name, content)
    return made


def test_hostile_words_stay_words(page, hostile):  # noqa: F811
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    home = page.url
    shown = 0
    for path in hostile:
        page.reload()
        page.wait_for_selector("#trace [data-sentence]")
        open_tab(page, "Take away")
        page.set_input_files("#saved input[type=file]", str(path))
        page.wait_for_selector(".toast-body.error, .verdict.found, .verdict.none")
        at_rest(page)
        shown += page.locator(".toast-body.error").count() == 0
        assert page.evaluate("window.hacked") is None, path
        found = page.locator(ELEMENTS).evaluate_all("all => all.map(e => e.outerHTML)")
        assert not found, (path, found)
    print(f"{shown} of {len(hostile)} zips were shown")
    assert shown >= len(HOSTILE) and not said
    assert all(url.startswith((home, "blob:", "data:")) for url in asked)
