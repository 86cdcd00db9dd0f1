"""The page in a real browser: from upload to IoU, every probe, Stop, errors, a closed tab, two
visitors, the keyboard alone, a narrow screen, a dark one, Chinese.

Writes its screenshots to assets/screenshots/ when COPRS_SCREENSHOTS=1 is set (the README shows
some), else to a temporary folder.
"""

import base64
import dataclasses
import io
import json
import os
import time
from pathlib import Path

import gradio
import numpy as np
import pytest
from PIL import Image

from app import handlers
from app.saved_answers import load_recorded_answer
from app.server.model import ModelServer
from app.texts import CHINESE
from app.ui import build, launch
from coprs_core import Region
from coprs_core.answer.engine import Engine
from coprs_core.answer.pictures import mask_overlay, prior_overlay
from coprs_core.checkpoints.catalogue import MODEL_NAMES
from coprs_core.checkpoints.load import load_checkpoint
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.errors import CoPRSError
from coprs_core.export.archive import open_answer, save_zip
from coprs_core.masks import decode_prior, encode_prior
from coprs_core.metrics import iou_curve
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.model.backends.decoding import ContinuousBatch
from coprs_core.model.segmenter import Step
from coprs_core.photos.photo import open_photo
from tests import ROOT, tiny
from tests.conftest import PATIENCE, held_steps, nobody_reads, until
from tests.record import tiny_targets

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: the browser tests need it"
)
SCREENSHOTS = ROOT / "assets" / "screenshots"
CHEETAH = str(Path(gradio.__file__).parent / "media_assets" / "images" / "cheetah1.jpg")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
THINKING = "(document.querySelector('.thought:not(.empty, .done)')?.innerText.length ?? 0) > 25"
WORDS = 12  # enough for a beginning, and no whole thought
FOUND = ".verdict.found:not(.recorded)"
FINISHED = f"{FOUND}, .verdict.none:not(.recorded)"
"""A recorded answer stands on the first screen."""


@pytest.fixture(scope="module")
def browser(chromium):
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        new_page = browser.new_page
        browser.new_page = lambda **how: watched(new_page(**how))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(mini):
    """(address, engine, what holds it, page)"""
    engine = Engine(mini.checkpoint)
    holder = ModelServer(engine, LoadOptions(device="cpu"))
    demo = build(holder, may_switch=True)
    _, url, _ = launch(demo, quiet=True)
    yield url, engine, holder, demo
    demo.close()


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    visit(page, server[0])
    yield page
    page.close()


@pytest.fixture
def thinking(server, monkeypatch):
    """The model waits in mid-thought: (the steps that it took, what lets it go on)."""
    monkeypatch.setattr(handlers, "UPDATE_INTERVAL", 0)  # every word is shown at once
    with held_steps(server[1], WORDS) as (steps, let_go):
        yield steps, let_go


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


def watched(page):
    """A page that knows what it waits for, and waits for it as long as a slow machine needs."""
    page.set_default_timeout(1000 * PATIENCE)
    page.under_way = set()
    page.on("request", lambda one: "/heartbeat/" in one.url or page.under_way.add(one))
    for ends in ("requestfinished", "requestfailed"):
        page.on(ends, lambda one: page.under_way.discard(one))
    # nobody is told of a stream's end that the page before had open
    page.on("framenavigated", lambda frame: frame.parent_frame or page.under_way.clear())
    return page


def painted(page):
    """The page, once what was done on it is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


MAX_STREAM_PICTURES = 600
"""Pairs of pictures, ten seconds at least, after which a stream alone counts as closed."""


def at_rest(page):
    """The page, once it waits for nothing more of the server: between two of its events, of which
    one follows the other, lie fewer pictures than here."""
    still, left, deadline = 0, 0, time.monotonic() + PATIENCE
    while still < 10:
        painted(page)
        still = 0 if page.under_way else still + 1
        # Chromium does not always tell of the end of a stream that the page itself closed
        is_stream = all("/queue/data" in one.url for one in page.under_way)
        left = left + 1 if page.under_way and is_stream else 0
        if left == MAX_STREAM_PICTURES:
            page.under_way.clear()
        assert time.monotonic() < deadline, [one.url for one in page.under_way]


def visit(page, url):
    """The page, once it has begun: under load its first answer comes late."""
    page.goto(url)
    page.wait_for_selector("#trace [data-sentence]")


def upload_and_ask(page, photo, instruction):
    page.set_input_files("#photo input[type=file]", photo)
    page.wait_for_selector("#photo img")
    page.fill("#instruction textarea", instruction)
    page.click("#find")


def ask_example(page, number=0):
    page.evaluate("document.querySelector('.verdict')?.classList.add('recorded')")  # the one before
    page.click(f"#examples button.thumbnail-item >> nth={number}")
    page.wait_for_selector(FINISHED)
    at_rest(page)


def ready(page, place="#view"):
    page.wait_for_selector(f"{place} coprs-view[data-ready]")


def open_tab(page, name):
    """Opens the drawer with a tab, unless it is open."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not (page.locator("#probes.open").count() and tab.get_attribute("aria-selected") == "true"):
        tab.click()
    painted(page)


def drawn(page, canvas):
    """The pixels of a canvas, uint8 [H, W, 4]."""
    height, width, coded = page.evaluate(
        """(which) => { const c = document.querySelector(which);
        const bytes = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let text = '';
        for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
        return [c.height, c.width, btoa(text)] }""",
        canvas,
    )
    return np.frombuffer(base64.b64decode(coded), np.uint8).reshape(height, width, 4)


def changed(page, canvas, before):
    """The pixels of a canvas when they are others than before."""
    deadline = time.monotonic() + PATIENCE
    while np.array_equal(now := drawn(page, canvas), before):
        assert time.monotonic() < deadline, f"{canvas} stayed as it was"
        painted(page)
    return now


def slide(page, place, control, value):
    page.locator(f"{place} [data-control={control}]").evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })) }", value
    )
    painted(page)


# --- the answer


def test_from_upload_to_iou(page, photo, found, shoot):
    _, question, result = found
    upload_and_ask(page, photo, question.instruction)
    page.wait_for_selector(FOUND)
    ready(page)
    assert page.inner_text("#view .iou") == f"{result.prior_iou:.2f}"
    assert page.locator(".steps li.done").count() == 4 and "tokens/s" in page.inner_text(".steps")
    said = page.locator(".thought .sentence span").all_inner_texts()  # the whole thought stays
    assert " ".join(said) == result.reasoning
    changed = (
        drawn(page, "#view canvas.mask") != np.dstack([found[0].image, np.full((256, 256), 255)])
    ).any(-1)
    # dimmed or tinted everywhere; white outlines may fall on white
    white = (found[0].image == 255).all(-1)
    assert changed[~white].all()
    assert drawn(page, "#view canvas.prior").std() > 5


@pytest.mark.parametrize("width, height", [(1280, 800), (1440, 900)])
def test_one_screen_holds_all_from_question_to_verdict(browser, server, shoot, width, height):
    page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
    page.goto(server[0])
    ask_example(page)
    ready(page)
    page.wait_for_selector("#trace [data-sentence]")
    parts = ("#photo", "#instruction", "#find", "#examples", ".steps", ".thought", "#view canvas.prior", "#view .agreement",
             "#view canvas.mask", "#trace [data-replay]", ".verdict", "#probes button[role=tab]")  # fmt: skip
    for part in parts:
        box = page.locator(part).first.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, part
    left = [page.locator(p).first.bounding_box()["x"] for p in (".thought", "#view canvas.prior", "#view .iou", "#view canvas.mask")]  # fmt: skip
    assert left == sorted(left) and len(set(left)) == 4
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.input_value("#instruction textarea") == "the thing that keeps the rain off"
    shoot(page, "answer" if width == 1280 else "answer-1440")
    page.close()


def test_sliders_answer_without_the_server_and_the_iou_follows(page, mini):
    ask_example(page)
    ready(page)
    at_rest(page)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    picture = Path("assets/examples/rain.png").resolve()
    result = mini.segment(Image.open(picture), "the thing that keeps the rain off")
    curve = iou_curve(result.prior, result.mask)
    before = drawn(page, "#view canvas.prior")
    for threshold in (10, 30, 90):
        slide(page, "#view", "threshold", threshold)
        assert page.inner_text("#view .iou") == f"{curve[threshold]:.2f}"
        assert f"{threshold / 100:.2f}" in page.inner_text("#view .agreement")
    assert (drawn(page, "#view canvas.prior") != before).any()
    slide(page, "#view", "opacity", 0)
    grey = drawn(page, "#view canvas.prior")[..., :3]
    assert (np.ptp(grey, axis=-1) == 0).all()  # no colours are left
    original = np.asarray(Image.open(picture))
    slide(page, "#view", "wipe", 0)
    assert np.array_equal(drawn(page, "#view canvas.mask")[..., :3], original)
    slide(page, "#view", "wipe", 50)
    shown = drawn(page, "#view canvas.mask")[..., :3]
    assert np.array_equal(shown[:, 128:], original[:, 128:]) and not np.array_equal(
        shown[:, :128], original[:, :128]
    )
    page.get_by_role("checkbox", name="cut-out").check()
    painted(page)
    assert np.array_equal(drawn(page, "#view canvas.mask")[..., 3] > 0, result.mask)
    assert not asked


def test_the_page_draws_as_the_saved_pictures_do(page, mini):
    """One arithmetic for heatmap and mask: the canvases equal the overlays, outlines aside, within rounding."""
    ask_example(page)
    ready(page)
    picture = np.asarray(Image.open("assets/examples/rain.png").convert("RGB"))
    result = mini.segment(picture, "the thing that keeps the rain off")
    prior = decode_prior(encode_prior(result.prior), result.photo_size)
    for canvas, overlay in (
        ("prior", prior_overlay(picture, prior)),
        ("mask", mask_overlay(picture, result.mask)),
    ):
        shown = drawn(page, f"#view canvas.{canvas}")[..., :3]
        inside = ~((shown == 255).all(-1) | (overlay == 255).all(-1))  # no outline
        difference = np.abs(shown.astype(int) - overlay)[inside]
        assert inside.mean() > 0.9 and difference.max() <= 3, (canvas, difference.max())


def test_the_prior_is_read_under_the_pointer_and_by_keys(page, mini):
    ask_example(page)
    ready(page)
    result = mini.segment(
        Image.open("assets/examples/rain.png"), "the thing that keeps the rain off"
    )
    y, x = np.unravel_index(result.prior.argmax(), result.prior.shape)
    box = page.locator("#view canvas.prior").bounding_box()
    page.mouse.move(
        box["x"] + (x + 0.5) / 256 * box["width"], box["y"] + (y + 0.5) / 256 * box["height"]
    )
    value, place = page.inner_text("#view .readout").split(" · ")
    assert abs(float(value) - result.prior.max()) < 0.02 and place == f"x {x}, y {y}"
    page.locator("#view canvas.prior").focus()
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#view .readout").endswith("x 128, y 120")


def test_nothing_there_says_so_and_draws_nothing(page, shoot):
    ask_example(page, -1)
    assert (
        "Nothing found" in page.inner_text(".verdict") and page.locator("#view canvas").count() == 0
    )
    shoot(page, "nothing-found")


def test_a_failure_among_the_examples_is_explained_by_its_thought(page):
    ask_example(page, 8)
    area = page.locator("#thought textarea")  # it opens with the sentence at fault
    area.wait_for()
    assert area.input_value() == "That is the hat on the right, the purple one."
    page.keyboard.press("Escape")
    assert area.count() == 0 and page.locator(".said .editing").count() == 0


def test_recent_answers_can_be_restored_and_are_this_visits_only(page, browser, server):
    assert page.locator("#recent img").count() == 0
    ask_example(page, 0)
    iou = page.inner_text("#view .iou")
    ask_example(page, 2)
    open_tab(page, "Earlier answers")
    page.wait_for_function("document.querySelectorAll('#recent img').length == 2")
    open_tab(page, "Earlier answers")
    page.click("#recent button.thumbnail-item >> nth=1")
    page.wait_for_function("document.querySelector('#instruction textarea').value.includes('rain')")
    ready(page)
    assert page.inner_text("#view .iou") == iou and "umbrella" in page.inner_text(".thought")
    other = browser.new_page()
    visit(other, server[0])
    at_rest(other)
    assert other.locator("#recent img").count() == 0
    other.close()


# --- stopping


def test_stop_keeps_the_partial_thought_and_the_next_question_works(
    page, server, photo, thinking, shoot
):
    steps, let_go = thinking
    upload_and_ask(page, photo, "the largest thing")
    page.wait_for_function(THINKING)
    shoot(page, "thinking")
    page.click("#stop")
    page.wait_for_selector(".thought:has-text('stopped')")
    let_go()
    until(lambda: server[2].is_idle)
    assert len(steps) <= WORDS + 2  # the generator is closed
    assert "I see" in page.inner_text(".thought")
    assert page.input_value("#instruction textarea") == "the largest thing"
    page.fill("#instruction textarea", "the smallest thing")
    page.click("#find")
    page.wait_for_selector(FINISHED)


def test_closing_the_tab_stops_the_work(browser, server, photo, thinking):
    steps, let_go = thinking
    page = browser.new_page()
    visit(page, server[0])
    upload_and_ask(page, photo, "the largest thing")
    page.wait_for_function(THINKING)
    page.close()
    until(lambda: nobody_reads(server[3]))
    let_go()
    until(lambda: server[2].is_idle)
    assert len(steps) <= WORDS + 2


def test_a_mistake_is_one_sentence_and_the_inputs_stay(page, photo, tmp_path):
    page.set_input_files("#photo input[type=file]", photo)
    page.wait_for_selector("#photo img")
    page.click("#find")
    page.wait_for_selector(".toast-body")
    assert "The instruction is empty" in page.inner_text(".toast-body")
    assert page.locator("#photo img").count() == 1
    page.fill("#instruction textarea", "the largest thing")
    page.click("#find")
    page.wait_for_selector(FINISHED)


# --- a photograph, and a model that knows none


def test_a_photo_is_read_before_its_question(page, tmp_path):
    read = page.locator("#steps li >> nth=0")
    Image.fromarray(draw_scene("read ahead").image).save(tmp_path / "new.png")
    page.set_input_files("#photo input[type=file]", tmp_path / "new.png")
    page.wait_for_selector("#steps li.done >> nth=0")
    assert "before" not in read.inner_text() and page.locator("#steps li.done").count() == 1
    page.fill("#instruction textarea", "the largest thing")
    page.click("#find")
    page.wait_for_selector(FINISHED)
    assert "read before" in read.inner_text()


def test_a_photograph_is_asked_about_before_anything_else_is(page):
    page.set_input_files("#photo input[type=file]", CHEETAH)
    page.wait_for_selector("#ways .unfamiliar")
    assert page.inner_text("#photo-model") == "Load qwen3-vl-2b"
    page.fill("#instruction textarea", "the cat")
    page.click("#find")
    page.wait_for_selector("#photo-model:has-text('and answer')")


def test_a_photograph_is_asked_about_before_it_is_answered(page, shoot):
    upload_and_ask(page, CHEETAH, "the cat")
    page.wait_for_selector("#ways .unfamiliar")
    words = page.inner_text("#ways")
    assert "picture-book scenes only" in words and "qwen3-vl-2b with sam2.1-tiny" in words
    assert "4.4 GB to download" in words and "20 seconds to a minute" in words
    assert page.locator(".verdict.found, .verdict.none").count() == 0
    assert page.input_value("#instruction textarea") == "the cat"
    at_rest(page)
    shoot(page, "unfamiliar")
    page.click("#anyway")
    page.wait_for_selector(FINISHED)
    assert not page.is_visible("#ways")
    flag = page.locator("[data-flag=unfamiliar]")
    flag.wait_for()
    assert "unlike nearly all that this model was trained on" in flag.inner_text()
    at_rest(page)
    shoot(page, "answered-anyway")
    ask_example(page)  # and a scene is answered at once, without a word of it
    flag.wait_for(state="detached")
    assert not page.is_visible("#ways")


def test_one_click_brings_a_model_for_photos_and_the_answer(
    browser, mini, tmp_path, monkeypatch, shoot
):
    """A model of Qwen3-VL's structure with random weights stands in for the one that would be
    downloaded."""
    folder = tiny.save_mllm(tmp_path / "photos", tiny.qwen3())
    sam = str(tiny.save_sam2(tmp_path / "sam2"))

    def load_instead(self, name, report=None, on_cpu=False):
        if on_cpu:
            return Engine(mini.checkpoint)
        report and report("auto: a stand-in")
        return Engine(load_checkpoint(str(folder), LoadOptions("cpu", sam=sam), report))

    monkeypatch.setattr(ModelServer, "_load", load_instead)
    reply = 'the cat</think>[{"bbox_2d": [200, 100, 800, 900], "label": "cat"}]'
    ids = tiny.TOKENIZER(reply, add_special_tokens=False).input_ids
    steps = [Step(t) for t in (*ids, tiny.TOKENIZER.eos_token_id)]
    demo = build(ModelServer(Engine(mini.checkpoint), LoadOptions("cpu")), may_switch=True)
    _, url, _ = launch(demo, quiet=True)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    visit(page, url)
    large = tmp_path / "large.jpg"  # too large to be shown whole on a CPU
    Image.open(CHEETAH).resize((1200, 900)).save(large)
    upload_and_ask(page, large, "the cat")
    # (it says "Load qwen3-vl-2b" from when the photo is read to when the question comes)
    page.wait_for_selector("#photo-model:text-is('Load qwen3-vl-2b and answer')")
    monkeypatch.setattr(ContinuousBatch, "generate", lambda *a, **k: iter(steps))
    page.click("#photo-model")
    page.wait_for_selector(FINISHED)
    ready(page)
    assert "the cat" in page.inner_text(".thought") and not page.is_visible("#ways")
    assert "attention" in page.inner_text(".model-line")
    assert page.locator(".written-box").count() == 1
    assert page.locator("[data-flag=unfamiliar]").count() == 0
    at_rest(page)
    shoot(page, "photo-answered")
    assert "was shown 22 % of the pixels" in page.inner_text(".verdict .seen")
    # every question about the answer works for it too, by its attention
    page.wait_for_selector("#trace [data-sentence]")
    before = drawn(page, "#view canvas.prior")
    page.hover("#trace [data-sentence] >> nth=0")
    changed(page, "#view canvas.prior", before)
    assert "Where the words of sentence 1 looked" in page.inner_text("#view .prior-figure")
    shoot(page, "photo-sentences")
    page.click("[data-ask-words]")
    page.hover("#thought [data-word] >> nth=1")
    page.wait_for_selector("#view figcaption:has-text('Attention of')")
    assert page.locator("#thought [data-edit]").count() == 0  # it has no focus token
    open_tab(page, "Heads")
    page.click("#ask-heads")
    page.wait_for_selector("#heads-view img >> nth=8")
    assert " of layer " in page.inner_text("#heads-view")
    shoot(page, "photo-heads")
    page.close()
    demo.close()


def test_on_a_phone_the_ways_are_as_wide_as_the_screen(browser, server):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    visit(page, server[0])
    upload_and_ask(page, CHEETAH, "the cat")
    words, button = page.locator("#ways .unfamiliar"), page.locator("#photo-model")
    words.wait_for()
    assert words.bounding_box()["width"] > 300
    assert button.bounding_box()["y"] >= words.bounding_box()["y"] + words.bounding_box()["height"]
    page.close()


def test_a_hosted_page_says_who_can_bring_a_model_for_photos(browser, mini):
    demo = build(ModelServer(Engine(mini.checkpoint)), may_switch=False)
    _, url, _ = launch(demo, quiet=True)
    page = browser.new_page(locale="zh-CN")
    visit(page, url)
    upload_and_ask(page, CHEETAH, "the cat")
    page.wait_for_selector("#ways .unfamiliar")
    assert CHINESE["unfamiliar_hosted"] in page.inner_text("#ways")
    assert page.is_visible("#anyway") and not page.is_visible("#photo-model")
    page.close()
    demo.close()


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


def test_two_visitors_never_see_each_others_text_photo_or_mask(browser, server, photo, tmp_path):
    contexts = [browser.new_context() for _ in range(2)]
    pages = [watched(c.new_page()) for c in contexts]
    for p in pages:
        visit(p, server[0])
    upload_and_ask(pages[0], photo, "the largest thing")
    pages[1].click("#examples button.thumbnail-item >> nth=0")  # both at once
    for p in pages:
        p.wait_for_selector(FINISHED)
        ready(p)
    assert pages[0].input_value("#instruction textarea") == "the largest thing"
    assert pages[1].input_value("#instruction textarea") == "the thing that keeps the rain off"
    assert "umbrella" in pages[1].inner_text(".thought") and "umbrella" not in pages[0].inner_text(
        ".thought"
    )
    views = [p.locator("#view coprs-view").get_attribute("data-view") for p in pages]
    assert views[0] != views[1]
    for p in pages:
        open_tab(p, "Earlier answers")
        assert p.locator("#recent img").count() == 1
    [c.close() for c in contexts]


# --- other screens, other hands


@pytest.mark.parametrize("width, scheme", [(390, "light"), (1280, "dark")])
def test_narrow_and_dark(browser, server, shoot, width, scheme):
    page = browser.new_page(
        viewport={"width": width, "height": 844 if width < 700 else 800}, color_scheme=scheme
    )
    visit(page, server[0])
    ask_example(page)
    ready(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    poor = page.evaluate(CONTRAST)
    assert not poor, poor
    shoot(page, f"{scheme}-{width}")
    ask_example(page, -1)  # nothing found: its verdict is laid out otherwise
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    page.close()


def test_contrast_in_the_light(page):
    ask_example(page, 8)
    poor = page.evaluate(CONTRAST)
    assert not poor, poor


CONTRAST = """() => {
  const rgb = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m };
  const light = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] > 0.99) return c.slice(0, 3) } return [255, 255, 255] };
  const poor = [];
  for (const e of document.querySelectorAll('.masthead p, .model-line, .model-line b, .notice, .steps span, .steps small, .thought p, .view figcaption, .view label, .view output, .scale span, .verdict *, .about p, #probes button, #find, #stop, #instruction label span, .caption-label')) {
    if (!e.offsetParent || !e.innerText?.trim()) continue;
    const style = getComputedStyle(e);
    if (style.backgroundClip === 'text') continue;
    const [a, b] = [light(rgb(style.color).slice(0, 3)), light(behind(e))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) poor.push([e.className || e.tagName, e.innerText.slice(0, 30), ratio.toFixed(2), style.color]);
  }
  return poor }"""


def test_chinese_follows_the_browser(browser, server, shoot):
    page = browser.new_page(viewport={"width": 1280, "height": 800}, locale="zh-CN")
    page.goto(server[0])
    page.wait_for_selector(f"text={CHINESE['tagline'][:8]}")
    ask_example(page)
    ready(page)
    page.wait_for_selector("#trace [data-sentence]")
    text = page.inner_text("body")
    for key in (
        "find",
        "reading",
        "thinking",
        "found",
        "iou",
        "threshold",
        "mask",
        "sentences",
        "truth",
        "replay",
    ):
        assert CHINESE[key] in text, key
    open_tab(page, CHINESE["sentences"])
    page.click("#ask-sentences")
    page.wait_for_selector(".numbers .settled")
    assert CHINESE["settles"] in page.inner_text(".numbers")
    page.keyboard.press("Escape")
    assert page.locator("#probes.open").count() == 0
    page.evaluate("window.scrollTo(0, 0)")
    shoot(page, "chinese")
    page.close()


def test_from_question_to_probe_by_keyboard_alone(page):
    def tab_to(selector, most=60):
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("(s) => !!document.activeElement.closest(s)", selector):
                return
        raise AssertionError(f"the keyboard does not come to {selector}")

    tab_to("#examples button.thumbnail-item")
    page.keyboard.press("Enter")
    page.wait_for_selector(FINISHED)
    ready(page)
    page.locator("body").click(position={"x": 2, "y": 2})
    tab_to("#instruction")
    page.keyboard.press("Control+A")
    page.keyboard.type("the yellow fish")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.thought .last')?.innerText.includes('fish')")
    tab_to("[data-control=threshold]")
    before = page.inner_text("#view .agreement")
    page.keyboard.press("ArrowLeft")
    painted(page)
    assert page.inner_text("#view .agreement") != before
    page.wait_for_selector("#trace [data-sentence]")
    answer = drawn(page, "#view canvas.prior")
    tab_to("#thought [data-sentence]")
    first = changed(page, "#view canvas.prior", answer)
    page.keyboard.press("ArrowDown")
    changed(page, "#view canvas.prior", first)
    tab_to("#thought [data-edit]")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+A")
    page.keyboard.type("I see a blue umbrella at the top.")
    page.keyboard.press("Enter")
    page.wait_for_selector("#view .chips p")
    page.wait_for_function("document.activeElement?.matches('#thought .changed .edit')")
    tab_to("#probes button[role=tab]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask-sentences:not([disabled])")
    tab_to("#ask-sentences")
    page.keyboard.press("Enter")
    page.wait_for_selector("#sentences-view .numbers")
    page.keyboard.press("Escape")
    assert page.locator("#probes.open").count() == 0


def test_other_words_in_the_question_do_not_pass_for_what_was_asked(page):
    ask_example(page)
    ready(page)
    asked = page.locator("#thought .asked")
    assert not asked.is_visible()
    page.fill("#instruction textarea", "the pink car")
    asked.wait_for()
    assert "Asked: “the thing that keeps the rain off”" in asked.inner_text()
    page.fill("#instruction textarea", "the thing that keeps the rain off")
    asked.wait_for(state="hidden")


def test_another_photo_ends_an_answer_whenever_it_comes(page, server):
    flowers = str(Path("assets/examples/flowers.png").resolve())
    for words in (1, 8, WORDS):
        with held_steps(server[1], words) as (steps, let_go):
            page.click("#examples .thumbnail-item >> nth=0")
            until(lambda steps=steps, words=words: painted(page) or len(steps) == words)
            with page.expect_response(lambda answer: "/upload" in answer.url):
                page.set_input_files("#photo input[type=file]", flowers)
            page.wait_for_selector("#thought .thought.empty")
            let_go()
            until(lambda: painted(page) or server[2].is_idle)
            at_rest(page)
        assert page.locator("#thought .caret").count() == 0
        assert page.locator("#trace [data-sentence]").count() == 0
        assert "umbrella" not in page.inner_text("#thought")
        assert "Answered" not in page.inner_text("#verdict")


def test_a_broken_saved_answer_leaves_alone_what_is_under_way(page, photo, thinking, tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    open_tab(page, "Take away")
    upload_and_ask(page, photo, "the largest thing")
    page.wait_for_function(THINKING)
    page.set_input_files("#saved input[type=file]", str(tmp_path / "broken.zip"))
    page.wait_for_selector(".toast-body")
    thinking[1]()
    page.wait_for_selector(FINISHED)


def test_a_saved_answer_ends_what_is_under_way(page, server, photo, thinking):
    upload_and_ask(page, photo, "the largest thing")
    page.wait_for_function(THINKING)
    open_tab(page, "Take away")
    page.set_input_files(
        "#saved input[type=file]", str(Path("assets/examples/recorded.zip").resolve())
    )
    page.wait_for_selector("#trace [data-sentence]")
    shown = page.inner_text("#thought")
    thinking[1]()
    until(lambda: painted(page) or server[2].is_idle)
    at_rest(page)
    assert page.inner_text("#thought") == shown and not page.locator("#thought .caret").count()


def test_everything_that_can_be_used_has_a_name(page):
    ask_example(page)
    page.wait_for_selector("#trace [data-sentence]")
    ready(page)
    for role, name in (("slider", "heat"), ("slider", "threshold"), ("slider", "photo ↔ mask"), ("checkbox", "cut-out"),
                       ("button", "Find it"), ("button", "Replay"), ("button", "enlarge"), ("textbox", "What to look for"),
                       ("tab", "Numbers")):  # fmt: skip
        assert page.get_by_role(role, name=name).first.is_visible(), (role, name)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('#view button, #view input, #view canvas, .steps, .thought, .verdict')].filter((e) =>
        e.matches('button, canvas') && !(e.ariaLabel || e.innerText) || e.matches('input') && !e.closest('label')).map((e) => e.outerHTML)"""
    )
    assert not nameless


# --- probes


def test_the_numbers_of_each_sentence(page, shoot):
    ask_example(page)
    open_tab(page, "Numbers")
    page.click("#ask-sentences")
    page.wait_for_selector("#sentences-view .numbers")
    assert page.locator("#sentences-view tbody tr").count() == 3
    assert "the focus settles here" in page.inner_text("#sentences-view")
    shoot(page, "numbers")


def test_the_sentences_of_the_thought_drive_the_pictures(page, shoot, server):
    ask_example(page)
    page.wait_for_selector("#trace [data-sentence]")  # by itself
    ready(page)
    buttons = page.locator("#trace [data-sentence]")
    assert buttons.count() == 3
    assert "The focus came to rest only after the last of 3 sentences" in page.inner_text(
        "#trace p"
    )
    said = page.locator("#thought [data-sentence]")
    assert said.count() == 3 and "I see at the top left" in said.nth(0).inner_text()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    answer, iou = drawn(page, "#view canvas.prior"), page.inner_text("#view .iou")
    assert buttons.nth(0).get_attribute("aria-pressed") == "false"  # though the pointer rests there
    page.mouse.move(5, 5)
    buttons.nth(0).hover()
    first = changed(page, "#view canvas.prior", answer)
    assert buttons.nth(0).get_attribute("aria-pressed") == "true"
    page.mouse.move(5, 5)  # the answer comes back
    assert np.array_equal(changed(page, "#view canvas.prior", first), answer)
    buttons.nth(0).click()
    assert np.array_equal(changed(page, "#view canvas.prior", answer), first)
    page.mouse.move(5, 5)
    painted(page)
    assert np.array_equal(drawn(page, "#view canvas.prior"), first)  # pressed, it stays
    assert page.inner_text("#view .iou") == iou  # which is the answer's
    buttons.nth(0).click()
    page.mouse.move(5, 5)
    assert np.array_equal(changed(page, "#view canvas.prior", first), answer)
    buttons.nth(1).focus()
    page.keyboard.press("Shift+Tab")  # by keyboard too
    painted(page)
    assert np.array_equal(drawn(page, "#view canvas.prior"), first)
    page.mouse.move(5, 5)
    said.nth(0).hover()  # the sentence itself drives them too
    painted(page)
    assert np.array_equal(drawn(page, "#view canvas.prior"), first)
    assert "ended after sentence 1" in page.inner_text("#view .prior-figure figcaption")
    assert "Mask it would draw there" in page.inner_text("#view .mask-figure figcaption")
    assert said.nth(2).locator("small").inner_text() == buttons.nth(2).inner_text().split("IoU ")[1][:4]  # fmt: skip
    assert not asked  # all without the server
    shoot(page, "thought-drives")
    page.fill("#instruction textarea", "orange fish")
    page.click("#find")  # a new question: the strip of the old one goes at once
    page.wait_for_function("() => !document.querySelector('#trace [data-sentence]')")
    page.wait_for_selector("#trace [data-sentence]")
    assert "orange fish" in page.locator("#trace li button").first.get_attribute("title")


def test_words_drive_the_prior_once_they_are_asked_for(page, shoot):
    ask_example(page)
    ready(page)
    assert page.locator("[data-word]").count() == 0  # off until asked for
    page.click("[data-ask-words]")
    page.wait_for_selector("#thought [data-word]")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    answer, mask = drawn(page, "#view canvas.prior"), drawn(page, "#view canvas.mask")
    page.locator("#thought [data-word]", has_text="umbrella").last.hover()
    changed(page, "#view canvas.prior", answer)
    caption = page.inner_text("#view .prior-figure figcaption")
    assert "Probe at “umbrella”, not trained for this" in caption
    assert np.array_equal(drawn(page, "#view canvas.mask"), mask)  # a word draws nothing
    assert "it looks nowhere" in page.locator("#thought .nowhere").first.get_attribute("title")
    shoot(page, "words")
    page.mouse.move(5, 5)
    painted(page)
    assert np.array_equal(drawn(page, "#view canvas.prior"), answer)
    page.click("[data-ask-words]")
    assert not page.locator("#thought [data-word]").first.is_visible()
    assert page.locator("#thought [data-sentence]").first.is_visible() and not asked
    open_tab(page, "Heads")
    page.click("#ask-heads")
    page.wait_for_selector("#heads-view img")
    assert page.locator("#heads-view img").count() == 5
    shoot(page, "heads")


def test_a_wrong_answer_is_repaired_by_one_sentence(page, shoot):
    ask_example(page, 8)
    page.click("[data-repair]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#view .chips p")
    assert "It moved from the right to the top right" in page.inner_text("#view .chips p")
    assert "hat at the top right, the brown one" in page.inner_text(".said .changed")
    assert "The thought is yours" in page.inner_text(".verdict")
    page.wait_for_selector("#trace [data-sentence]")
    ready(page)
    both = drawn(page, "#view canvas.mask")
    page.get_by_role("button", name="before", exact=True).click()
    before = changed(page, "#view canvas.mask", both)
    page.get_by_role("button", name="now", exact=True).click()
    assert not np.array_equal(changed(page, "#view canvas.mask", before), both)
    page.get_by_role("button", name="both", exact=True).click()
    page.mouse.move(5, 5)
    painted(page)
    shoot(page, "repaired")
    open_tab(page, "Earlier answers")
    assert page.locator("#recent img").count() == 2  # the old one is kept
    page.keyboard.press("Escape")
    page.click("[data-edit] >> nth=0")
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.press("Enter")  # an empty one is taken out
    page.wait_for_function("document.querySelectorAll('.said li').length == 4")


def test_the_first_screen_replays_a_recorded_answer(browser, server, shoot):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(server[0])
    page.wait_for_selector(".said .later")  # by itself
    assert (
        page.locator(".verdict.recorded").count() == 1 and page.locator("#photo img").count() == 0
    )
    page.wait_for_selector("#trace [aria-pressed=true]")
    shoot(page, "first-visit")
    page.keyboard.press("Escape")  # any key ends it
    page.wait_for_function("!document.querySelector('.said .later, #trace [aria-pressed=true]')")
    answer = drawn(page, "#view canvas.prior")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.click("[data-replay]")
    page.wait_for_selector(".said .later")
    changed(page, "#view canvas.prior", answer)
    page.wait_for_function("!document.querySelector('.later, #trace [aria-pressed=true]')")
    at_rest(page)
    assert np.array_equal(drawn(page, "#view canvas.prior"), answer) and not asked
    said = page.locator(".thought .sentence span").all_inner_texts()
    assert " ".join(said) == load_recorded_answer().result.reasoning
    page.click("[data-edit] >> nth=4")  # and it can be asked about
    page.keyboard.press("Control+A")
    page.keyboard.type("Nearest to it is the fish at the bottom right, the purple one.")
    page.keyboard.press("Enter")
    page.wait_for_selector("#view .chips p")
    page.close()


def test_the_newest_question_wins(page, server):
    with held_steps(server[1], WORDS) as (steps, _):
        page.click("#examples button.thumbnail-item >> nth=0")
        until(lambda: painted(page) or len(steps) == WORDS)
        page.click("#examples button.thumbnail-item >> nth=6")
        page.wait_for_function(
            "document.querySelector('#instruction textarea').value.includes('monkeys')"
        )
    page.wait_for_function("document.querySelector('.sentence.last')?.innerText.includes('banana')")
    assert page.input_value("#instruction textarea") == "what monkeys like to eat"
    page.wait_for_selector("#trace [data-sentence]")
    assert "banana" in page.locator("#trace li button").last.get_attribute("title")


def test_a_refused_sentence_is_not_lost_and_nothing_looks_changed(page):
    ask_example(page)
    said = page.locator(".thought .sentence span").all_inner_texts()
    page.click("[data-edit] >> nth=1")
    page.locator("#thought textarea").fill("x" * 7990)
    page.keyboard.press("Enter")
    page.wait_for_selector(".toast-body")
    assert "shorten it" in page.inner_text(".toast-body")
    area = page.locator("#thought textarea:not(:read-only)")  # it can be mended and sent again
    area.wait_for()
    assert area.input_value() == "x" * 7990
    page.keyboard.press("Escape")
    assert page.locator(".thought .sentence span").all_inner_texts() == said


def test_nothing_late_lands_under_another_photo(page, server, photo, thinking):
    steps, let_go = thinking
    upload_and_ask(page, photo, "the largest thing")
    page.wait_for_function(THINKING)
    page.click("#photo button[aria-label='Remove Image']")
    page.wait_for_selector(".verdict.empty")
    let_go()
    until(lambda: painted(page) or server[2].is_idle)
    at_rest(page)
    assert len(steps) <= WORDS + 2  # it is no longer answered
    assert page.locator(".thought.empty").count() == page.locator(".verdict.empty").count() == 1


def test_the_moving_picture_of_the_readme(browser, server, tmp_path):
    """The replay of the first screen, then a wrong answer repaired, frame by frame from the page."""
    page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    page.goto(server[0])
    ready(page)
    frames, milliseconds = [], []

    def film(until, most=120):
        for _ in range(most):
            began = time.monotonic()
            shot = Image.open(io.BytesIO(page.screenshot(type="png"))).convert("RGB")
            frames.append(shot.resize((960, 600), Image.Resampling.LANCZOS))
            painted(page)
            milliseconds.append(round(1000 * (time.monotonic() - began)))
            if until():
                return

    page.click("[data-replay]")
    film(lambda: not page.locator(".said .later").count())
    milliseconds[-1] = 1500
    ask_example(page, 8)
    page.locator("#thought textarea").wait_for()
    page.wait_for_selector("#trace [data-sentence]")
    film(lambda: True)
    milliseconds[-1] = 1200
    for words in ("at the top right", ", the brown one."):
        page.keyboard.press("Control+A") if words.startswith("at") else None
        page.keyboard.type(f"That is the hat {words}" if words.startswith("at") else words)
        film(lambda: True)
        milliseconds[-1] = 600
    page.keyboard.press("Enter")
    page.wait_for_selector("#view .chips p")
    page.wait_for_selector("#trace [data-sentence]")
    ready(page)
    at_rest(page)
    film(lambda: True)
    milliseconds[-1] = 3500
    folder = SCREENSHOTS if os.environ.get("COPRS_SCREENSHOTS") else tmp_path
    options = {"quality": 60, "method": 4, "minimize_size": True, "loop": 0}
    frames[0].save(
        folder / "replay.webp",
        save_all=True,
        append_images=frames[1:],
        duration=milliseconds,
        **options,
    )
    with Image.open(folder / "replay.webp") as picture:
        assert picture.n_frames > 3 and (folder / "replay.webp").stat().st_size < 3e6
    page.close()


def test_what_cannot_be_asked_is_disabled_with_its_reason(page):
    page.set_input_files("#photo input[type=file]", CHEETAH)
    page.wait_for_function("document.querySelector('.verdict.empty')")
    page.wait_for_selector("#ask-sentences:disabled", state="attached")
    for name, button in (("Numbers", "ask-sentences"), ("Heads", "ask-heads"), ("Take away", "download")):  # fmt: skip
        open_tab(page, name)
        assert page.locator(f"#{button}").is_disabled()
        assert "Ask for something first." in page.locator(".tabitem:visible").inner_text()
    assert not page.is_visible("#stop")
    open_tab(page, "Compare")
    assert "no other answer about this photo" in page.locator(".tabitem:visible").inner_text()


def test_terms_are_explained_where_they_stand(page):
    ask_example(page)
    page.hover("#view .agreement .term")
    shown = page.evaluate(
        "getComputedStyle(document.querySelector('#view .agreement .term'), '::after').content"
    )
    assert "not how right they are" in shown
    page.click("[data-opens=help]")
    page.wait_for_selector("#probes.open .glossary")
    assert "Is the prior an explanation?" in page.inner_text("#probes .tabitem:visible")


def test_little_moves_while_it_answers(browser, server):
    """Cumulative layout shift, from the question to the trace."""
    page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    visit(page, server[0])
    at_rest(page)
    page.evaluate(
        """() => { window.shift = 0; new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.shift += entry.value;
        }).observe({ type: "layout-shift" }) }"""
    )
    for number in (0, 8, 9):  # found, explained, nothing there; clicks count as well
        ask_example(page, number)
        at_rest(page)
    assert page.evaluate("window.shift") <= 0.05, page.evaluate("window.shift")
    small = page.evaluate(
        """() => [...document.querySelectorAll('#stage button, #trace button, .masthead button, #view input, [data-sentence]')].filter((e) =>
        e.offsetParent && Math.min(e.closest('label')?.offsetHeight ?? e.offsetHeight, 24) < 24).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert not small
    page.close()


def test_every_earlier_answer_about_the_photo_can_be_compared(page, shoot):
    ask_example(page)
    page.fill("#instruction textarea", "the yellow fish")
    page.click("#find")
    page.wait_for_function("document.querySelector('.sentence.last')?.innerText.includes('fish')")
    at_rest(page)
    page.click("[data-edit] >> nth=2")
    page.keyboard.press("Control+A")
    page.keyboard.type("That is the fish at the top left, the orange one.")
    page.keyboard.press("Enter")
    page.wait_for_selector("#view .chips p")
    at_rest(page)
    open_tab(page, "Compare")
    assert page.locator("#earlier label").count() == 2
    page.locator("#earlier label", has_text="the thing that keeps the rain off").click()
    ready(page, "#compare-view")
    told = page.inner_text("#compare-view")
    assert "IoU of the two masks 0.00" in told and "only: the thing that keeps the rain off" in told
    assert page.locator("#compare-view coprs-view").count() == 3
    before = drawn(page, "#compare-view .compared canvas.mask")
    slide(page, "#compare-view .compared", "wipe", 30)
    assert (drawn(page, "#compare-view .compared canvas.mask") != before).any()
    shoot(page, "compare")


def test_the_truth_can_be_painted_or_brought(page, mini, tmp_path, shoot):
    ask_example(page)
    open_tab(page, "Ground truth")
    at_rest(page)
    result = mini.segment(
        Image.open("assets/examples/rain.png"), "the thing that keeps the rain off"
    )
    page.locator("#paint").scroll_into_view_if_needed()
    at_rest(page)
    box = page.locator("#paint canvas").first.bounding_box()
    side = min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    page.mouse.move(left + side * 0.58, top + side * 0.16)
    page.mouse.down()
    for i in range(12):
        page.mouse.move(left + side * (0.58 + 0.011 * i), top + side * (0.16 + 0.03 * (i % 2)))
    page.mouse.up()
    at_rest(page)
    page.click("#measure")
    ready(page, "#truth-view")
    painted = page.inner_text("#truth-view .summary")
    assert "Mask: IoU 0." in painted and "0.00." not in painted.split("Prior")[0]
    shoot(page, "ground-truth")
    Image.fromarray(result.mask).save(tmp_path / "truth.png")
    page.set_input_files("#truth-file input[type=file]", str(tmp_path / "truth.png"))
    at_rest(page)
    page.click("#measure")
    page.wait_for_selector("#truth-view :text('Mask: IoU 1.00')")
    Image.new("L", (30, 20)).save(tmp_path / "small.png")
    page.locator(
        "#truth-file button[aria-label='Clear'], #truth-file button[aria-label='Remove this file']"
    ).first.click()
    page.set_input_files("#truth-file input[type=file]", str(tmp_path / "small.png"))
    at_rest(page)
    page.click("#measure")
    page.wait_for_selector(".toast-body")
    assert "30×20 pixels and the photo 256×256" in page.inner_text(".toast-body")


def test_what_was_brought_as_truth_stays_when_a_question_fails(page, tmp_path, monkeypatch):
    ask_example(page)
    open_tab(page, "Ground truth")
    Image.new("L", (256, 256), 255).save(tmp_path / "truth.png")
    page.set_input_files("#truth-file input[type=file]", str(tmp_path / "truth.png"))
    page.wait_for_selector("#truth-file :text('truth')")
    at_rest(page)

    def fails(*_, **__):
        raise CoPRSError("made up")

    with monkeypatch.context() as patch:
        patch.setattr(ContinuousBatch, "generate", fails)
        page.click("#find")
        page.wait_for_selector(".toast-body:has-text('made up')")
        page.wait_for_selector("#measure:disabled")  # there is no answer to measure
    at_rest(page)
    assert page.locator("#truth-file :text('truth')").count()
    page.click("#find")
    page.wait_for_selector(FINISHED)
    page.wait_for_selector("#measure:enabled")
    page.click("#measure")
    page.wait_for_selector("#truth-view :text('Mask: IoU')")


def test_a_small_thing_can_be_zoomed_into(page, tmp_path, shoot):
    scene, question = next(tiny_targets("test", 300))
    Image.fromarray(scene.image).save(tmp_path / "p.png")
    upload_and_ask(page, str(tmp_path / "p.png"), question.instruction)
    page.wait_for_selector(FOUND)
    open_tab(page, "Closer look")
    page.click("#ask-zoom")
    ready(page, "#zoom-view")
    assert (
        "closer" in page.inner_text("#zoom-view")
        and page.locator("#zoom-view coprs-view").count() == 2
    )
    at_rest(page)
    shoot(page, "zoom")


def test_download_and_reopen(page, browser, server, tmp_path, shoot):
    ask_example(page)
    iou = page.inner_text("#view .iou")
    open_tab(page, "Take away")
    page.click("#download")
    page.wait_for_selector("#zipped a")
    with page.expect_download() as downloading:
        page.locator("#zipped a").first.click()
    downloading.value.save_as(tmp_path / "answer.zip")
    saved = open_answer(tmp_path / "answer.zip")
    assert f"{saved.result.prior_iou:.2f}" == iou
    other = browser.new_page(viewport={"width": 1280, "height": 800})
    visit(other, server[0])
    open_tab(other, "Take away")
    other.set_input_files("#saved input[type=file]", str(tmp_path / "answer.zip"))
    other.wait_for_selector(FOUND)
    ready(other)
    assert other.inner_text("#view .iou") == iou and "umbrella" in other.inner_text(".thought")
    assert other.input_value("#instruction textarea") == "the thing that keeps the rain off"
    views = [
        json.loads(p.locator("#view coprs-view").get_attribute("data-view")) for p in (page, other)
    ]
    assert views[0] == views[1]
    other.locator("#photo img").wait_for()
    assert other.locator("#trace [data-sentence]").count() == 3  # its trace came along
    other.keyboard.press("Escape")
    shoot(other, "reopened")
    other.close()
    page.click("#take-link")
    page.wait_for_selector("#link a")
    href = page.locator("#link a").get_attribute("href")
    assert page.inner_text("#link a").startswith("http://127.0.0.1")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#link [data-copy]")
    page.wait_for_selector("#link [data-copy]:text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#link a")
    linked = browser.new_page()
    linked.goto(server[0] + href)
    linked.wait_for_selector(FOUND)
    assert linked.inner_text("#view .iou") == iou
    assert linked.input_value("#instruction textarea") == "the thing that keeps the rain off"
    linked.close()


def test_one_page_works_without_a_server(page, browser, tmp_path, shoot):
    ask_example(page)
    open_tab(page, "Take away")
    page.click("#take-page")
    page.wait_for_selector("#zipped a")
    with page.expect_download() as downloading:
        page.locator("#zipped a").first.click()
    downloading.value.save_as(tmp_path / "answer.html")
    offline = browser.new_context(offline=True, reduced_motion="reduce").new_page()
    offline.set_default_timeout(1000 * PATIENCE)
    offline.set_viewport_size({"width": 1280, "height": 800})
    problems = []
    offline.on("pageerror", lambda problem: problems.append(str(problem)))
    offline.on("console", lambda told: told.type == "error" and problems.append(told.text))
    offline.goto((tmp_path / "answer.html").as_uri())
    ready(offline)
    answer = drawn(offline, "#view canvas.prior")
    offline.mouse.move(5, 5)
    offline.hover("#thought [data-sentence] >> nth=0")
    changed(offline, "#view canvas.prior", answer)
    slide(offline, "#view", "threshold", 90)
    assert "0.90" in offline.inner_text("#view .agreement")
    offline.click("[data-replay]")
    offline.wait_for_selector(".said .later")
    shoot(offline, "one-page")
    assert not problems
    offline.context.close()


def test_several_regions_are_numbered_and_each_can_be_chosen(page, found, tmp_path, shoot):
    scene, _, result = found
    masks = result.mask, np.roll(result.mask, (70, -30), (0, 1))
    regions = tuple(
        Region(m.astype(np.float32) * 0.9, m, label=f"thing {i}") for i, m in enumerate(masks)
    )
    save_zip(
        tmp_path / "two.zip",
        open_photo(scene.image),
        dataclasses.replace(result, regions=regions, prior_kind="coordinates"),
    )
    open_tab(page, "Take away")
    page.set_input_files("#saved input[type=file]", str(tmp_path / "two.zip"))
    page.wait_for_selector("#view .badge")
    ready(page)
    assert page.locator("#view .badge").all_inner_texts() == ["1", "2"]
    assert "coordinates" in page.inner_text("#view .prior-figure figcaption")
    page.keyboard.press("Escape")
    shoot(page, "several-regions")
    page.get_by_role("checkbox", name="cut-out").check()
    for button, mask in (
        ("1 thing 0", masks[0]),
        ("2 thing 1", masks[1]),
        ("all", masks[0] | masks[1]),
    ):
        page.get_by_role("button", name=button, exact=True).click()
        painted(page)
        assert np.array_equal(drawn(page, "#view canvas.mask")[..., 3] > 0, mask), button


# --- models


def test_the_table_of_models_opens_and_a_wrong_name_is_one_sentence(page, shoot):
    open_tab(page, "Models")
    page.wait_for_selector("table.models")
    assert page.locator("table.models tbody tr").count() == len(MODEL_NAMES)
    page.locator("#model input").fill("no/where/at/all")
    page.locator("#model input").press("Enter")
    page.get_by_role("button", name="Use this model").click()
    page.wait_for_selector(".loading.failed")
    assert "There is no checkpoint" in page.locator(".loading.failed").inner_text()
    page.wait_for_function("document.querySelector('.model-line').innerText.includes('mini')")
    shoot(page, "models")


def test_a_phone_holds_every_tab_and_goes_to_the_thought(browser, server, shoot):
    page = browser.new_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    visit(page, server[0])
    ask_example(page)
    # it comes into sight from below the fold, where the example was
    page.wait_for_function(
        "Math.abs(document.querySelector('#thought').getBoundingClientRect().y - 175) < 225"
    )
    ready(page)
    page.wait_for_selector("#trace [data-sentence]")
    assert page.is_visible("#view canvas.prior") and not page.is_visible("#view canvas.mask")
    page.click("[data-which=draw]")
    assert page.is_visible("#view canvas.mask") and not page.is_visible("#view canvas.prior")
    page.click("[data-which=look]")
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_function("scrollY == 0")
    painted(page)
    strip = page.locator("#trace").bounding_box()
    assert abs(strip["y"] + strip["height"] - 844) < 2  # the replay stays at the bottom
    answer = drawn(page, "#view canvas.prior")
    page.tap("#trace [data-sentence] >> nth=0")
    changed(page, "#view canvas.prior", answer)
    shoot(page, "phone")
    for name in ("Ground truth", "Take away", "Help", "Models"):
        page.get_by_role("tab", name=name, exact=True).tap()
        at_rest(page)
        assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [390, 390], (
            name
        )
        if name == "Ground truth":
            assert page.locator("#paint canvas").first.bounding_box()["height"] > 200
    page.wait_for_selector("table.models")
    page.close()


def test_opening_the_page_loads_little_of_ours(browser, server):
    page = browser.new_page()
    sizes = {}

    def count(response):
        if "/assets/" not in response.url and "/static/" not in response.url and response.ok:
            sizes[response.url] = len(response.body())

    page.on(
        "response",
        lambda r: (
            count(r)
            if r.request.resource_type in ("document", "image", "script", "stylesheet")
            else None
        ),
    )
    visit(page, server[0])
    at_rest(page)
    assert 0 < sum(sizes.values()) < 1.5e6, sizes
    page.close()
