"""The page in a real browser: from upload to IoU, Stop, errors, a closed tab, a narrow and a dark screen.

Writes its screenshots to assets/screenshots/ when COPRS_SCREENSHOTS=1 is set (the README shows them), else to a
temporary folder.
"""

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from app.ui import build, launch
from coprs_core.engine import Engine
from coprs_core.shelf import Shelf
from tests.conftest import slowed

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the browser tests need it")
SCREENSHOTS = Path(__file__).resolve().parent.parent / "assets" / "screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
THINKING = "(document.querySelector('.thought:not(.empty)')?.innerText.length ?? 0) > 25"
FINISHED = ".verdict.found, .verdict.none"


@pytest.fixture(scope="module")
def browser(chromium):
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(mini):
    engine = Engine(mini.checkpoint)
    demo = build(Shelf(engine, device="cpu"), may_choose=True)
    _, url, _ = launch(demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield url, engine
    demo.close()


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(server[0])
    page.wait_for_selector("#find")
    yield page
    page.close()


@pytest.fixture
def slow(server):
    """Makes every decoding step take a while and counts them."""
    steps, undo = slowed(server[1], 0.12)
    yield steps
    undo()


@pytest.fixture(scope="module")
def photo(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(found[0].image).save(path)
    return str(path)


@pytest.fixture
def shoot(tmp_path):
    folder = SCREENSHOTS if os.environ.get("COPRS_SCREENSHOTS") else tmp_path

    def take(page, name):
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png", animations="disabled")

    return take


def upload_and_ask(page, photo, instruction):
    page.set_input_files("#photo input[type=file]", photo)
    page.wait_for_selector("#photo img")
    page.fill("#instruction textarea", instruction)
    page.click("#find")


def test_from_upload_to_iou(page, photo, found, shoot):
    _, question, result = found
    shoot(page, "first-visit")
    upload_and_ask(page, photo, question.instruction)
    page.wait_for_selector(".verdict.found", timeout=30000)
    page.wait_for_selector("#mask img")
    assert page.inner_text(".verdict b") == f"{result.prior_iou:.2f}"
    assert page.locator("#prior img").count() == 1
    assert page.locator(".steps li.done").count() == 4
    assert not page.locator(".thought details").evaluate("d => d.open")  # folded
    page.click(".thought summary")
    assert result.reasoning[:40] in page.inner_text(".thought details")


def test_an_example_is_one_click(page, shoot):
    page.click("#examples button.thumbnail-item >> nth=0")
    page.wait_for_selector(FINISHED, timeout=30000)
    page.wait_for_selector("#mask img")
    page.wait_for_timeout(500)
    assert page.input_value("#instruction textarea") == "the thing that keeps the rain off"
    shoot(page, "answer")


def test_nothing_there_says_so_and_draws_nothing(page, shoot):
    page.click("#examples button.thumbnail-item >> nth=-1")
    page.wait_for_selector(".verdict.none", timeout=30000)
    assert "Nothing found" in page.inner_text(".verdict") and page.locator("#mask img").count() == 0
    shoot(page, "nothing-found")


def test_stop_keeps_the_partial_thought_and_the_next_question_works(page, photo, slow, shoot):
    upload_and_ask(page, photo, "the largest thing")
    page.wait_for_function(THINKING)
    shoot(page, "thinking")
    page.click("#stop")
    page.wait_for_selector(".thought:has-text('stopped')")
    page.wait_for_timeout(400)
    at_rest = len(slow)
    page.wait_for_timeout(1000)
    assert len(slow) == at_rest  # the generator is closed
    assert "I see" in page.inner_text(".thought")
    assert page.input_value("#instruction textarea") == "the largest thing"
    page.fill("#instruction textarea", "the smallest thing")
    page.click("#find")
    page.wait_for_selector(FINISHED, timeout=60000)


def test_closing_the_tab_stops_the_work(browser, server, photo, slow):
    page = browser.new_page()
    page.goto(server[0])
    page.wait_for_selector("#find")
    upload_and_ask(page, photo, "the largest thing")
    page.wait_for_function(THINKING)
    page.close()
    time.sleep(1.5)
    at_rest = len(slow)
    time.sleep(1.5)
    assert len(slow) == at_rest


def test_a_mistake_is_one_sentence_and_the_inputs_stay(page, photo, tmp_path):
    page.set_input_files("#photo input[type=file]", photo)
    page.wait_for_selector("#photo img")
    page.click("#find")
    page.wait_for_selector(".toast-body")
    assert "The instruction is empty" in page.inner_text(".toast-body")
    assert page.locator("#photo img").count() == 1
    page.fill("#instruction textarea", "the largest thing")
    page.click("#find")
    page.wait_for_selector(FINISHED, timeout=60000)


def test_a_file_that_is_no_picture_is_refused_in_a_sentence(page, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"not a picture at all")
    page.set_input_files("#photo input[type=file]", str(path))
    page.wait_for_selector("#photo img", state="attached")
    page.fill("#instruction textarea", "the cup")
    page.click("#find")
    page.wait_for_selector(".toast-body")
    assert "cannot be read as a picture" in page.inner_text(".toast-body")
    assert page.input_value("#instruction textarea") == "the cup"


def test_two_visitors_never_see_each_others_thought(browser, server, photo):
    contexts = [browser.new_context() for _ in range(2)]
    pages = [c.new_page() for c in contexts]
    for p in pages:
        p.goto(server[0])
        p.wait_for_selector("#find")
    upload_and_ask(pages[0], photo, "the largest thing")
    pages[0].wait_for_selector(FINISHED, timeout=30000)
    assert pages[1].input_value("#instruction textarea") == "" and "appears here" in pages[1].inner_text(".thought")
    assert pages[1].locator("#photo img, #prior img, #mask img").count() == 0
    [c.close() for c in contexts]


@pytest.mark.parametrize("width, scheme", [(390, "light"), (1280, "dark")])
def test_narrow_and_dark(browser, server, shoot, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 844 if width < 700 else 800}, color_scheme=scheme)
    page.goto(server[0])
    page.wait_for_selector("#find")
    page.click("#examples button.thumbnail-item >> nth=0")
    page.wait_for_selector(FINISHED, timeout=30000)
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    shoot(page, f"{scheme}-{width}")
    page.close()


def test_the_table_of_models_opens_and_a_wrong_name_is_one_sentence(page, shoot):
    page.get_by_role("button", name="Models").click()
    page.wait_for_selector("table.models")
    assert page.locator("table.models tbody tr").count() == 6
    page.locator("#model input").fill("no/where/at/all")
    page.locator("#model input").press("Enter")
    page.get_by_role("button", name="Use this model").click()
    page.wait_for_selector(".loading.failed")
    assert "There is no checkpoint" in page.locator(".loading.failed").inner_text()
    assert "mini" in page.locator(".model-line").inner_text()
    page.locator("#models").scroll_into_view_if_needed()
    shoot(page, "models")


def test_the_thought_can_be_traced_sentence_by_sentence(page, shoot):
    page.click("#examples button.thumbnail-item >> nth=0")
    page.wait_for_selector(".verdict.found")
    page.get_by_role("button", name="Why this region?").click()
    page.get_by_role("button", name="Trace the thought").click()
    page.wait_for_selector(".settled")
    assert page.locator("#traced img").count() >= 2
    assert "IoU" in page.locator("#traced .caption-label").first.inner_text()
    page.locator("#why").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    shoot(page, "trace")


def test_the_table_of_models_fits_a_narrow_page(browser, server):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(server[0])
    page.get_by_role("button", name="Models").click()
    page.wait_for_selector("table.models")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
