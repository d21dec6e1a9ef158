// Body of gradio's js_on_load for the banner and the jobs: buttons report what they are for, and what the visitor
// opened, closed, focused or moved stays so while gradio draws the part again, even when it moves down the list.
const chosen = new Map(); // details -> open, once the visitor has decided
let focused = null;
let followed = null; // the running step that the list was last scrolled to
const places = new Map(); // job -> where its slider over sizes stands, once the visitor has moved it
let held = null; // the job whose slider is being dragged

const panelOf = (job) => [...element.querySelectorAll("[data-sizes]")].find((panel) => panel.dataset.sizes === job);
const chosenRow = (panel) => JSON.parse(panel.dataset.rows)[Number(panel.querySelector("input").value)];
const showSize = (panel) => {
  const slider = panel.querySelector("input");
  if (places.has(panel.dataset.sizes)) slider.value = places.get(panel.dataset.sizes);
  const row = chosenRow(panel);
  for (const output of panel.querySelectorAll("output")) output.textContent = row[output.dataset.figure];
  const dot = panel.querySelector(".gg-curve-dot");
  dot.style.left = `${row.left}%`;
  dot.style.top = `${row.top}%`;
  const spoken = panel.dataset.spoken.replace("{size}", row.text).replace("{bpw}", row.bpw).replace("{kld}", row.kld);
  slider.setAttribute("aria-valuetext", spoken);
};

const settle = () => {
  for (const details of element.querySelectorAll("details[data-details]")) {
    const key = details.dataset.details;
    details.open = chosen.has(key) ? chosen.get(key) : details.hasAttribute("data-open");
  }
  const step = element.querySelector(".gg-step-running");
  if (step && step.dataset.step !== followed) {
    const list = step.parentElement;
    list.scrollTop += step.getBoundingClientRect().top - list.getBoundingClientRect().top - list.clientHeight / 2;
    followed = step.dataset.step;
  }
  element.querySelectorAll("[data-sizes]").forEach(showSize);
  const active = document.activeElement;
  if (focused && element.contains(active) && active.dataset.key !== focused) {
    [...element.querySelectorAll("[data-key]")].find((part) => part.dataset.key === focused)?.focus();
  }
};

element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button) {
    const panel = button.closest("[data-sizes]");
    const size = panel ? String(chosenRow(panel).size) : "";
    trigger("click", { action: button.dataset.action, job: button.dataset.job || "", size });
  }
  const details = event.target.closest("summary")?.parentElement;
  if (details) chosen.set(details.dataset.details, !details.open); // a click comes before the change that it makes
});
element.addEventListener("focusin", (event) => (focused = event.target.dataset.key || null));
element.addEventListener("input", (event) => {
  const panel = event.target.closest("[data-sizes]");
  if (!panel) return;
  places.set(panel.dataset.sizes, event.target.value);
  showSize(panel);
});
// When the part is drawn again the browser forgets that the slider is held: from there on it is moved here.
element.addEventListener("pointerdown", (event) => {
  held = event.target.type === "range" ? (event.target.closest("[data-sizes]")?.dataset.sizes ?? null) : null;
});
for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => (held = null));
window.addEventListener("pointermove", (event) => {
  const panel = held && panelOf(held);
  if (!panel) return;
  const slider = panel.querySelector("input");
  const box = slider.getBoundingClientRect();
  const part = Math.min(1, Math.max(0, (event.clientX - box.left - 8) / (box.width - 16)));
  places.set(held, Math.round(part * slider.max));
  showSize(panel);
});
watch("value", settle);
settle();
