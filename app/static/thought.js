// A thought as the control panel: its sentences and words show their looks, it is replayed, its sentences are changed.

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
    const number = (name) => Number(button.dataset[name] ?? -1);
    const shown = (number("sentence") === sentence && sentence >= 0) || (number("word") === word && word >= 0);
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
  const sentence = line.querySelector(".sentence"), pen = line.querySelector("[data-edit]");
  const area = document.createElement("textarea");
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
  const button = (name, textContent, label) => Object.assign(
    document.createElement("button"),
    { type: "button", className: `edit ${name}`, textContent, ariaLabel: label, title: label },
  );
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
function send(index, value) {
  const line = $(`#thought .said li:nth-child(${index + 1})`), said = line?.querySelector("span"), was = said?.textContent;
  if (!said || was === value.trim()) return stopEditing();
  const area = line.querySelector("textarea");
  if (!area || area.readOnly) return;
  area.readOnly = true; // what was typed stays until there is an answer, or why not
  const edited = new CustomEvent("coprs-edit", { bubbles: true, detail: { index, value, said: was } });
  said.closest("#thought").querySelector(".thought").parentElement.dispatchEvent(edited);
}

// An example that fails opens with the sentence at fault ready to be changed.
function repair(button, text) {
  const lines = [...document.querySelectorAll("#thought .said li")];
  const line = lines.find((one) => one.querySelector("span").textContent === button.dataset.said);
  if (!line?.querySelector(".edit")) return false;
  const at = document.activeElement; // somebody may be typing elsewhere when it opens by itself
  edit(line, text, at !== document.body && !at.closest("#examples, #explained"));
  return true;
}
