// <coprs-view>: views of one photo, on canvases, without the server. Each look is a prior and a mask; one is shown at a time.
// The server writes the markup (app/views) and gives the pictures as data; here they are drawn and the controls obeyed.
// view.js, thought.js and page.js are one module, joined in this order by app/views/standalone.py: there is no build step,
// and a saved page holds them as they are.

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
    this.addEventListener("pointermove", (event) =>
      event.target.matches("canvas.prior") ? this.read(...this.place(event)) : this.read());
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
    const hides = [
      [".mask-figure figcaption > span:not(.else)", !isOwn && look.mask],
      [".mask-figure .else", isOwn || !look.mask],
    ];
    for (const [name, hidden] of hides)
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
    const opacity = this.number("opacity", 100 * SHARED.opacity) / 100;
    if (priorCanvas && prior) this.paint(priorCanvas, this.heat(prior, opacity, threshold));
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
        const edge = region && (mask[i - 1] !== region || mask[i + 1] !== region
          || mask[i - width] !== region || mask[i + width] !== region);
        for (let c = 0; c < 3; c++) {
          const seen = out[p + c];
          out[p + c] = edge ? 255 : region ? seen + (tint[c] - seen) * SHARED.tint : seen * SHARED.dim;
        }
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
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [Math.floor(x * width), Math.floor(y * height)];
  }

  step(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!moves) return;
    event.preventDefault();
    const { width, height } = this.data, stride = event.shiftKey ? 1 : Math.ceil(width / 32);
    this.point ??= [width >> 1, height >> 1];
    const within = (place, size) => Math.min(size - 1, Math.max(0, place));
    const [x, y] = this.point;
    this.point = [within(x + stride * moves[0], width), within(y + stride * moves[1], height)];
    this.read(...this.point);
  }

  // The prior's value at a place of the canvas, written beside it; pixels are the photo's own.
  read(x, y) {
    const output = this.querySelector(".readout"), prior = this.looks?.[this.index]?.prior;
    if (!output || !prior) return;
    const { width, height, scale } = this.data;
    const known = x >= 0 && x < width && y >= 0 && y < height;
    const value = () => (prior[y * width + x] / STEPS).toFixed(2);
    output.textContent = known ? `${value()} · x ${Math.round(x * scale)}, y ${Math.round(y * scale)}` : "";
    const mark = this.querySelector(".crosshair");
    mark.hidden = !known;
    if (known) Object.assign(mark.style, { left: `${((x + 0.5) / width) * 100}%`, top: `${((y + 0.5) / height) * 100}%` });
  }
}
