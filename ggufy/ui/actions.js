// Body of gradio's js_on_load for what has buttons and nothing else to remember: they report what they are for.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button) trigger("click", { action: button.dataset.action, job: button.dataset.job || "" });
});
