// Body of gradio's js_on_load for the table of quant types. `value` is the list of names that goes to the server:
// what the visitor wants, less what cannot be made without an imatrix when there is none.
let wanted = [...props.value];
let imatrix = true;
let format = "";
const chosen = {}; // format -> what was wanted of it before another one was chosen

const show = () => {
  const now = element.querySelector("fieldset")?.dataset.format ?? format;
  if (format && now !== format) {
    chosen[format] = wanted;
    wanted = chosen[now] ?? [...element.querySelectorAll("input[data-recommended]")].map((box) => box.value);
  }
  format = now;
  const boxes = [...element.querySelectorAll("input[type=checkbox]")];
  for (const box of boxes) {
    box.disabled = !imatrix && box.hasAttribute("data-needs-imatrix");
    box.checked = !box.disabled && wanted.includes(box.value);
  }
  const names = boxes.filter((box) => box.checked).map((box) => box.value);
  const output = element.querySelector("output");
  if (output) {
    output.textContent = output.dataset.text.replace("{count}", names.length).replace("{total}", output.dataset.total);
  }
  if (boxes.length && names.join() !== props.value.join()) props.value = names;
};

element.addEventListener("change", (event) => {
  const { value, checked } = event.target;
  wanted = checked ? [...wanted, value] : wanted.filter((name) => name !== value);
  show();
});
element.addEventListener("click", (event) => {
  const preset = event.target.closest("button[data-preset]")?.dataset.preset;
  if (!preset) return;
  const selector = preset === "all" ? "input" : `input[data-${preset}]`; // nothing has data-none
  wanted = [...element.querySelectorAll(selector)].map((box) => box.value);
  show();
});
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
watch("rows", show);
show();
