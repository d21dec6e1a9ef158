// Body of gradio's js_on_load for the banner and the jobs: buttons report what they are for, and what the visitor
// opened, closed or focused stays so while gradio draws the part again, even when it moves down the list.
const chosen = new Map(); // details -> open, once the visitor has decided
let focused = null;
let followed = null; // the running step that the list was last scrolled to

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
  const active = document.activeElement;
  if (focused && element.contains(active) && active.dataset.key !== focused) {
    [...element.querySelectorAll("[data-key]")].find((part) => part.dataset.key === focused)?.focus();
  }
};

element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button) trigger("click", { action: button.dataset.action, job: button.dataset.job || "" });
  const details = event.target.closest("summary")?.parentElement;
  if (details) chosen.set(details.dataset.details, !details.open); // a click comes before the change that it makes
});
element.addEventListener("focusin", (event) => (focused = event.target.dataset.key || null));
watch("value", settle);
settle();
