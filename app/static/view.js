// <coprs-view>: views of one photo, on canvases, without the server. Each look is a prior and a mask; one is shown at a time.
// The server writes the markup (app/views) and gives the pictures as data; here they are drawn and the controls obeyed.

const SHARED = window.COPRS_PICTURES; // colours and strengths of coprs_core.answer.pictures
const COLOURS = Uint8Array.from(atob(SHARED.heatmap), (c) => c.charCodeAt(0)); // 256 × RGB
const STEPS = SHARED.priorSteps; // of the prior, see coprs_core.masks.encode_prior
const TINTS = SHARED.tints; // RGB of each region

function pixels(url, width, height) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => {
      const canvas = Object.assign(document.createElement("canvas"), { width, height });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0, width, height);
      done(context.getImageData(0, 0, width, height).data);
    };
    image.onerror = failed;
    image.src = url;
  });
}

const red = (data) => data && Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]);

class View extends HTMLElement {
  static observedAttributes = ["data-view"]; // the page changes elements in place: new looks come as a new attribute

  constructor() {
    super();
    this.addEventListener("input", () => this.schedule());
    this.addEventListener("click", (event) => this.clicked(event));
    this.addEventListener("pointermove", (event) => event.target.matches("canvas.prior") ? this.read(...this.place(event)) : this.read());
    this.addEventListener("pointerleave", () => this.read());
    this.addEventListener("keydown", (event) => event.target.matches("canvas.prior") && this.step(event));
  }

  attributeChangedCallback() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    if (replaying && this.closest("#view")) endReplay(); // another answer
    this.looks = [];
    this.further = [];
    this.photo = null;
    this.caption = null;
    delete this.dataset.ready;
    requestAnimationFrame(async () => {
      if (turn !== this.turn) return; // when the children are there too
      this.data = JSON.parse(this.dataset.view);
      const { photo, width, height, start } = this.data;
      const seen = await pixels(photo, width, height);
      if (turn !== this.turn) return;
      this.photo = seen;
      this.chosen = start ?? 0;
      await this.show(this.chosen);
    });
  }

  disconnectedCallback() {
    if (replaying) endReplay();
  }

  // Beside the answer's own looks stand those of its sentences and words, which are buttons elsewhere on the page.
  look(index) {
    const own = this.data.looks;
    return index < own.length ? own[index] : this.further[index - own.length];
  }

  // Shows a look that is not the answer's own. `keep`: it stays until it is pressed again.
  drive(index, looks, keep) {
    if (!this.photo || !looks[index]) return;
    const own = this.data.looks.length, shown = own + index;
    if (this.further !== looks) {
      this.further = looks;
      this.looks = this.looks.slice(0, own); // what is still being read goes into the one before
      if (this.chosen >= own) this.chosen = 0;
    } else if (!keep && shown === this.index) return;
    if (keep) this.chosen = shown === this.chosen ? 0 : shown;
    return this.show(keep ? this.chosen : shown);
  }

  back() {
    if (this.photo && this.index !== this.chosen) this.show(this.chosen);
  }

  async show(index) {
    const { width, height } = this.data, kept = this.looks, look = this.look(index);
    this.index = index;
    if (index < this.data.looks.length) this.own = index; // the IoU is of this one, whatever sentence is looked at
    kept[index] ??= {
      prior: look.prior ? red(await pixels(look.prior, width, height)) : null,
      mask: look.mask ? red(await pixels(look.mask, width, height)) : null,
    };
    const far = Object.keys(kept).map(Number).filter((other) => other >= this.data.looks.length && other !== index);
    if (far.length > 12) delete kept[far[0]]; // each is as large as the photo
    if (this.index !== index || kept !== this.looks || !kept[index]) return;
    for (const button of this.querySelectorAll("[data-look]")) {
      button.setAttribute("aria-pressed", Number(button.dataset.look) === index);
    }
    const caption = this.querySelector(".prior-figure figcaption span");
    if (caption) {
      this.caption ??= caption.textContent;
      caption.textContent = index < this.data.looks.length ? this.caption : look.label;
    }
    const isOwn = index < this.data.looks.length; // another look has another mask, and no IoU of its own here
    for (const [name, hidden] of [[".mask-figure figcaption > span:not(.else)", !isOwn && look.mask], [".mask-figure .else", isOwn || !look.mask]])
      for (const span of this.querySelectorAll(name)) span.hidden = Boolean(hidden);
    this.querySelector(".agreement")?.classList.toggle("aside", !isOwn);
    const most = this.querySelector(".scale span:last-of-type");
    if (most) most.textContent = look.most || "1";
    if (this.closest("#view")) mark(look);
    this.draw();
    this.dataset.ready = "true";
  }

  schedule() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.draw();
    });
  }

  number(control, otherwise) {
    return this.control(control) ? Number(this.control(control).value) : otherwise;
  }

  control(name) {
    return this.querySelector(`[data-control="${name}"]`);
  }

  draw() {
    if (!this.photo || !this.looks[this.index]) return;
    const { prior } = this.looks[this.index];
    const shown = this.looks[this.index].mask ? this.index : this.own; // a word has no mask of its own
    const mask = this.looks[shown]?.mask;
    const threshold = this.number("threshold", 50);
    const [priorCanvas, maskCanvas] = ["prior", "mask"].map((name) => this.querySelector(`canvas.${name}`));
    if (priorCanvas && !prior) priorCanvas.getContext("2d").clearRect(0, 0, priorCanvas.width, priorCanvas.height);
    if (priorCanvas && prior) this.paint(priorCanvas, this.heat(prior, this.number("opacity", 100 * SHARED.opacity) / 100, threshold));
    if (maskCanvas && mask) this.paint(maskCanvas, this.tint(mask));
    const { curve } = this.data.looks[this.own];
    const iou = this.querySelector(".iou");
    if (iou && this.data.looks.some((look) => look.curve)) iou.textContent = curve ? curve[threshold].toFixed(2) : "–";
    for (const output of this.querySelectorAll("output[data-of]")) {
      output.textContent = (this.number(output.dataset.of) / 100).toFixed(2);
    }
  }

  paint(canvas, data) {
    const { width, height } = this.data;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  }

  // The heatmap over the photo in dark greys (as coprs_core.answer.pictures.prior_overlay), with the threshold's outline.
  heat(prior, opacity, threshold) {
    const { width } = this.data, least = (threshold * STEPS) / 100, out = new Uint8ClampedArray(this.photo.length);
    for (let i = 0, p = 0; i < prior.length; i++, p += 4) {
      const value = prior[i] / STEPS, colour = 3 * Math.round(value * 255);
      const grey = SHARED.grey * (0.299 * this.photo[p] + 0.587 * this.photo[p + 1] + 0.114 * this.photo[p + 2]);
      const share = opacity * (SHARED.leastHeat + (1 - SHARED.leastHeat) * Math.sqrt(value));
      for (let c = 0; c < 3; c++) out[p + c] = grey + share * (COLOURS[colour + c] - grey);
      out[p + 3] = 255;
      const inside = prior[i] >= least;
      if (inside && (prior[i - 1] < least || prior[i + 1] < least || prior[i - width] < least || prior[i + width] < least))
        out[p] = out[p + 1] = out[p + 2] = 255;
    }
    return out;
  }

  // The mask tinted and outlined left of the slider's place, the photo right of it. Values of `mask`: number of the region.
  // In a comparison: 1 both, 2 only the first, 3 only the second.
  tint(mask) {
    const { width } = this.data, place = (this.number("wipe", 100) / 100) * width;
    const cut = this.control("cut")?.checked, out = new Uint8ClampedArray(this.photo);
    for (let i = 0, p = 0; i < mask.length; i++, p += 4) {
      const left = i % width < place;
      const region = mask[i];
      if (cut) out[p + 3] = region ? 255 : 0;
      else if (left) {
        const tint = TINTS[(region - 1) % TINTS.length];
        const edge = region && (mask[i - 1] !== region || mask[i + 1] !== region || mask[i - width] !== region || mask[i + width] !== region);
        for (let c = 0; c < 3; c++) out[p + c] = edge ? 255 : region ? out[p + c] + (tint[c] - out[p + c]) * SHARED.tint : out[p + c] * SHARED.dim;
      }
    }
    return out;
  }

  clicked(event) {
    const look = event.target.closest("[data-look]");
    if (look) this.show((this.chosen = Number(look.dataset.look)));
    const which = event.target.closest("[data-which]");
    if (which) {
      this.classList.toggle("drawing", which.dataset.which === "draw");
      for (const button of this.querySelectorAll("[data-which]")) button.setAttribute("aria-pressed", button === which);
    }
    const enlarge = event.target.closest("[data-enlarge]");
    if (enlarge) document.fullscreenElement ? document.exitFullscreen() : enlarge.closest("figure").requestFullscreen();
  }

  place(event) {
    const box = event.target.getBoundingClientRect(), { width, height } = this.data;
    return [Math.floor(((event.clientX - box.left) / box.width) * width), Math.floor(((event.clientY - box.top) / box.height) * height)];
  }

  step(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!moves) return;
    event.preventDefault();
    const { width, height } = this.data, stride = event.shiftKey ? 1 : Math.ceil(width / 32);
    this.point ??= [width >> 1, height >> 1];
    this.point = [Math.min(width - 1, Math.max(0, this.point[0] + stride * moves[0])), Math.min(height - 1, Math.max(0, this.point[1] + stride * moves[1]))];
    this.read(...this.point);
  }

  // The prior's value at a place of the canvas, written beside it; pixels are the photo's own.
  read(x, y) {
    const output = this.querySelector(".readout"), prior = this.looks?.[this.index]?.prior;
    if (!output || !prior) return;
    const { width, height, scale } = this.data;
    const known = x >= 0 && x < width && y >= 0 && y < height;
    output.textContent = known ? `${(prior[y * width + x] / STEPS).toFixed(2)} · x ${Math.round(x * scale)}, y ${Math.round(y * scale)}` : "";
    const mark = this.querySelector(".crosshair");
    mark.hidden = !known;
    if (known) Object.assign(mark.style, { left: `${((x + 0.5) / width) * 100}%`, top: `${((y + 0.5) / height) * 100}%` });
  }
}

// The sentences and words of a thought are buttons: pointed at or focused they show where the model looked there, on the answer's
// canvases; pressed it stays, pressed again the answer comes back.
const $ = (selector) => document.querySelector(selector);
const BUTTONS = "#thought [data-sentence], #thought [data-word], #trace [data-sentence]";
const parsed = new Map(); // of an element's data, by name
function data(selector, name) {
  const text = $(selector)?.dataset[name];
  if (text && parsed.get(name)?.text !== text) parsed.set(name, { text, looks: JSON.parse(text) });
  return text ? parsed.get(name).looks : [];
}
const ofSentences = () => data("#trace [data-looks]", "looks");
const ofWords = () => data("#thought [data-words]", "words");

function drive(event, keep) {
  const button = event.target.closest?.(BUTTONS), view = $("#view coprs-view");
  if (!button || !view) return;
  const { sentence, word } = button.dataset;
  view.drive(Number(sentence ?? word), sentence ? ofSentences() : ofWords(), keep);
}

function mark(look) {
  const sentence = ofSentences().indexOf(look), word = ofWords().indexOf(look);
  for (const button of document.querySelectorAll(BUTTONS)) {
    const shown = Number(button.dataset.sentence ?? -1) === sentence && sentence >= 0 || Number(button.dataset.word ?? -1) === word && word >= 0;
    if (button.getAttribute("aria-pressed") !== String(shown)) button.setAttribute("aria-pressed", shown);
  }
}

// What the trace found stands beside each sentence, too.
function annotate() {
  const looks = ofSentences();
  for (const line of document.querySelectorAll("#thought .said li")) {
    const look = looks[line.querySelector("[data-sentence]").dataset.sentence], figure = line.querySelector("small");
    const words = look ? (look.iou?.toFixed(2) ?? "–") : "";
    if (figure.textContent !== words) figure.textContent = words;
    line.style.setProperty("--iou", look?.iou ?? 0);
    line.classList.toggle("moved", Boolean(look?.moved));
    if (look?.settled && !line.classList.contains("rests")) inSight(line);
    line.classList.toggle("rests", Boolean(look?.settled));
  }
}

// The sentence after which the focus rests is in sight, in a thought that is longer than its box.
function inSight(line) {
  const body = line.closest(".body"), below = line.getBoundingClientRect().bottom - body.getBoundingClientRect().bottom;
  if (below > 0) body.scrollTop += below + 2;
  const top = Math.max(body.getBoundingClientRect().top, body.querySelector(".asked").getBoundingClientRect().bottom);
  const covered = top - line.getBoundingClientRect().top;
  if (below <= 0 && covered > 0) body.scrollTop -= covered + 2;
}
// Where other words stand in the question by now, the thought says what it was asked.
function stale() {
  const words = $("#instruction textarea")?.value.trim(), asked = $("#thought .asked")?.dataset.asked.trim();
  $("#thought")?.classList.toggle("stale", Boolean(words && asked && words !== asked));
}
document.addEventListener("input", (event) => event.target.matches?.("#instruction textarea") && stale());

// The replay: sentence after sentence, each with its look, then the answer.
let replaying = null;
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
async function replay() {
  const view = $("#view coprs-view"), looks = ofSentences(), lines = [...document.querySelectorAll("#thought .said li")];
  const run = (replaying = {});
  const rest = [...document.querySelectorAll("#view .fit, #view .agreement, #verdict"), ...lines];
  rest.forEach((one) => one.classList.add("later"));
  for (const [i, line] of lines.entries()) {
    line.classList.remove("later");
    inSight(line);
    const span = line.querySelector("span"), text = span.textContent, words = text.split(" ");
    run.whole = () => text.startsWith(span.textContent) && (span.textContent = text); // unless another thought came meanwhile
    for (let n = 1; n < words.length && run === replaying; n++) {
      span.textContent = words.slice(0, n).join(" ");
      await pause(45);
    }
    if (run !== replaying) break;
    run.whole();
    for (const picture of view.querySelectorAll(".fit")) picture.classList.remove("later");
    view.drive(i, looks, false);
    await pause(1000);
    if (run !== replaying) break;
  }
  if (run === replaying) endReplay();
}
function endReplay() {
  replaying?.whole?.();
  replaying = null;
  for (const one of document.querySelectorAll(".later")) one.classList.remove("later");
  $("#view coprs-view")?.back();
}
function autoplay() {
  const thought = $("#thought [data-autoplay]"), moves = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (!thought || !$("#view coprs-view[data-ready]") || !ofSentences().length) return;
  thought.removeAttribute("data-autoplay");
  if (moves && !document.autoplayed) replay();
  document.autoplayed = true;
}

// A sentence is changed where it stands: Enter focuses again, Esc leaves it as it was.
function edit(line, text, keepsFocus = false) {
  const sentence = line.querySelector(".sentence"), pen = line.querySelector("[data-edit]"), area = document.createElement("textarea");
  if (line.classList.contains("editing") && text === undefined) return line.querySelector("textarea").focus();
  stopEditing();
  line.classList.add("editing");
  area.value = text ?? sentence.querySelector("span").textContent;
  area.maxLength = 8000;
  area.ariaLabel = pen.title;
  area.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") stopEditing();
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send(Number(sentence.dataset.sentence), area.value);
  });
  const grow = () => { area.style.height = 0; area.style.height = `${area.scrollHeight + 5}px`; };
  area.addEventListener("input", grow);
  area.enterKeyHint = "send";
  const button = (name, textContent, label) => Object.assign(document.createElement("button"), { type: "button", className: `edit ${name}`, textContent, ariaLabel: label, title: label });
  line.prepend(area, button("done", "↵", pen.dataset.send), button("leave", "✕", pen.dataset.leave));
  grow();
  if (!keepsFocus) area.focus();
  area.scrollIntoView({ block: "nearest" });
}
function stopEditing() {
  const line = $("#thought .editing");
  if (!line) return;
  const hadFocus = line.contains(document.activeElement);
  for (const part of line.querySelectorAll("textarea, .edit.done, .edit.leave")) part.remove();
  line.classList.remove("editing");
  if (hadFocus) line.querySelector(".edit")?.focus();
}
window.COPRS = {
  edited() {
    stopEditing();
    if (document.activeElement !== document.body) return;
    ($("#thought .changed .edit") ?? $("#thought .edit"))?.focus({ preventScroll: true }); // its field is gone
  },
  toTheThought(asked) { // on a phone; an empty question is refused where it stands
    if (innerWidth >= 900 || (asked && !$("#instruction textarea").value.trim())) return;
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    $("#thought").scrollIntoView({ behavior: isStill ? "auto" : "smooth" });
  },
  rested() {
    for (const button of document.querySelectorAll("[data-ask-words]")) button.ariaBusy = null;
  },
  refused() {
    const area = $("#thought textarea");
    if (area) { area.readOnly = false; area.focus(); }
  },
};
function send(index, value) {
  const line = $(`#thought .said li:nth-child(${index + 1})`), said = line?.querySelector("span"), was = said?.textContent;
  if (!said || was === value.trim()) return stopEditing();
  const area = line.querySelector("textarea");
  if (!area || area.readOnly) return;
  area.readOnly = true; // what was typed stays until there is an answer, or why not
  said.closest("#thought").querySelector(".thought").parentElement.dispatchEvent(new CustomEvent("coprs-edit", { bubbles: true, detail: { index, value, said: was } }));
}

// The drawer of what can be asked further.
function drawer(tab) {
  const probes = $("#probes");
  const isSame = probes.classList.contains("open") && probes.dataset.tab === tab?.id;
  probes.classList.toggle("open", Boolean(tab) && !isSame);
  if (tab) probes.dataset.tab = tab.id;
  else if (probes.contains(document.activeElement)) probes.querySelector("[role=tab].selected")?.focus();
  if (!probes.querySelector(":scope > .close")) {
    probes.append(Object.assign(document.createElement("button"), { className: "close", textContent: "✕", ariaLabel: $(".masthead").dataset.close }));
  }
}
function openTab(id) {
  const tab = $(`#probes button[role=tab][id^="${id}-button"]`);
  if (tab) { tab.click(); return tab.scrollIntoView({ block: "nearest" }); }
}

document.addEventListener("click", (event) => {
  const on = (selector) => event.target.closest(selector);
  const was = replaying;
  if (was) endReplay();
  if (on("[data-replay]")) return was || replay();
  if (on(".edit.done")) return send(Number(on("li").querySelector(".sentence").dataset.sentence), on("li").querySelector("textarea")?.value ?? "");
  if (on(".edit.leave")) return stopEditing();
  if (on("[data-edit]")) return edit(on("li"));
  if (on("[data-repair]")) return repair(on("[data-repair]"), on("[data-repair]").dataset.repair);
  if (on("[data-ask-words]")) {
    const thought = on(".thought");
    if (!thought.querySelector(".words")) on("[data-ask-words]").ariaBusy = "true";
    if (!thought.querySelector(".words")) return thought.parentElement.dispatchEvent(new CustomEvent("coprs-words", { bubbles: true }));
    return on("[data-ask-words]").setAttribute("aria-pressed", thought.classList.toggle("wordwise"));
  }
  if (on("[data-copy]")) return copy(on("[data-copy]"));
  if (on("[data-opens]")) return openTab(on("[data-opens]").dataset.opens);
  if (on("#probes button[role=tab]")) return drawer(on("#probes button[role=tab]"));
  if (on("#probes .close")) return drawer();
  drive(event, true);
});
// Where the browser gives a page no clipboard the link is at least selected.
async function copy(button) {
  const link = button.parentElement.querySelector("a");
  getSelection().selectAllChildren(link);
  await navigator.clipboard.writeText(link.href);
  button.textContent = button.dataset.copy;
}
// An example that fails opens with the sentence at fault ready to be changed.
function repair(button, text) {
  const line = [...document.querySelectorAll("#thought .said li")].find((one) => one.querySelector("span").textContent === button.dataset.said);
  if (!line?.querySelector(".edit")) return false;
  const at = document.activeElement; // somebody may be typing elsewhere when it opens by itself
  edit(line, text, at !== document.body && !at.closest("#examples, #explained"));
  return true;
}
document.addEventListener("keydown", (event) => {
  const isPress = event.key === "Enter" || event.key === " ";
  if (replaying && event.key !== "Tab" && !(isPress && event.target.closest?.("[data-replay]"))) endReplay(); // else its click would begin anew
  if (event.key === "Escape" && $("#probes.open")) drawer();
  const button = (event.key === "Enter" || event.key === " ") && event.target.closest?.('[role="button"][data-sentence]');
  if (button) { event.preventDefault(); button.click(); }
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key], here = step && event.target.closest?.(BUTTONS);
  if (!here) return;
  const all = [...here.closest(".said, .words, .trace, .thought").querySelectorAll("[data-sentence], [data-word]")];
  event.preventDefault();
  all[all.indexOf(here) + step]?.focus();
});
document.addEventListener("pointermove", (event) => { // a real move: the strip may come under a pointer that rests
  if (!replaying && event.pointerType !== "touch" && (event.movementX || event.movementY)) drive(event, false);
});
document.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && drive(event, false));
for (const name of ["pointerout", "focusout"]) document.addEventListener(name, (event) => {
  if (!replaying && event.target.closest?.(BUTTONS)) $("#view coprs-view")?.back();
});

// Gradio calls its thumbnails "Thumbnail 1 of 9"; a screen reader should hear what they show.
new MutationObserver(() => {
  for (const button of document.querySelectorAll("#examples .thumbnail-item, #recent .thumbnail-item")) {
    const words = button.querySelector(".caption-label")?.textContent.trim();
    if (words && button.ariaLabel !== words) button.ariaLabel = words;
  }
  if (!document.fullscreenEnabled) for (const button of document.querySelectorAll("[data-enlarge]")) button.hidden = true; // a telephone of Apple's
  const mends = $("#explained [data-repair]");
  if (mends) mends.hidden = ![...document.querySelectorAll("#thought .said li:has(.edit) .sentence span")].some((one) => one.textContent === mends.dataset.said);
  for (const link of document.querySelectorAll(".link a")) if (link.textContent !== link.href) link.textContent = link.href;
  if (mends && !mends.isOpened && !matchMedia("(pointer: coarse)").matches) mends.isOpened = repair(mends);
  annotate();
  stale();
  autoplay();
}).observe(document, { childList: true, subtree: true, attributeFilter: ["data-looks", "data-ready"] });
annotate();
for (const link of document.querySelectorAll(".standalone [data-opens]")) link.inert = true; // there are no tabs

customElements.get("coprs-view") ?? customElements.define("coprs-view", View);
