"""The page in a real browser: from upload to IoU, every probe, Stop, errors, a closed tab, two
visitors, the keyboard alone, a narrow screen, a dark one, Chinese.

Writes its screenshots to assets/screenshots/ when COPRS_SCREENSHOTS=1 is set (the README shows
some), else to a temporary folder.
"""

import base64
import dataclasses
import json
import os
import time
from pathlib import Path

import gradio
import numpy as np
import pytest
from PIL import Image

from app.serving import ModelServer
from app.texts import CHINESE
from app.ui import build, launch
from coprs_core import Region
from coprs_core.answer.engine import Engine
from coprs_core.answer.pictures import mask_overlay, prior_overlay
from coprs_core.archive import open_answer, save_zip
from coprs_core.checkpoints.catalogue import NAMES
from coprs_core.checkpoints.load import load_checkpoint
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.masks import decode_prior, encode_prior
from coprs_core.metrics import iou_curve
from coprs_core.model import language as language_module
from coprs_core.model.mllm import Step
from coprs_core.photos import open_photo
from tests import tiny
from tests.conftest import slowed
from tests.record import tiny_targets

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: the browser tests need it"
)
SCREENSHOTS = Path(__file__).resolve().parent.parent / "assets" / "screenshots"
CHEETAH = str(Path(gradio.__file__).parent / "media_assets" / "images" / "cheetah1.jpg")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
THINKING = "(document.querySelector('.thought:not(.empty)')?.innerText.length ?? 0) > 25"
FOUND = ".verdict.found:not(.recorded)"
FINISHED = f"{FOUND}, .verdict.none:not(.recorded)"
"""A recorded answer stands on the first screen."""


@pytest.fixture(scope="module")
def browser(chromium):
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(mini):
    engine = Engine(mini.checkpoint)
    demo = build(ModelServer(engine, LoadOptions(device="cpu")), may_switch=True)
    _, url, _ = launch(demo, quiet=True)
    yield url, engine
    demo.close()


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
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


def ask_example(page, number=0):
    page.click(f"#examples button.thumbnail-item >> nth={number}")
    page.wait_for_selector(FINISHED, timeout=30000)
    page.wait_for_timeout(300)


def ready(page, place="#view"):
    page.wait_for_selector(f"{place} coprs-view[data-ready]", timeout=20000)


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()
    page.wait_for_timeout(300)


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
    for _ in range(100):
        now = drawn(page, canvas)
        if not np.array_equal(now, before):
            return now
        page.wait_for_timeout(50)
    pytest.fail(f"{canvas} stayed as it was")


def slide(page, place, control, value):
    page.locator(f"{place} [data-control={control}]").evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })) }", value
    )
    page.wait_for_timeout(150)


# --- the answer


def test_from_upload_to_iou(page, photo, found, shoot):
    _, question, result = found
    shoot(page, "first-visit")
    upload_and_ask(page, photo, question.instruction)
    page.wait_for_selector(FOUND, timeout=30000)
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


def test_the_first_screen_holds_everything(page, shoot):
    ask_example(page)
    ready(page)
    for part in ("#photo", "#instruction", "#find", ".steps", ".thought", "#view canvas.prior", "#view canvas.mask", ".verdict",
                 "#examples", "#recent", "#probes button[role=tab]"):  # fmt: skip
        box = page.locator(part).first.bounding_box()
        assert box["y"] >= 0 and box["y"] + min(box["height"], 20) <= 800, part
    left = [page.locator(p).first.bounding_box()["x"] for p in ("#photo", ".thought", "#view canvas.prior", "#view canvas.mask", ".verdict")]  # fmt: skip
    assert left == sorted(left) and len(set(left)) == 5
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.input_value("#instruction textarea") == "the thing that keeps the rain off"
    shoot(page, "answer")


def test_sliders_answer_without_the_server_and_the_iou_follows(page, mini):
    ask_example(page)
    ready(page)
    page.wait_for_timeout(1500)
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
    page.wait_for_timeout(150)
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
    assert "Nearest to it is the hat on the right, the purple one" in page.inner_text(
        ".thought"
    )  # it was asked from there


def test_recent_answers_can_be_restored_and_are_this_visits_only(page, browser, server):
    assert page.locator("#recent img").count() == 0
    ask_example(page, 0)
    iou = page.inner_text("#view .iou")
    ask_example(page, 2)
    page.wait_for_function("document.querySelectorAll('#recent img').length == 2")
    page.click("#recent button.thumbnail-item >> nth=1")
    page.wait_for_function("document.querySelector('#instruction textarea').value.includes('rain')")
    ready(page)
    assert page.inner_text("#view .iou") == iou and "umbrella" in page.inner_text(".thought")
    other = browser.new_page()
    other.goto(server[0])
    other.wait_for_selector("#find")
    other.wait_for_timeout(1000)
    assert other.locator("#recent img").count() == 0
    other.close()


# --- stopping


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


# --- a photograph, and a model that knows none


def test_a_photograph_is_asked_about_before_it_is_answered(page, shoot):
    upload_and_ask(page, CHEETAH, "the cat")
    page.wait_for_selector("#ways .unfamiliar")
    words = page.inner_text("#ways")
    assert "picture-book scenes only" in words and "qwen3-vl-2b with sam2.1-tiny" in words
    assert "4.4 GB to download" in words and "about half a minute" in words
    assert page.locator(".verdict.found, .verdict.none").count() == 0
    assert page.input_value("#instruction textarea") == "the cat"
    page.wait_for_timeout(300)
    shoot(page, "unfamiliar")
    page.click("#anyway")
    page.wait_for_selector(FINISHED, timeout=30000)
    assert not page.is_visible("#ways")
    flag = page.locator("[data-flag=unfamiliar]")
    flag.wait_for()
    assert "unlike nearly all that this model was trained on" in flag.inner_text()
    page.wait_for_timeout(300)
    shoot(page, "answered-anyway")
    ask_example(page)  # and a scene is answered at once, without a word of it
    assert page.locator("[data-flag=unfamiliar]").count() == 0 and not page.is_visible("#ways")


def test_one_click_brings_a_model_for_photos_and_the_answer(
    browser, mini, tmp_path, monkeypatch, shoot
):
    """A model of Qwen3-VL's structure with random weights stands in for the one that would be
    downloaded."""
    folder = tiny.save_mllm(tmp_path / "photos", tiny.qwen3())
    sam = str(tiny.save_sam2(tmp_path / "sam2"))

    def load_instead(self, name, report=None):
        report and report("auto: a stand-in")
        return Engine(load_checkpoint(str(folder), LoadOptions("cpu", sam=sam), report))

    monkeypatch.setattr(ModelServer, "_load", load_instead)
    reply = 'the cat</think>[{"bbox_2d": [200, 100, 800, 900], "label": "cat"}]'
    ids = tiny.TOKENIZER(reply, add_special_tokens=False).input_ids
    steps = [Step(t) for t in (*ids, tiny.TOKENIZER.eos_token_id)]
    demo = build(ModelServer(Engine(mini.checkpoint), LoadOptions("cpu")), may_switch=True)
    _, url, _ = launch(demo, quiet=True)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(url)
    page.wait_for_selector("#find")
    large = tmp_path / "large.jpg"  # too large to be shown whole on a CPU
    Image.open(CHEETAH).resize((1200, 900)).save(large)
    upload_and_ask(page, large, "the cat")
    page.wait_for_selector("#photo-model")
    assert page.inner_text("#photo-model") == "Load qwen3-vl-2b and answer"
    monkeypatch.setattr(language_module, "generate", lambda *a, **k: iter(steps))
    page.click("#photo-model")
    page.wait_for_selector(FINISHED, timeout=60000)
    ready(page)
    assert "the cat" in page.inner_text(".thought") and not page.is_visible("#ways")
    assert "attention" in page.inner_text(".model-line")
    assert page.locator(".written-box").count() == 1
    assert page.locator("[data-flag=unfamiliar]").count() == 0
    page.wait_for_timeout(300)
    shoot(page, "photo-answered")
    assert "was shown 22 % of the pixels" in page.inner_text(".verdict .seen")
    # every question about the answer works for it too, by its attention
    open_tab(page, "Sentence by sentence")
    page.click("#ask-sentences")
    ready(page, "#sentences-view")
    assert "the cat" in page.inner_text("#sentences-view")
    assert drawn(page, "#sentences-view canvas").any()
    shoot(page, "photo-sentences")
    open_tab(page, "Word by word")
    page.click("#words [data-word] >> nth=1")
    ready(page, "#word-view")
    assert "by the heads that tell a place" in page.inner_text("#word-view")
    open_tab(page, "Heads")
    page.click("#ask-heads")
    page.wait_for_selector("#heads-view img >> nth=8")
    assert " of layer " in page.inner_text("#heads-view")
    shoot(page, "photo-heads")
    page.close()
    demo.close()


def test_on_a_phone_the_ways_are_as_wide_as_the_screen(browser, server):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(server[0])
    page.wait_for_selector("#find")
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
    page.goto(url)
    page.wait_for_selector("#find")
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
    pages = [c.new_page() for c in contexts]
    for p in pages:
        p.goto(server[0])
        p.wait_for_selector("#find")
        p.wait_for_timeout(800)
    upload_and_ask(pages[0], photo, "the largest thing")
    pages[1].click("#examples button.thumbnail-item >> nth=0")  # both at once
    for p in pages:
        p.wait_for_selector(FINISHED, timeout=30000)
        ready(p)
    assert pages[0].input_value("#instruction textarea") == "the largest thing"
    assert pages[1].input_value("#instruction textarea") == "the thing that keeps the rain off"
    assert "umbrella" in pages[1].inner_text(".thought") and "umbrella" not in pages[0].inner_text(
        ".thought"
    )
    views = [p.locator("#view coprs-view").get_attribute("data-view") for p in pages]
    assert views[0] != views[1] and all(p.locator("#recent img").count() == 1 for p in pages)
    [c.close() for c in contexts]


# --- other screens, other hands


@pytest.mark.parametrize("width, scheme", [(390, "light"), (1280, "dark")])
def test_narrow_and_dark(browser, server, shoot, width, scheme):
    page = browser.new_page(
        viewport={"width": width, "height": 844 if width < 700 else 800}, color_scheme=scheme
    )
    page.goto(server[0])
    page.wait_for_selector("#find")
    page.wait_for_timeout(800)
    ask_example(page)
    ready(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    poor = page.evaluate(CONTRAST)
    assert not poor, poor
    shoot(page, f"{scheme}-{width}")
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
    text = page.inner_text("body")
    for key in (
        "find",
        "stop",
        "reading",
        "thinking",
        "found",
        "iou",
        "threshold",
        "mask",
        "sentences",
        "truth",
        "examples",
    ):
        assert CHINESE[key] in text, key
    open_tab(page, CHINESE["sentences"])
    page.click("#ask-sentences")
    page.wait_for_selector(".settled")
    assert CHINESE["settles"] in page.inner_text(".sentences")
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
    page.wait_for_selector(FINISHED, timeout=30000)
    ready(page)
    page.locator("body").click(position={"x": 2, "y": 2})
    tab_to("#instruction")
    page.keyboard.press("Control+A")
    page.keyboard.type("the yellow fish")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "document.querySelector('.thought .last')?.innerText.includes('fish')", timeout=30000
    )
    tab_to("[data-control=threshold]")
    before = page.inner_text("#view .agreement")
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(200)
    assert page.inner_text("#view .agreement") != before
    tab_to("#ask-sentences")
    page.keyboard.press("Enter")
    page.wait_for_selector("#sentences-view coprs-view[data-ready]", timeout=20000)
    tab_to("#sentences-view [data-look]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#sentences-view button[data-look='0'][aria-pressed=true]")


def test_everything_that_can_be_used_has_a_name(page):
    ask_example(page)
    ready(page)
    for role, name in (("slider", "heat"), ("slider", "threshold"), ("slider", "photo ↔ mask"), ("checkbox", "cut-out"),
                       ("button", "Find it"), ("button", "Stop"), ("button", "enlarge"), ("textbox", "What to look for"),
                       ("tab", "Sentence by sentence")):  # fmt: skip
        assert page.get_by_role(role, name=name).first.is_visible(), (role, name)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('#view button, #view input, #view canvas, .steps, .thought, .verdict')].filter((e) =>
        e.matches('button, canvas') && !(e.ariaLabel || e.innerText) || e.matches('input') && !e.closest('label')).map((e) => e.outerHTML)"""
    )
    assert not nameless


# --- probes


def test_the_thought_can_be_traced_sentence_by_sentence(page, shoot):
    ask_example(page)
    open_tab(page, "Sentence by sentence")
    page.click("#ask-sentences")
    ready(page, "#sentences-view")
    count = page.locator("#sentences-view .sentences li").count()
    assert (
        count >= 2
        and "IoU" in page.inner_text("#sentences-view .sentences")
        and "the focus settles here" in page.inner_text("#sentences-view")
    )
    last = drawn(page, "#sentences-view canvas.prior")
    slide(page, "#sentences-view", "look", 0)
    page.wait_for_timeout(300)
    assert (drawn(page, "#sentences-view canvas.prior") != last).any()
    page.click(f"#sentences-view .sentences button >> nth={count - 1}")
    page.wait_for_timeout(300)
    assert np.array_equal(drawn(page, "#sentences-view canvas.prior"), last)
    page.locator("#probes").scroll_into_view_if_needed()
    shoot(page, "sentences")


def test_the_sentences_of_the_thought_drive_the_pictures(page, shoot, server):
    ask_example(page)
    page.wait_for_selector("#trace [data-sentence]", timeout=30000)  # by itself
    ready(page)
    buttons = page.locator("#trace [data-sentence]")
    assert buttons.count() == 3 and "I see at the top left" in buttons.nth(0).inner_text()
    assert "The focus came to rest only after the last of 3 sentences" in page.inner_text(
        "#trace p"
    )
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
    page.wait_for_timeout(400)
    assert np.array_equal(drawn(page, "#view canvas.prior"), first)  # pressed, it stays
    assert page.inner_text("#view .iou") == iou  # which is the answer's
    buttons.nth(0).click()
    page.mouse.move(5, 5)
    assert np.array_equal(changed(page, "#view canvas.prior", first), answer)
    buttons.nth(1).focus()
    page.keyboard.press("Shift+Tab")  # by keyboard too
    page.wait_for_timeout(400)
    assert np.array_equal(drawn(page, "#view canvas.prior"), first)
    assert not asked  # all without the server
    shoot(page, "thought-drives")
    open_tab(page, "Sentence by sentence")
    page.fill("#instruction textarea", "asdf qwerty")
    page.click("#find")  # a new question: the strip of the old one goes at once
    page.wait_for_function("() => !document.querySelector('#trace [data-sentence]')")
    page.wait_for_selector("#trace [data-sentence]", timeout=30000)
    assert "orange fish" in page.inner_text("#trace ol")


def test_a_word_can_be_clicked_and_the_heads_be_seen(page, shoot):
    ask_example(page)
    open_tab(page, "Word by word")
    page.wait_for_selector("#words [data-word]")
    page.locator("#words [data-word]", has_text="umbrella").last.click()
    ready(page, "#word-view")
    assert "probe at “umbrella”, not trained for this" in page.inner_text("#word-view")
    page.locator("#probes").scroll_into_view_if_needed()
    shoot(page, "words")
    open_tab(page, "Heads")
    page.click("#ask-heads")
    page.wait_for_selector("#heads-view img")
    assert page.locator("#heads-view img").count() == 5
    shoot(page, "heads")


def test_another_thought_stands_beside_its_own(page, shoot):
    ask_example(page)
    open_tab(page, "Another thought")
    page.wait_for_function(
        "document.querySelector('#other-thought textarea').value.includes('umbrella')"
    )
    page.fill("#other-thought textarea", "That is the butterfly at the bottom, the blue one.")
    page.click("#focus-again")
    ready(page, "#again-view")
    assert page.locator(
        "#again-view coprs-view"
    ).count() == 2 and "IoU of the two masks 0.0" in page.inner_text("#again-view")
    page.locator("#probes").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    shoot(page, "another-thought")


def test_another_instruction_and_an_earlier_answer_under_one_slider(page, shoot):
    ask_example(page)
    open_tab(page, "Ask again")
    page.fill("#other-instruction textarea, #other-instruction input", "the yellow fish")
    page.click("#ask-again")
    ready(page, "#compare-view")
    assert "IoU of the two masks 0.00" in page.inner_text("#compare-view") and "only the second: the yellow fish" in page.inner_text("#compare-view")  # fmt: skip
    before = drawn(page, "#compare-view canvas.mask")
    slide(page, "#compare-view", "wipe", 100)
    assert (drawn(page, "#compare-view canvas.mask") != before).any()
    page.locator("#probes").scroll_into_view_if_needed()
    shoot(page, "ask-again")
    page.fill("#instruction textarea", "the yellow fish")
    page.click("#find")
    page.wait_for_function(
        "document.querySelector('.thought .last')?.innerText.includes('fish')", timeout=30000
    )
    page.wait_for_timeout(800)
    page.locator("#earlier input").click()
    page.get_by_role("option").last.click()
    page.locator("#compare").click()
    page.wait_for_function(
        "document.querySelector('#compare-view')?.innerText.includes('only the second: the thing that keeps')"
    )


def test_the_truth_can_be_painted_or_brought(page, mini, tmp_path, shoot):
    ask_example(page)
    open_tab(page, "Ground truth")
    page.wait_for_timeout(800)
    result = mini.segment(
        Image.open("assets/examples/rain.png"), "the thing that keeps the rain off"
    )
    page.locator("#paint").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = page.locator("#paint canvas").first.bounding_box()
    side = min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    page.mouse.move(left + side * 0.58, top + side * 0.16)
    page.mouse.down()
    for i in range(12):
        page.mouse.move(left + side * (0.58 + 0.011 * i), top + side * (0.16 + 0.03 * (i % 2)))
    page.mouse.up()
    page.wait_for_timeout(800)
    page.click("#measure")
    ready(page, "#truth-view")
    painted = page.inner_text("#truth-view .summary")
    assert "Mask: IoU 0." in painted and "0.00." not in painted.split("Prior")[0]
    page.locator("#probes").scroll_into_view_if_needed()
    shoot(page, "ground-truth")
    Image.fromarray(result.mask).save(tmp_path / "truth.png")
    page.set_input_files("#truth-file input[type=file]", str(tmp_path / "truth.png"))
    page.wait_for_timeout(800)
    page.click("#measure")
    page.wait_for_selector("#truth-view :text('Mask: IoU 1.00')")
    Image.new("L", (30, 20)).save(tmp_path / "small.png")
    page.locator(
        "#truth-file button[aria-label='Clear'], #truth-file button[aria-label='Remove this file']"
    ).first.click()
    page.set_input_files("#truth-file input[type=file]", str(tmp_path / "small.png"))
    page.wait_for_timeout(800)
    page.click("#measure")
    page.wait_for_selector(".toast-body")
    assert "30×20 pixels and the photo 256×256" in page.inner_text(".toast-body")


def test_a_small_thing_can_be_zoomed_into(page, tmp_path, shoot):
    scene, question = next(tiny_targets("test", 300))
    Image.fromarray(scene.image).save(tmp_path / "p.png")
    upload_and_ask(page, str(tmp_path / "p.png"), question.instruction)
    page.wait_for_selector(FOUND, timeout=30000)
    open_tab(page, "Zoom in")
    page.click("#ask-zoom")
    ready(page, "#zoom-view")
    assert (
        "zoomed in" in page.inner_text("#zoom-view")
        and page.locator("#zoom-view coprs-view").count() == 2
    )
    page.locator("#probes").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    shoot(page, "zoom")


def test_download_and_reopen(page, browser, server, tmp_path, shoot):
    ask_example(page)
    iou = page.inner_text("#view .iou")
    open_tab(page, "Take away")
    page.click("#download")
    page.wait_for_selector("#zipped a", timeout=30000)
    with page.expect_download() as downloading:
        page.locator("#zipped a").first.click()
    downloading.value.save_as(tmp_path / "answer.zip")
    saved = open_answer(tmp_path / "answer.zip")
    assert f"{saved.result.prior_iou:.2f}" == iou
    other = browser.new_page(viewport={"width": 1280, "height": 800})
    other.goto(server[0])
    other.wait_for_selector("#find")
    other.wait_for_timeout(800)
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
    other.evaluate("window.scrollTo(0, 0)")
    shoot(other, "reopened")
    other.close()


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
    ready(page)
    assert page.locator("#view .badge").all_inner_texts() == ["1", "2"]
    assert "coordinates" in page.inner_text("#view .prior-figure figcaption")
    page.evaluate("window.scrollTo(0, 0)")
    shoot(page, "several-regions")
    page.get_by_role("checkbox", name="cut-out").check()
    for button, mask in (
        ("1 thing 0", masks[0]),
        ("2 thing 1", masks[1]),
        ("all", masks[0] | masks[1]),
    ):
        page.get_by_role("button", name=button, exact=True).click()
        page.wait_for_timeout(300)
        assert np.array_equal(drawn(page, "#view canvas.mask")[..., 3] > 0, mask), button


# --- models


def test_the_table_of_models_opens_and_a_wrong_name_is_one_sentence(page, shoot):
    open_tab(page, "Models")
    page.wait_for_selector("table.models")
    assert page.locator("table.models tbody tr").count() == len(NAMES)
    page.locator("#model input").fill("no/where/at/all")
    page.locator("#model input").press("Enter")
    page.get_by_role("button", name="Use this model").click()
    page.wait_for_selector(".loading.failed")
    assert "There is no checkpoint" in page.locator(".loading.failed").inner_text()
    page.wait_for_function("document.querySelector('.model-line').innerText.includes('mini')")
    page.locator("#probes").scroll_into_view_if_needed()
    shoot(page, "models")


def test_a_phone_holds_every_tab_and_goes_to_the_thought(browser, server):
    page = browser.new_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.goto(server[0])
    page.wait_for_timeout(1500)
    ask_example(page)
    page.wait_for_timeout(800)
    assert (
        -50 < page.locator("#thought").bounding_box()["y"] < 400
    )  # not below the fold, where the example was
    page.click("#ask-sentences")
    ready(page, "#sentences-view")
    for name in ("Another thought", "Ground truth", "Take away", "Models"):
        page.locator("#probes .overflow-menu button").first.click()
        page.locator("#probes .overflow-dropdown").get_by_text(name, exact=True).click()
        page.wait_for_timeout(900)
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
    page.goto(server[0])
    page.wait_for_selector("#find")
    page.wait_for_timeout(2000)
    assert 0 < sum(sizes.values()) < 1.5e6, sizes
    page.close()
