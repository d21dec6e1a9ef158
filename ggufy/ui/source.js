// Body of gradio's js_on_load for the panel under the source: its buttons report what was picked, and when a visitor
// has stopped typing for a moment, or presses Enter, what was typed is looked at, once. Of several models, it reports
// which are ticked. What stands here of another source than the form's is stale, and Start waits meanwhile.
const PAUSE_MS = 250;
const asks = { "gg-source": "look", "gg-vocab": "look", "gg-targets": "price" }; // field -> event
const waiting = new Map(); // event -> timer

// The text that the panel speaks of has gone through the server and HTML: blanks may differ.
const bare = (text) => text?.replace(/[\s\x00-\x1f\x85]/g, "");
const settled = () => {
  const typed = document.querySelector("#gg-source :is(input, textarea)")?.value;
  const about = element.querySelector("[data-about]:not(:has(.gg-busy))")?.dataset.about;
  const now = bare(about) === bare(typed);
  document.getElementById("gg-form")?.classList.toggle("gg-stale", !now);
  document.getElementById("gg-start")?.setAttribute("aria-disabled", !now);
  return now;
};
document.addEventListener(
  "click",
  (event) => {
    const start = event.target.closest?.("#gg-start, [data-action=start-ticked]");
    if (start && !settled()) event.stopImmediatePropagation();
  },
  true,
);

// Requests and answers may overtake each other on their way, and gradio puts texts into the box without an event: what
// still speaks of another source is asked for again, and so is what has been under way for long, or a hub that is away.
// Each time waits longer.
let [since, typedThen, again] = [Date.now(), "", 0];
setInterval(() => {
  const typed = document.querySelector("#gg-source :is(input, textarea)")?.value;
  const done = settled() && !element.querySelector("[data-again]");
  if (done || typed !== typedThen) [since, typedThen, again] = [Date.now(), typed, 0];
  const patience = (element.querySelector(".gg-busy, [data-again]") ? 15_000 : 2000) * 2 ** Math.min(again, 4);
  if (Date.now() - since < patience) return;
  [since, again] = [Date.now(), again + 1];
  trigger("look");
}, 300);

const askedBy = (target) => asks[target.closest?.(Object.keys(asks).map((id) => `#${id}`).join())?.id];
const ask = (what, pause) => {
  clearTimeout(waiting.get(what));
  waiting.set(what, setTimeout(() => trigger(what), pause));
};
document.addEventListener("input", ({ target }) => {
  const what = askedBy(target);
  if (what) ask(what, PAUSE_MS);
  if (what) settled();
});
document.addEventListener("keydown", (event) => {
  const what = event.key === "Enter" && !event.isComposing && askedBy(event.target);
  if (what) ask(what, 0);
});

// The panel is drawn again when an option changes: what was ticked stays.
const ticks = new Map(); // source -> whether it was ticked
element.addEventListener("change", ({ target }) => ticks.set(target.value, target.checked));
new MutationObserver(() => {
  for (const tick of element.querySelectorAll("input")) tick.checked = ticks.get(tick.value) ?? tick.checked;
  settled();
}).observe(element, { childList: true, subtree: true });
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button?.dataset.action === "start-ticked") {
    const sources = [...element.querySelectorAll("input:checked")].map((tick) => tick.value);
    if (sources.length) trigger("several", { sources });
  } else if (button) trigger("click", { action: button.dataset.action, job: button.dataset.job || "" });
});
