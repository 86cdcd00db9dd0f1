// The page around an answer: the drawer of tabs, presses and keys, and what is put right after Gradio changed something.

// What the server's events call (app/ui.py).
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

// The drawer of what can be asked further.
function drawer(tab) {
  const probes = $("#probes");
  const isSame = probes.classList.contains("open") && probes.dataset.tab === tab?.id;
  probes.classList.toggle("open", Boolean(tab) && !isSame);
  if (tab) probes.dataset.tab = tab.id;
  else if (probes.contains(document.activeElement)) probes.querySelector("[role=tab].selected")?.focus();
  if (!probes.querySelector(":scope > .close")) {
    const close = { className: "close", textContent: "✕", ariaLabel: $(".masthead").dataset.close };
    probes.append(Object.assign(document.createElement("button"), close));
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
  if (on(".edit.done")) {
    const line = on("li");
    return send(Number(line.querySelector(".sentence").dataset.sentence), line.querySelector("textarea")?.value ?? "");
  }
  if (on(".edit.leave")) return stopEditing();
  if (on("[data-edit]")) return edit(on("li"));
  if (on("[data-repair]")) return repair(on("[data-repair]"), on("[data-repair]").dataset.repair);
  if (on("[data-ask-words]")) {
    const thought = on(".thought");
    if (!thought.querySelector(".words")) {
      on("[data-ask-words]").ariaBusy = "true";
      return thought.parentElement.dispatchEvent(new CustomEvent("coprs-words", { bubbles: true }));
    }
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
document.addEventListener("keydown", (event) => {
  const isPress = event.key === "Enter" || event.key === " ";
  const isOnReplay = isPress && event.target.closest?.("[data-replay]"); // its click would begin anew
  if (replaying && event.key !== "Tab" && !isOnReplay) endReplay();
  if (event.key === "Escape" && $("#probes.open")) drawer();
  const button = isPress && event.target.closest?.('[role="button"][data-sentence]');
  if (button) { event.preventDefault(); button.click(); }
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  const here = step && event.target.closest?.(BUTTONS);
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
  if (!document.fullscreenEnabled) // a telephone of Apple's
    for (const button of document.querySelectorAll("[data-enlarge]")) button.hidden = true;
  const mends = $("#explained [data-repair]");
  const sentences = [...document.querySelectorAll("#thought .said li:has(.edit) .sentence span")];
  if (mends) mends.hidden = !sentences.some((one) => one.textContent === mends.dataset.said);
  for (const link of document.querySelectorAll(".link a")) if (link.textContent !== link.href) link.textContent = link.href;
  if (mends && !mends.isOpened && !matchMedia("(pointer: coarse)").matches) mends.isOpened = repair(mends);
  annotate();
  stale();
  autoplay();
}).observe(document, { childList: true, subtree: true, attributeFilter: ["data-looks", "data-ready"] });
annotate();
for (const link of document.querySelectorAll(".standalone [data-opens]")) link.inert = true; // there are no tabs

// Last: elements that are there already begin at once, and use all of the above.
customElements.get("coprs-view") ?? customElements.define("coprs-view", View);
