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
    this.looks = [];
    this.further = [];
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

  // Beside the answer's own looks stand those of its sentences, which are buttons elsewhere on the page.
  look(index) {
    const own = this.data.looks;
    return index < own.length ? own[index] : this.further[index - own.length];
  }

  sentence(index, looks, keep) {
    if (!this.photo) return;
    if (this.further !== looks) this.further = looks;
    const shown = this.data.looks.length + index;
    if (!keep && shown === this.index) return;
    if (keep) this.chosen = shown === this.chosen ? (this.data.start ?? 0) : shown;
    this.show(keep ? this.chosen : shown);
  }

  async show(index) {
    const { width, height } = this.data, kept = this.looks, look = this.look(index);
    this.index = index;
    if (index < this.data.looks.length) this.own = index; // the IoU is of this one, whatever sentence is looked at
    kept[index] ??= {
      prior: look.prior ? red(await pixels(look.prior, width, height)) : null,
      mask: look.mask ? red(await pixels(look.mask, width, height)) : null,
    };
    if (this.index !== index || !this.looks[index]) return;
    if (this.control("look")) this.control("look").value = index;
    for (const button of this.querySelectorAll("[data-look]")) {
      const chosen = Number(button.dataset.look) === index;
      if (button.tagName === "BUTTON") button.setAttribute("aria-pressed", chosen);
      else button.classList.toggle("chosen", chosen);
    }
    if (this.closest("#view")) mark(index - this.data.looks.length);
    this.draw();
    this.dataset.ready = "true";
  }

  schedule() {
    const look = this.number("look", this.index);
    if (look !== this.index) return this.show(look);
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
    const { prior, mask } = this.looks[this.index];
    const threshold = this.number("threshold", 50);
    const [priorCanvas, maskCanvas] = ["prior", "mask"].map((name) => this.querySelector(`canvas.${name}`));
    if (priorCanvas && prior) this.paint(priorCanvas, this.heat(prior, this.number("opacity", 100 * SHARED.opacity) / 100, threshold));
    if (maskCanvas && mask) this.paint(maskCanvas, this.tint(mask));
    const { curve } = this.data.looks[this.own];
    const iou = this.querySelector(".iou");
    if (iou && curve) iou.textContent = curve[threshold].toFixed(2);
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
  // In a comparison: 1 both, 2 only the first, 3 only the second; the first stands out left of the place, the second right.
  tint(mask) {
    const { width, compare } = this.data, place = (this.number("wipe", 100) / 100) * width;
    const cut = this.control("cut")?.checked, out = new Uint8ClampedArray(this.photo);
    for (let i = 0, p = 0; i < mask.length; i++, p += 4) {
      const left = i % width < place;
      const region = mask[i], behind = compare && region === (left ? 3 : 2);
      if (cut) out[p + 3] = region ? 255 : 0;
      else if (left || compare) {
        const tint = TINTS[(region - 1) % TINTS.length];
        const edge = region && !behind && (mask[i - 1] !== region || mask[i + 1] !== region || mask[i - width] !== region || mask[i + width] !== region);
        for (let c = 0; c < 3; c++) out[p + c] = edge ? 255 : region ? out[p + c] + (tint[c] - out[p + c]) * (behind ? 0.2 : SHARED.tint) : out[p + c] * SHARED.dim;
      }
    }
    if (compare) for (let y = 0, x = Math.min(width - 1, Math.floor(place)); y < this.data.height; y++) {
      const p = 4 * (y * width + x);
      out[p] = out[p + 1] = out[p + 2] = 255;
    }
    return out;
  }

  clicked(event) {
    const look = event.target.closest("[data-look]");
    if (look) this.show((this.chosen = Number(look.dataset.look)));
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

// The sentences of a thought, each a button: pointed at or focused it shows where the model looked after it on the answer's
// canvases; pressed it stays, pressed again the answer comes back.
let looksOf = null, parsed = [];
function drive(event, keep) {
  const button = event.target.closest?.("[data-sentence]"), view = document.querySelector("#view coprs-view");
  if (!button || !view) return;
  const { looks } = button.closest("[data-looks]").dataset;
  if (looks !== looksOf) [looksOf, parsed] = [looks, JSON.parse(looks)];
  view.sentence(Number(button.dataset.sentence), parsed, keep);
}
function mark(index) {
  for (const button of document.querySelectorAll("#trace [data-sentence]")) {
    button.setAttribute("aria-pressed", Number(button.dataset.sentence) === index);
  }
}
document.addEventListener("click", (event) => drive(event, true));
document.addEventListener("pointermove", (event) => { // a real move: the strip may come under a pointer that rests
  if (event.pointerType !== "touch" && (event.movementX || event.movementY)) drive(event, false);
});
document.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && drive(event, false));
for (const name of ["pointerout", "focusout"]) document.addEventListener(name, (event) => {
  const view = event.target.closest?.("[data-sentence]") && document.querySelector("#view coprs-view");
  if (view?.photo && view.index !== view.chosen) view.show(view.chosen);
});

// Gradio calls its thumbnails "Thumbnail 1 of 9"; a screen reader should hear what they show.
new MutationObserver(() => {
  for (const button of document.querySelectorAll("#examples .thumbnail-item, #recent .thumbnail-item")) {
    const words = button.querySelector(".caption-label")?.textContent.trim();
    if (words && button.ariaLabel !== words) button.ariaLabel = words;
  }
}).observe(document, { childList: true, subtree: true });

customElements.get("coprs-view") ?? customElements.define("coprs-view", View);
