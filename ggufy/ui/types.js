// Body of gradio's js_on_load for the table of quant types. `value` is the list of names that goes to the server:
// what the visitor wants, less what cannot be made without an imatrix when there is none. What is chosen stands beside
// Start too.
const MOST_SHOWN = 12;
let wanted = [...props.value];
let imatrix = true;
let memory = 0; // bytes that the visitor said to have, until something else is chosen
let format = "";
let unfolded = false;
let at = ""; // the box that Tab comes to; arrow keys go on from there
let focused = false;
const chosen = {}; // format -> what was wanted of it before another one was chosen, or the page was loaded again
const { output, types } = window.ggufy.kept;
if (Array.isArray(types)) chosen[output] = types;

const boxes = () => [...element.querySelectorAll("input[type=checkbox]")];
const preset = (name) => boxes().filter((box) => name === "all" || box.hasAttribute(`data-${name}`)); // none: no box
const namesOf = (boxes) => boxes.map((box) => box.value);
// As which_one in core/metrics.py, of files that are not measured.
const largestWithin = () => {
  const fitting = boxes().filter((box) => !box.disabled && Number(box.dataset.memory) <= memory);
  const kinds = ["recommended", "ordinary"].map((kind) => fitting.filter((box) => box.hasAttribute(`data-${kind}`)));
  const [first] = (kinds[0].length ? kinds[0] : kinds[1]).sort((a, b) => b.dataset.memory - a.dataset.memory);
  return first ? [first.value] : [];
};

// One stop of Tab for all boxes: arrow keys, Home and End go from one to the next that can be seen.
const reached = () => boxes().filter((box) => !box.disabled && !box.closest("details:not([open])"));
const stopAt = () => {
  const stop = reached().find((box) => box.value === at) ?? reached()[0];
  for (const box of boxes()) box.tabIndex = box === stop ? 0 : -1;
  return stop;
};

const showChosen = (names) => {
  const list = document.querySelector("[data-chosen]");
  if (!list || list.dataset.chosen === names.join()) return;
  list.dataset.chosen = names.join();
  const chips = names.slice(0, MOST_SHOWN).map((name) => {
    const chip = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    chip.className = "gg-chip";
    chip.dataset.type = name;
    chip.ariaLabel = element.querySelector("fieldset").dataset.remove.replace("{name}", name);
    return chip;
  });
  const more = names.length - MOST_SHOWN;
  list.replaceChildren(...chips, ...(more > 0 ? [`+ ${more}`] : []));
};

const show = () => {
  const fieldset = element.querySelector("fieldset");
  const now = fieldset?.dataset.format ?? format;
  if (now !== format) {
    if (format) chosen[format] = wanted;
    wanted = chosen[now] ?? (format ? namesOf(preset("recommended")) : wanted);
  }
  format = now;
  const all = boxes();
  for (const box of all) box.disabled = !imatrix && box.hasAttribute("data-needs-imatrix");
  const known = memory > 0 && all.some((box) => box.dataset.memory);
  if (known) wanted = largestWithin();
  for (const box of all) box.checked = !box.disabled && wanted.includes(box.value);
  const details = element.querySelector("details");
  if (details) details.open = unfolded;
  const stop = stopAt();
  if (focused && document.activeElement === document.body) stop?.focus({ preventScroll: true });
  const names = namesOf(all.filter((box) => box.checked));
  const output = element.querySelector("output");
  if (output) {
    const text = known && !names.length ? output.dataset.none : output.dataset.text;
    output.textContent = text.replace("{count}", names.length).replace("{total}", all.length);
  }
  for (const button of element.querySelectorAll("button[data-preset]")) {
    const its = namesOf(preset(button.dataset.preset).filter((box) => !box.disabled));
    button.ariaPressed = String(its.join() === names.join());
  }
  if (!all.length) return;
  showChosen(names);
  if (names.join() !== props.value.join()) props.value = names;
};
const choose = (names) => {
  wanted = names;
  memory = 0;
  show();
};

element.addEventListener("change", ({ target: { value, checked } }) => {
  choose(checked ? [...wanted, value] : wanted.filter((name) => name !== value));
});
document.addEventListener("click", ({ target }) => {
  const button = target.closest?.("#gg-types [data-preset], [data-chosen] [data-type]");
  if (button?.dataset.type) choose(wanted.filter((name) => name !== button.dataset.type));
  else if (button) choose(namesOf(preset(button.dataset.preset)));
});
element.addEventListener("focusin", ({ target }) => {
  if (!(focused = target.matches("input[type=checkbox]"))) return;
  at = target.value;
  stopAt();
});
element.addEventListener("focusout", ({ target }) => (focused &&= !target.isConnected));
element.addEventListener("keydown", (event) => {
  const seen = reached();
  const last = seen.length - 1;
  const place = seen.indexOf(event.target);
  const next = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: last }[event.key];
  if (place < 0 || next === undefined) return;
  event.preventDefault();
  seen[Math.max(0, Math.min(last, next))].focus();
});
element.addEventListener(
  "toggle",
  ({ target }) => {
    if (!target.isConnected) return;
    unfolded = target.open;
    stopAt();
  },
  true,
);
// Sizes that arrive draw the table anew. A box that was held just then gets no click from the browser, as it is another
// element that is let go.
const boxAt = (event) => event.target.closest("label")?.querySelector("input[type=checkbox]");
let held = null;
element.addEventListener("pointerdown", (event) => (held = boxAt(event)));
element.addEventListener("pointerup", (event) => {
  const box = boxAt(event);
  if (held && box && box !== held && box.value === held.value) box.click();
  held = null;
});
document.addEventListener("ggufy-imatrix", (event) => {
  imatrix = event.detail;
  show();
});
document.addEventListener("input", ({ target }) => {
  if (!target.closest?.("#gg-memory")) return;
  memory = 1e9 * parseFloat(target.value.replace(",", "."));
  show();
});
document.addEventListener("ggufy-chosen", show);
watch("rows", show);
show();
