// Body of gradio's js_on_load for the panel under the source: its buttons report what was picked, and when a visitor
// has stopped typing for a moment, or presses Enter, what was typed is looked at, once.
const PAUSE_MS = 250;
const asks = { "gg-source": "look", "gg-vocab": "look", "gg-targets": "price" }; // field -> event
const waiting = new Map(); // event -> timer

const askedBy = (target) => asks[target.closest?.(Object.keys(asks).map((id) => `#${id}`).join())?.id];
const ask = (what, pause) => {
  clearTimeout(waiting.get(what));
  waiting.set(what, setTimeout(() => trigger(what), pause));
};
document.addEventListener("input", ({ target }) => {
  const what = askedBy(target);
  if (what) ask(what, PAUSE_MS);
});
document.addEventListener("keydown", (event) => {
  const what = event.key === "Enter" && !event.isComposing && askedBy(event.target);
  if (what) ask(what, 0);
});
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button?.dataset.action === "start-ticked") {
    const sources = [...element.querySelectorAll("input:checked")].map((tick) => tick.value);
    if (sources.length) trigger("several", { sources });
  } else if (button) trigger("click", { action: button.dataset.action, job: button.dataset.job || "" });
});
